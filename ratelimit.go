package partnerauth

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A Limiter decides when the next request may be sent. [*Quota] and
// [*rate.Limiter] are Limiters.
//
// A Transport asks one Limiter for one permit at a time, on behalf of whoever
// is at the head of its queue: token requests first, then callers in order of
// arrival. So a caller that gives up does not cost the others anything.
type Limiter interface {
	// Wait blocks until one request may be sent, or returns an error, at the
	// latest when ctx ends.
	Wait(ctx context.Context) error
}

const (
	defaultRequests = 100
	defaultWindow   = time.Minute

	maxRequests = 1_000_000
	minWindow   = time.Millisecond
	maxWindow   = 24 * time.Hour

	// maxGuard is added to the window. Servers that count in whole seconds or
	// whose clock is slow refuse a request that comes after exactly one window.
	maxGuard = time.Second
)

// A Quota is a [Limiter] that keeps requests inside a count per window as the
// server counts them, whatever its kind of window and whatever the latency: the
// place a request took is free again one Window and a guard (a second, less for
// windows under 20 s) after the headers of its answer, because the server had
// counted it by then. A request without an answer counts as answered one Window
// after it was sent.
//
// If the server answers 429 although the quota was kept, its policy is stricter
// than a window. The Quota then falls to single file at 95 % of the pace, or less
// if that happens again, and takes about an hour's worth of Windows to come back.
//
// The zero value is 100 requests in any minute, all of them at once if there
// were none before. Share one Quota between all Transports of one account. It
// is safe for concurrent use and must not be copied or changed after first use.
// Fields out of range are an error at first use.
//
// The limit of 100 requests a minute is the one NowPost's authentication page
// states with its status 429. Ndovu's pages name none.
type Quota struct {
	Requests int           // requests in any Window, at most a million; 0: 100
	Window   time.Duration // 1 ms to 24 h; 0: a minute
	Burst    int           // most requests sent at once after a quiet time; 0: Requests

	once  sync.Once
	err   error
	queue queue
}

// Wait waits for leave to send one request that no Transport sends. It is in
// order of arrival with those that a Transport sends. The request should reach
// the server within a second after Wait returns, and counts as answered then.
//
// Its error is [ErrRateLimited], at once, if the turn would come after ctx's
// deadline, else that of ctx, or tells which field of q is out of range.
func (q *Quota) Wait(ctx context.Context) error {
	line, err := q.line()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ended(ctx)
	}
	w := waiter{ctx: ctx}
	p, ok := line.enter(time.Now(), &line.own, &w.ticket, false)
	if !ok {
		waiting := w
		waiting.sender, waiting.line = &sender{queue: line}, &line.own
		if p, err = waiting.wait(); err != nil {
			return err
		}
	}
	line.settle(time.Now(), p, byHand, 0)
	return nil
}

// line is the queue of q, made at first use.
func (q *Quota) line() (*queue, error) {
	q.once.Do(q.init)
	return &q.queue, q.err
}

func (q *Quota) init() {
	requests, window, burst := q.Requests, q.Window, q.Burst
	if requests == 0 {
		requests = defaultRequests
	}
	if window == 0 {
		window = defaultWindow
	}
	if burst == 0 {
		burst = requests
	}
	switch {
	case requests < 1 || requests > maxRequests:
		q.err = fmt.Errorf("partnerauth: Quota.Requests is %d, want 1 to %d", requests, maxRequests)
	case window < minWindow || window > maxWindow:
		q.err = fmt.Errorf("partnerauth: Quota.Window is %v, want %v to %v", window, minWindow, maxWindow)
	case burst < 1 || burst > requests:
		q.err = fmt.Errorf("partnerauth: Quota.Burst is %d, want 1 to Requests, %d", burst, requests)
	default:
		q.queue.window = window
		q.queue.pacer = newSlidingWindow(requests, window, burst)
	}
}

// A slidingWindow is the pacer of a Quota: as many places as the server counts
// in a window. A place is taken by a permit whose answer is out, and then until
// the server has let go of it. Times are kept as durations since the first.
type slidingWindow struct {
	size   int
	window time.Duration
	guard  time.Duration // after an answer
	start  time.Time

	out  sorted[time.Duration, struct{}] // when the permits whose answers are out were granted
	free sorted[time.Duration, struct{}] // when the places of the others are free again

	tempo tempo
}

