package partnerauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

const (
	wireLimit = 30 * time.Second // for all requests of one fetch together, waits not counted
	// loginShare is what a refresh leaves of wireLimit for the login after it.
	loginShare = 10 * time.Second
	maxTries   = 3       // of one operation, for network errors and 5xx
	maxPauses  = 5       // of one operation, for 429
	maxAnswer  = 1 << 20 // bytes
	// maxUnavailable is the longest pause after a 503 that a fetch waits for.
	// Beyond it callers had better know.
	maxUnavailable = 30 * time.Second
)

// A fetch gets one token, whoever waits for it: by refresh, then by login. Only
// its own goroutine changes it. It is done with a lease or an error, or with
// neither if a rejection has overtaken it.
type fetch struct {
	source   *Source
	leader   *waiter // that started it for itself
	via      *sender
	op       string
	trigger  string
	renews   *lease      // nil: there is no token, and callers wait
	refusals failures    // of credentials, so far
	secret   string      // of the last login
	awaited  atomic.Bool // by a caller
	pending  atomic.Bool // has not got the permit that it needs next

	sender *sender         // route, with the Base of token requests
	ctx    context.Context // with the fetch's span; ends with done
	used   time.Duration   // on the wire
	span   atomic.Pointer[trace.SpanContext]

	done  context.Context // ends with the fetch; nothing below changes after that
	end   context.CancelFunc
	lease *lease
	err   error
	idle  bool // err came without the partner's being asked
}

// over reports whether f is done; nobody waits for a nil f.
func (f *fetch) over() bool { return f == nil || f.done.Err() != nil }

// asks reports whether f is going to ask q for a permit.
func (f *fetch) asks(q *queue) bool {
	return f != nil && f.pending.Load() && f.via.queue == q
}

// run fetches, in a goroutine of its own. Whatever code of the user's does in
// it, those who wait get an answer and the next fetch works.
func (f *fetch) run(parent context.Context) {
	start := time.Now()
	var span trace.Span
	got := f.failed(0, errors.New("code of Base, Limiter or telemetry ended the goroutine"))
	defer f.end()
	defer func() { recover() }() // of the span's end
	defer func() {
		if recover() != nil {
			got = f.failed(0, errors.New("code of Base, Limiter or telemetry panicked"))
		}
		f.source.finish(f, got.lease, got.err)
		if span != nil {
			f.sender.endFetch(f.ctx, span, start, f, got.err)
		}
	}()
	if base := f.source.provider.base; base != nil {
		f.sender = &sender{base: base, queue: f.via.queue, telemetry: f.via.telemetry}
	}
	// Of the caller's context the place in its trace, and nothing that somebody
	// outside could make the partner refuse: others wait for this request as well.
	place := trace.SpanContextFromContext(parent).WithTraceState(trace.TraceState{})
	f.ctx, span = f.sender.startFetch(trace.ContextWithSpanContext(f.done, place), f)
	f.span.Store(new(span.SpanContext()))
	if f.source.provider.store != nil {
		got = f.throughStore()
	} else {
		got = f.get()
	}
}

// fetched is what an exchange brought: a lease, or why there is none.
type fetched struct {
	lease *lease
	err   *AuthError
	again bool // another try may help
}

// get gets a token, by login where a refresh was no use.
func (f *fetch) get() fetched {
	if f.op == refresh {
		if got := f.try(); got.lease != nil || f.ctx.Err() != nil {
			return got
		}
		f.op = login
		if got, ok := f.stored(); ok { // what was no use for a refresh
			return got
		}
	}
	return f.try()
}

// try repeats one operation while that may help and somebody waits for it: after
// a while for network errors and 5xx, after the pause that the partner asked for
// after 429.
func (f *fetch) try() fetched {
	tries, pauses := 0, 0
	for {
		got := f.exchange(tries + pauses)
		if !got.again || f.ctx.Err() != nil || f.left() <= 0 {
			return got
		}
		wait := max(got.err.RetryAfter, backoff(tries+pauses, 250*time.Millisecond, time.Second))
		if got.err.StatusCode == http.StatusTooManyRequests {
			pauses++
		} else {
			tries++
		}
		if tries == maxTries || pauses > maxPauses || tries > 0 && !f.awaited.Load() {
			return got
		}
		f.pending.Store(true)
		select {
		case <-time.After(wait):
		case <-f.ctx.Done():
			return got
		}
	}
}

// left is how long the next request may take.
func (f *fetch) left() time.Duration {
	left := wireLimit - f.used
	if f.op == refresh {
		left -= loginShare
	}
	return left
}

// credential is what the request is made with: the current token, or the secret,
// unless that is the one that was refused.
func (f *fetch) credential() (string, *AuthError) {
	if f.op == refresh {
		return f.renews.token.AccessToken, nil
	}
	secret, err := f.asked()
	f.idle = true
	switch {
	case err != nil:
		return "", configError(f.source.provider.name, "%w", err)
	case f.refusals.holds(secret):
		return "", f.refusals.err
	}
	f.secret, f.idle = secret, false
	return secret, nil
}

// asked asks for the secret, which may be code of the user's.
func (f *fetch) asked() (string, error) {
	return bounded(f.ctx, wireLimit, f.source.provider.secret)
}

// bounded runs code of the user's for no longer than that, whatever it does.
func bounded[T any](ctx context.Context, limit time.Duration, do func(context.Context) (T, error)) (T, error) {
	type result struct {
		got T
		err error
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		r := result{err: errors.New("it panicked or ended its goroutine")}
		defer func() {
			recover()
			done <- r
		}()
		r.got, r.err = do(ctx)
	}()
	select {
	case r := <-done:
		return r.got, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// exchange is one try of an operation: a request, and its answer read.
func (f *fetch) exchange(resend int) fetched {
	with, refused := f.credential()
	if refused != nil {
		return fetched{err: refused}
	}
	a := &attempt{origin: f.source.provider.origin, resend: resend}
	q := f.sender.queue
	var err error
	w := &waiter{queue: q, line: &q.own, ctx: f.ctx}
	q.arrive(w, urgent)
	a.permit, _, err = f.sender.admit(f.ctx, w, true)
	f.pending.Store(false)
	if err != nil {
		return f.failed(0, err)
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.left())
	defer cancel()
	req, err := f.source.provider.request(ctx, f.op, with)
	if f.op == refresh && !f.renews.good(time.Now()) {
		err = errors.New("the token ended before its turn came")
	}
	if err = cmp.Or(f.ctx.Err(), err); err != nil {
		q.settle(time.Now(), a.permit, unused, 0, 0)
		return f.failed(0, err)
	}
	a.tokenPath = req.URL.Path
	sent := time.Now()
	resp, err := f.sender.send(ctx, req, a)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		resp.Body.Close()
	}
	f.used += time.Since(sent)
	if err != nil && (resp == nil || resp.StatusCode/100 == 2) { // what refuses needs no body
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		got := f.failed(0, withoutAnswer(withoutSecrets(err, f.secrets()...)))
		got.again = true
		return got
	}
	return f.read(resp, body, sent, a.pause)
}
