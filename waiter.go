package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A waiter is one request in a queue. Its own goroutine takes it through its
// states: waiting for a token (it has a fetch), waiting for its turn, gone.
type waiter struct {
	queue    *queue
	line     *line
	ctx      context.Context
	deadline time.Time     // of ctx; zero: none
	gaveUp   error         // why ctx has ended; nil: it has not
	late     bool          // that was at its deadline
	foretold time.Duration // by a PermitLimiter: the wait
	ticket   uint64        // 0 until its arrival
	resent   bool          // has been sent before

	tokens             tokenCache // nil: it needs no token
	via                *sender    // of token requests
	lease              *lease     // the token that it goes with; nil: it has none
	fetch              *fetch     // that it waits for; nil: none
	joined             *fetch     // that it waited for last
	joinedAt, servedAt time.Time  // when that wait began and ended
	fetchErr           error      // with what
	from               string     // where the token came from
	// outlived counts the tokens that ended before w's turn came. After
	// maxOutlived no other is fetched for it, or there would be one login after
	// the other for ever.
	outlived int

	in      bool          // the queue
	since   time.Time     // when its wait for the permit began
	wake    chan struct{} // has something in it if the waiter is to look again
	refused error         // by a Limiter
}

// maxOutlived is how many tokens may end before the turn of one request comes.
const maxOutlived = 2

// errNoToken tells a waiter to get its token by itself.
var errNoToken = errors.New("no token")

// wait waits until w has its permit, or tells why there is none: w is out of the
// queue in either case.
func (w *waiter) wait() (permit, error) {
	defer w.abandon()
	w.since, w.wake, w.refused, w.joined = time.Now(), make(chan struct{}, 1), nil, nil
	w.deadline, _ = w.ctx.Deadline()
	for {
		if w.ctx.Err() != nil {
			w.gaveUp = ended(w.ctx)
		}
		w.late = w.ctx.Err() == context.DeadlineExceeded
		if !w.deadline.IsZero() {
			w.foretold = w.queue.foretell(w)
		}
		p, sleep, changed, err := w.lookOnce()
		if err != nil || sleep == 0 {
			return p, err
		}
		w.sleep(sleep, changed)
	}
}

// lookOnce looks under the queue's lock.
func (w *waiter) lookOnce() (p permit, sleep time.Duration, changed <-chan struct{}, err error) {
	q := w.queue
	q.mu.Lock()
	defer q.unlock()
	p, sleep, err = w.look(time.Now())
	if q.changed == nil {
		q.changed = make(chan struct{})
	}
	return p, sleep, q.changed, err
}

// nudge makes w look again.
func (w *waiter) nudge() {
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// abandon takes w out of its queue if code of the user's has panicked in wait.
func (w *waiter) abandon() {
	if w.in {
		w.queue.mu.Lock()
		defer w.queue.unlock()
		w.leave()
	}
}

// sleep waits for what may have changed something for w.
func (w *waiter) sleep(d time.Duration, changed <-chan struct{}) {
	var due <-chan time.Time
	if d != never {
		due = time.After(d)
	}
	var fetched <-chan struct{}
	if w.fetch != nil {
		fetched = w.fetch.done.Done()
	}
	select {
	case <-w.wake:
	case <-changed:
	case <-fetched:
	case <-due:
	case <-w.ctx.Done():
	}
}

// look takes w as far as it comes at once: to its permit, out of the queue with
// an error, or to a sleep until something changes. The queue's lock is held.
func (w *waiter) look(now time.Time) (p permit, sleep time.Duration, err error) {
	if w.tokens != nil && w.lease == nil {
		err = w.obtain(now)
	}
	if err == nil {
		sleep, err = w.outlook(now)
	}
	if err != nil {
		w.leave()
		return p, 0, err
	}
	w.join()
	if w.fetch != nil || w.queue.first() != w {
		w.queue.wakeFirst()
		return p, sleep, nil
	}
	if d := w.queue.delay(now, w.ticket, w); d > 0 {
		return p, min(d, sleep), nil
	}
	if w.tokens != nil { // not to hold the permit while waiting for a token
		switch err = w.obtain(now); {
		case err != nil:
			w.leave()
			return p, 0, err
		case w.fetch != nil:
			return w.look(now)
		}
	}
	p = w.queue.pacer.take(now, w.ticket)
	w.leave()
	return p, 0, nil
}

// obtain gets w the token to send, or a fetch to wait for.
func (w *waiter) obtain(now time.Time) error {
	if f := w.fetch; f != nil {
		if !f.over() {
			return nil
		}
		w.served(now, f.err)
		if w.lease = f.lease; f.err != nil {
			return f.err
		}
	}
	if w.lease != nil && !w.lease.good(now) {
		w.outlived++
	}
	err := w.tokens.seek(w)
	if w.fetch != nil {
		if w.joined == nil {
			w.joinedAt = now
		}
		w.joined = w.fetch
	}
	return err
}

// shares reports whether w has waited for somebody else's fetch.
func (w *waiter) shares() bool { return w.joined != nil && w.joined.leader != w }

// served notes the end of w's wait for a fetch.
func (w *waiter) served(now time.Time, err error) {
	w.servedAt, w.fetchErr = now, err
	if w.from = "shared"; w.fetch.leader == w && w.fetch.over() && w.fetch.lease != nil {
		w.from = w.fetch.op
	}
	w.fetch, w.since = nil, now
}

// outlook tells how long w may sleep before it has to look at its deadline again,
// or why it does not wait any longer.
func (w *waiter) outlook(now time.Time) (time.Duration, error) {
	switch {
	case w.gaveUp != nil && w.fetch != nil:
		err := w.fetch.source.gaveUp(w.gaveUp)
		w.served(now, err)
		return 0, err
	case w.refused != nil && w.gaveUp == nil:
		return 0, w.refused
	case w.gaveUp != nil && !w.late:
		return 0, fmt.Errorf("partnerauth: waiting for the rate limit: %w", w.gaveUp)
	case w.deadline.IsZero():
		return never, nil
	}
	wait, left := w.queue.estimate(now, w), w.deadline.Sub(now)
	switch {
	case w.gaveUp != nil || wait > left:
		err := &rateLimitError{wait: wait, left: left}
		if w.fetch != nil {
			w.served(now, err)
		}
		return 0, err
	case w.queue.round > 0:
		// While answers are out turns come later with time, and too late when
		// only so many whole rounds are left.
		return left%w.queue.round + 1, nil
	}
	return never, nil
}

// join puts w into its queue. Turns come later for those that it goes ahead of: a
// token request for all, a request that comes back for those that came later.
func (w *waiter) join() {
	if w.in {
		return
	}
	w.in = true
	if w.line.size == 0 {
		w.queue.lines = append(w.queue.lines, w.line)
	}
	w.line.insert(w.ticket, w)
	if class(w.ticket) < normal || w.resent {
		w.queue.worsen()
	}
}

// leave takes w out of its queue.
func (w *waiter) leave() {
	if !w.in {
		return
	}
	w.in = false
	w.line.remove(w.ticket)
	if w.line.size == 0 {
		i := slices.Index(w.queue.lines, w.line)
		w.queue.lines = slices.Delete(w.queue.lines, i, i+1)
	}
	w.queue.wakeFirst()
}
