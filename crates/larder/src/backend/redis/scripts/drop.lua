-- ARGV: the head of an entry. Drops the entry if it still begins so.
if redis.pcall('GETRANGE', e, 0, 38) == ARGV[5] then return redis.call('DEL', e) end
return 0
