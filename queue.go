package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// A ticket is a place in a queue: the priority, then the order of arrival. Whoever
// comes back keeps the number, and with it the place.
type ticket uint64

// The priorities. Their tickets begin here.
const (
	forToken  ticket = 0 << 62 // token requests that callers wait for
	forCaller ticket = 1 << 62
	forLater  ticket = 2 << 62 // token requests that nobody waits for yet
	forLow    ticket = 3 << 62 // calls under WithLowPriority
)

// low reports whether t is of low priority.
func (t ticket) low() bool { return t >= forLow }

// A permit allows its holder to send one request. release ends it.
type permit struct {
	at   time.Time // when it was granted
	pace float64   // the share of the full pace that was left then

	full bool // by our own books the server's window was full then

	external interface { // the Permit of a PermitLimiter; nil otherwise
		Settle(status int, pause time.Duration)
		Return()
	}
}

// An outcome is what became of a permit.
type outcome int

const (
	answered   outcome = iota // the headers are in
	throttled                 // answered 429
	overloaded                // answered 503, without a time to come back
	unanswered                // given up or broken: the request may still be on its way
	byHand                    // granted to Quota.Wait: sent within a second
	unused                    // the request never left
)

// A verdict is what the end of a permit means for the others.
type verdict struct {
	pause  time.Duration // of everybody after a 429 that names none
	pace   float64       // share of the full pace that is left
	burst  int           // most requests at once; 0: unknown
	reason string        // why pace or burst were lowered by this permit; "": they were not
	slower bool          // turns come later than was known
}

// A pacer decides when the head of a queue may go. Its methods are called with the
// queue's lock held, but for trouble.
type pacer interface {
	// ready returns how long the head has to wait from now; 0: it may go.
	ready(now time.Time, low bool) time.Duration
	// ask asks, where ready returned never, somebody else on behalf of the head, unless
	// that is under way already.
	ask(head *waiter, waiting int)
	// estimate returns how long the k-th request from now (1 is the next) has to
	// wait at least, where everybody is paused for a while.
	estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration
	// take spends what ready has promised.
	take(now time.Time, low bool) permit
	// release ends a permit. named is the pause that the answer asks of everybody,
	// isNamed whether it names one.
	release(now time.Time, p permit, o outcome, named time.Duration, isNamed bool) verdict
	// idle gives back what was granted and nobody can take now.
	idle()
	// trouble returns the Limiter's problem, for a caller whose context has ended; nil
	// if there is none.
	trouble(ended context.Context) error
}

// never is a wait whose end something other than a timer announces.
const never = time.Duration(math.MaxInt64)

// errNotUsable is returned by acquire when a waiter's turn has come, but what it wanted
// to send can no longer be sent.
var errNotUsable = errors.New("partnerauth: not usable any more")

// A queue grants permits one by one, in order of tickets, each when the pacer says
// so. It knows contexts and tickets and nothing else.
//
// It grants centrally: every change ends in dispatch, which grants what can be
// granted. So ten thousand that may go at once cost one pass and not a chain of
// wake-ups. A waiter whose context ends while it is granted a permit gives it back.
type queue struct {
	window time.Duration // a request is sent again after a 429 within two of them
	round  time.Duration // after which a slot serves again at the earliest; 0: it has none
	pacer  pacer         // set before first use

	tickets atomic.Uint64

	// mu guards what follows. Nothing waits while holding it, and the only foreign
	// code under it is PermitLimiter.Estimate. A waiter's usable may take the lock
	// of a token source, so a source never calls a queue with its lock held.
	mu      sync.Mutex
	waiters []*waiter   // by ticket
	resume  time.Time   // everybody is paused until then
	timer   *time.Timer // calls dispatch when the head may go; nil until needed

	// Answers to requests that were served may say that nothing remains. Some servers
	// always say so.
	claimed time.Time // until when nothing remains, by the last one that said so
	doubt   int       // grows with those that came again after that, shrinks with other answers
}

// A waiter is one request in a queue, until done is closed. Then it has a permit or
// an error.
type waiter struct {
	ticket ticket
	ctx    context.Context
	usable func() bool // whether it still wants the permit; nil: yes
	done   chan struct{}
	permit permit
	err    error
}

// newTicket returns the next ticket of a priority.
func (q *queue) newTicket(priority ticket) ticket { return priority + ticket(q.tickets.Add(1)) }

