package partnerauth

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// A Limiter decides when the next request may be sent. [*Quota] and
// [*rate.Limiter] are Limiters.
//
// A Transport asks one Limiter for one permit at a time, on behalf of whoever
// is at the head of its queue: token requests first, then callers in order of
// arrival, low priority last. So a caller that gives up does not cost the others anything.
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
// If the server answers 429 although the quota was kept, or a burst with 503, its
// policy is stricter than a window. The Quota then goes to single file; after a
// 429 a little below its pace, or further if that happens again. The pace comes
// back within about an hour's worth of Windows, a burst soon to what the server
// bore and very slowly beyond.
//
// It counts what this process has sent since it started: after a restart the
// server may see up to twice Requests in the first Window. A small Burst makes
// that Requests and one or two Bursts.
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
	queue, err := q.made()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ended(ctx)
	}
	w := waiter{queue: queue, line: &queue.own, ctx: ctx}
	queue.arrive(&w, classOf(ctx))
	p, granted := queue.enter(time.Now(), &w, true)
	if !granted {
		waiting := w
		if p, err = waiting.wait(); err != nil {
			return err
		}
	}
	queue.settle(time.Now(), p, byHand, 0, 0)
	return nil
}

// made is the queue of q, made at first use.
func (q *Quota) made() (*queue, error) {
	q.once.Do(q.init)
	return &q.queue, q.err
}

