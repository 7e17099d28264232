-- Sets tokens aside for a generation, if that is within the user's limit. A day is one in UTC; the account of another day is
-- forgotten.
-- KEYS: the user's account. ARGV: stream id, tokens, how many of them are the prompt's, the limit.
-- Returns whether they are, what is spent and set aside then, the day, and the seconds that it still has.
local now = tonumber(redis.call('TIME')[1])
local day = string.format('%d', math.floor(now / 86400))
local left = 86400 - now % 86400
if redis.call('HGET', KEYS[1], 'day') ~= day then
  redis.call('DEL', KEYS[1])
end
local taken = tonumber(redis.call('HGET', KEYS[1], 'taken') or '0')
-- Once: the answer may have been lost.
if redis.call('HEXISTS', KEYS[1], 'for:' .. ARGV[1]) == 1 then
  return {1, taken, tonumber(day), left}
end
if taken + ARGV[2] > tonumber(ARGV[4]) then
  return {0, taken, tonumber(day), left}
end
redis.call('HSET', KEYS[1], 'day', day, 'for:' .. ARGV[1], ARGV[2] .. ':' .. ARGV[3])
taken = redis.call('HINCRBY', KEYS[1], 'taken', ARGV[2])
redis.call('EXPIRE', KEYS[1], left)
return {1, taken, tonumber(day), left}
