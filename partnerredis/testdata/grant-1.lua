-- Times are microseconds. KEYS: a hash, what is taken (id -> free again at) and who waits (id -> promised turn).
-- ARGV: 16 numbers, the id of the caller's last permit, the id it asks with, and pairs of a permit's id and how long from
-- now its place is taken (0: not at all).
local state, places, queue = KEYS[1], KEYS[2], KEYS[3]
local n = {}
for i = 1, 16 do n[i] = ARGV[i] + 0 end -- faster than tonumber
local size, window, guard, lag, full = n[1], n[2], n[3], n[4], n[5]
local seen, since, proof, pausing, refused, refusals = n[6], n[7], n[8], n[9], n[10], n[11]
local patience, want, mine, soonest, least = n[12], n[13], n[14], n[15], n[16]
local s = redis.call('HMGET', state, 'offset', 'now', 'pause', 'lost', 'next', 'learnt', 'pace', 'borne', 'burst', 'began')
for i = 1, 10 do s[i] = (s[i] or 0) + 0 end
local offset, last, pause, lost, following, learnt, pace, borne, known, began = unpack(s)

-- The clock goes on from what it was, as fast as the caller's own has since its last answer: it ignores steps.
local time = redis.call('TIME')
time = time[1] * 1000000 + time[2]
local now = math.max(time + offset, last)
if seen > 0 then now = math.max(last, math.min(now, seen + since + guard)) end
now = math.max(now, seen + least)
if now - last > window then began = now end

-- What the caller knows and Redis does not, Redis has lost. Others may have lost permits too, given out until now.
-- Where nobody has asked since the caller did, there is nothing to look for.
local missing = seen ~= last and proof + window > now and not redis.call('ZSCORE', places, ARGV[17])
if (missing or seen > last and since < window) and seen > lost then lost = now end
if missing then redis.call('ZADD', places, proof + lag + window + guard, ARGV[17]) end

-- The pace: none but the full one until there was a lesson.
local function climb(from, known, full)
  local windows, fast = (now - learnt) / window, math.max(0, known - from) / (0.02 * full)
  return math.min(full, from + full * (0.02 * math.min(windows, fast) + 0.001 * math.max(0, windows - fast)))
end
local share, burst = 1, full
if learnt > 0 then share, burst = climb(pace, borne, 1), climb(1, known, full) else borne, known = 1, full end
local ahead, keeps = (following - now) * size / window, refused < 0 and 1 or 0.96
if math.abs(refused) > learnt and (ahead > 2 or refused > 0) then
  if ahead > 2 then -- a burst was refused; by 503, that says nothing of the pace
    pace, borne, known = math.min(share, keeps), math.min(borne, keeps), math.max(1, math.min(known, ahead - refusals))
  else
    pace = math.max(0.3, share * (learnt > 0 and now - learnt < 2 * window and 0.85 or 0.95))
    borne = math.max(pace, share * 0.98)
  end
  learnt, share, burst = now, pace, 1
elseif refusals > 0 and learnt > 0 then
  known = math.max(1, known - refusals)
elseif share == 1 and burst == full then
  learnt = 0
end
local gap, paced = window / size / share, learnt > 0 or full < size
burst = math.floor(burst)

for i = 19, #ARGV, 2 do
  local left = tonumber(ARGV[i + 1])
  if left > 0 then
    redis.call('ZADD', places, now + left, ARGV[i])
  else
    redis.call('ZREM', queue, ARGV[i])
    following = following - gap * redis.call('ZREM', places, ARGV[i])
  end
end

redis.call('ZREMRANGEBYSCORE', places, '-inf', now)
local free = size - redis.call('ZCARD', places)
local waiting = redis.call('ZCARD', queue)
if waiting > 0 then -- a process that does not come at its turn is dead
  waiting = waiting - redis.call('ZREMRANGEBYSCORE', queue, '-inf', now - math.max(guard, 100000))
end

-- When whoever has so many before it may go.
pause = math.max(pause, now + pausing)
local closed = math.max(pause, lost > 0 and lost + lag + window + guard or 0)
local function turn(rank)
  local at, round = math.max(now, closed, following + (rank + 1 - burst) * gap), math.floor(rank / size)
  local i = rank - round * size - free
  local place = i < 0 and now or tonumber(redis.call('ZRANGE', places, i, i, 'WITHSCORES')[2])
  return math.max(at, place + round * (window + guard))
end

-- As many permits as are wanted and there are, each with a place taken for as long as it counts if it arrives within
-- lag; then a ticket for the next. Those who wait share the quota equally: what is missing to a share goes to whoever asks
-- first, the rest by turn, to the others first, as all does where the pace is what counts. After a quiet time nobody
-- knows who they are: let them come.
local ttl = math.ceil(((learnt > 0 and 60 or 3) * window + math.max(0, closed - now)) / 1000) + 2000
local granted, wait, linger, id = 0, -1, 0, ARGV[18]
if want > 0 then
  local rank = waiting > 0 and redis.call('ZRANK', queue, id)
  local others = rank and waiting - 1 or waiting
  local part = math.floor(size / (others + 1))
  local fair = part - mine
  local share, later, gathered = want, now + guard, began + math.min(guard, 150000)
  if rank then
    share = math.max(1, fair)
  elseif want > 1 and now < gathered then
    share, later = math.ceil(size / 50) - mine, gathered
  elseif want > 1 and others > 0 then
    share = fair
  end
  repeat
    local at = turn(granted == 0 and rank or others)
    if not paced then
      if granted >= fair and part > 0 and (granted > 0 or not rank) then at = at + guard end -- if nobody else comes
      if granted <= fair then at = math.min(at, math.max(turn(0), granted < fair and now or now + soonest)) end
    end
    if granted >= share then at = math.max(at, later) end
    if at > now then
      wait = math.ceil(at - now)
      break
    end
    if redis.call('ZADD', places, now + lag + window + guard, id) == 1 then -- else the client runs this twice
      free, following = free - 1, math.max(following, now) + gap
    end
    granted = granted + 1
    id = ARGV[18] .. '.' .. granted
  until granted == want
  local keeps = wait >= 0 and wait <= patience
  if rank and not (keeps and granted == 0) then redis.call('ZREM', queue, ARGV[18]) end
  if keeps then
    redis.call('ZADD', queue, now + wait + others, id)
    redis.call('PEXPIRE', queue, ttl)
  end
  if wait > 0 and want > granted + 1 and not paced then -- what comes free soon after goes along
    local at = now + wait
    local last = redis.call('ZREVRANGEBYSCORE', places, at + guard / 4, at, 'WITHSCORES', 'LIMIT', 0, 1)
    if last[2] then linger = math.ceil(last[2] - at) end
  end
end

local open = math.max(0, math.min(free, math.floor(burst - math.max(0, following - now) / gap)))
if closed > now then open = 0 end
local answer, k = {now, math.max(0, closed - now), granted, wait, linger, open}, 1
while k <= size do
  if k > open then answer[#answer + 1] = math.ceil(turn(k - 1) - now) end
  k = k * 2
end

redis.call('HSET', state, 'now', now, 'next', following)
if now - time ~= offset or pause > now or lost ~= s[4] or began ~= s[10] then
  redis.call('HSET', state, 'offset', now - time, 'pause', pause, 'lost', lost, 'began', began)
end
if learnt > 0 or s[6] > 0 then
  redis.call('HSET', state, 'learnt', learnt, 'pace', pace, 'borne', borne, 'burst', known)
end
redis.call('PEXPIRE', state, ttl)
redis.call('PEXPIRE', places, ttl)
return answer
