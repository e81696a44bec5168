-- KEYS: the owner's leases. ARGV: owner, what the names of leases begin with.
local released = 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local lease = ARGV[2] .. name
  local held = redis.call('GET', lease)
  if held and string.match(held, '^%d+ %x+ (.*)$') == ARGV[1] then
    redis.call('DEL', lease)
    released = released + 1
  end
end
redis.call('DEL', KEYS[1])
return released
