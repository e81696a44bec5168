-- KEYS: meta, entry, log, of one slot. ARGV: the server's run, a fresh incarnation, origin, the caller's
-- clock in milliseconds as 8 bytes; then what the script takes. 64-bit numbers that may exceed 2^53 stay bytes:
-- Lua's numbers are doubles.
local m, e, l = KEYS[1], KEYS[2], KEYS[3]
local origin = ARGV[3]
local now_hi, now_lo = struct.unpack('>I4I4', ARGV[4])
local known = redis.call('HMGET', m, 'run', 'inc', 'pos')
local inc, pos = known[2], known[3]
if known[1] ~= ARGV[1] or not inc or not pos then
  -- Restarted, evicted or flushed: it may have forgotten a removal, so everything of before is invalid.
  redis.call('DEL', m, l)
  inc, pos = ARGV[2], '1'
  redis.call('HSET', m, 'run', ARGV[1], 'inc', inc, 'pos', pos)
end
