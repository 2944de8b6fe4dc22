// Package partnerredis lets many processes keep to one quota and use one token of
// package partnerauth, on the Redis or Valkey that they run already.
//
//	client := redis.NewClient(&redis.Options{Addr: …})
//	store, err := partnerredis.NewStore(client, key)
//	…
//	config := partnerauth.NowPost{Email: …, Password: …, Store: store}
//	http := &http.Client{Transport: &partnerauth.Transport{
//		Source:  config.TokenSource(),
//		Limiter: &partnerredis.Quota{Client: client, Name: "nowpost"},
//	}}
//
// # One script
//
// Whatever a process has to tell or ask goes into one run of one script: the time,
// what became of earlier permits, pauses, the permit itself and the turn of the
// next one. So nothing can come between a look and a grant, nobody's clock counts
// but the server's, and a run that is repeated (go-redis does that) gives nothing
// away twice, since the ids are the client's. EVALSHA, with EVAL where the script
// is unknown, needs no deployment and goes on by itself after a restart or a
// failover. Redis Functions would need the right to load them.
//
// # A grant's way
//
//	 a process                           Redis: one script           the partner
//	──────────────────────────────────────────────────────────────────────────────
//	 callers in line; the head asks
//	 for as many as wait
//	   │  what became of the last ones,
//	   │  pauses, lessons, ticket
//	   ├────────────────────────────────▶ clock, whatever TIME does
//	   │                                  lost anything? all wait a Window
//	   │                                  late answers; what was not sent
//	   │                                  pause, lesson: everybody's
//	   │                                  what is over goes
//	   │                                  what is missing to a share: taken
//	   │  permits, and a ticket           the rest: by turn
//	   ◀────────────────────────────────┤
//	   ├─ request ─────────────────────────────────────────────────▶ counts it
//	   ◀─────────────────────────────────────────────────── headers ┤
//	   │  Settle: the place is free one Window and a guard from now,
//	   │  which goes along with the next question
//	   │
//	   │  sleeps until its turn, asks again, and so on
//
// A process waits with one ticket in a queue at the server, sleeps until its turn
// and asks again, which tells it of pauses and late answers, gives it what is
// missing to its share of the quota among those who wait, and takes the next ticket
// along. Where more places become free soon after its turn, within a quarter of
// the guard, it asks once for all of them. Nobody polls or subscribes, and an idle
// process sends nothing. After a Window without any request, a burst begins with a
// fiftieth of the quota for each process and goes on after the guard, at most
// 150 ms: until then the others have come, if there are any.
//
// # What it costs
//
// One script a request at most, a tenth of one in a burst and a quarter of one
// where eight processes are hungry, whatever the wait: about 11 commands and 30 to
// 50 µs of the server's time, about four times a PING. A place is a member of a
// sorted set, about 100 bytes, so a quota of 100 is 10 kB. Answers that take longer
// than the guard's half (half a second; less for windows under 20 s) are told along
// with the next request, or within half a window by a script of their own.
//
// # What it keeps to
//
// A request counts at the partner from its grant until its headers are in, and
// its place is given again one Window and a guard (a second, or a twentieth of
// the Window) after that. A process tells of answers that are late while there is
// time. When Redis has lost something (a flush, an empty restart, a failover to a
// replica that is behind), the first process whose last permit is missing has
// everybody wait for a Window, in which all report what they know. Steps of the
// server's clock do not count: the script's goes as fast as the clocks of those
// who ask.
//
// What remains are requests that took longer than half the guard, and of which
// their process had not told yet, when it was killed or frozen; and permits that
// only the lost Redis and processes that came since knew of.
//
// # While Redis is away
//
// A script has a second. After that, one caller tries again every half second.
// With Replicas 0, callers wait within their deadlines, for a Window at most, and
// then are told at once, with an error that is partnerauth.ErrRateLimited, says
// that Redis is away, and unwraps to why.
//
// With Replicas n, each process goes on with Requests/n, its own requests of the
// last Window counted, and in the first Window no more than its share of what was
// left. If all n are cut off, that keeps to the quota. In a partition, those who are cut
// off send their share on top of what the others send: k of n processes cost up to
// k/n more than Requests. Those that come back report what they sent, and everybody
// pauses for 1.5 s, so that all can. Choose 0 where a refused request is worse than
// none, n where it is better.
//
// # Servers
//
// Redis 5 or later, or Valkey. The keys of a quota, or of a token, share a hash
// tag: a Cluster keeps them in one slot. Sentinel and Cluster fail over
// asynchronously; see above. Do not send EVALSHA to replicas.
//
// The server must not evict these keys: maxmemory-policy noeviction, or one of the
// allkeys kind on a server of its own with memory enough. All have a time to live
// (three Windows after the last request, an hour's worth once the partner has
// refused one; a token's lifetime), so the volatile policies pick them first.
// Persistence is welcome and not needed.
//
// An ACL for a quota named nowpost, and for tokens:
//
//	user quota on >… ~partnerauth:{nowpost}:* +eval +evalsha +time +hmget +hset +zadd +zcard +zcount +zrange +zrank +zrem +zremrangebyscore +zrevrangebyscore +zscore +pexpire
//	user token on >… ~partnerauth:* +eval +evalsha +get +set +del +pttl +pexpire
//
// beside what the client needs itself (+hello +ping +client, +cluster in a Cluster).
//
// A token's keys are named after a hash of the account, and its record is sealed;
// who can write there can make processes sign in again, or, with an old record,
// take a password for refused that once was, and no more. Who can write a quota's
// keys can stop it or set it free.
package partnerredis
