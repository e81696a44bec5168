-- ARGV: the ticket's position, the stripe, milliseconds to keep it ('' for ever, '0' not at all), the stamp in
-- hex, and the entry without its position: kind 1, incarnation 8, stamp 12, gone at 8, bytes of tags 2, tags,
-- envelope.
local began, stripe, keep, rest = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[9]
local is_set = string.byte(rest) == 115
local fences = redis.call('HMGET', m, 'r' .. stripe, 's' .. stripe, 'c', 'f', 'mp', 'ls')
local is_removed = string.sub(rest, 2, 9) ~= inc or tonumber(fences[1] or 0) > began
  or tonumber(fences[3] or 0) > began or tonumber(fences[4] or 0) > began
local is_set_since = tonumber(fences[2] or 0) > began
local tags_bytes = struct.unpack('>I2', rest, 30)
local needs_markers = tags_bytes > 0 and tonumber(fences[5] or 0) > began

local function store()
  local entry = struct.pack('>I8', tonumber(pos)) .. rest
  if keep == '' then
    redis.call('SET', e, entry)
  elseif keep == '0' then
    redis.call('DEL', e)
  else
    redis.call('SET', e, entry, 'PX', keep)
  end
  return 'S'
end

-- Most loads end here: making the functions below takes as long as all of the above.
if not is_set then
  if is_removed or is_set_since then return 'F' end
  if not needs_markers then return store() end
end
--:functions

local s1, s2, s3 = struct.unpack('>I4I4I4', rest, 10)
local function is_before(a1, a2, a3, b1, b2, b3)
  if a1 ~= b1 then return a1 < b1 end
  if a2 ~= b2 then return a2 < b2 end
  return a3 < b3
end

-- Stamps before fences: a refused set acts as a removal, which a later set doesn't deserve.
local rival = is_set and valid_head()
if rival and string.sub(rival, 9, 9) ~= 's' then rival = nil end
if rival then
  local r1, r2, r3 = struct.unpack('>I4I4I4', rival, 18)
  if not is_before(r1, r2, r3, s1, s2, s3) then return { 'O', string.sub(rival, 18, 29) } end
end

if is_removed or (is_set_since and not rival)
  or (needs_markers and marked_after(string.sub(rest, 32, 31 + tags_bytes), began)) then
  if is_set then
    -- First: a full server lets a script go on that has written what needs no memory.
    redis.call('DEL', e)
    advance()
    redis.call('HSET', m, 'r' .. stripe, pos)
    log('r', entry_name(), '')
  end
  return 'F'
end
if is_set then
  advance()
  redis.call('HSET', m, 's' .. stripe, pos)
  if not is_distrusted(s1, s2) then
    local last = fences[6]
    local is_last = true
    if last then
      local l1, l2, l3 = struct.unpack('>I4I4I4', last)
      is_last = is_before(l1, l2, l3, s1, s2, s3)
    end
    if is_last then redis.call('HSET', m, 'ls', string.sub(rest, 10, 21)) end
  end
  log('s', entry_name(), ARGV[8])
end
return store()
