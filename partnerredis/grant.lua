-- Times are microseconds of a clock of the script's own. KEYS: a hash, what is taken (id -> free again at) and who waits
-- (id -> promised turn). ARGV: 19 numbers, the id of the caller's last permit, the id it asks with, and pairs of a permit's
-- id and how long from now its place is taken (0: not at all). Scripts of layout 1 share clock, places and queue with this
-- one, see doc.go: what they read keeps its meaning.
local state, places, queue = KEYS[1], KEYS[2], KEYS[3]
local n = {}
for i = 1, 19 do n[i] = ARGV[i] + 0 end -- faster than tonumber
local size, window, guard, lag, full = n[1], n[2], n[3], n[4], n[5]
local seen, since, proof, pausing, refused, refusals = n[6], n[7], n[8], n[9], n[10], n[11]
local patience, want, mine, soonest, least, good = n[12], n[13], n[14], n[15], n[16], n[17]
local checked, most = n[18], n[19]
local s = redis.call('HMGET', state, 'offset', 'now', 'pause', 'lost', 'next', 'began', 'marked', 'tokens', 'sent', 'peak',
  'best', 'good', 'lesson', 'pressing')
for i = 1, 14 do s[i] = (s[i] or 0) + 0 end
local offset, last, pause, lost, following, began, marked, tokens, sent, peak = unpack(s, 1, 10)
local best, well, lesson, pressing = unpack(s, 11, 14)
local share, volley, asked, top, kept, was, every = 1, 0, 0, 0, 0, 0, 0
if lesson > 0 then
  local l = redis.call('HMGET', state, 'share', 'volley', 'asked', 'top', 'kept', 'was', 'every')
  for i = 1, 7 do l[i] = (l[i] or 0) + 0 end
  share, volley, asked, top, kept, was, every = unpack(l)
end

-- The clock goes on from what it was. Where it is ahead of the caller's own since the caller's last answer, either TIME has
-- stepped, or the call was long on its way, which must not hold the clock back: other callers would put it forward again,
-- and places end too soon. The caller can tell when it has the answer, and asks again with the most that it was then.
local time = redis.call('TIME')
time = time[1] * 1000000 + time[2]
local now = math.max(time + offset, last)
if seen > 0 and now > seen + since + guard then
  if checked == 0 then return {now, time} end
  now = math.max(last, math.min(now, most + time - checked))
end
now = math.max(now, seen + least)
if now - last > 2 * window then began = now end

-- A key that is empty does not exist, and a Cluster that moves the slot then answers TRYAGAIN: each has a member that stays.
local ttl = (lesson > 0 and 60 or 3) * window
local taken = redis.call('ZCARD', places)
local evicted = taken == 0 and marked > 0 and now - last < 2 * window
if evicted or now - marked > window then
  taken = taken + redis.call('ZADD', places, now + 70 * window, 'stays')
  redis.call('ZADD', queue, now + 70 * window, 'stays')
  redis.call('PEXPIRE', queue, math.ceil((ttl + window) / 1000) + 2000)
  redis.call('HSET', state, 'marked', now, 'version', 2)
end

-- What the caller knows and Redis does not, Redis has lost. Others may have lost permits too, given out until now.
-- Where nobody has asked since the caller did, there is nothing to look for.
local missing = seen ~= last and proof + window > now and not redis.call('ZSCORE', places, ARGV[20])
if evicted or (missing or seen > last and since < window) and seen > lost then lost = now end
if missing then taken = taken + redis.call('ZADD', places, proof + lag + window + guard, ARGV[20]) end

-- A volley is what was sent since the fleet was last not ahead of the full pace.
local each = window / size
if following <= now then
  best, sent, peak = math.max(best, math.min(sent, peak)), 0, 0
end
well = math.max(well, good)

-- What refusals have taught: how large a volley may be, which grows with time, and the pace.
local known, bore, learnt = full, full, lesson
local function learned()
  if now - lesson > 30 * window then share = 1 end
  known, bore = full, full
  if volley > 0 then
    bore = asked > 0 and math.max(1, math.min(asked, top), kept) or was -- nothing served tells nothing
    known = math.min(full, bore + 2 ^ math.min(30, math.floor((now - volley) / window / every)) - 1)
  end
end
learned()
if math.abs(refused) > lesson and (peak > 2 or refused > 0 and well > lesson) then
  if peak > 2 then
    was, asked, top, kept = known, sent - refusals, peak, best
    share = refused < 0 and share or math.min(share, 0.96) -- 503 says nothing of the pace
    volley, every = now, math.min(32, math.max(1, 2 * every))
  else
    share = math.max(0.3, share * (lesson > 0 and now - lesson < 2 * window and 0.85 or 0.96))
  end
  lesson, sent, peak, best, following, tokens = now, 0, 0, 0, now, 0
  learned()
elseif refusals > 0 and volley > 0 and math.abs(refused) <= lesson then
  asked = math.max(0, asked - refusals)
  learned()
elseif lesson > 0 and share == 1 and known == full then
  lesson, volley, every = 0, 0, 0
end
local gap, paced = each / share, lesson > 0 or full < size

local free = size + 1 - taken -- one stays
for i = 22, #ARGV, 2 do
  local left = tonumber(ARGV[i + 1])
  if left > 0 then
    free = free - redis.call('ZADD', places, now + left, ARGV[i])
  else
    redis.call('ZREM', queue, ARGV[i])
    local back = redis.call('ZREM', places, ARGV[i])
    free, following, sent, tokens = free + back, following - back * each, math.max(0, sent - back), tokens + back
  end
