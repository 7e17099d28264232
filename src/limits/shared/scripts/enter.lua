-- Counts one more running generation, unless there are as many as there may be. Those of relays that are gone do not
-- count: they were not renewed.
-- KEYS: the user's generations, by when they run out. ARGV: the generation, how many there may be, milliseconds until it
-- runs out.
-- Returns whether it counts.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
