package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

// A sender is the way to the partner for all requests of an account, token requests
// included: the queue for the quota, the RoundTripper, and telemetry.
type sender struct {
	base      http.RoundTripper // nil: http.DefaultTransport
	queue     *queue
	telemetry *telemetry
	provider  string // in errors

	failing atomic.Bool // the last request found no connection, or lost it
}

// withBase returns a sender that is like s, but for its Base.
func (s *sender) withBase(base http.RoundTripper) *sender {
	return &sender{base: base, queue: s.queue, telemetry: s.telemetry, provider: s.provider}
}

// roundTripper returns the Base. Like net/http, it asks for the default at each
// request.
func (s *sender) roundTripper() http.RoundTripper {
	if s.base == nil {
		return http.DefaultTransport
	}
	return s.base
}

// tryAcquire returns a permit if there is one at once.
func (s *sender) tryAcquire(ctx context.Context, now time.Time, t ticket) (permit, bool) {
	p, ok := s.queue.tryAcquire(now, t, false)
	if ok {
		s.told(p, func() { s.telemetry.metrics.recordWait(ctx, 0, acquired, t.low()) })
	}
	return p, ok
}

// acquire has wait wait for a permit, and returns how long that took.
func (s *sender) acquire(ctx context.Context, low bool, wait func() (permit, error)) (p permit, waited time.Duration, err error) {
	s.telemetry.metrics.addQueued(ctx, 1)
	began := time.Now()
	p, err = wait()
	s.told(p, func() {
		s.telemetry.metrics.addQueued(ctx, -1)
		if err == errNotUsable {
			return
		}
		waited = time.Since(began)
		result := acquired
		switch {
		case errors.Is(err, ErrRateLimited):
			result = deadlineExceeded
		case err != nil:
			result = canceled
		}
		s.telemetry.metrics.recordWait(ctx, waited, result, low)
		s.telemetry.waitSpan(ctx, began, waited, result, low, failureOf(ctx, nil, err))
	})
	return p, waited, err
}

// told calls tell, which informs telemetry, and gives p back if that panics.
func (s *sender) told(p permit, tell func()) {
	done := false
	defer func() {
		if !done && !p.at.IsZero() {
			s.giveBack(p)
		}
	}()
	tell()
	done = true
}

// giveBack ends a permit for which nothing was sent.
func (s *sender) giveBack(p permit) {
	s.queue.release(time.Now(), p, unused, 0, 0, 0, false)
}

// An attempt is one request on its way: its permit, and the copy that is sent. It is
// one allocation, made anew for a retry since the Base may hold on to it. It is also
// the context of that copy, so that a Base that leads back here can be recognized.
type attempt struct {
	context.Context
	sender *sender // whose requests must not come back to it

	permit    permit
	origin    *origin // that it goes to, and nowhere else
	endpoint  *endpoint
	lease     *lease                                   // the token for the copy; nil: none
	authorize func(*http.Request, *oauth2.Token) error // nil: set the Authorization header
	body      io.ReadCloser                            // for the copy; nil: that of the request
	template  string
	resend    int  // how many requests came before it for the same call
	forToken  bool // it is a token request, whose template goes to metrics, too
	mostPause bool // nobody else is paused for longer than a window

	pause  time.Duration // that the answer asks for
	reason string        // why the rate limit has learnt from the answer

	copy    http.Request
	carrier carrier
}

// Value implements context.Context.
func (a *attempt) Value(key any) any {
	if key == attemptKey {
		return a
	}
	return a.Context.Value(key)
}

// errOwnBase is returned for a request that a Transport's Base sends back to it.
var errOwnBase = errors.New("partnerauth: the Transport is its own Base: Transport.Base, or http.DefaultTransport where it is nil, leads back to it")

// sentBy reports whether ctx is that of an attempt by s.
func (s *sender) sentBy(ctx context.Context) bool {
	a, ok := ctx.Value(attemptKey).(*attempt)
	for ok {
		if a.sender.telemetry == s.telemetry { // also by one with another Base
			return true
		}
		a, ok = a.Context.Value(attemptKey).(*attempt)
	}
	return false
}

// send sends a copy of req under a's permit and ends the permit when the headers are
// in. The answer's body is the caller's; that of req the Base's.
func (s *sender) send(ctx context.Context, req *http.Request, a *attempt) (resp *http.Response, err error) {
	span, err := noSpan, errAborted
	counts := false // without an answer: the server may have counted the request
	defer func() {
		now := time.Now()
		s.settle(ctx, now, a, counts, resp, err)
		failed := failureOf(ctx, resp, err)
		template := ""
		if a.forToken {
			template = a.template
		}
		s.telemetry.metrics.recordAttempt(ctx, a.endpoint, now.Sub(a.permit.at), req.Method, template, resp, failed.kind)
		s.telemetry.endAttempt(span, req.Method, req.URL, resp, a.reason, failed)
		if err != nil {
			err = withoutToken(err, a.lease.text())
		}
	}()
	ctx, span = s.telemetry.startAttempt(ctx, a.endpoint, req.Method, a.template, a.resend)
	inVain := func() bool { return false }
	if s.failing.Load() {
		ctx, inVain = watched(ctx)
	}
	if err = a.prepare(ctx, req, s.telemetry); err != nil {
		closeBody(a.copy.Body)
		return nil, err
	}
	counts, err = true, errAborted
	resp, err = s.roundTripper().RoundTrip(&a.copy)
	if (err != nil) != s.failing.Load() {
		s.failing.Store(err != nil)
	}
	switch {
	case err != nil:
		if resp = nil; fromProxy(err) {
			err = fmt.Errorf("%w: %w", errProxy, err)
		}
		counts = !neverLeft(err) && !errors.Is(err, errOwnBase) && !inVain()
	case resp == nil:
		err = errors.New("partnerauth: Base returned neither a response nor an error")
	case resp.Body == nil:
		resp.Body = missingBody(req, resp)
	}
	if err == nil {
		resp.Request = req // and not the copy, which has the token in it
	}
	return resp, err
}

