package partnerauth

import (
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
	w := waiter{queue: line, line: &line.own, ctx: ctx}
	p, granted := line.enter(time.Now(), &w, false, true)
	if !granted {
		waiting := w
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

	tempo *tempo
}

func newSlidingWindow(requests int, window time.Duration, burst int) *slidingWindow {
	s := &slidingWindow{size: requests, window: window, guard: min(maxGuard, window/20), start: time.Now()}
	s.tempo = newTempo(requests, window, burst)
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

func (s *slidingWindow) settle(now time.Time, p permit, o outcome) (pace float64, pause time.Duration) {
	if o == throttled {
		s.expire(now)
		if pause = s.window; s.out.size+s.free.size < s.size { // the server minds something else
			pause = s.tempo.pause()
		}
	}
	s.tempo.learn(now, p.at, o)
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
	return s.tempo.share, pause
}

func (s *slidingWindow) idle() {}
