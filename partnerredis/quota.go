package partnerredis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"
)

const (
	defaultRequests = 100
	defaultWindow   = time.Minute

	maxRequests = 1_000_000
	minWindow   = time.Millisecond
	maxWindow   = 24 * time.Hour

	// maxGuard is added to the window, as in partnerauth.Quota. A request that
	// was given up may still be on its way for as long.
	maxGuard = time.Second

	maxPatience = 1000 * maxWindow
	mostAtOnce  = 50  // permits of one call
	mostCounted = 200 // of a process's own permits, for each call
	sickBurst   = 3   // answers of 503 among others teach, as in partnerauth.Quota

	callTime     = time.Second            // that Redis has for an answer
	clientTime   = 3 * time.Second        // that the client has for its retries
	retryEvery   = 500 * time.Millisecond // while it is away
	retryMoving  = 50 * time.Millisecond  // while a slot moves
	failoverTime = 3 * time.Second        // that a client may ask a node that has been a master, or had the keys
	rejoinTime   = callTime + retryEvery  // until all have found it again
	sayBefore    = 50 * time.Millisecond  // the deadline, so that the caller hears why

	// longPause beyond a window is a pause that has nothing to do with it, such as a
	// daily limit's.
	longPause = 2 * time.Second
)

// A Quota is a [partnerauth.Quota] that all processes with its Name on one Redis
// or Valkey share: together they send no more than Requests in any Window, in
// the order in which they asked, and none while one of them has been told to
// pause. Give it to a Transport as its Limiter.
//
// Client and Name are required; a mistake in the fields is an error at first use.
// Each process goes by its own fields: let them be the same everywhere. It is
// safe for concurrent use and must not be copied or changed after first use.
// There is nothing to close.
type Quota struct {
	Client   redis.Scripter // *redis.Client, *redis.ClusterClient, … ; required
	Name     string         // of the quota, such as "nowpost"; part of its keys; required
	Requests int            // in any Window, at most a million; 0: 100
	Window   time.Duration  // 1 ms to 24 h; 0: a minute
	Burst    int            // most requests sent at once after a quiet time; 0: Requests
	Replicas int            // what to do while Redis is away: 0 sends nothing, n goes on with Requests/n in each process

	// FixedRate is for partners that count and do not shape: refusals then pause
	// everybody and change neither bursts nor pace.
	FixedRate bool

	MeterProvider metric.MeterProvider // nil: otel's global

	once      sync.Once
	err       error
	set       settings
	scripts   scripts
	reachable gauge
	head      chan struct{} // held by the caller that Redis is asked for
	callers   atomic.Int64

	// mu guards books. Nothing under it waits, calls what a user gave, or takes
	// another lock.

	mu sync.Mutex
	books
}

// settings are the fields with their defaults, and what follows from them.
type settings struct {
	keys            []string
	requests, burst int
	window          time.Duration
	guard           time.Duration // after an answer
	lag             time.Duration // between a grant and an answer that is nothing special
}

var _ partnerauth.PermitLimiter = (*Quota)(nil)

func (q *Quota) init() error {
	q.once.Do(func() {
		s := settings{
			requests: cmp.Or(q.Requests, defaultRequests),
			window:   cmp.Or(q.Window, defaultWindow),
		}
		s.burst = cmp.Or(q.Burst, s.requests)
		s.guard = min(maxGuard, s.window/20)
		s.lag = s.guard / 2
		prefix := "partnerauth:{" + q.Name + "}:" // one slot of a cluster
		s.keys = []string{prefix + "state", prefix + "places", prefix + "queue"}
		q.set = s
		if q.err = q.mistake(); q.err == nil {
			q.reachable = newGauge(q.MeterProvider, q.Name)
		}
		q.scripts.client = q.Client
		q.head = make(chan struct{}, 1)
		q.prefix = newID()
	})
	return q.err
}

// mistake returns an error that names the field that is wrong.
func (q *Quota) mistake() error {
	s := &q.set
	switch {
	case q.Client == nil:
		return errors.New("partnerredis: Quota.Client is nil")
	case q.Name == "" || strings.ContainsAny(q.Name, "{}"):
		return fmt.Errorf("partnerredis: Quota.Name is %q, want a name without braces", q.Name)
	case s.requests < 1 || s.requests > maxRequests:
		return fmt.Errorf("partnerredis: Quota.Requests is %d, want 1 to %d", s.requests, maxRequests)
	case s.window < minWindow || s.window > maxWindow:
		return fmt.Errorf("partnerredis: Quota.Window is %v, want %v to %v", s.window, minWindow, maxWindow)
	case s.burst < 1 || s.burst > s.requests:
		return fmt.Errorf("partnerredis: Quota.Burst is %d, want 1 to Requests, %d", s.burst, s.requests)
	case q.Replicas < 0:
		return fmt.Errorf("partnerredis: Quota.Replicas is %d, want 0 or more", q.Replicas)
	}
	return nil
}

// Wait waits for leave to send one request that no Transport sends. The request
// should reach the server within a second after Wait returns, and counts as
// answered then. Errors are those of Permit.
func (q *Quota) Wait(ctx context.Context) error {
	p, err := q.Permit(ctx, 1)
	if err == nil {
		p.Settle(0, 0)
	}
	return err
}

