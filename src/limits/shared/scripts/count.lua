-- Counts one request in a window that begins with its first one, unless it is one too many.
-- KEYS: the window. ARGV: requests, the window's milliseconds.
-- Returns the requests that were counted, the milliseconds that are left, and whether this was one of them.
local requests = tonumber(redis.call('GET', KEYS[1]) or '0')
local left = redis.call('PTTL', KEYS[1])
if left <= 0 then
  redis.call('SET', KEYS[1], 1, 'PX', ARGV[2])
  return {1, tonumber(ARGV[2]), 1}
end
if requests >= tonumber(ARGV[1]) then
  return {requests, left, 0}
end
return {redis.call('INCR', KEYS[1]), left, 1}
