package partnerauth

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// A lane is who goes first at the head of a queue.
type lane uint8

const (
	tokenLane  lane = iota // token requests: everybody may be waiting for one
	callerLane             // requests of callers, in order of arrival
)

// A permit is leave to send one request. A new one has only its lane, and the
// ticket of the attempt before it if it is a retry, which so goes ahead of
// callers that came later.
type permit struct {
	lane   lane
	ticket uint64 // order of arrival; 0 until it first joins

	pace       float64 // the share of the full pace at which it was granted
	sent       time.Time
	prev, next *permit // among the permits whose answers are still out
}

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

const waitingForTurn = "waiting for the rate limit"

// A queue lets requests through one by one: token requests first, then callers
// in order of arrival, each when the pacer says so. Waiters only wait: whatever
// happens (an arrival, a departure, an answer, a pause, the timer) ends in
// dispatch, which alone hands out what somebody waits for.
type queue struct {
	window time.Duration // how long to pause after a 429 that names no time
	pacer  pacer         // set before first use

	mu      sync.Mutex
	waiting waiters
	tickets uint64
	resume  time.Time   // everybody is paused until then
	timer   *time.Timer // runs dispatch when the head may go
}

// A waiter is one request in the queue.
type waiter struct {
	queue  *queue
	ctx    context.Context // of the request; a foreign Limiter waits with the head's
	permit *permit
	index  int        // in queue.waiting; -1 once it has left
	turn   chan error // gets nil for the permit, or why there is none
}

// join asks for permit p. It returns nil and nil if p is granted at once, a
// waiter if its turn has to be waited for, and ErrRateLimited if that would
// take too long. A nil p granted at once counts as answered.
func (q *queue) join(ctx context.Context, p *permit) (*waiter, error) {
	if ctx.Err() != nil {
		return nil, &waitError{waitingForTurn, ended(ctx)}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if len(q.waiting) == 0 && q.delay(now) <= 0 {
		q.number(p)
		q.pacer.take(now, p)
		return nil, nil
	}
	if p == nil {
		p = &permit{lane: callerLane}
	}
	q.number(p)
	w := &waiter{queue: q, ctx: ctx, permit: p, turn: make(chan error, 1)}
	if deadline, ok := ctx.Deadline(); ok {
		if d := q.estimate(now, p); now.Add(d).After(deadline) {
			return nil, &rateLimitError{wait: d, left: deadline.Sub(now)}
		}
	}
	heap.Push(&q.waiting, w)
	q.dispatch(now)
	return w, nil
}

// number gives p its place in the order of arrival, unless it has one.
func (q *queue) number(p *permit) {
	if p != nil && p.ticket == 0 {
		q.tickets++
		p.ticket = q.tickets
	}
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
	k := 1
	for _, w := range q.waiting {
		if w.permit.before(p) {
			k++
		}
	}
	return max(q.resume.Sub(now), q.pacer.estimate(now, k))
}

// dispatch hands out the permits that can be had now and sets the timer for the
// next. The lock is held.
func (q *queue) dispatch(now time.Time) {
	for len(q.waiting) > 0 {
		if d := q.delay(now); d > 0 {
			q.wakeAfter(d)
			return
		}
		w := heap.Pop(&q.waiting).(*waiter)
		q.pacer.take(now, w.permit)
		w.turn <- nil
	}
	q.wakeAfter(never)
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
		return err
	case <-w.ctx.Done():
	}
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if w.index < 0 { // it was called in the same moment
		if err := <-w.turn; err != nil {
			return err
		}
		q.pacer.giveBack(w.permit)
		q.dispatch(now)
		return w.gaveUp(0)
	}
	left := q.estimate(now, w.permit)
	heap.Remove(&q.waiting, w.index)
	q.dispatch(now)
	return w.gaveUp(left)
}

// gaveUp is the error of a w whose context has ended with left still to wait.
func (w *waiter) gaveUp(left time.Duration) error {
	if errors.Is(w.ctx.Err(), context.DeadlineExceeded) {
		return &rateLimitError{wait: left}
	}
	return &waitError{waitingForTurn, ended(w.ctx)}
}

// fail lets w leave the queue with err. The lock is held.
func (q *queue) fail(w *waiter, err error) {
	heap.Remove(&q.waiting, w.index)
	w.turn <- err
}

// settle notes that the answer to p is in, or that its sender gave up.
func (q *queue) settle(p *permit, gaveUp bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
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
	for _, w := range append(waiters(nil), q.waiting...) {
		if deadline, ok := w.ctx.Deadline(); ok && q.resume.After(deadline) {
			q.fail(w, &rateLimitError{wait: q.resume.Sub(now), left: deadline.Sub(now)})
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

// inTime reports whether p, or one that goes in its place, could have its turn
// before ctx's deadline.
func (q *queue) inTime(ctx context.Context, p *permit) bool {
	deadline, ok := ctx.Deadline()
	if !ok {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	return !now.Add(q.estimate(now, p)).After(deadline)
}

// before reports whether p goes ahead of o.
func (p *permit) before(o *permit) bool {
	if p.lane != o.lane {
		return p.lane < o.lane
	}
	return p.ticket < o.ticket
}

// waiters is a heap.Interface whose root is the head of the queue.
type waiters []*waiter

func (ws waiters) Len() int           { return len(ws) }
func (ws waiters) Less(i, j int) bool { return ws[i].permit.before(ws[j].permit) }

func (ws waiters) Swap(i, j int) {
	ws[i], ws[j] = ws[j], ws[i]
	ws[i].index, ws[j].index = i, j
}

func (ws *waiters) Push(x any) {
	w := x.(*waiter)
	w.index = len(*ws)
	*ws = append(*ws, w)
}

func (ws *waiters) Pop() any {
	last := len(*ws) - 1
	w := (*ws)[last]
	(*ws)[last] = nil
	*ws = (*ws)[:last]
	w.index = -1
	return w
}
