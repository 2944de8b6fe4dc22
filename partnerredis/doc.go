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
// Whatever a process has to report or ask goes into one run of one script: what
// became of earlier permits, pauses, the permit itself and the turn of the next one.
// So nothing can come between a look and a grant, the server's clock is the only one
// that counts, and a run that is repeated (go-redis retries) grants nothing twice,
// since the client chooses the ids. EVALSHA, with EVAL where the script is unknown,
// needs no deployment and survives restarts and failovers. Redis Functions would
// need the right to load them.
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
//	   │                                  pause, lesson: everybody's
//	   │                                  late answers; what was not sent
//	   │                                  places whose time is over go
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
// A process waits with one ticket in a queue on the server, sleeps until its turn
// and asks again. That answer brings it news of pauses and late answers, gives it
// what is missing to its share of the quota among those who wait, and takes the next
// ticket. Where more places become free soon after its turn, within a quarter of
// the guard, it asks once for all of them. Nobody polls or subscribes, and an idle
// process sends nothing. After two Windows without any request, a process that wants
// more than a twentieth of the quota at once begins with a fiftieth and goes on
// after the guard, at most 150 ms: until then the others have come, if there are any.
//
// # What it costs
//
// At most one script per request, a tenth of one in a burst and a quarter of one
// where eight processes are hungry, however long the wait: about 12 commands and 35
// to 55 µs of the server's time, four to five times a PING. A place is a member of a
// sorted set, about 100 bytes, so a quota of 100 is 10 kB. Answers that take longer
// than half the guard (half a second; less for windows under 20 s) are reported with
// the next request, or within half a window by a script of their own. A script that
// was on its way for longer than the guard does nothing and is sent again.
//
// # What it keeps to
//
// A request counts at the partner from its grant until its headers are in, and its
// place is given again one Window and a guard (a second, or a twentieth of the
// Window) after that. A process reports late answers while there is time. When Redis
// has lost something (a flush, an empty restart, a failover to a replica that is
// behind), the first process whose last permit is missing makes everybody wait for a
// Window, in which all report what they know. Steps of the server's clock do not
// count: the script's clock runs as fast as the clocks of those who ask.
//
// Two holes remain: requests that took longer than half the guard and that their
// process had not reported yet when it was killed or frozen; and permits that only
// the lost Redis knew of, and processes that started since.
//
// # What refusals teach
//
// A 429 in spite of the quota, or three 503 among good answers within a tenth of a
// Window, teach the fleet as they teach a [partnerauth.Quota]: what the partner has
// refused, it is sent in single file and 4 % below the full pace for a while. What
// it bore in a burst it gets again after as much idle time, and then a little more.
// A 429 that names a pause of more than a Window and two seconds teaches nothing,
// nor does one to a request that filled the window by Redis's books, nor any with
// FixedRate. [Quota.Pace] returns what is left.
//
// # While Redis is away
//
// A script has a second. After that, one caller tries again every half second.
// With Replicas 0, callers wait within their deadlines, for a Window at most, and
// are then refused at once, with an error that Is partnerauth.ErrRateLimited, says
// "Redis is away" and unwraps to the cause. It says so 50 ms before the caller's
// deadline, so that the caller sees it.
//
// What waiting does not cure is returned at once as "Redis refuses: …", with the
// class of Redis's error (WRONGPASS, NOAUTH, NOPERM, OOM, MISCONF, CROSSSLOT, an
// unknown command). READONLY and MOVED are such mistakes if the Quota has never
// worked; otherwise they count as a failover for three seconds. TRYAGAIN (a slot
// moves) is waited for. Of a server's own words nothing but the class gets into an
// error's text.
//
// With Replicas n, each process goes on with Requests/n, its own requests of the
// last Window counted, and in the first Window no more than its share of what was
// left. If all n are cut off, that keeps to the quota. In a partition, those who are
// cut off send their share on top of what the others send: k of n processes cost up
// to k/n more than Requests. Those that come back report what they sent, and
// everybody pauses for 1.5 s, so that all can. Choose 0 where a refused request is
// worse than none, n where it is better.
//
// The gauge partnerauth.rate_limit.shared.reachable is 1 after each script that ran
// and 0 after each that did not, with the quota's name as
// partnerauth.rate_limit.name. Scripts run under the span of the caller that asks,
// for clients that are instrumented.
//
// # Servers
//
// Redis 5 or later, or Valkey. The keys of a quota, or of a token, share a hash
// tag: a Cluster keeps them in one slot. Do not send EVALSHA to replicas (the
// ReplicaOnly option of some clients).
//
// Failover. Sentinel and Cluster replicate asynchronously: a replica that becomes
// master may lack the last permits, which the section on what it keeps to is about.
// A ClusterClient of go-redis looks for new masters when a node redirects it, else
// once a minute; a node that is dead or frozen redirects nobody. So after a network
// error, and after a second without an answer, the Quota and the Store call the
// client's ReloadState, at most every 400 ms. Grants go on one or two seconds after
// the promotion, plus a Window if the replica was behind. A slot may move while it
// is in use: its keys are never empty, so that both nodes know them, except in the
// moments between the moves of two keys, and for a quota whose first request comes
// during the move.
//
// Connections that die silently (a NAT or a load balancer that forgets them) cost
// their callers a second and a half each. Set ConnMaxIdleTime in the client's options
// below the time after which the network forgets: go-redis keeps idle connections for
// 30 minutes, and many load balancers for 5.
//
// Eviction. The server must not evict these keys: use maxmemory-policy noeviction,
// or a server of their own with enough memory. All of them have a time to live
// (three Windows after the last request, 60 once the partner has refused one; a
// token's lifetime), so the volatile policies consider them, too. A key that was
// evicted is a loss as above: everybody waits for a Window, and the quota holds.
// Persistence is welcome and not needed.
//
// Versions. The keys of a quota have layout 1, and scripts of all versions so far
// share it: clock, places, queue and pauses mean the same to all, so processes of
// two versions keep to the quota together while a deploy rolls, or is rolled back.
// The field version of the state says which script wrote last; this one is 2.
// What refusals taught is each version's own. A layout that older scripts cannot
// share would have its number in its keys' names.
//
// An ACL for a quota named nowpost, and for tokens:
//
//	user quota on >… ~partnerauth:{nowpost}:* +eval +evalsha +time +hmget +hset +zadd +zcard +zcount +zrange +zrank +zrem +zremrangebyscore +zrevrangebyscore +zscore +pexpire
//	user token on >… ~partnerauth:* +eval +evalsha +get +set +del +pttl +pexpire
//
// beside what the client needs itself: +hello +ping +client; for a Cluster also
// +cluster +command +asking, and +readonly with the client's ReadOnly option.
//
// A token's keys are named after a hash of the account, and its record is sealed;
// who can write there can make processes sign in again, or, with an old record,
// take a password for refused that once was, and no more. Who can write a quota's
// keys can stop it or set it free.
package partnerredis
