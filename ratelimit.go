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
// order of arrival with those that a Transport sends, and counts as answered
// when Wait returns, so the request should reach the server within a second.
//
// Its error is [ErrRateLimited], at once, if the turn would come after ctx's
// deadline, else that of ctx, or tells which field of q is out of range.
func (q *Quota) Wait(ctx context.Context) error {
	line, err := q.line()
	if err != nil {
		return err
	}
	w, err := line.join(ctx, nil)
	if w == nil || err != nil {
		return err
	}
	if err := w.wait(); err != nil {
		return err
	}
	line.settle(time.Now(), w.permit, false)
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
		q.queue.pacer = newSlots(requests, window, burst)
	}
}

// A foreignPacer asks a Limiter that is not a Quota. The Limiter is only ever
// asked with the context of the head, and what it grants goes to whoever is the
// head by then.
type foreignPacer struct {
	limiter Limiter
	queue   *queue
	asking  bool // a goroutine waits for the Limiter
	granted bool // a permit of the Limiter's that nobody has taken yet
}

// queueOf is the queue in front of l, which for a Quota all Transports share.
func queueOf(l Limiter) (*queue, error) {
	if q, ok := l.(*Quota); ok && q != nil {
		return q.line()
	} else if l == nil || ok {
		return new(Quota).line()
	}
	return newForeignQueue(l), nil
}

func newForeignQueue(l Limiter) *queue {
	q := &queue{window: defaultWindow}
	q.pacer = &foreignPacer{limiter: l, queue: q}
	return q
}

func (f *foreignPacer) ready(now time.Time) time.Duration {
	waiting := f.queue.waiting
	// A permit whose head has left is not kept: later it would be one too many.
	f.granted = f.granted && len(waiting) > 0
	if !f.granted && !f.asking {
		if l, ok := f.limiter.(*rate.Limiter); ok && l.AllowN(now, 1) {
			f.granted = true
		} else if len(waiting) > 0 {
			f.asking = true
			go f.ask(waiting[0])
		}
	}
	if f.granted {
		return 0
	}
	return never
}

// ask waits for the Limiter on behalf of the head.
func (f *foreignPacer) ask(head *waiter) {
	err := f.limiter.Wait(head.ctx)
	q := f.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	f.asking = false
	if f.granted = err == nil; !f.granted {
		q.call(head, f.explain(now, head, err))
	}
	q.dispatch(now)
}

// explain makes ErrRateLimited of a refusal by *rate.Limiter, which has no type
// of its own for it.
func (f *foreignPacer) explain(now time.Time, head *waiter, err error) error {
	if head.ctx.Err() != nil {
		return head.gaveUp(now)
	}
	deadline, ok := head.ctx.Deadline()
	if d := f.estimate(now, 1); ok && now.Add(d).After(deadline) {
		return &rateLimitError{wait: d, left: deadline.Sub(now)}
	}
	return fmt.Errorf("partnerauth: limiter: %w", err)
}

// estimate can tell what a *rate.Limiter will do, and nothing about others.
func (f *foreignPacer) estimate(now time.Time, k int) time.Duration {
	l, ok := f.limiter.(*rate.Limiter)
	if !ok || l.Limit() == rate.Inf || l.Burst() < 1 {
		return 0
	}
	// While the Limiter is asked for the head, its tokens are one short already.
	if f.asking || f.granted {
		k--
	}
	return untilTokens(l, now, k)
}

func (f *foreignPacer) take(now time.Time, p *permit) {
	f.granted = false
	p.sent, p.pace = now, 1
}

func (f *foreignPacer) settle(time.Time, *permit, bool) {}
func (f *foreignPacer) giveBack(*permit)                { f.granted = len(f.queue.waiting) > 0 }
func (f *foreignPacer) lesson(_, _ time.Time) float64   { return 1 }

// untilTokens tells how long it takes l to have k tokens.
func untilTokens(l *rate.Limiter, now time.Time, k int) time.Duration {
	missing := float64(k) - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	seconds := missing / float64(l.Limit())
	if seconds > (never / 2).Seconds() {
		return never / 2
	}
	return time.Duration(seconds * float64(time.Second))
}
