-- ARGV: the stripe.
--:functions
local was_valid = valid_head() and 1 or 0
-- First: a full server lets a script go on that has written what needs no memory, and a removal must pass.
redis.call('DEL', e)
advance()
redis.call('HSET', m, 'r' .. ARGV[5], pos)
log('r', entry_name(), '')
return was_valid
