-- Settles what was set aside for an attempt, once; or counts what was spent where nobody could tell, once.
-- KEYS: the user's account. ARGV: the attempt, the day ('': whatever day it was set aside on), 'counted', 'answer' or 'all',
-- tokens, how many of them are estimated, '1' if nothing may have been set aside here, and as in reserve.lua what the relay
-- knows, and the day of that.
-- Returns what is spent and set aside then, if that is known.
local now = tonumber(redis.call('TIME')[1])
local day = string.format('%d', math.floor(now / 86400))
if ARGV[2] ~= '' and ARGV[2] ~= day then
  return false
end
if redis.call('HGET', KEYS[1], 'day') ~= day then
  redis.call('DEL', KEYS[1])
end
local reserved = redis.call('HGET', KEYS[1], 'for:' .. ARGV[1])
-- It may have been told before, and its answer lost; or another has settled it, or will, who cannot know of this.
if ARGV[6] == '1' or reserved then
  if redis.call('HSETNX', KEYS[1], 'told:' .. ARGV[1], '1') == 0 then
    return redis.call('HGET', KEYS[1], 'taken')
  end
  redis.call('HSET', KEYS[1], 'day', day)
  if ARGV[8] == day then
    redis.call('HSETNX', KEYS[1], 'taken', ARGV[7])
  end
  redis.call('EXPIRE', KEYS[1], 86400 - now % 86400)
end
local used, estimated, tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), 0
if reserved then
  local prompt
  tokens, prompt = string.match(reserved, '^(%d+):(%d+)$')
  if ARGV[3] == 'answer' then
    used = prompt + used
    estimated = used
  elseif ARGV[3] == 'all' then
    used = tonumber(tokens)
    estimated = used
  end
  redis.call('HDEL', KEYS[1], 'for:' .. ARGV[1])
elseif ARGV[6] ~= '1' then
  return redis.call('HGET', KEYS[1], 'taken')
end
redis.call('HINCRBY', KEYS[1], 'estimated', string.format('%d', estimated))
return redis.call('HINCRBY', KEYS[1], 'taken', string.format('%d', used - tokens))
