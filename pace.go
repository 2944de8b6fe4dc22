package partnerauth

import (
	"math"
	"time"
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

	// maxGuard is added to the window. Servers that count in whole seconds or
	// whose clock is slow refuse a request that comes after exactly one window.
	maxGuard = time.Second
)

// A pace limits bursts, as configured by Quota.Burst and as taught by refusals. A
// server that refuses a request although the window has room minds bursts or
// pace. From then on requests go in single file, a little below the full pace.
//
// What a server has borne it will bear again after as much idle time. So the
// burst that it is known to bear is back once nobody has waited for long enough.
// From there it grows, more slowly each time that growing was refused.
type pace struct {
	limits

	// tokens are how many requests may be sent at once, if limited. None are added
	// while somebody waits for a slot or for the end of a pause of ours, since
	// requests then come as fast as they may, and the server's bucket, if it has one,
	// does not fill either.
	tokens float64
	filled time.Time // when tokens were last added
	most   int       // tokens at most: the burst when somebody last asked, or less by a lesson
	held   time.Time // until when somebody waits

	ahead  float64 // requests sent ahead of the full pace
	volley volley  // what was sent since ahead was 0, or since the last lesson
	borne  int     // largest burst that was borne since one was refused

	refused time.Time // last refusal; those of requests sent before belong to it
	again   int       // refusals since a request was served

	lost   float64   // share of the full pace that was lost at slowed
	slowed time.Time // last time that the pace was lowered

	shrunk   time.Time     // last time that a burst was refused; zero if that is forgotten
	interval time.Duration // from shrunk until the burst grows by 1, then by 2, 4, 8
	taught   volley        // the volley that was refused then
	known    int           // largest burst that was borne before it, 0 if none was
}

// limits are what a Quota is configured to.
type limits struct {
	requests int // in a window
	window   time.Duration
	burst    int
	fixed    bool // FixedRate
}

// full returns the full pace: requests a second.
func (l limits) full() float64 { return float64(l.requests) / l.window.Seconds() }

// guard returns how much longer than a window a slot stays busy.
func (l limits) guard() time.Duration { return min(maxGuard, l.window/20) }

// round returns how soon a slot serves again.
func (l limits) round() time.Duration { return l.window + l.guard() }

// A volley is a run of requests that are ahead of the full pace.
type volley struct {
	peak   int // most requests ahead
	served int
	sick   int       // answers of 503 since sickAt, soon after each other
	sickAt time.Time // the first of them
}

func (v volley) borne() int { return min(v.peak, v.served) }

// size returns the largest burst that is allowed at now. A volley of which nothing
// was served says nothing about that.
func (p *pace) size(now time.Time) int {
	known := max(p.known, p.taught.borne())
	if p.shrunk.IsZero() || known == 0 {
		return p.burst
	}
	k := now.Sub(p.shrunk) / p.interval
	return min(p.burst, known+1<<min(k, 20)-1)
}

// share returns the share of the full pace that is allowed at then.
func (p *pace) share(then time.Time) float64 {
	if p.lost == 0 {
		return 1
	}
	windows := float64(then.Sub(p.slowed)) / float64(p.window)
	if lost := p.lost * math.Exp2(-windows/halfLife); lost > 0.01 {
		return 1 - lost
	}
	return 1
}

// limited reports whether more than the window limits bursts and pace.
func (p *pace) limited() bool {
	return p.burst < p.requests || p.lost > 0 || !p.shrunk.IsZero()
}

// tokensAt returns how many tokens there are then, if limited.
func (p *pace) tokensAt(then time.Time) float64 {
	past := max(0, then.Sub(p.filled))
	waited := min(past, max(0, p.held.Sub(p.filled)))
	perSecond := p.full() * p.share(then)
	tokens := max(p.tokens, min(1, p.tokens+perSecond*waited.Seconds()))
	return min(float64(p.most), tokens+perSecond*(past-waited).Seconds())
}

// fill brings tokens and ahead up to now.
func (p *pace) fill(now time.Time) {
	past := now.Sub(p.filled)
	if past <= 0 {
		return
	}
	p.ahead = max(0, p.ahead-p.full()*past.Seconds())
	if p.limited() {
		p.tokens = p.tokensAt(now)
		if p.tokens == float64(p.requests) && p.share(now) == 1 {
			p.lost, p.shrunk, p.interval = 0, time.Time{}, 0 // everything is regained
		}
	}
	p.filled = now
}

