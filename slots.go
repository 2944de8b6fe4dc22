package partnerauth

import (
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// slots is the pacer of a Quota: as many places as the server counts in a
// window. A place is taken by a permit whose answer is out, and from then on
// until it is free again.
type slots struct {
	size   int
	window time.Duration
	guard  time.Duration // after an answer
	late   time.Duration // after a sender gave up: its request may still be under way

	out  permit // the ring of permits whose answers are out, oldest first
	outs int
	free []time.Time // when the places of the others are free again, in order
	gone int         // how many of free have been since

	tempo tempo
}

func newSlots(requests int, window time.Duration, burst int) *slots {
	s := &slots{
		size:   requests,
		window: window,
		guard:  min(maxGuard, window/20),
		late:   min(maxGuard, window),
	}
	s.out.prev, s.out.next = &s.out, &s.out
	s.tempo.init(requests, window, burst)
	return s
}

func (s *slots) ready(now time.Time) time.Duration {
	s.tempo.recover(now)
	s.expire(now)
	if s.tempo.limiter == nil && s.idle() > 0 {
		return 0
	}
	return s.estimate(now, 1)
}

// idle is how many places nobody has taken.
func (s *slots) idle() int { return s.size - s.outs - (len(s.free) - s.gone) }

func (s *slots) estimate(now time.Time, k int) time.Duration {
	s.expire(now)
	// Every place serves again after at least one window, so the k-th has to
	// wait for whole rounds of all places and for one place of the round.
	rounds, i := (k-1)/s.size, (k-1)%s.size
	idle, free := s.idle(), s.free[s.gone:]
	wait := time.Duration(rounds) * (s.window + s.guard)
	switch {
	case i < idle:
	case i-idle < len(free):
		wait += free[i-idle].Sub(now)
	default: // an answer that is still out comes now at the earliest
		wait += s.window + s.guard
	}
	return max(wait, s.tempo.until(now, k))
}

// expire frees the places whose time has come. An answer that is a window late
// counts as having come then, or hung calls would eat the quota.
func (s *slots) expire(now time.Time) {
	for s.outs > 0 && now.Sub(s.out.next.sent) >= s.window {
		oldest := s.out.next
		s.settle(oldest.sent.Add(s.window), oldest, false)
	}
	for s.gone < len(s.free) && !s.free[s.gone].After(now) {
		s.gone++
	}
	if s.gone > len(s.free)/2 { // seldom, so that it costs nothing on average
		s.free = slices.Delete(s.free, 0, s.gone)
		s.gone = 0
	}
}

func (s *slots) take(now time.Time, p *permit) {
	s.tempo.spend(now)
	if p == nil {
		s.release(now.Add(s.window + s.guard))
		return
	}
	p.sent, p.pace = now, s.tempo.share
	p.prev, p.next = s.out.prev, &s.out
	p.prev.next, p.next.prev = p, p
	s.outs++
}

func (s *slots) settle(now time.Time, p *permit, gaveUp bool) {
	if !s.remove(p) {
		return
	}
	guard := s.guard
	if gaveUp {
		guard = s.late
	}
	s.release(now.Add(s.window + guard))
}

// release frees a place at a time that is the last so far, or close to it.
func (s *slots) release(at time.Time) {
	i := len(s.free)
	for i > s.gone && s.free[i-1].After(at) {
		i--
	}
	s.free = slices.Insert(s.free, i, at)
}

func (s *slots) giveBack(p *permit) {
	if s.remove(p) && s.tempo.limiter != nil {
		s.tempo.limiter.ReserveN(time.Now(), -1)
	}
}

// remove takes p off the ring and reports whether it was on it.
func (s *slots) remove(p *permit) bool {
	if p.next == nil {
		return false
	}
	p.prev.next, p.next.prev = p.next, p.prev
	p.prev, p.next = nil, nil
	s.outs--
	return true
}

func (s *slots) lesson(now, sent time.Time) float64 {
	s.tempo.lesson(now, sent)
	return s.tempo.share
}

const (
	lessonShare  = 0.95  // of the full pace is left after a lesson
	leastShare   = 0.5   // is left after many
	recoverShare = 0.02  // of pace and burst comes back in a window
	creepShare   = 0.001 // of pace, from lessonShare on: strict servers bear 95 %, and not much more
)

// tempo is what a Quota adds to its slots where a count per window is not
// enough: a burst smaller than the quota, and what 429s have taught it. Where
// neither is the case it has no limiter.
//
// A server that answers 429 although the quota was kept cares about bursts or
// pace. Smaller bursts would meet a second 429, so a lesson is single file at
// once, a little below full pace. Both come back slowly.
type tempo struct {
	limiter *rate.Limiter
	full    rate.Limit    // requests a second that the quota comes to
	all     int           // requests in a window: a burst that needs no limiter
	size    int           // the burst where nothing was learnt
	window  time.Duration // in which recoverShare comes back

	share   float64   // of full; 1 where nothing was learnt or all has come back
	burst   float64   // the present burst
	learnt  time.Time // when the last lesson was
	updated time.Time // when something last came back; zero: there is nothing to
}

func (t *tempo) init(requests int, window time.Duration, burst int) {
	t.full = rate.Limit(float64(requests) / window.Seconds())
	t.all, t.size, t.window = requests, burst, window
	t.share, t.burst = 1, float64(burst)
	t.apply(time.Time{})
}

// until tells how long it takes until k requests may have been sent.
func (t *tempo) until(now time.Time, k int) time.Duration {
	if t.limiter == nil {
		return 0
	}
	return untilTokens(t.limiter, now, k)
}

func (t *tempo) spend(now time.Time) {
	if t.limiter != nil {
		t.limiter.ReserveN(now, 1)
	}
}

// lesson notes a 429 to a request sent then. One sent before the last lesson
// has nothing to teach.
func (t *tempo) lesson(now, sent time.Time) {
	if !sent.After(t.learnt) {
		return
	}
	t.share = max(leastShare, t.share*lessonShare)
	t.burst = 1
	t.learnt, t.updated = now, now
	t.apply(now)
}

// recover gives back what the time since the last call is worth.
func (t *tempo) recover(now time.Time) {
	if t.updated.IsZero() {
		return
	}
	step := now.Sub(t.updated)
	if step < t.window/60 {
		return
	}
	t.updated = now
	windows := float64(step) / float64(t.window)
	if t.share < lessonShare {
		t.share = min(lessonShare, t.share+windows*recoverShare)
	} else {
		t.share = min(1, t.share+windows*creepShare)
	}
	t.burst = min(float64(t.size), t.burst+windows*recoverShare*float64(t.size))
	if t.share == 1 && t.burst == float64(t.size) {
		t.updated = time.Time{}
	}
	t.apply(now)
}

// apply sets the limiter to share and burst.
func (t *tempo) apply(now time.Time) {
	limit := t.full * rate.Limit(t.share)
	switch {
	case t.share == 1 && int(t.burst) == t.all:
		t.limiter = nil
	case t.limiter == nil:
		t.limiter = rate.NewLimiter(limit, int(t.burst))
	default:
		t.limiter.SetLimitAt(now, limit)
		t.limiter.SetBurstAt(now, int(t.burst))
	}
}
