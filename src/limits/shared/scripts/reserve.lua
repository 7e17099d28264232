-- Sets tokens aside for an attempt, if that is within the user's limit. A day is one in UTC; the account of another day is
-- forgotten.
-- KEYS: the user's account. ARGV: the attempt, tokens, how many of them are the prompt's, the limit, what the relay knows to be
-- spent and set aside, and the day of that: where Redis has lost the account, that is what is left of it.
-- Returns whether they are, what is spent and set aside then, the day, and the seconds that it still has.
local now = tonumber(redis.call('TIME')[1])
local day = string.format('%d', math.floor(now / 86400))
local left = 86400 - now % 86400
local day_of_account = redis.call('HGET', KEYS[1], 'day')
if day_of_account ~= day then
  redis.call('DEL', KEYS[1])
end
local is_lost = not day_of_account and ARGV[6] == day
local taken = tonumber(redis.call('HGET', KEYS[1], 'taken') or is_lost and ARGV[5] or '0')
-- Too late: nobody has waited for the answer, and what it came to is counted.
if redis.call('HEXISTS', KEYS[1], 'told:' .. ARGV[1]) == 1 then
  return {1, taken, tonumber(day), left}
end
-- Whoever asks again asks for so much instead.
local before = redis.call('HGET', KEYS[1], 'for:' .. ARGV[1])
local with = taken + ARGV[2] - (before and string.match(before, '^%d+') or 0)
if with > tonumber(ARGV[4]) then
  return {0, taken, tonumber(day), left}
end
redis.call('HSET', KEYS[1], 'day', day, 'taken', string.format('%d', with), 'for:' .. ARGV[1], ARGV[2] .. ':' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], left)
return {1, with, tonumber(day), left}