func newSlidingWindow(requests int, window time.Duration, burst int) *slidingWindow {
	s := &slidingWindow{size: requests, window: window, guard: min(maxGuard, window/20), start: time.Now()}
	s.tempo.init(requests, window, burst)
	return s
}

func (s *slidingWindow) ready(now time.Time, _ *waiter) time.Duration {
	s.tempo.recover(now)
	wait, _ := s.estimate(now, 0, 1)
	return wait
}

// estimate counts whole rounds of all places, since each serves again after a
// window at the earliest, and then one place of the last round.
func (s *slidingWindow) estimate(now time.Time, pause time.Duration, k int) (wait time.Duration, open bool) {
	s.expire(now)
	rounds, i := (k-1)/s.size, (k-1)%s.size
	if i -= s.size - s.out.size - s.free.size; i >= 0 { // nobody has taken the places before
		wait, open = s.place(now.Sub(s.start), i)
	}
	wait = max(wait, pause) + time.Duration(rounds)*(s.window+s.guard)
	if paced := s.tempo.until(now, pause, k); paced > wait {
		return paced, false
	}
	return wait, open
}

// place tells when the taken place with i sooner ones is free. The answers that
// are still out come now at the earliest.
func (s *slidingWindow) place(since time.Duration, i int) (wait time.Duration, open bool) {
	soonest := s.window + s.guard
	switch sooner := s.free.rank(since + soonest); {
	case i < sooner:
	case i < sooner+s.out.size:
		return soonest, true
	default:
		i -= s.out.size
	}
	return s.free.at(i).key - since, false
}

// expire frees the places whose time has come. An answer that is a window late
// counts as having come then, or hung calls would eat the quota.
func (s *slidingWindow) expire(now time.Time) {
	since := now.Sub(s.start)
	for s.out.size > 0 && s.out.at(0).key <= since-s.window {
		sent := s.out.at(0).key
		s.out.remove(sent)
		s.free.insert(s.latest(sent), struct{}{})
	}
	for s.free.size > 0 && s.free.at(0).key <= since {
		s.free.remove(s.free.at(0).key)
	}
}

// latest is when the place of a request sent then is free, answered or not.
func (s *slidingWindow) latest(sent time.Duration) time.Duration {
	return sent + 2*s.window + s.guard
}

func (s *slidingWindow) take(now time.Time) permit {
	s.tempo.spend(now)
	s.out.insert(now.Sub(s.start), struct{}{})
	return permit{at: now, pace: s.tempo.share}
}

func (s *slidingWindow) settle(now time.Time, p permit, o outcome) float64 {
	if o == throttled {
		s.tempo.lesson(now, p.at)
	}
	sent, since := p.at.Sub(s.start), now.Sub(s.start)
	out := s.out.remove(sent)
	switch {
	case o == byHand: // it may be sent up to a second from now
		s.free.insert(since+s.window+maxGuard, struct{}{})
	case o == unused:
		if !out {
			s.free.remove(s.latest(sent))
		}
		s.tempo.giveBack(now)
	case out && o == unanswered: // it may still be on its way
		s.free.insert(min(since+s.window+maxGuard, s.latest(sent)), struct{}{})
	case out:
		s.free.insert(min(since+s.window+s.guard, s.latest(sent)), struct{}{})
	}
	return s.tempo.share
}

func (s *slidingWindow) idle() {}

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

// until tells how long it takes until k requests may have been sent, the first
// of them after a pause.
func (t *tempo) until(now time.Time, pause time.Duration, k int) time.Duration {
	if t.limiter == nil {
		return 0
	}
	return pause + untilTokens(t.limiter, now.Add(pause), k)
}

func (t *tempo) spend(now time.Time) {
	if t.limiter != nil {
		t.limiter.ReserveN(now, 1)
	}
}

func (t *tempo) giveBack(now time.Time) {
	if t.limiter != nil {
		t.limiter.ReserveN(now, -1)
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