// Permit waits for leave to send one request. Calls are served in order.
//
// Its error Is [partnerauth.ErrRateLimited] if the turn would come after ctx's
// deadline, at once; if Redis has been away for a Window; and, at once, if Redis
// refuses for a reason that waiting does not cure, such as a wrong password. That
// error has a method RetryAfter and unwraps to what went wrong with Redis. Other
// errors are that of ctx, and one that names the field of q that is wrong. With a ctx that has ended, Permit returns at
// once: with what is wrong with Redis, if anything is known to be, else with the
// error of ctx.
func (q *Quota) Permit(ctx context.Context, waiting int) (partnerauth.Permit, error) {
	if err := q.init(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, q.ended(ctx)
	}
	defer q.callers.Add(-1)
	if err := q.join(ctx, int(q.callers.Add(1))); err != nil {
		return nil, err
	}
	defer func() { <-q.head }()
	c := caller{ctx: ctx, waiting: max(waiting, int(q.callers.Load()))}
	for {
		p, next, err := q.step(&c)
		switch {
		case err != nil:
			return nil, err
		case p != nil:
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, q.ended(ctx)
		case <-next.call: // nil: there is none
		case <-time.After(next.wait):
		}
	}
}

// join waits to be the head. The caller is the n-th.
func (q *Quota) join(ctx context.Context, n int) error {
	if n > 1 { // they came by hand
		if wait := q.Estimate(n); wait > left(ctx) {
			return q.refuse(ctx, wait)
		}
	}
	select {
	case q.head <- struct{}{}:
		return nil
	default:
		return q.behind(ctx)
	}
}

// behind waits for those ahead. A caller behind hears what is wrong, too.
func (q *Quota) behind(ctx context.Context) error {
	soon := time.NewTimer(left(ctx) - sayBefore)
	defer soon.Stop()
	for {
		select {
		case q.head <- struct{}{}:
			return nil
		case <-ctx.Done():
			return q.ended(ctx)
		case <-soon.C:
			if q.troubled() {
				return q.refuse(ctx, retryEvery)
			}
		}
	}
}

// A caller is whoever is at the head of this process's queue.
type caller struct {
	ctx     context.Context
	waiting int
	asked   *call // by this caller
}

// next is what to wait for, whichever comes first.
type next struct {
	call chan struct{}
	wait time.Duration
}

// step is what a caller can have now, or what it waits for.
func (q *Quota) step(c *caller) (p *permit, n next, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, left := time.Now(), left(c.ctx)
	if c.ctx.Err() != nil {
		return nil, n, q.endedLocked(c.ctx)
	}
	if p := q.take(now); p != nil {
		return p, n, nil
	}
	if q.trouble != nil {
		n, err = q.without(now, c)
		return nil, n, err
	}
	switch turn := max(q.turn.Sub(now), q.pause.Sub(now)); {
	case q.asking != nil:
		return nil, next{q.asking.done, math.MaxInt64}, nil
	case c.asked != nil && c.asked.tooLate > 0:
		return nil, n, &refusal{wait: c.asked.tooLate, left: left}
	case q.ticket != "" && turn > left:
		return nil, n, &refusal{wait: turn, left: left}
	case q.ticket != "" && q.turn.After(now):
		wait := q.turn.Sub(now)
		if wait+q.linger < left {
			wait += q.linger
		}
		return nil, next{nil, wait}, nil
	}
	if wait := q.estimate(now, 1); q.ticket == "" && wait > left {
		return nil, n, &refusal{wait: wait, left: left}
	}
	return nil, next{q.ask(now, c), math.MaxInt64}, nil
}

// without is how it goes on while Redis is away.
func (q *Quota) without(now time.Time, c *caller) (next, error) {
	if q.asking == nil && !now.Before(q.retry) {
		q.ask(now, c)
	}
	wait, left := retryEvery, left(c.ctx)-sayBefore
	if q.asking == nil {
		wait = q.retry.Sub(now)
	}
	switch {
	case q.Replicas > 0:
		wait = min(wait, q.ownTurn(now))
	case q.asking != nil && q.asking == c.asked: // its own question may find Redis again
	case q.trouble.kind == refusing:
		left = 0
	default:
		left = min(left, q.since.Add(q.set.window).Sub(now))
	}
	if left <= 0 {
		return next{}, &refusal{wait: max(0, q.retry.Sub(now)), left: left, trouble: q.trouble}
	}
	n := next{wait: min(wait, left)}
	if q.asking != nil {
		n.call = q.asking.done
	}
	return n, nil
}

// Estimate returns how long the n-th request from now has to wait at least, by what
// Redis last said. It sends nothing.
func (q *Quota) Estimate(n int) time.Duration {
	if q.init() != nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.estimate(time.Now(), n)
}

// Period is the Window.
func (q *Quota) Period() time.Duration {
	q.init()
	return q.set.window
}

// Pace returns what refusals have left of the full pace, and the largest burst, by
// what Redis last said. It asks nobody.
func (q *Quota) Pace() (share float64, burst int) {
	if q.init() != nil {
		return 1, 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.share == 0 {
		return 1, q.set.burst
	}
	return q.share, q.burst
}

func (q *Quota) troubled() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.trouble != nil
}

func (q *Quota) refuse(ctx context.Context, wait time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return &refusal{wait: wait, left: left(ctx), trouble: q.trouble}
}

func (q *Quota) ended(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.endedLocked(ctx)
}

// endedLocked returns why ctx has ended. A deadline that passed in the queue was not
// known to be too short.
func (q *Quota) endedLocked(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if !errors.Is(cause, err) {
		cause = fmt.Errorf("%w: %w", err, cause)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &refusal{wait: max(0, time.Until(q.turn)), trouble: q.trouble}
	case q.trouble != nil:
		return &refusal{wait: max(0, time.Until(q.retry)), trouble: q.trouble, ended: cause}
	}
	return cause
}

// left is how long ctx has.
func left(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline)
	}
	return math.MaxInt64
}