end
free = free + redis.call('ZREMRANGEBYSCORE', places, '-inf', now)
local waiting = math.max(0, redis.call('ZCARD', queue) - 1)
if waiting > 0 then -- a process that does not come at its turn is dead
  waiting = waiting - redis.call('ZREMRANGEBYSCORE', queue, '-inf', now - math.max(guard, 100000))
end

-- Tokens for a volley add up while nobody waits: a server's do likewise. Who does gets them one by one, or two where that
-- much was borne and somebody has come late.
if paced then
  if lesson > learnt then
    tokens = 0
  elseif pressing > 0 and waiting > 0 then
    tokens = math.min(math.max(tokens, bore > 3 and 2 or 1), tokens + (now - last) / gap)
  else
    tokens = math.min(known, tokens + (now - last) / gap)
  end
else
  tokens = full
end
if waiting == 0 then pressing = 0 end -- whoever waited has gone

-- When whoever has so many before it may go.
pause = math.max(pause, now + pausing)
local closed = math.max(pause, lost > 0 and lost + lag + window + guard or 0)
local function turn(rank)
  local at, round = math.max(now, closed), math.floor(rank / size)
  if paced then at = math.max(at, now + (rank + 1 - tokens) * gap) end
  local i = rank - round * size - free
  local place = i < 0 and now or tonumber(redis.call('ZRANGE', places, i, i, 'WITHSCORES')[2])
  return math.max(at, place + round * (window + guard))
end

-- As many permits as are wanted and there are, each with a place taken for as long as it counts if it arrives within
-- lag; then a ticket for the next. Those who wait share the quota equally: what is missing to a share goes to whoever asks
-- first, the rest by turn, to the others first, as all does where the pace is what counts. After a quiet time nobody
-- knows who they are: let them come.
ttl = math.ceil(((lesson > 0 and 60 or 3) * window + math.max(0, closed - now)) / 1000) + 2000
local granted, wait, linger, room, id = 0, -1, 0, size, ARGV[21]
if want > 0 then
  if free <= want then room = size + 1 - redis.call('ZCOUNT', places, now + guard, '+inf') end -- until the window is full
  local rank = waiting > 0 and redis.call('ZRANK', queue, id)
  local others = rank and waiting - 1 or waiting
  local part = math.floor(size / (others + 1))
  local fair = part - mine
  local portion, later, gathered = want, now + guard, began + math.min(guard, 150000)
  if rank then
    portion = math.max(1, fair)
  elseif want > math.max(1, size / 20) and now < gathered then
    portion, later = math.ceil(size / 50) - mine, gathered
  elseif want > 1 and others > 0 then
    portion = fair
  end
  repeat
    local at = turn(granted == 0 and rank or others)
    if not paced then
      if granted >= fair and part > 0 and (granted > 0 or not rank) then at = at + guard end -- if nobody else comes
      if granted <= fair then at = math.min(at, math.max(turn(0), granted < fair and now or now + soonest)) end
    end
    if granted >= portion then at = math.max(at, later) end
    if at > now then
      wait = math.ceil(at - now)
      break
    end
    if redis.call('ZADD', places, now + lag + window + guard, id) == 1 then -- else the client runs this twice
      free, following, sent, tokens = free - 1, math.max(following, now) + each, sent + 1, tokens - 1
      peak = math.max(peak, math.floor((following - now) / each + 0.5))
    end
    granted = granted + 1
    id = ARGV[21] .. '.' .. granted
  until granted == want
  local keeps = wait >= 0 and wait <= patience
  if rank and not (keeps and granted == 0) then redis.call('ZREM', queue, ARGV[21]) end
  if keeps then
    redis.call('ZADD', queue, now + wait + others, id)
    redis.call('PEXPIRE', queue, ttl)
  end
  pressing = (others > 0 or keeps and (closed <= now or want > granted + 1)) and 1 or 0 -- one in a pause is no volley
  if wait > 0 and want > granted + 1 and not paced then -- what comes free soon after goes along
    local at = now + wait
    local last = redis.call('ZREVRANGEBYSCORE', places, at + guard / 4, at, 'WITHSCORES', 'LIMIT', 0, 1)
    if last[2] then linger = math.ceil(last[2] - at) end
  end
end

local open = math.max(0, math.min(free, math.floor(tokens)))
if closed > now then open = 0 end
local answer = {now, math.max(0, closed - now), granted, wait, linger, open, room, share * 1000000, known}
local k = 1
while k <= size do
  if k > open then answer[#answer + 1] = math.ceil(turn(k - 1) - now) end
  k = k * 2
end

redis.call('HSET', state, 'now', now, 'next', following, 'sent', sent, 'peak', peak, 'tokens', tokens, 'good', well,
  'pressing', pressing)
if now - time ~= offset or pause > now or lost ~= s[4] or began ~= s[6] then
  redis.call('HSET', state, 'offset', now - time, 'pause', pause, 'lost', lost, 'began', began)
end
if best ~= s[11] then redis.call('HSET', state, 'best', best) end
if lesson ~= learnt or refusals > 0 then
  redis.call('HSET', state, 'lesson', lesson, 'share', share, 'volley', volley, 'asked', asked, 'top', top, 'kept', kept,
    'was', was, 'every', every)
end
redis.call('PEXPIRE', state, ttl)
redis.call('PEXPIRE', places, ttl)
return answer
