-- Puts of loads, many at once: calling a script takes longer than most of what it does. KEYS from the fourth on:
-- the entries. ARGV: for each the ticket's position, the stripe, milliseconds to keep it ('' for ever, '0' not at
-- all) and the entry without its position. A letter for each: (S)tored, (F)enced, or ? for what markers of tags
-- may refuse, which takes a script of its own.
local count = #KEYS - 3
local fields = { 'c', 'f', 'mp' }
for i = 1, count do
  local stripe = ARGV[4 * i + 2]
  fields[2 * i + 2], fields[2 * i + 3] = 'r' .. stripe, 's' .. stripe
end
local fences = redis.call('HMGET', m, unpack(fields))
local clear, floor, marked = tonumber(fences[1] or 0), tonumber(fences[2] or 0), tonumber(fences[3] or 0)
local seen = struct.pack('>I8', tonumber(pos))
local outcomes = {}
for i = 1, count do
  local name, began, keep, rest = KEYS[i + 3], tonumber(ARGV[4 * i + 1]), ARGV[4 * i + 3], ARGV[4 * i + 4]
  if string.sub(rest, 2, 9) ~= inc or clear > began or floor > began
    or tonumber(fences[2 * i + 2] or 0) > began or tonumber(fences[2 * i + 3] or 0) > began then
    outcomes[i] = 'F'
  elseif marked > began and struct.unpack('>I2', rest, 30) > 0 then
    outcomes[i] = '?'
  else
    if keep == '' then
      redis.call('SET', name, seen .. rest)
    elseif keep == '0' then
      redis.call('DEL', name)
    else
      redis.call('SET', name, seen .. rest, 'PX', keep)
    end
    outcomes[i] = 'S'
  end
end
return table.concat(outcomes)