// wait returns how long it takes at least from now, when tokens were filled, until a
// request may go. After a refusal requests go in single file until one is served: who
// else uses the account may have taken what there was.
func (p *pace) wait(now time.Time) (wait time.Duration) {
	if p.again > 0 && !p.fixed {
		wait = time.Duration(math.Ceil(p.ahead / p.full() * float64(time.Second)))
	}
	if p.limited() {
		wait = max(wait, p.time(now, 1-p.tokens))
	}
	return wait
}

// time returns how long so many tokens take from then at least: at the pace that
// will have been regained by the end.
func (p *pace) time(then time.Time, tokens float64) time.Duration {
	at := func(share float64) time.Duration {
		seconds := max(0, tokens) / (p.full() * share)
		return time.Duration(min(seconds, (never/4).Seconds()) * float64(time.Second))
	}
	return at(p.share(then.Add(at(p.share(then)))))
}

// spend notes that n requests are sent, or that one was not if n is -1.
func (p *pace) spend(now time.Time, n float64) {
	p.fill(now)
	if p.ahead == 0 {
		p.volley = volley{}
	}
	p.ahead = max(0, p.ahead+n)
	p.volley.peak = max(p.volley.peak, int(math.Round(p.ahead)))
	p.tokens -= n
}

// learn draws the lesson from the end of a permit.
func (p *pace) learn(now time.Time, sent permit, o outcome, named time.Duration, isNamed bool) (v verdict) {
	p.fill(now)
	fresh := sent.at.After(p.refused)
	p.count(now, sent.at, o)
	// A full window and a daily limit say nothing about bursts and pace.
	if fresh && !sent.full && !(isNamed && named > p.window+longPause) {
		share, shrink, reason := p.decide(now, o)
		v.reason = reason
		if o == throttled || reason != "" {
			p.refused = now
			p.again++
		}
		if share > 0 {
			p.slowDown(now, share, shrink)
		}
	}
	if o == throttled && !isNamed {
		v.pause = p.pause(sent)
		p.held = now.Add(v.pause)
	}
	v.pace, v.burst = p.share(now), p.size(now)
	v.slower = v.reason != "" || v.burst < p.most // as after a late answer to the volley that was refused
	p.most = min(p.most, v.burst)
	return v
}

// pause returns how long everybody pauses after a 429 that names no time: a window if it
// was full, else an interval, doubling.
func (p *pace) pause(sent permit) time.Duration {
	if sent.full {
		return p.window
	}
	return time.Duration(min(1, math.Exp2(float64(p.again-1))/float64(p.requests)) * float64(p.window))
}

// count adds an answer to the volley that it belongs to.
func (p *pace) count(now, sent time.Time, o outcome) {
	v := &p.volley
	switch {
	case o == overloaded:
		if now.Sub(v.sickAt) > p.window/soon {
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
	case p.fixed:
		return 0, false, ""
	case o == throttled && p.again > 0: // nothing was served since the last refusal; the pauses grow
		return share, false, ""
	case o == throttled && burst:
		return min(share, slowShare), true, "burst_refused"
	case o == throttled && now.Sub(p.refused) < p.window/soon:
		return max(share*soonShare, leastShare), false, "single_refused"
	case o == throttled:
		return max(share*slowShare, leastShare), false, "single_refused"
	case burst && p.volley.sick >= sickBurst && p.volley.served > 0:
		return share, true, "unavailable" // which may mean anything, so the pace stays
	}
	return 0, false, ""
}

// slowDown makes requests go in single file, at a share of the full pace.
func (p *pace) slowDown(now time.Time, share float64, shrink bool) {
	if shrink {
		p.known, p.taught, p.borne = p.borne, p.volley, 0
		p.shrunk, p.interval = now, min(max(p.window/4, 2*p.interval), maxInterval*p.window)
	}
	p.lost, p.slowed = 1-share, now
	p.volley, p.ahead, p.tokens = volley{}, 0, 0
}
