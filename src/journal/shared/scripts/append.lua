-- Adds events to a generation's log, if the caller still holds it and knows where the log ends.
-- KEYS: the generation, its log, what the caller holds, what the owner runs.
-- ARGV: log, epoch, the position after which the events come, the conclusion ('': none yet), 'open', 'ended' or 'gone', name,
-- stream id, seconds that the log lives while it is open, seconds after that, then position, field and value of each event.
-- Returns 'missing' (Redis knows nothing of it), 'other' (the name belongs to another log), 'lost' (another instance has taken
-- it over), or the position at which the log ends now.
local generation = redis.call('HMGET', KEYS[1], 'log', 'epoch')
if not generation[1] then
  return 'missing'
end
if generation[1] ~= ARGV[1] then
  return 'other'
end
if generation[2] ~= ARGV[2] then
  return 'lost'
end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local tail = last and string.match(last[1], '-(%d+)$') or '0'
if tail ~= ARGV[3] then
  return tail
end
for i = 10, #ARGV, 3 do
  -- An id that does not grow: what is there is of a higher epoch, whatever became of the generation's hash.
  local added = redis.pcall('XADD', KEYS[2], ARGV[2] .. '-' .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if type(added) == 'table' and added.err then
    return string.find(added.err, 'ID specified', 1, true) and 'lost' or added
  end
  tail = ARGV[i]
  if ARGV[i + 1] == 'start' then
    redis.call('HSET', KEYS[1], 'start', ARGV[i + 2])
    redis.call('EXPIRE', KEYS[2], ARGV[8])
  end
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'conclusion', ARGV[4])
end
if ARGV[5] ~= 'open' then
  redis.call('EXPIRE', KEYS[2], ARGV[9])
  redis.call('SREM', KEYS[3], ARGV[6])
  redis.call('SREM', KEYS[4], ARGV[7])
  if ARGV[5] == 'ended' then
    redis.call('HSET', KEYS[1], 'is_over', '1')
    redis.call('HDEL', KEYS[1], 'write_token', 'conclusion')
    redis.call('EXPIRE', KEYS[1], ARGV[9])
  else
    redis.call('DEL', KEYS[1])
  end
end
return tail
