package partnerauth

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	slowShare  = 0.96 // share of the pace that is left after a refusal
	soonShare  = 0.88 // share that is left if it came soon after another
	leastShare = 0.45 // share of the full pace that is always left
	halfLife   = 20   // windows in which the pace regains half of what it has lost

	maxInterval = 32 // most windows before a burst grows, at first a quarter of one
	sickBurst   = 3  // answers of 503 that teach as much as one 429
	soon        = 10 // events within this fraction of a window have one cause

	// longPause is how much a pause exceeds the window if it has to do with
	// something else, such as a daily limit.
	longPause = 2 * time.Second
)

// A pace limits bursts, as configured by Quota.Burst and as taught by refusals. A
// server that refuses a request although the window has room minds bursts or
// pace. From then on requests go in single file, a little below the full pace.
//
// What a server has borne it will bear again after as much idle time. So the
// burst that it is known to bear is back once nobody has waited for long enough.
// From there it grows, more slowly each time that growing was refused.
type pace struct {
	limits paceLimits

	// bucket is nil where only the window limits bursts and pace. It does not
	// fill while somebody waits for a slot or for the end of a pause of ours,
	// since requests then come as fast as they may, and the server's bucket, if
	// it has one, does not fill either.
	bucket *rate.Limiter
	held   time.Time // the bucket does not fill until then

	ahead  float64   // requests sent ahead of the full pace
	sent   time.Time // when the last request was sent
	volley volley    // what was sent since ahead was 0, or since the last lesson
	borne  int       // largest burst that was borne since one was refused

	refused time.Time // last refusal; those of requests sent before belong to it
	again   int       // refusals since a request was served

	lost   float64   // share of the full pace that was lost at slowed
	slowed time.Time // last time that the pace was lowered

	shrunk   time.Time     // last time that a burst was refused; zero if that is forgotten
	interval time.Duration // from shrunk until the burst grows by 1, then by 2, 4, 8
	taught   volley        // the volley that was refused then
	known    int           // largest burst that was borne before it, 0 if none was
	before   int           // what bears returned before it
}

// paceLimits are what a pace is configured to. They do not change.
type paceLimits struct {
	requests int // in a window
	burst    int
	window   time.Duration
	full     float64 // requests a second
	fixed    bool    // FixedRate
}

// A volley is a run of requests that are ahead of the full pace.
type volley struct {
	peak   int // most requests ahead
	served int
	sick   int       // answers of 503 since sickAt, soon after each other
	sickAt time.Time // the first of them
}

func (v volley) borne() int { return min(v.peak, v.served) }

func newPace(requests int, window time.Duration, burst int, fixed bool) *pace {
	full := float64(requests) / window.Seconds()
	p := &pace{limits: paceLimits{requests, burst, window, full, fixed}, before: burst}
	if burst < requests {
		p.bucket = rate.NewLimiter(rate.Limit(p.limits.full), burst)
	}
	return p
}

// bears returns the largest burst that the server is known to bear. A volley of
// which nothing was served says nothing about that.
func (p *pace) bears() int {
	if n := max(p.known, p.taught.borne()); n > 0 {
		return n
	}
	return p.before
}

// size returns the largest burst that is allowed at now.
func (p *pace) size(now time.Time) int {
	if p.shrunk.IsZero() {
		return p.limits.burst
	}
	k := now.Sub(p.shrunk) / p.interval
	return min(p.limits.burst, p.bears()+1<<min(k, 20)-1)
}

// share returns the share of the full pace that is allowed at then.
func (p *pace) share(then time.Time) float64 {
	if p.lost == 0 {
		return 1
	}
	windows := float64(then.Sub(p.slowed)) / float64(p.limits.window)
	if lost := p.lost * math.Exp2(-windows/halfLife); lost > 0.01 {
		return 1 - lost
	}
	return 1
}

// recover sets the bucket to what is allowed at now.
func (p *pace) recover(now time.Time) {
	if p.bucket == nil {
		return
	}
	from, share, size := now, p.share(now), p.size(now)
	if !p.held.IsZero() && p.held.Before(now) { // nobody has waited since
		from = p.held
	}
	p.held = time.Time{}
	p.bucket.SetLimitAt(from, rate.Limit(p.limits.full*share))
	p.bucket.SetBurstAt(from, size)
	if share == 1 && size == p.limits.requests && p.tokens(now) == float64(size) {
		p.bucket, p.lost, p.shrunk, p.interval = nil, 0, time.Time{}, 0
	}
}

// hold keeps the bucket from filling while somebody waits.
func (p *pace) hold(now time.Time, wait time.Duration) {
	if p.bucket != nil {
		p.bucket.SetBurstAt(now, max(1, int(p.tokens(now))))
		p.held = now.Add(wait)
	}
}

func (p *pace) tokens(then time.Time) float64 {
	if p.bucket == nil {
		return math.Inf(1)
	}
	return p.bucket.TokensAt(then)
}

