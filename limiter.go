package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// A limiterPacer asks a Limiter that is not a Quota. The Limiter is only ever
// asked with the context of the head, and what it grants goes to whoever is the
// head by then.
type limiterPacer struct {
	limiter Limiter
	queue   *queue
	asking  bool          // a goroutine waits for the Limiter
	granted bool          // a permit of the Limiter's that nobody has taken yet
	permits PermitLimiter // limiter, if it is one
	permit  Permit        // that it has granted
}

// queueOf is the queue in front of l, which for a Quota all Transports share.
func queueOf(l Limiter) (*queue, error) {
	if q, ok := l.(*Quota); ok && q != nil {
		return q.made()
	}
	if l == nil {
		return new(Quota).made()
	}
	q := &queue{window: defaultWindow}
	permits, ok := l.(PermitLimiter)
	if ok {
		if period := permits.Period(); period > 0 {
			q.window = period
		}
	}
	q.pacer = &limiterPacer{limiter: l, queue: q, permits: permits}
	return q, nil
}

// unlimited is the queue of a Source without a Transport, which has no quota.
func unlimited() *queue {
	q, _ := queueOf(rate.NewLimiter(rate.Inf, 0))
	return q
}

func (l *limiterPacer) ready(now time.Time, _ uint64, w *waiter) time.Duration {
	if !l.granted && !l.asking {
		if r, ok := l.limiter.(*rate.Limiter); ok && r.AllowN(now, 1) {
			l.granted = true
		} else if w != nil {
			l.asking = true
			go l.ask(w, w.ctx, l.queue.waiting())
		}
	}
	if l.granted {
		return 0
	}
	return never
}

// ask waits for the Limiter on behalf of w, the head. A Limiter that does not
// return, but ends the goroutine, has given an error.
func (l *limiterPacer) ask(w *waiter, ctx context.Context, waiting int) {
	var permit Permit
	err := errors.New("Wait ended its goroutine")
	defer func() {
		if recover() != nil {
			err = errors.New("Wait panicked")
		}
		limited := errors.Is(err, ErrRateLimited) // not under the lock, since it is the user's
		q := l.queue
		q.mu.Lock()
		defer q.unlock()
		now := time.Now()
		l.asking, l.granted, l.permit = false, err == nil, permit
		if now.Before(q.resume) { // a permit would be one too many for later
			l.idle()
		}
		if err != nil && w.in {
			w.refused = l.explain(now, w, err, limited)
			w.nudge()
		}
		q.wakeFirst()
	}()
	if l.permits != nil {
		permit, err = l.permits.Permit(ctx, waiting)
	} else {
		err = l.limiter.Wait(ctx)
	}
}

// explain makes ErrRateLimited of a refusal by *rate.Limiter, which has no type
// of its own for it.
func (l *limiterPacer) explain(now time.Time, w *waiter, err error, limited bool) error {
	if limited {
		return err
	}
	if d := l.estimate(now, 0, 1, false); !w.deadline.IsZero() && now.Add(d).After(w.deadline) {
		return &rateLimitError{wait: d, left: w.deadline.Sub(now)}
	}
	return fmt.Errorf("partnerauth: limiter: %w", err)
}

// estimate can tell what a *rate.Limiter will do, and nothing about others.
func (l *limiterPacer) estimate(now time.Time, pause time.Duration, k int, _ bool) time.Duration {
	r, ok := l.limiter.(*rate.Limiter)
	if !ok || r.Limit() == rate.Inf || r.Burst() < 1 {
		return pause
	}
	// While the Limiter is asked for the head, its tokens are one short already.
	if l.asking || l.granted {
		k--
	}
	return pause + untilTokens(r, now.Add(pause), k)
}

func (l *limiterPacer) take(now time.Time, _ uint64) permit {
	p := permit{at: now, pace: 1, handle: l.permit}
	l.granted, l.permit = false, nil
	return p
}

func (l *limiterPacer) settle(time.Time, permit, outcome) (float64, time.Duration) {
	return 1, l.queue.window
}

// idle gives back what was granted and nobody took.
func (l *limiterPacer) idle() {
	if permit := l.permit; permit != nil {
		go func() { // without the lock
			defer func() { recover() }()
			permit.Return()
		}()
	}
	l.granted, l.permit = false, nil
}

// untilTokens tells how long it takes l to have k tokens.
func untilTokens(l *rate.Limiter, now time.Time, k int) time.Duration {
	missing := float64(k) - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	seconds := missing / float64(l.Limit())
	if seconds > (never / 4).Seconds() {
		return never / 4
	}
	return time.Duration(seconds * float64(time.Second))
}
