package partnerauth

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	// singleFile is how many requests ahead of the full pace are not yet a burst.
	singleFile = 1

	slowShare = 0.96 // of the pace is left after a slowdown
	soonSlow  = 3    // slowdowns follow a refusal that comes soon after another
	maxSlow   = 30   // slowdowns at most
	slowFor   = 30   // windows that a single slowdown lasts

	// soon is the part of a window in which refusals have one cause.
	soon = 10

	maxInterval = 32 // windows at most before a burst grows

	// sickBurst answers of 503 within a tenth of a window teach as one 429 does.
	sickBurst = 3

	// longPause beyond a window is a pause that has nothing to do with it.
	longPause = 2 * time.Second
)

// A pace limits bursts, by Quota.Burst and by what refusals have taught. A server
// that refuses a request although the window has room minds bursts or pace.
// After a lesson requests go in single file, a little below the full pace.
//
// What a server bore it will bear again after as much idle time. So the burst
// that was borne is there again as soon as nobody has waited for long enough,
// and grows from there, the more slowly the more often that was refused.
type pace struct {
	requests int        // in a window
	burst    int        // as configured
	full     rate.Limit // requests a second
	window   time.Duration
	fixed    bool

	// bucket is nil where nothing limits bursts or pace but the window. It fills
	// only while nobody waits for a slot: a server's bucket does not fill, either,
	// while requests come as fast as the window lets them.
	bucket *rate.Limiter
	held   time.Time // until when the bucket does not fill

	ahead  float64   // requests sent ahead of the full pace
	sent   time.Time // the last one
	volley volley    // those sent since ahead was last zero, or since the last refusal
	borne  int       // most that a volley since the last lesson about bursts has borne

	refused time.Time // the last refusal that counted; those to earlier requests belong to it
	again   int       // refusals since a request was served

	slowdowns int       // in force
	slowed    time.Time // when the last one began or ended

	shrunk   time.Time // when the last burst was refused; zero: that is forgotten
	taught   volley    // which it was
	known    int       // what volleys before it bore since the lesson before
	before   int       // what was known at that lesson
	interval int       // windows after which the burst grows, by 1, by 2 more, by 4 more
}

// A volley is what has become of requests that were sent ahead of the full pace.
type volley struct {
	peak   int // of ahead
	served int
	sick   int       // answers of 503 since then
	since  time.Time // when the first of them came
}

func (v *volley) borne() int { return min(v.peak, v.served) }

func newPace(requests int, window time.Duration, burst int, fixed bool) *pace {
	p := &pace{requests: requests, burst: burst, window: window, fixed: fixed, before: burst}
	if p.full = rate.Limit(float64(requests) / window.Seconds()); burst < requests {
		p.bucket = rate.NewLimiter(p.full, burst)
	}
	return p
}

// size returns the largest burst now.
func (p *pace) size(now time.Time) int {
	if p.shrunk.IsZero() {
		return p.burst
	}
	k := now.Sub(p.shrunk) / (time.Duration(p.interval) * p.window)
	return min(p.burst, p.bears()+1<<min(k, 20)-1)
}

// bears returns the burst that the server is known to bear. A volley of which
// nothing was served says nothing about that.
func (p *pace) bears() int {
	if n := max(p.known, p.taught.borne()); n > 0 {
		return n
	}
	return p.before
}

// recover gives back what the time since the last lessons is worth.
func (p *pace) recover(now time.Time) {
	if p.bucket == nil {
		return
	}
	for n, ended := p.slowAt(now); n < p.slowdowns; {
		p.slowdowns, p.slowed = n, ended
	}
	size, from := p.size(now), now
	if p.held.Before(now) && !p.held.IsZero() { // nobody has waited since
		from = p.held
	}
	p.held = time.Time{}
	p.bucket.SetLimitAt(from, p.full*rate.Limit(p.share()))
	p.bucket.SetBurstAt(from, size)
	if p.slowdowns == 0 && size == p.requests && p.bucket.TokensAt(now) >= float64(size) {
		p.bucket, p.shrunk, p.interval = nil, time.Time{}, 0
	}
}

// hold keeps the bucket from filling while somebody waits for a slot.
func (p *pace) hold(now time.Time, wait time.Duration) {
	if p.bucket != nil {
		p.bucket.SetBurstAt(now, max(1, int(p.bucket.TokensAt(now))))
		p.held = now.Add(wait)
	}
}

func (p *pace) untilToken(now time.Time) time.Duration {
	if p.bucket == nil {
		return 0
	}
	return untilTokens(p.bucket, now, 1)
}

// estimate returns how long it takes at least until k requests may have been
// sent, the first of them after a pause. The pace may come back meanwhile.
func (p *pace) estimate(now time.Time, pause time.Duration, k int) time.Duration {
	if p.bucket == nil {
		return 0
	}
	wait := pause + untilTokens(p.bucket, now.Add(pause), k)
	then := now.Add(wait)
	return min(wait, pause+p.time(then, float64(k)-p.bucket.TokensAt(now.Add(pause))))
}