// tryAcquire returns a permit if nobody waits and there is one at once. That of a request
// that is sent by hand has ended then, so that this takes the lock once.
func (q *queue) tryAcquire(now time.Time, t ticket, hand bool) (p permit, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiters) > 0 || q.resume.After(now) || q.pacer.ready(now, t.low()) > 0 {
		return permit{}, false
	}
	p = q.pacer.take(now, t.low())
	if hand {
		q.pacer.release(now, p, byHand, 0, false)
	}
	return p, true
}

// acquire waits for a permit. If the turn would come after ctx's deadline, by the queue's
// own estimate, it returns a *RateLimitError at once.
func (q *queue) acquire(ctx context.Context, t ticket, usable func() bool) (permit, error) {
	w := &waiter{ticket: t, ctx: ctx, usable: usable, done: make(chan struct{})}
	if ctx.Err() != nil {
		return permit{}, q.gaveUp(w)
	}
	if err := q.join(w); err != nil {
		return permit{}, err
	}
	for {
		select {
		case <-w.done:
			return w.permit, w.err
		case <-q.recheck(ctx):
			if err := q.tooLate(w); err != nil && q.leave(w) {
				return permit{}, err
			}
		case <-ctx.Done():
			if q.leave(w) {
				return permit{}, q.gaveUp(w)
			}
			return w.permit, w.err // it came at the same instant
		}
	}
}

// recheck returns when to look at the deadline of a waiter again: while answers are out,
// turns come later with time, and too late when only so many whole rounds are left.
func (q *queue) recheck(ctx context.Context) <-chan time.Time {
	if deadline, ok := ctx.Deadline(); ok && q.round > 0 {
		return time.After(time.Until(deadline)%q.round + 1)
	}
	return nil
}

// join puts w into the queue, or refuses it.
func (q *queue) join(w *waiter) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, i := time.Now(), q.rank(w.ticket)
	if err := q.tooLateLocked(now, w, i+1); err != nil {
		return err
	}
	q.waiters = slices.Insert(q.waiters, i, w)
	if i+1 < len(q.waiters) && len(q.waiters) <= maxLookedAt {
		q.refuseAllLocked(now)
	}
	q.dispatchLocked(now)
	return nil
}

// maxLookedAt is how many waiters there may be at most for one that goes ahead of others
// to have them looked at again. Among more, each looks at its own deadline in time.
const maxLookedAt = 1000

// rank returns how many waiters go before a ticket.
func (q *queue) rank(t ticket) int {
	return sort.Search(len(q.waiters), func(i int) bool { return q.waiters[i].ticket >= t })
}

// leave takes w out of the queue, and reports whether it was still in it.
func (q *queue) leave(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	removed := q.removeLocked(w)
	if removed {
		q.dispatchLocked(time.Now())
	}
	return removed
}

func (q *queue) removeLocked(w *waiter) bool {
	i := q.rank(w.ticket)
	if i == len(q.waiters) || q.waiters[i] != w {
		return false
	}
	q.waiters = slices.Delete(q.waiters, i, i+1)
	return true
}

// dispatchLocked grants what can be granted now, and sees to it that the rest is
// granted when it can be.
func (q *queue) dispatchLocked(now time.Time) {
	for len(q.waiters) > 0 {
		head := q.waiters[0]
		if head.usable != nil && !head.usable() {
			head.err = errNotUsable
		} else if wait := q.waitOf(now, head); wait > 0 {
			q.wakeIn(wait)
			return
		} else {
			head.permit = q.pacer.take(now, head.ticket.low())
		}
		q.waiters[0] = nil
		q.waiters = q.waiters[1:]
		close(head.done)
	}
	q.waiters = nil // a long queue must not be kept for ever
	q.pacer.idle()
}

// waitOf returns how long the head has to wait.
func (q *queue) waitOf(now time.Time, head *waiter) time.Duration {
	if pause := q.resume.Sub(now); pause > 0 {
		q.pacer.idle() // a permit would be one too many for later
		return pause
	}
	wait := q.pacer.ready(now, head.ticket.low())
	if wait == never {
		q.pacer.ask(head, len(q.waiters))
	}
	return wait
}

func (q *queue) wakeIn(d time.Duration) {
	switch {
	case d == never:
	case q.timer == nil:
		q.timer = time.AfterFunc(d, q.dispatch)
	default:
		q.timer.Reset(d)
	}
}

