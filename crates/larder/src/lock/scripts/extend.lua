-- KEYS: lease, the owner's leases. ARGV: id, ttl in ms, name.
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%d+ (%x+) ') ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return 1
