package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// An externalLimiter is the pacer for a Limiter that is not a Quota. The Limiter is
// only ever asked with the context of the head, and what it grants goes to whoever
// is the head by then. The queue's lock guards its fields.
type externalLimiter struct {
	limiter Limiter
	queue   *queue

	asking  bool   // a goroutine waits for the limiter
	granted bool   // a permit that nobody has taken yet
	permit  Permit // which that is, of a PermitLimiter
}

// queueOf returns the queue in front of l. All Transports share that of a Quota.
func queueOf(l Limiter) (*queue, error) {
	if q, ok := l.(*Quota); ok && q != nil {
		return q.made()
	}
	if l == nil {
		return new(Quota).made()
	}
	q := &queue{window: defaultWindow}
	q.pacer = &externalLimiter{limiter: l, queue: q}
	if permits, ok := l.(PermitLimiter); ok {
		if period := permits.Period(); period > 0 {
			q.window = period
		}
	}
	return q, nil
}

// unlimited returns the queue of a Source without a Transport, which has no quota.
func unlimited() *queue {
	q, _ := queueOf(rate.NewLimiter(rate.Inf, 0))
	return q
}

func (l *externalLimiter) ready(now time.Time, _ bool) time.Duration {
	if r, ok := l.limiter.(*rate.Limiter); ok && !l.granted && !l.asking && r.AllowN(now, 1) {
		l.granted = true
	}
	if l.granted {
		return 0
	}
	return never
}

func (l *externalLimiter) ask(head *waiter, waiting int) {
	if !l.asking {
		l.asking = true
		go l.wait(head, waiting)
	}
}

// wait waits for the limiter on behalf of head, in a goroutine of its own.
func (l *externalLimiter) wait(head *waiter, waiting int) {
	var granted Permit
	err := errGoexit
	defer func() {
		if value := recover(); value != nil {
			err = errPanic(value)
		}
		q := l.queue
		q.mu.Lock()
		defer q.mu.Unlock()
		l.asking, l.granted, l.permit = false, err == nil, granted
		if err != nil && q.removeLocked(head) {
			head.err = err
			close(head.done)
		}
		q.dispatchLocked(time.Now())
	}()
	if permits, ok := l.limiter.(PermitLimiter); ok {
		granted, err = permits.Permit(head.ctx, waiting)
	} else {
		err = l.limiter.Wait(head.ctx)
	}
	err = l.explain(head, err)
}

// explain returns what a caller is told of a limiter's error: an error that Is
// ErrRateLimited as it is, the end of the caller's context as such, and a
// RateLimitError where a *rate.Limiter, which has no type for it, has refused.
func (l *externalLimiter) explain(head *waiter, err error) error {
	switch {
	case err == nil || errors.Is(err, ErrRateLimited):
		return err
	case head.ctx.Err() != nil:
		return l.queue.gaveUp(head)
	}
	if late := l.queue.tooLate(head); late != nil {
		return late
	}
	return fmt.Errorf("partnerauth: limiter: %w", err)
}

// estimate knows what a *rate.Limiter will do, what a PermitLimiter says, and nothing
// about others.
func (l *externalLimiter) estimate(now time.Time, pause time.Duration, k int, _ bool) time.Duration {
	if permits, ok := l.limiter.(PermitLimiter); ok {
		return max(pause, permits.Estimate(k))
	}
	r, ok := l.limiter.(*rate.Limiter)
	if !ok || r.Limit() == rate.Inf || r.Burst() < 1 {
		return pause
	}
	// While the limiter is asked for the head, its tokens are one short already.
	if l.asking || l.granted {
		k--
	}
	missing := float64(k) - r.TokensAt(now.Add(pause))
	if missing <= 0 {
		return pause
	}
	return pause + time.Duration(min(missing/float64(r.Limit()), (never/4).Seconds())*float64(time.Second))
}

func (l *externalLimiter) take(now time.Time, _ bool) permit {
	p := permit{at: now, external: l.permit}
	p.pace, _ = l.pace()
	l.granted, l.permit = false, nil
	return p
}

// release keeps no permit that was not used: where somebody waits, the limiter has been
// asked for another already.
func (l *externalLimiter) release(time.Time, permit, outcome, time.Duration, bool) verdict {
	v := verdict{pause: l.queue.window}
	v.pace, v.burst = l.pace()
	return v
}

// pace returns what a limiter with a method for it says, else full pace and an
// unknown burst. The method must not block.
func (l *externalLimiter) pace() (share float64, burst int) {
	if paced, ok := l.limiter.(interface{ Pace() (float64, int) }); ok {
		return paced.Pace()
	}
	return 1, 0
}

func (l *externalLimiter) idle() {
	if l.permit != nil {
		go giveUp(l.permit) // outside the lock
	}
	l.granted, l.permit = false, nil
}

// giveUp returns a permit that nobody waits for. Nobody is left to be told of a panic.
func giveUp(p Permit) {
	defer func() { recover() }()
	p.Return()
}

// trouble asks a PermitLimiter with a context that has ended what is wrong with it.
func (l *externalLimiter) trouble(ended context.Context) error {
	permits, ok := l.limiter.(PermitLimiter)
	if !ok || ended.Err() != context.DeadlineExceeded {
		return nil
	}
	permit, err := permits.Permit(ended, 1)
	if err == nil {
		giveUp(permit)
	} else if errors.Is(err, ErrRateLimited) || !errors.Is(err, ended.Err()) {
		return err
	}
	return nil
}