func (q *queue) dispatch() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dispatchLocked(time.Now())
}

// release ends permit p. status is that of the answer, 0 if there was none, and named
// the pause that it asks of everybody, if it names one; nobody but the request itself
// is paused for longer than most. It returns the pause of the request.
func (q *queue) release(now time.Time, p permit, o outcome, status int, named, most time.Duration, isNamed bool) (pause time.Duration, v verdict) {
	defer func() { // outside the lock: this may be foreign code
		switch {
		case p.external == nil:
		case o == unused:
			p.external.Return()
		default:
			p.external.Settle(status, min(pause, most))
		}
	}()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.believedLocked(now, p, status, min(named, most), isNamed) {
		named, isNamed = 0, false
	}
	v = q.pacer.release(now, p, o, named, isNamed)
	if pause = named; o == throttled && !isNamed {
		pause = v.pause
	}
	if resume := now.Add(min(pause, most)); pause > 0 && resume.After(q.resume) {
		q.resume, v.slower = resume, true
	}
	if v.slower {
		q.refuseAllLocked(now)
	}
	q.dispatchLocked(now)
	return pause, v
}

// A claim that comes again after the last one has passed adds doubtOfClaim to the doubt,
// any other answer takes 1 away. Above mostDoubt, claims are not believed.
const doubtOfClaim, mostDoubt = 4, 12

// believedLocked reports whether to keep the pause that an answer of that status names,
// if it names one.
func (q *queue) believedLocked(now time.Time, p permit, status int, pause time.Duration, isNamed bool) bool {
	switch {
	case status == 0: // there was no answer
		return true
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		q.doubt = 0 // there is a limit
	case !isNamed:
		q.doubt = max(0, q.doubt-1)
	case !p.at.Before(q.claimed): // else it was sent before the last one was known
		q.doubt = min(q.doubt+doubtOfClaim, 2*mostDoubt)
	}
	if q.doubt > mostDoubt {
		return false
	}
	if isNamed {
		q.claimed = now.Add(pause)
	}
	return true
}

// tooLate returns a *RateLimitError if w's turn comes after its deadline.
func (q *queue) tooLate(w *waiter) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tooLateLocked(time.Now(), w, q.rank(w.ticket)+1)
}

// tooLateLocked is tooLate where w's turn is the k-th from now.
func (q *queue) tooLateLocked(now time.Time, w *waiter, k int) error {
	deadline, ok := w.ctx.Deadline()
	if !ok {
		return nil
	}
	wait, left := q.estimateLocked(now, k, w.ticket.low()), deadline.Sub(now)
	if wait <= left {
		return nil
	}
	return &RateLimitError{wait: wait, left: left}
}

// refuseAllLocked refuses all whose turn comes after their deadline now. Those who are
// refused are ahead of nobody. Nothing changes until all are known, since Estimate,
// which is foreign code, may panic.
func (q *queue) refuseAllLocked(now time.Time) {
	var refused []*waiter
	for i, w := range q.waiters {
		if w.err = q.tooLateLocked(now, w, i+1-len(refused)); w.err != nil {
			refused = append(refused, w)
		}
	}
	if len(refused) > 0 {
		q.waiters = slices.DeleteFunc(q.waiters, func(w *waiter) bool { return w.err != nil })
	}
	for _, w := range refused {
		close(w.done)
	}
}

// estimateLocked returns how long the k-th request from now has to wait at least, if
// nobody ahead of it leaves.
func (q *queue) estimateLocked(now time.Time, k int, low bool) time.Duration {
	return q.pacer.estimate(now, max(0, q.resume.Sub(now)), k, low)
}

// wait returns the estimate for a ticket.
func (q *queue) wait(now time.Time, t ticket) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.estimateLocked(now, q.rank(t)+1, t.low())
}

// gaveUp returns the error of a waiter whose context has ended: the Limiter's problem, if
// there is one.
func (q *queue) gaveUp(w *waiter) error {
	if cause := q.pacer.trouble(w.ctx); cause != nil {
		return cause
	}
	if !errors.Is(w.ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("partnerauth: waiting for the rate limit: %w", ended(w.ctx))
	}
	now := time.Now()
	deadline, _ := w.ctx.Deadline()
	return &RateLimitError{wait: q.wait(now, w.ticket), left: min(0, deadline.Sub(now))}
}
