local function advance()
  pos = redis.call('HINCRBY', m, 'pos', 1)
end

-- One record per position; the publication is a hint.
local function log(kind, name, stamp)
  local id = '0-' .. string.format('%.0f', pos)
  local function add()
    return redis.pcall('XADD', l, 'MAXLEN', '~', 10000, id, 'k', kind, 'n', name, 'o', origin, 's', stamp)
  end
  local added = add()
  if type(added) == 'table' and added.err then
    redis.call('DEL', l)
    add()
  end
  redis.pcall('PUBLISH', l, table.concat({ string.format('%.0f', pos), kind, origin, stamp, name }, ' '))
end

local function entry_name()
  return string.sub(e, string.find(e, '}e:', 1, true) + 3)
end

-- Whether one of the tags was removed after a position.
local function marked_after(tags, at_pos)
  local at = 1
  while at < #tags do
    local length = struct.unpack('>I2', tags, at)
    local mark = redis.call('HGET', m, 't' .. string.sub(tags, at + 2, at + 1 + length))
    if mark and tonumber(mark) > at_pos then return true end
    at = at + 2 + length
  end
  return false
end

-- More than a day ahead of the caller's clock.
local function is_distrusted(word1, word2)
  return word1 * 65536 + math.floor(word2 / 65536) > now_hi * 4294967296 + now_lo + 86400000
end

-- The head of the entry, if it is valid.
local function valid_head()
  local head = redis.pcall('GETRANGE', e, 0, 38)
  if type(head) ~= 'string' or #head < 39 or string.sub(head, 10, 17) ~= inc then return nil end
  local seen = struct.unpack('>I8', head)
  local marks = redis.call('HMGET', m, 'c', 'mp')
  if tonumber(marks[1] or 0) > seen then return nil end
  local gone_hi, gone_lo = struct.unpack('>I4I4', head, 30)
  local is_never = gone_hi == 4294967295 and gone_lo == 4294967295
  if not is_never and (gone_hi < now_hi or (gone_hi == now_hi and gone_lo <= now_lo)) then return nil end
  if is_distrusted(struct.unpack('>I4I4', head, 18)) then return nil end
  local tags_bytes = struct.unpack('>I2', head, 38)
  if tags_bytes > 0 and tonumber(marks[2] or 0) > seen
    and marked_after(redis.call('GETRANGE', e, 39, 38 + tags_bytes), seen) then
    return nil
  end
  return head
end
