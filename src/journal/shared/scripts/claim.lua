-- Gives the right to write a generation to exactly one of all who ask, and says whose it is.
-- Who holds something has a lease from the same moment on, or would be taken for dead.
-- KEYS: the generation, what the caller holds, what the owner runs, the instances, the caller's lease.
-- ARGV: log, instance, epoch, write token, fingerprint, started at, name, stream id, seconds to live, the lease's milliseconds.
local known = redis.call('HMGET', KEYS[1], 'log', 'fingerprint', 'started_at', 'holder')
if known[1] then
  return known
end
redis.call('HSET', KEYS[1], 'log', ARGV[1], 'holder', ARGV[2], 'epoch', ARGV[3], 'write_token', ARGV[4],
  'fingerprint', ARGV[5], 'started_at', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[9])
redis.call('SADD', KEYS[2], ARGV[7])
redis.call('SADD', KEYS[3], ARGV[8])
redis.call('EXPIRE', KEYS[3], ARGV[9])
redis.call('SADD', KEYS[4], ARGV[2])
redis.call('SET', KEYS[5], 'claimed', 'PX', ARGV[10], 'NX')
return {ARGV[1], ARGV[5], ARGV[6], ARGV[2]}
