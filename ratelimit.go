package partnerauth

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// A Limiter decides when the next request may be sent. [*Quota] and [*rate.Limiter]
// are Limiters.
//
// A Transport asks its Limiter for one permit at a time, on behalf of whoever is at
// the head of its queue: token requests first, then callers in order of arrival, low
// priority last. So a caller that gives up costs the others nothing.
type Limiter interface {
	// Wait blocks until one request may be sent, or returns an error, at the latest
	// when ctx ends.
	Wait(ctx context.Context) error
}

// A PermitLimiter is a [Limiter] that learns what becomes of its permits, and so can
// be as strict as a [Quota]. The Quota of module partnerredis is one, which several
// processes share. It must be safe for concurrent use. Most programs use one of these
// and need not implement it.
type PermitLimiter interface {
	Limiter
	// Permit waits like Wait. waiting is how many requests of this process wait, this
	// one included. An error that Is ErrRateLimited goes to the caller as it is; it
	// should have a method RetryAfter() time.Duration. With a context that has ended,
	// Permit returns at once: what is wrong, if anything is.
	Permit(ctx context.Context, waiting int) (Permit, error)
	// Estimate returns how long the n-th request from now (1 is the next) has to wait
	// at least. It asks nobody and calls nothing back.
	Estimate(n int) time.Duration
	// Period returns how long everybody pauses after a 429 that names no time: the
	// window.
	Period() time.Duration
}

// A Permit allows its holder to send one request. One of its methods is called, once.
// Neither may block.
type Permit interface {
	// Settle is called when the headers are in: with the status, 0 if the request was
	// given up or broke, and the pause that the answer asks of everybody, 0 for none.
	Settle(status int, pause time.Duration)
	// Return is called if the request was not sent.
	Return()
}

const (
	defaultRequests = 100
	defaultWindow   = time.Minute

	maxRequests = 1_000_000
	minWindow   = time.Millisecond
	maxWindow   = 24 * time.Hour
)

// A Quota is a [Limiter] that keeps requests inside a count per window as the server
// counts them, whatever its kind of window and whatever the latency: the slot that a
// request took is free again one Window and a guard (a second, less for windows under
// 20 s) after the headers of its answer, because the server had counted it by then. A
// request without an answer counts as answered one Window after it was sent.
//
// If the server answers 429 although the quota was kept, or part of a burst with 503,
// its policy is stricter than a window. The Quota then sends fewer at once, and after
// a refused single request a little more slowly. What the server has borne, it soon
// gets again; beyond that the burst grows with idle time, and the pace comes back after
// 30 windows. FixedRate turns this off.
//
// It counts what this process has sent since it started: after a restart the server
// may see up to twice Requests in the first Window. A small Burst makes that Requests
// and one or two Bursts.
//
// The zero value is 100 requests in any minute, all of them at once if there were none
// before. Share one Quota between all Transports of one account. It is safe for
// concurrent use and must not be copied or changed after first use. Fields out of range
// are an error at first use.
//
// The limit of 100 requests a minute is the one that NowPost's authentication page
// states for its status 429. Ndovu's pages name none.
type Quota struct {
	Requests int           // requests in any Window, at most a million; 0: 100
	Window   time.Duration // 1 ms to 24 h; 0: a minute
	Burst    int           // most requests sent at once after a quiet time; 0: Requests

	// FixedRate means that nothing is learnt from refusals, for a partner that only
	// counts. A pause that an answer asks for is kept all the same.
	FixedRate bool

	once  sync.Once
	err   error
	queue queue
}

// Wait waits until one request may be sent that no Transport sends. It takes its turn
// with those that a Transport sends, in order of arrival. The request should reach the
// server within a second after Wait returns, and counts as answered then.
//
// It returns a [*RateLimitError] at once if the turn would come after ctx's deadline.
// Other errors are that of ctx, and one that names the field of q that is out of range.
func (q *Quota) Wait(ctx context.Context) error {
	queue, err := q.made()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ended(ctx)
	}
	t := queue.newTicket(priorityOf(ctx))
	p, ok := queue.tryAcquire(time.Now(), t)
	if !ok {
		if p, err = queue.acquire(ctx, t, nil); err != nil {
			return err
		}
	}
	queue.release(time.Now(), p, byHand, 0, 0, 0, false)
	return nil
}

// made returns the queue of q, made at first use.
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
		w := newWindow(requests, window, burst, q.FixedRate)
		q.queue.window, q.queue.round, q.queue.pacer = window, window+w.guard, w
	}
}

// WithLowPriority returns a context whose calls go only when nobody else waits, such
// as those of a nightly batch beside interactive calls on one client. With a [Quota]
// they also leave a tenth of it to others.
func WithLowPriority(ctx context.Context) context.Context {
	return context.WithValue(ctx, priorityKey, true)
}

// priorityOf returns the priority of a call under ctx.
func priorityOf(ctx context.Context) ticket {
	if low, _ := ctx.Value(priorityKey).(bool); low {
		return forLow
	}
	return forCaller
}
