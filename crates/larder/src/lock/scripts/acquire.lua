-- KEYS: lease, counter, the owner's leases. ARGV: id, owner, ttl in ms, name.
-- A lease is "<token> <id> <owner>".
local held = redis.call('GET', KEYS[1])
if held then
  local token, id = string.match(held, '^(%d+) (%x+) ')
  if id ~= ARGV[1] then return { 0, redis.call('PTTL', KEYS[1]) } end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return { 1, token }
end
-- At least the server's time in microseconds: so it grows even when the counter was lost.
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if token <= last then token = last + 1 end
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[3], ARGV[4])
if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
return { 1, token }