func (q *Quota) init() {
	requests, window := cmp.Or(q.Requests, defaultRequests), cmp.Or(q.Window, defaultWindow)
	burst := cmp.Or(q.Burst, requests)
	switch {
	case requests < 1 || requests > maxRequests:
		q.err = fmt.Errorf("partnerauth: Quota.Requests is %d, want 1 to %d", requests, maxRequests)
	case window < minWindow || window > maxWindow:
		q.err = fmt.Errorf("partnerauth: Quota.Window is %v, want %v to %v", window, minWindow, maxWindow)
	case burst < 1 || burst > requests:
		q.err = fmt.Errorf("partnerauth: Quota.Burst is %d, want 1 to Requests, %d", burst, requests)
	default:
		s := newSlidingWindow(requests, window, burst)
		q.queue.window, q.queue.round, q.queue.pacer = window, window+s.guard, s
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

	lows        int           // places that are taken by low priority
	lowNext     time.Duration // when the next of low priority may go
	othersSince time.Duration // since when others have taken any

	tempo *tempo
}

func newSlidingWindow(requests int, window time.Duration, burst int) *slidingWindow {
	s := &slidingWindow{size: requests, window: window, guard: min(maxGuard, window/20), start: time.Now()}
	s.tempo = newTempo(requests, window, burst)
	return s
}

func (s *slidingWindow) ready(now time.Time, ticket uint64, _ *waiter) time.Duration {
	s.tempo.recover(now)
	if !low(ticket) {
		return s.estimate(now, 0, 1, false)
	}
	since := now.Sub(s.start)
	// The reserve shrinks with time, so it is looked at again soon.
	wait := min(s.estimate(now, 0, 1+s.reserve(since), false), s.window/time.Duration(s.size))
	return max(wait, s.lowNext-since)
}

// reserve is how many places a call of low priority leaves to others: a tenth,
// and what others are likely to need before the places that they have taken are
// free again. Their need is what it was since they began, but for what they hold.
func (s *slidingWindow) reserve(since time.Duration) int {
	reserve := s.tenth()
	others := s.out.size + s.free.size - s.lows
	if age := since - s.othersSince; others > 0 && age < s.window {
		reserve += int(float64(others) * (float64(s.window)/float64(max(age, s.window/1000)) - 1))
	}
	return min(reserve, s.size-1)
}

func (s *slidingWindow) tenth() int { return min(max(1, s.size/10), s.size-1) }

// estimate counts whole rounds of all places, since each serves again after a
// window at the earliest, and then one place of the last round.
func (s *slidingWindow) estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration {
	s.expire(now)
	if low {
		k += s.tenth()
	}
	rounds, i := (k-1)/s.size, (k-1)%s.size
	i -= s.size - s.out.size - s.free.size // nobody has taken the places before
	wait, since := pause, now.Sub(s.start)
	if i >= 0 {
		wait = max(wait, s.place(since, i))
	}
	wait = max(wait+time.Duration(min(float64(rounds)*float64(s.window+s.guard), float64(never/4))), s.tempo.until(now, pause, k))
	if rounds == 0 && s.tempo.limiter != nil { // it goes after those ahead, who wait for places themselves
		perSecond, burst := s.tempo.at(now.Add(wait + s.window))
		for j := max(0, i-blockSize); j < i; j++ {
			behind := max(0, float64(i-j)+1-burst) / perSecond
			wait = max(wait, s.place(since, j)+time.Duration(behind*float64(time.Second)))
		}
	}
	return wait
}

// place tells when the taken place with i sooner ones is free. The answers that
// are still out come now at the earliest.
func (s *slidingWindow) place(since time.Duration, i int) time.Duration {
	soonest := s.window + s.guard
	switch sooner := s.free.rank(since + soonest); {
	case i < sooner:
	case i < sooner+s.out.size:
		return soonest
	default:
		i -= s.out.size
	}
	return s.free.at(i).key - since
}

// expire frees the places whose time has come, so many at a time that the lock is
// not held for long; the others count as free already. An answer that is a window
// late counts as having come then, or hung calls would eat the quota.
func (s *slidingWindow) expire(now time.Time) {
	since := now.Sub(s.start)
	for n := 0; n < blockSize && s.out.size > 0 && s.out.at(0).key <= since-s.window; n++ {
		sent := s.out.at(0).key
		s.out.remove(sent)
		s.free.insert(s.latest(sent), struct{}{})
	}
	for n := 0; n < blockSize && s.free.size > 0 && s.free.at(0).key <= since; n++ {
		s.vacate(s.free.at(0).key)
	}
}

// vacate frees a place that is not out.
func (s *slidingWindow) vacate(place time.Duration) {
	if s.free.remove(place) && isLow(place) {
		s.lows--
	}
}

// The place of a request of low priority is an odd number of nanoseconds.
func isLow(place time.Duration) bool { return place&1 == 1 }

func (p *permit) place(at time.Duration) time.Duration {
	if at &^= 1; p.low {
		at++
	}
	return at
}

// latest is when the place of a request sent then is free, answered or not.
func (s *slidingWindow) latest(sent time.Duration) time.Duration {
	return sent + (2*s.window+s.guard)&^1
}

func (s *slidingWindow) take(now time.Time, ticket uint64) permit {
	p, since := permit{at: now, pace: s.tempo.share, low: low(ticket)}, now.Sub(s.start)
	switch {
	case p.low:
		s.lows++
		s.lowNext = since + s.window/time.Duration(s.size)
	case s.out.size+s.free.size == s.lows:
		s.othersSince = since
	}
	s.tempo.spend(now)
	s.out.insert(p.place(since), struct{}{})
	return p
}

func (s *slidingWindow) settle(now time.Time, p permit, o outcome) (pace float64, pause time.Duration) {
	if o == throttled {
		s.expire(now)
		counted := s.out.size + s.free.size - s.free.rank(now.Sub(s.start)+s.guard) // in the window, without the guard
		if pause = s.window; counted < s.size {                                     // the server minds something else
			pause = s.tempo.pause()
		}
	}
	s.tempo.learn(now, p.at, o)
	sent, since := p.place(p.at.Sub(s.start)), now.Sub(s.start)
	out := s.out.remove(sent)
	free := s.latest(sent)
	switch {
	case o == unused:
		s.tempo.giveBack(now)
		if out {
			s.free.insert(free, struct{}{})
		}
		s.vacate(free)
		return s.tempo.share, pause
	case o == byHand: // it may be sent up to a second from now
		free = p.place(since + s.window + maxGuard)
	case o == unanswered: // it may still be on its way
		free = min(free, p.place(since+s.window+maxGuard))
	default:
		free = min(free, p.place(since+s.window+s.guard))
	}
	if out {
		s.free.insert(free, struct{}{})
	}
	return s.tempo.share, pause
}

func (s *slidingWindow) idle() {}
