-- Counts running generations for longer.
-- KEYS: the user's generations, by when they run out. ARGV: milliseconds until they do, '1' if they are to be counted though
-- they do not yet (Redis was away, and may have lost them), the generations.
local time = redis.call('TIME')
local runs_out = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for i = 3, #ARGV do
  if ARGV[2] == '1' then
    redis.call('ZADD', KEYS[1], runs_out, ARGV[i])
  else
    redis.call('ZADD', KEYS[1], 'XX', runs_out, ARGV[i])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
