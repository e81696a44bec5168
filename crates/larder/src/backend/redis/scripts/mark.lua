-- ARGV: 't' (tag), 'c' (clear), 'f' (floor: refuses older writes, keeps entries) or 'p' (a pattern was removed);
-- the tag or pattern; most markers.
--:functions
local kind, name, most = ARGV[5], ARGV[6], tonumber(ARGV[7])
-- First, and of no effect: a full server lets a script go on that has written what needs no memory.
redis.call('HDEL', m, '-')
advance()

-- The older half goes, and what it would have invalidated is cleared.
local function prune()
  local all = redis.call('HGETALL', m)
  local names, at = {}, {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 1) == 't' then
      names[#names + 1] = all[i]
      at[#at + 1] = tonumber(all[i + 1])
    end
  end
  local sorted = {}
  for i = 1, #at do sorted[i] = at[i] end
  table.sort(sorted)
  local highest = sorted[math.ceil(#sorted / 2)]
  local dropped = 0
  for i = 1, #names do
    if at[i] <= highest then
      redis.call('HDEL', m, names[i])
      dropped = dropped + 1
    end
  end
  redis.call('HINCRBY', m, 'n', -dropped)
  if highest > tonumber(redis.call('HGET', m, 'c') or 0) then redis.call('HSET', m, 'c', highest) end
end

if kind == 't' then
  local is_new = redis.call('HSET', m, 't' .. name, pos) == 1
  redis.call('HSET', m, 'mp', pos)
  if is_new and redis.call('HINCRBY', m, 'n', 1) > most then prune() end
elseif kind == 'c' then
  redis.call('HSET', m, 'c', pos)
elseif kind == 'f' then
  redis.call('HSET', m, 'f', pos)
end
log(kind, name, '')
return { inc, string.format('%.0f', pos) }
