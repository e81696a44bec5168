-- ARGV: an envelope. Drops the entry if it still holds it. No removal: nothing is fenced.
local found = redis.pcall('GET', e)
if type(found) == 'string' and #found >= 39
  and string.sub(found, 40 + struct.unpack('>I2', found, 38)) == ARGV[5] then
  return redis.call('DEL', e)
end
return 0
