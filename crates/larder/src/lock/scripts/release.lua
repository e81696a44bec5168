-- KEYS: lease, the owner's leases. ARGV: id, name.
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%d+ (%x+) ') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[2])
return 1
