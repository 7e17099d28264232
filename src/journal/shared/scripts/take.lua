-- Takes a generation over from an instance that does not hold it any more. Whatever that one still sends has an older
-- epoch, and is refused.
-- KEYS: the generation, the other's lease, what the other holds, what the caller holds, the instances, the caller's lease.
-- ARGV: the other, the caller, name, '1' if the other is known to be dead, the lease's milliseconds.
-- Returns nothing if there is nothing to take.
if ARGV[4] ~= '1' and redis.call('EXISTS', KEYS[2]) == 1 then
  return false
end
redis.call('SREM', KEYS[3], ARGV[3])
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'is_over') == 1 then
  return false
end
redis.call('HSET', KEYS[1], 'holder', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('SADD', KEYS[4], ARGV[3])
redis.call('SADD', KEYS[5], ARGV[2])
redis.call('SET', KEYS[6], 'claimed', 'PX', ARGV[5], 'NX')
return redis.call('HMGET', KEYS[1], 'log', 'epoch', 'fingerprint', 'started_at', 'write_token', 'conclusion')