// wait returns how long it takes at least until k requests may have been sent,
// the first of them after a pause.
func (p *pace) wait(now time.Time, pause time.Duration, k int) time.Duration {
	if p.bucket == nil {
		return pause
	}
	then := now.Add(pause)
	return pause + p.time(then, float64(k)-p.tokens(then))
}

// time returns how long so many tokens take from then at least: at the pace that
// will have been regained by the end.
func (p *pace) time(then time.Time, tokens float64) time.Duration {
	at := func(share float64) time.Duration {
		seconds := max(0, tokens) / (p.limits.full * share)
		return time.Duration(min(seconds, (never/4).Seconds()) * float64(time.Second))
	}
	return at(p.share(then.Add(at(p.share(then)))))
}

// spend notes that n requests are sent, or that one was not if n is -1.
func (p *pace) spend(now time.Time, n int) {
	p.ahead = max(0, p.ahead-p.limits.full*now.Sub(p.sent).Seconds())
	if p.sent = now; p.ahead == 0 {
		p.volley = volley{}
	}
	p.ahead = max(0, p.ahead+float64(n))
	p.volley.peak = max(p.volley.peak, int(math.Round(p.ahead)))
	if p.bucket != nil {
		p.bucket.ReserveN(now, n)
	}
}

// learn draws the lesson from the end of a permit.
func (p *pace) learn(now time.Time, sent permit, o outcome, named time.Duration, isNamed bool) (v verdict) {
	fresh := sent.at.After(p.refused)
	p.count(now, sent.at, o)
	// A full window and a daily limit say nothing about bursts and pace.
	if fresh && (o == answered || !sent.full && !(isNamed && named > p.limits.window+longPause)) {
		share, shrink, reason := p.decide(now, o)
		p.apply(now, o, share, shrink)
		v.reason = reason
	}
	if o == throttled && !isNamed {
		if v.pause = p.limits.window; !sent.full { // one interval, doubling
			v.pause = time.Duration(min(1, math.Exp2(float64(p.again-1))/float64(p.limits.requests)) * float64(p.limits.window))
		}
		p.hold(now, v.pause)
	}
	v.pace, v.burst, v.slower = p.share(now), p.size(now), v.reason != ""
	if p.bucket != nil && v.burst < p.bucket.Burst() { // as after a late answer to the volley that was refused
		p.bucket.SetBurstAt(now, v.burst)
		v.slower = true
	}
	return v
}

// count adds an answer to the volley that it belongs to.
func (p *pace) count(now, sent time.Time, o outcome) {
	v := &p.volley
	switch {
	case o == overloaded:
		if now.Sub(v.sickAt) > p.limits.window/soon {
			v.sick, v.sickAt = 0, now
		}
		v.sick++
	case o != answered:
	case sent.After(p.refused):
		v.served++
		p.borne, p.again = max(p.borne, v.borne()), 0
	case !sent.After(p.shrunk):
		p.taught.served++
	}
}

// decide returns what the answer to a request teaches, and why: the share of the full
// pace that is left, 0 for no lesson, and whether the burst was too large.
func (p *pace) decide(now time.Time, o outcome) (share float64, shrink bool, reason string) {
	burst := p.volley.peak > 1
	share = p.share(now)
	switch {
	case p.limits.fixed:
		return 0, false, ""
	case o == throttled && p.again > 0: // nothing was served since the last refusal; the pauses grow
		return share, false, ""
	case o == throttled && burst:
		return min(share, slowShare), true, "burst_refused"
	case o == throttled && now.Sub(p.refused) < p.limits.window/soon:
		return max(share*soonShare, leastShare), false, "single_refused"
	case o == throttled:
		return max(share*slowShare, leastShare), false, "single_refused"
	case burst && p.volley.sick >= sickBurst && p.volley.served > 0:
		return share, true, "unavailable" // which may mean anything, so the pace stays
	}
	return 0, false, ""
}

// apply makes requests go in single file, and as was decided.
func (p *pace) apply(now time.Time, o outcome, share float64, shrink bool) {
	if o == throttled {
		p.refused = now
		p.again++
	}
	if share == 0 {
		return
	}
	if shrink {
		p.before, p.known, p.taught, p.borne = p.bears(), p.borne, p.volley, 0
		p.shrunk, p.interval = now, min(max(p.limits.window/4, 2*p.interval), maxInterval*p.limits.window)
	}
	p.lost, p.slowed, p.refused = 1-share, now, now
	p.volley, p.ahead = volley{}, 0
	if p.bucket == nil {
		p.bucket = rate.NewLimiter(0, p.limits.requests)
	}
	p.bucket.SetLimitAt(now, rate.Limit(p.limits.full*share))
	p.bucket.SetBurstAt(now, p.size(now))
	p.bucket.ReserveN(now, max(0, int(p.tokens(now))))
}

// untilTokens returns how long it takes l to have k tokens.
func untilTokens(l *rate.Limiter, now time.Time, k int) time.Duration {
	missing := float64(k) - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	seconds := missing / float64(l.Limit())
	if seconds > (never / 4).Seconds() {
		return never / 4
	}
	return time.Duration(seconds * float64(time.Second))
}
