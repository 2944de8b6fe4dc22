package partnerauth

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// A permit is leave to send one request.
type permit struct {
	urgent bool   // a token request: it goes first, as everybody may be waiting for it
	ticket uint64 // order of arrival, 0 until it first joins; a retry keeps its request's

	pace       float64 // the share of the full pace at which it was granted
	sent       time.Time
	prev, next *permit // among the permits whose answers are still out
}

// callerTickets is where the tickets of requests that are not urgent begin.
const callerTickets = 1 << 63

// A pacer decides when the head of a queue may go. Its methods are called with
// the queue's lock held.
type pacer interface {
	// ready tells how long the head has to wait from now; 0 is not at all.
	ready(now time.Time) time.Duration
	// estimate tells how long the k-th from the front, 1 being the head, has to
	// wait at least.
	estimate(now time.Time, k int) time.Duration
	// take spends what ready has promised. A nil p counts as answered at once.
	take(now time.Time, p *permit)
	// settle notes that the answer to p came at now, or that its sender gave up
	// then.
	settle(now time.Time, p *permit, gaveUp bool)
	// giveBack takes back a permit that was never used.
	giveBack(p *permit)
	// lesson notes that a request sent then was refused with 429, and returns the
	// pace that is left.
	lesson(now, sent time.Time) float64
}

// never is a wait whose end something other than a timer announces.
const never = time.Duration(math.MaxInt64)

// A queue lets requests through one by one: token requests first, then callers
// in order of arrival, each when the pacer says so. Waiters only wait: whatever
// happens (an arrival, a departure, an answer, a pause, the timer) ends in
// dispatch, which alone hands out what somebody waits for.
type queue struct {
	window time.Duration // how long to pause after a 429 that names no time
	pacer  pacer         // set before first use

	mu      sync.Mutex
	waiting []*waiter // by ticket
	tickets uint64
	resume  time.Time   // everybody is paused until then
	timer   *time.Timer // runs dispatch when the head may go
}

// A waiter is one request in the queue.
type waiter struct {
	queue  *queue
	ctx    context.Context // of the request; a foreign Limiter waits with the head's
	permit *permit
	since  time.Time
	turn   chan error // gets nil for the permit, or why there is none
}

// join asks for permit p. It returns nil and nil if p is granted at once, a
// waiter if its turn has to be waited for, and ErrRateLimited if that would
// take too long. A nil p granted at once counts as answered.
func (q *queue) join(ctx context.Context, p *permit) (*waiter, error) {
	if ctx.Err() != nil {
		return nil, &waitError{ended(ctx)}
	}
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	free := len(q.waiting) == 0 && q.delay(now) <= 0
	if p == nil && !free {
		p = new(permit)
	}
	if p != nil && p.ticket == 0 {
		q.tickets++
		p.ticket = q.tickets
		if !p.urgent {
			p.ticket += callerTickets
		}
	}
	if free {
		q.pacer.take(now, p)
		return nil, nil
	}
	if err := q.refusal(ctx, now, p); err != nil {
		return nil, err
	}
	w := &waiter{queue: q, ctx: ctx, permit: p, since: now, turn: make(chan error, 1)}
	i, _ := q.find(p)
	q.waiting = slices.Insert(q.waiting, i, w)
	q.dispatch(now)
	return w, nil
}

// find returns p's place among those who wait, and whether it is there.
func (q *queue) find(p *permit) (int, bool) {
	return slices.BinarySearchFunc(q.waiting, p.ticket, func(w *waiter, ticket uint64) int {
		return cmp.Compare(w.permit.ticket, ticket)
	})
}

// delay tells how long the head has to wait.
func (q *queue) delay(now time.Time) time.Duration {
	if d := q.resume.Sub(now); d > 0 {
		return d
	}
	return q.pacer.ready(now)
}

// estimate tells how long p has to wait at least if nobody ahead of it leaves.
func (q *queue) estimate(now time.Time, p *permit) time.Duration {
	ahead, _ := q.find(p)
	return max(q.resume.Sub(now), q.pacer.estimate(now, ahead+1))
}

// dispatch hands out the permits that can be had now and sets the timer for the
// next. The lock is held.
func (q *queue) dispatch(now time.Time) {
	for len(q.waiting) > 0 {
		if d := q.delay(now); d > 0 {
			q.wakeAfter(d)
			return
		}
		w := q.waiting[0]
		q.pacer.take(now, w.permit)
		q.call(w, nil)
	}
	q.wakeAfter(never)
}

// call lets w leave the queue, if it has not, with its permit or an error.
func (q *queue) call(w *waiter, err error) {
	if i, ok := q.find(w.permit); ok && q.waiting[i] == w { // and not a retry with its ticket
		q.waiting = slices.Delete(q.waiting, i, i+1)
		w.turn <- err
	}
}

func (q *queue) wakeAfter(d time.Duration) {
	switch {
	case q.timer != nil && d == never:
		q.timer.Stop()
	case q.timer != nil:
		q.timer.Reset(d)
	case d != never:
		q.timer = time.AfterFunc(d, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.dispatch(time.Now())
		})
	}
}

// wait waits for w's turn or for the end of its context. A waiter that leaves
// takes nothing with it.
func (w *waiter) wait() error {
	select {
	case err := <-w.turn:
		if err != nil || w.ctx.Err() == nil {
			return err
		}
		w.turn <- nil // nobody is there to use it
	case <-w.ctx.Done():
	}
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	gaveUp := w.gaveUp(now)
	q.call(w, gaveUp)
	err := <-w.turn
	if err == nil { // its turn had come in the same moment
		q.pacer.giveBack(w.permit)
		err = gaveUp
	}
	q.dispatch(now)
	return err
}

// gaveUp is the error of a w whose context has ended while it waited.
func (w *waiter) gaveUp(now time.Time) error {
	if errors.Is(w.ctx.Err(), context.DeadlineExceeded) {
		return &rateLimitError{wait: w.queue.estimate(now, w.permit)}
	}
	return &waitError{ended(w.ctx)}
}

// settle notes that the answer to p came at now, or that its sender gave up.
func (q *queue) settle(now time.Time, p *permit, gaveUp bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pacer.settle(now, p, gaveUp)
	q.dispatch(now)
}

// giveBack returns a permit that was not used.
func (q *queue) giveBack(p *permit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pacer.giveBack(p)
	q.dispatch(time.Now())
}

// pause keeps everybody from going for d. Waiters whose deadline comes before
// its end are told at once.
func (q *queue) pause(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if now.Add(d).After(q.resume) {
		q.resume = now.Add(d)
	}
	for _, w := range slices.Clone(q.waiting) {
		if deadline, ok := w.ctx.Deadline(); ok && q.resume.After(deadline) {
			q.call(w, &rateLimitError{wait: q.resume.Sub(now), left: deadline.Sub(now)})
		}
	}
	q.dispatch(now)
}

// lesson notes that p was refused with 429, and returns the pace it leaves.
func (q *queue) lesson(p *permit) float64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pacer.lesson(time.Now(), p.sent)
}

// inTime returns ErrRateLimited if p, or one that goes in its place, cannot have
// its turn before ctx's deadline. A new permit stands for the head.
func (q *queue) inTime(ctx context.Context, p *permit) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refusal(ctx, time.Now(), p)
}

func (q *queue) refusal(ctx context.Context, now time.Time, p *permit) error {
	if deadline, ok := ctx.Deadline(); ok {
		if d := q.estimate(now, p); now.Add(d).After(deadline) {
			return &rateLimitError{wait: d, left: deadline.Sub(now)}
		}
	}
	return nil
}