// missingBody returns the body of an answer that has none. Where the answer
// announces one, reading it must not look like success.
func missingBody(req *http.Request, resp *http.Response) io.ReadCloser {
	if resp.ContentLength <= 0 || req.Method == http.MethodHead {
		return http.NoBody
	}
	missing, end := io.Pipe()
	end.CloseWithError(io.ErrUnexpectedEOF)
	return missing
}

// watched returns ctx with a function that reports whether net/http asked for a
// connection and got none. It costs allocations, so it is used only after a failure: a
// TLS handshake that is cut has the same error as an answer that is cut.
func watched(ctx context.Context) (_ context.Context, inVain func() bool) {
	var sought, got atomic.Bool
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { sought.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}), func() bool { return sought.Load() && !got.Load() }
}

var errAborted = errors.New("partnerauth: Base has panicked or ended the goroutine")

// prepare makes the copy of req that is sent. It shares the values of the header, in
// lists that nobody can append to in place, unless Authorize may change them.
func (a *attempt) prepare(ctx context.Context, req *http.Request, t *telemetry) error {
	a.Context = ctx
	a.copy = *req.WithContext(a)
	if a.body != nil {
		a.copy.Body = a.body
	}
	if sent, ok := a.body.(*sentBody); ok {
		a.copy.GetBody = sent.again
	}
	header := make(http.Header, len(req.Header)+2) // the token, and the place in the trace
	for name, values := range req.Header {
		switch {
		case a.authorize != nil: // which may write in place, and expects canonical names
			name = http.CanonicalHeaderKey(name)
			header[name] = append(header[name], values...)
		case a.lease == nil || !strings.EqualFold(name, "Authorization"): // in whatever case the caller wrote it
			header[name] = slices.Clip(values)
		}
	}
	a.copy.Header, a.carrier.Header = header, header
	if a.lease != nil && a.authorize == nil {
		header["Authorization"] = a.lease.authorization
	}
	t.inject(ctx, &a.carrier)
	if a.authorize == nil {
		return nil
	}
	u := *req.URL
	a.copy.URL = &u
	return a.authorized()
}

// authorized has the provider put the token on the copy.
func (a *attempt) authorized() error {
	err := a.authorize(&a.copy, a.lease.token)
	switch {
	case err != nil:
		err = withText(err, strings.ReplaceAll(err.Error(), a.lease.text(), redacted))
	case a.copy.URL == nil || !a.origin.matches(a.copy.URL) || a.origin.misdirected(&a.copy) != nil:
		err = fmt.Errorf("the request would go to another host than %s", a.origin.host)
	default:
		return nil
	}
	return &AuthError{Provider: a.sender.provider, Op: "authorize", At: time.Now(), Err: err}
}

// settle ends a's permit. An answer may ask to be left alone: then everybody leaves
// it alone.
func (s *sender) settle(ctx context.Context, now time.Time, a *attempt, counts bool, resp *http.Response, err error) {
	o, status, named, isNamed, most := answered, 0, time.Duration(0), false, never
	switch {
	case err != nil && !counts:
		o = unused
	case err != nil:
		o = unanswered
	default:
		status = resp.StatusCode
		named, isNamed = pauseOf(status, resp.Header, now)
		switch {
		case status == http.StatusTooManyRequests:
			o = throttled
		case status != http.StatusServiceUnavailable: // nothing remains; the server counts what other programs send, too
			most = s.queue.window
		case !isNamed:
			o = overloaded
		}
	}
	if a.mostPause {
		most = s.queue.window
	}
	var v verdict
	a.pause, v = s.queue.release(now, a.permit, o, status, named, most, isNamed)
	a.reason = v.reason
	s.telemetry.metrics.recordPace(ctx, v.pace, v.burst)
}

// failureOf returns how a request or call that ended with resp and err shows on its
// span. Cancelling is not a failure.
func failureOf(ctx context.Context, resp *http.Response, err error) failure {
	switch {
	case err != nil && !errors.Is(ctx.Err(), context.Canceled):
		return failure{errorType(err), description(err)}
	case err == nil && resp != nil && resp.StatusCode >= 400:
		return failure{kind: fmt.Sprint(resp.StatusCode)}
	}
	return failure{}
}

// withSender lets a foreign source that wraps a Source send its token
// requests like those of a Source.
func withSender(ctx context.Context, s *sender) context.Context {
	return context.WithValue(ctx, senderKey, s)
}

func senderFrom(ctx context.Context) *sender {
	s, _ := ctx.Value(senderKey).(*sender)
	return s
}

// spanContextFrom returns the place in the trace that a token request carries, and
// nothing that somebody outside could make the partner refuse: others wait for it.
func spanContextFrom(ctx context.Context) trace.SpanContext {
	return trace.SpanContextFromContext(ctx).WithTraceState(trace.TraceState{})
}