// time returns how long so many requests take at the pace of then.
func (p *pace) time(then time.Time, requests float64) time.Duration {
	n, _ := p.slowAt(then)
	seconds := max(0, requests) / float64(p.full) / math.Pow(slowShare, float64(n))
	return time.Duration(min(seconds*float64(time.Second), float64(never/4)))
}

// share returns the share of the full pace that is left.
func (p *pace) share() float64 { return math.Pow(slowShare, float64(p.slowdowns)) }

// slowAt returns how many slowdowns will be left and when the last one ended. The
// more there are, the sooner one ends.
func (p *pace) slowAt(then time.Time) (n int, ended time.Time) {
	n, ended = p.slowdowns, p.slowed
	for n > 0 {
		lasts := slowFor * p.window / time.Duration(n)
		if then.Sub(ended) < lasts {
			break
		}
		n, ended = n-1, ended.Add(lasts)
	}
	return n, ended
}

// spend notes that a request is sent.
func (p *pace) spend(now time.Time) {
	p.ahead = max(0, p.ahead-float64(p.full)*now.Sub(p.sent).Seconds())
	if p.sent = now; p.ahead == 0 {
		p.volley = volley{}
	}
	p.ahead++
	p.volley.peak = max(p.volley.peak, int(math.Round(p.ahead)))
	if p.bucket != nil {
		p.bucket.ReserveN(now, 1)
	}
}

// giveBack notes that a request was not sent after all.
func (p *pace) giveBack(now time.Time) {
	p.ahead = max(0, p.ahead-1)
	if p.bucket != nil {
		p.bucket.ReserveN(now, -1)
	}
}

// learn draws the lesson from the end of a permit.
func (p *pace) learn(now time.Time, sent permit, o outcome, named time.Duration, isNamed bool) (v verdict) {
	fresh := sent.at.After(p.refused)
	p.count(now, sent.at, o)
	// A full window or a daily limit says nothing about bursts and pace.
	if fresh && (o == answered || !sent.full && !(isNamed && named > p.window+longPause)) {
		var l lesson
		l, v.reason = p.decide(now, o)
		p.apply(now, o, l)
	}
	if o == throttled && !isNamed {
		if v.pause = p.window; !sent.full {
			v.pause = p.pause()
		}
		p.hold(now, v.pause) // the callers that wait press on
	}
	v.pace, v.burst = p.share(), p.size(now)
	return v
}

// pause returns how long everybody pauses after a refusal that names no time
// where the window had room: one interval, doubling while that repeats.
func (p *pace) pause() time.Duration {
	interval := float64(p.window) / float64(p.requests)
	return time.Duration(min(float64(p.window), interval*math.Exp2(float64(p.again-1))))
}

// count adds an answer to its volley.
func (p *pace) count(now, sent time.Time, o outcome) {
	v := &p.volley
	switch {
	case o == overloaded:
		if now.Sub(v.since) > p.window/soon {
			v.since, v.sick = now, 0
		}
		v.sick++
	case o != answered:
	case sent.After(p.refused):
		v.served++
		p.again, p.borne = 0, max(p.borne, v.borne())
	case !sent.After(p.shrunk):
		p.taught.served++
	}
}

// A lesson is what an answer teaches.
type lesson struct {
	single bool // requests go in single file from now
	slow   int  // and so many steps slower
	shrink bool // the burst was too large
}

// decide returns what the answer to a request teaches, and why.
func (p *pace) decide(now time.Time, o outcome) (lesson, string) {
	burst := p.volley.peak > singleFile
	switch {
	case p.fixed:
		return lesson{}, ""
	case o == throttled && burst:
		return lesson{single: true, slow: max(0, 1-p.slowdowns), shrink: true}, "burst_refused"
	case o == throttled && p.again == 0 && now.Sub(p.refused) < p.window/soon:
		return lesson{single: true, slow: soonSlow}, "single_refused"
	case o == throttled && p.again == 0:
		return lesson{single: true, slow: 1}, "single_refused"
	case o == throttled: // nothing was served since, and the pauses grow
		return lesson{single: true}, ""
	case burst && p.volley.sick >= sickBurst && p.volley.served > 0:
		return lesson{single: true, shrink: true}, "unavailable"
	}
	return lesson{}, ""
}

// apply makes l hold from now on.
func (p *pace) apply(now time.Time, o outcome, l lesson) {
	if o == throttled {
		p.refused = now
		p.again++
	}
	if !l.single {
		return
	}
	if l.shrink {
		p.before, p.known, p.taught, p.borne = p.bears(), p.borne, p.volley, 0
		p.shrunk, p.interval = now, min(max(1, 2*p.interval), maxInterval)
	}
	if l.slow > 0 {
		p.slowdowns, p.slowed = min(p.slowdowns+l.slow, maxSlow), now
	}
	p.refused, p.volley, p.ahead = now, volley{}, 0
	if p.bucket == nil {
		p.bucket = rate.NewLimiter(0, p.requests)
	}
	p.bucket.SetLimitAt(now, p.full*rate.Limit(p.share()))
	p.bucket.SetBurstAt(now, p.size(now))
	if n := int(p.bucket.TokensAt(now)); n > 0 {
		p.bucket.ReserveN(now, n)
	}
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
