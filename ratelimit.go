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

// A Quota is a [Limiter] that keeps requests within a number per window, as the
// server counts them, for any kind of window and any latency. A request occupies
// its place until one Window and a guard (a second, less for a Window under 20 s)
// after its response headers have arrived, because the server counted it no later
// than that. A request without a response counts as answered one Window after it
// was sent.
//
// A server that answers 429 although the Quota was kept, or answers part of a
// burst with 503, is stricter than a count. The Quota then sends requests in
// single file, after a 429 a little more slowly: at 96 % of its pace, or less if
// single requests are refused as well. The pace regains half of what it has lost
// every 20 Windows. A burst that the server has borne is allowed again after as
// much idle time as it takes to earn it at that pace. From there it grows, more
// slowly each time that it is refused again. A 429 teaches nothing if it asks for
// a pause longer than a Window, such as a daily limit, or if it answers the
// request that filled the Window. The metrics partnerauth.rate_limit.pace and
// partnerauth.rate_limit.burst show what is left.
//
// A Quota counts what its process has sent since it started. After a restart, the
// server may see up to twice Requests in the first Window. A small Burst lowers
// that to Requests and one or two Bursts.
//
// The zero value allows 100 requests in any minute, all of them at once after a
// quiet minute. Share one Quota between all Transports of one account. A Quota is
// safe for concurrent use and must not be copied or changed after its first use.
// A field that is out of range is an error at first use.
//
// NowPost's authentication page states the limit of 100 requests a minute, with
// status 429. Ndovu's pages state none.
type Quota struct {
	Requests int           // requests in any Window, at most a million; 0 means 100
	Window   time.Duration // 1 ms to 24 h; 0 means a minute
	Burst    int           // most requests sent at once after a quiet time; 0 means Requests

	// FixedRate makes the Quota learn nothing from refusals, for servers that
	// count requests and mind neither bursts nor pace. A refusal still pauses
	// all requests.
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
	if _, ok := queue.tryAcquire(time.Now(), t, true); ok {
		return nil
	}
	p, err := queue.acquire(ctx, t, nil)
	if err == nil {
		queue.release(time.Now(), p, byHand, 0, 0, 0, false)
	}
	return err
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
		q.queue.window, q.queue.round, q.queue.pacer = window, w.round(), w
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
