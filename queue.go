package partnerauth

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// A permit is leave to send one request, until settle ends it.
type permit struct {
	at   time.Time // when it was granted
	pace float64   // the share of the full pace that was left then
	low  bool      // to a request of low priority

	handle Permit // of a PermitLimiter, nil otherwise
}

// An outcome is what became of a permit.
type outcome int

const (
	answered   outcome = iota // the headers are in, or the connection has broken
	throttled                 // answered 429
	overloaded                // answered 503, with no time to come back
	unanswered                // given up: the request may still be on its way
	byHand                    // granted to Quota.Wait: sent within a second
	unused                    // the request never left
)

// A pacer decides when the head of a queue may go. Its methods are called with
// the queue's lock held.
type pacer interface {
	// ready tells how long the head has to wait from now; 0 is not at all. It is
	// w, or nil where nobody waits yet.
	ready(now time.Time, ticket uint64, w *waiter) time.Duration
	// idle notes that nobody could go.
	idle()
	// estimate tells how long the k-th from the front, 1 being the head, has to
	// wait at least, where everybody is paused for a while. It may be of low
	// priority.
	estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration
	// take spends what ready has promised.
	take(now time.Time, ticket uint64) permit
	// settle ends a permit and returns the share of the full pace that is left,
	// and for how long everybody pauses after a 429 that names no time.
	settle(now time.Time, p permit, o outcome) (pace float64, pause time.Duration)
}

// never is a wait whose end something other than a timer announces.
const never = time.Duration(math.MaxInt64)

// A queue lets requests through one by one: token requests first, then callers
// in order of arrival, each when the pacer says so.
//
// Waiters decide for themselves: each looks whether it is first and may go, and
// nobody hands it anything. Whoever changes what the head depends on (an answer,
// a departure, the end of a pause) wakes the head; whoever makes turns come later
// wakes everybody, and those who cannot wait that long leave.
type queue struct {
	window  time.Duration // a request is sent again after 429 within two of them
	round   time.Duration // after which a place serves again at the earliest; 0: it has none
	pacer   pacer         // set before first use
	own     line          // of token requests, and of Quota.Wait
	tickets atomic.Uint64

	mu      sync.Mutex
	lines   []*line       // those that have waiters
	resume  time.Time     // everybody is paused until then
	changed chan struct{} // closed when turns have come to be later; nil: nobody listens
	closing chan struct{} // changed, to be closed by unlock
}

// A line is a part of a queue whose waiters have a token at the same time: the
// callers of one Transport. While its first waits for a token, it holds up the
// others of its line, who wait for the same, and no other line.
type line struct{ sorted[uint64, *waiter] }

func (l *line) first() *waiter { return l.at(0).value }

// ready reports whether l's first waiter could go now.
func (l *line) ready() bool { return l.first().fetch.over() }

// A class is what comes before order of arrival. It is where its tickets begin.
type class uint64

const (
	urgent      class = 0       // token requests: everybody may be waiting for them
	normal      class = 1 << 62 // callers
	lowPriority class = 2 << 62 // those under WithLowPriority
)

// WithLowPriority returns a context whose calls go only when nobody else waits,
// as of a nightly batch beside interactive calls on one client. With a [Quota]
// they go one by one and leave a tenth of it, and what the calls of others seem
// to need, to those.
func WithLowPriority(ctx context.Context) context.Context {
	return context.WithValue(ctx, classKey, lowPriority)
}

func classOf(ctx context.Context) class {
	if c, ok := ctx.Value(classKey).(class); ok {
		return c
	}
	return normal
}

// low reports whether a ticket is one of low priority.
func low(ticket uint64) bool { return class(ticket) >= lowPriority }

// arrive gives w its place in the order of arrival, unless it has one.
func (q *queue) arrive(w *waiter, c class) {
	if w.ticket == 0 {
		w.ticket = q.tickets.Add(1) + uint64(c)
	}
}

// enter gives w its permit if it has its token and need not wait.
func (q *queue) enter(now time.Time, w *waiter, ready bool) (permit, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !ready || w.line.size > 0 || q.first() != nil || q.delay(now, w.ticket, nil) > 0 {
		return permit{}, false
	}
	return q.pacer.take(now, w.ticket), true
}

// delay tells how long the head has to wait from now. In a pause the pacer is not
// asked.
func (q *queue) delay(now time.Time, ticket uint64, w *waiter) time.Duration {
	if d := q.resume.Sub(now); d > 0 {
		return d
	}
	return q.pacer.ready(now, ticket, w)
}

// unnamed is the pause of a 429 that names none.
const unnamed = -1

// settle ends permit p. The answer may ask for a pause of everybody. It returns
// what that has come to and the share of the full pace that is left.
func (q *queue) settle(now time.Time, p permit, o outcome, status int, pause time.Duration) (time.Duration, float64) {
	q.mu.Lock()
	pace, own := q.pacer.settle(now, p, o)
	if pause == unnamed {
		pause = own
	}
	if p.handle != nil { // after the lock, since it is code of the user's
		if o == unused {
			defer p.handle.Return()
		} else {
			defer p.handle.Settle(status, pause)
		}
	}
	defer q.unlock()
	if resume := now.Add(pause); pause > 0 && resume.After(q.resume) {
		q.resume = resume
		q.pacer.idle()
		q.worsen()
	} else if o == throttled {
		q.worsen()
	}
	q.wakeFirst()
	return pause, pace
}

// worsen wakes everybody, since turns come later than they thought. Closing the
// channel takes long where many listen, so that is done without the lock.
func (q *queue) worsen() {
	if q.changed != nil {
		q.closing, q.changed = q.changed, nil
	}
}

func (q *queue) unlock() {
	closing := q.closing
	q.closing = nil
	q.mu.Unlock()
	if closing != nil {
		close(closing)
	}
}

// waiting is how many requests wait.
func (q *queue) waiting() int {
	n := 0
	for _, l := range q.lines {
		n += l.size
	}
	return n
}

// first is the waiter that goes next, nil if there is none that could.
func (q *queue) first() *waiter {
	var first *waiter
	for _, l := range q.lines {
		if w := l.first(); (first == nil || w.ticket < first.ticket) && l.ready() {
			first = w
		}
	}
	return first
}

func (q *queue) wakeFirst() {
	if w := q.first(); w != nil {
		w.nudge()
	} else {
		q.pacer.idle()
	}
}

// wait is estimate, for one who does not wait yet.
func (q *queue) wait(now time.Time, w *waiter) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.estimate(now, w)
}

// foretell asks a PermitLimiter how long w has to wait, without the lock.
func (q *queue) foretell(w *waiter) time.Duration {
	l, ok := q.pacer.(*limiterPacer)
	if !ok || l.permits == nil {
		return 0
	}
	q.mu.Lock()
	k := q.turn(w)
	q.mu.Unlock()
	return l.permits.Estimate(k)
}

// estimate tells how long w has to wait at least if nobody ahead of it leaves.
func (q *queue) estimate(now time.Time, w *waiter) time.Duration {
	pause := max(0, q.resume.Sub(now))
	return max(w.foretold, q.pacer.estimate(now, pause, q.turn(w), low(w.ticket)))
}

// turn is which request from now w's is, 1 being the next.
func (q *queue) turn(w *waiter) int {
	k := 1
	for _, l := range q.lines {
		if l == w.line || l.ready() {
			k += l.rank(w.ticket)
		}
	}
	if w.fetch.asks(q) && (q.own.size == 0 || class(q.own.first().ticket) >= normal) {
		k++ // the token needs a permit, and is not in the queue for it yet
	}
	return k
}
