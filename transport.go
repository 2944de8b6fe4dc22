package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

// A Transport is an http.RoundTripper that puts a token on requests to its Origins,
// keeps them within the quota, and traces them. Requests to anywhere else go to the
// Base as they are, so a redirect does not carry the token away. If a 401 surprises
// you, compare the hosts.
//
// A request that is answered 401 is retried once with a new token, and one that is
// answered 429 once after the pause that the answer asks for, if its body can be
// replayed (none, http.NoBody, or GetBody) and, for 429, if the pause ends before the
// context's deadline and within two windows. Every other answer is returned as it is.
// GetBody is called only after the Base has closed the first body.
//
// Beside those of Base, errors are [*AuthError] if there is no token,
// [*RateLimitError] if the turn would come after the deadline, [ErrInsecureURL], an
// error for a request whose Host or URL.Opaque names another host than its URL, and
// the context's. Time in the queue counts towards http.Client.Timeout.
//
// A Transport needs a Source; other zero values mean the stated defaults. It is safe
// for concurrent use and must not be changed or copied after first use. There is
// nothing to close.
type Transport struct {
	// Source has the tokens; required. Your own source that has the methods
	// TokenContext or Invalidate of [Source] is asked by them. One that has not is
	// asked by Token, one question at a time, and its 401 is returned as it is. It
	// gets no renewal ahead of expiry, no Store and no back-off: describe the partner
	// by a [Provider] to have these.
	Source oauth2.TokenSource

	// Base sends the requests; nil is http.DefaultTransport.
	Base http.RoundTripper

	// Limiter is asked before each attempt, token requests included; nil is a new
	// zero Quota: 100 requests in any minute.
	Limiter Limiter

	// Origins are URLs with the schemes, hosts and ports that may see the token;
	// their paths do not matter. nil is that of a *Source's BaseURL. They are
	// required for any other source.
	Origins []string

	TracerProvider trace.TracerProvider          // nil is OpenTelemetry's global
	MeterProvider  metric.MeterProvider          // nil is OpenTelemetry's global
	Propagator     propagation.TextMapPropagator // nil is OpenTelemetry's global, which then sends no baggage

	once   sync.Once
	client *client // a pointer, which fmt does not follow
	err    error
}

// A client is a Transport's configuration, made ready for use. Only passing changes.
type client struct {
	sender    sender
	tokens    tokens
	origins   []*origin
	endpoints []*endpoint // of origins
	authorize func(*http.Request, *oauth2.Token) error
	oauth     http.RoundTripper // Base of token requests; nil: that of the Transport
	passing   atomic.Int32      // requests to elsewhere that are on their way
}

// tokens is where a Transport's calls get their tokens.
type tokens interface {
	// lease returns a token to send and where it came from, "cache" or how it was
	// fetched. after is the rejected one that it has to replace, nil if there is none.
	lease(ctx context.Context, now time.Time, via *sender, after *lease) (l *lease, from string, err error)
	// newest returns the token to send in place of l after a wait: l itself, another,
	// or nil if one has to be asked for. It does not wait.
	newest(ctx context.Context, via *sender, l *lease) *lease
	// usable reports whether newest would return a token. It is called with the
	// queue's lock held.
	usable(l *lease) bool
	// reject drops l after a 401, and reports whether there may be another token.
	reject(l *lease) bool
	// alwaysReplaces reports whether the lease after a rejection always has another
	// token.
	alwaysReplaces() bool
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.init)
	to, err := t.destination(req)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	if to < 0 {
		return t.client.pass(req)
	}
	return t.client.call(req, to)
}

// call sends one request of a caller until there is an answer for it.
func (t *client) call(req *http.Request, to int) (resp *http.Response, err error) {
	began := time.Now()
	ctx, span := t.sender.telemetry.startCall(req.Context())
	c := call{client: t, to: to, ticket: t.sender.queue.newTicket(priorityOf(ctx)), next: retry{req: req, body: req.Body}}
	defer func() {
		c.next.close(resp)
		c.end(ctx, span, began, resp, err)
	}()
	if ctx.Err() != nil {
		return c.next.giveUp(ctx, ended(ctx))
	}
	for now := began; ; now = time.Now() {
		resp, err := c.attempt(ctx, now)
		if err != nil || !c.again(ctx, resp) {
			return resp, err
		}
	}
}

// attempt waits for a token and a permit, and sends the request once.
func (c *call) attempt(ctx context.Context, now time.Time) (*http.Response, error) {
	p, err := c.admitInTime(ctx, now)
	if err != nil {
		return c.next.giveUp(ctx, err)
	}
	c.next.discard()
	s := &c.client.sender
	a := &attempt{
		sender: s, permit: p, origin: c.client.origins[c.to], endpoint: c.client.endpoints[c.to], lease: c.lease, authorize: c.client.authorize,
		body: c.next.handOver(), template: templateOf(ctx), resend: redirects(c.next.req) + c.attempts,
	}
	c.attempts++
	c.pace = p.pace
	resp, err := s.send(ctx, c.next.req, a)
	if c.next.reason != "" {
		s.telemetry.metrics.addResend(ctx, c.next.reason)
	}
	return resp, err
}

// redirects returns how many redirects have led to req.
func redirects(req *http.Request) (n int) {
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		n++
	}
	return n
}

// again reports whether the request is to be sent again after resp, and if so has made
// everything ready for it. A rejected token is dropped in any case.
func (c *call) again(ctx context.Context, resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		c.lease.accept()
	}
	c.next.kept = resp
	q := c.client.sender.queue
	reason := c.next.decide(ctx, resp, q.window, func(now time.Time) time.Duration { return q.wait(now, c.ticket) })
	if reason == "" || reason == unauthorized && !c.client.tokens.reject(c.lease) || !c.next.prepare(ctx, reason, resp) {
		return false
	}
	if c.rejected = nil; reason == unauthorized {
		c.rejected = c.lease
	}
	if c.rejected != nil && c.client.tokens.alwaysReplaces() {
		c.next.discard() // there will be another answer
	}
	return true
}

// admitInTime is admit, but a request that was answered 429 is not held back for longer
// than was worth waiting for.
func (c *call) admitInTime(ctx context.Context, now time.Time) (permit, error) {
	if c.next.reason == rateLimited {
		bounded, cancel := context.WithDeadline(ctx, c.next.until)
		defer cancel()
		ctx = bounded
	}
	return c.admit(ctx, now)
}

// admit waits for a token, and then for a permit to send one request with it: never
// the other way round, or a hundred who hold permits would wait for a login that
// needs one. A token that ends meanwhile is replaced, and the permit given back.
func (c *call) admit(ctx context.Context, now time.Time) (permit, error) {
	s := &c.client.sender
	for outlived := 0; outlived <= maxOutlived; now = time.Now() {
		l, from, err := c.client.tokens.lease(ctx, now, s, c.rejected)
		if err != nil {
			return permit{}, err
		}
		if c.lease, c.from = l, from; from != fromCache {
			now = time.Now() // it may have been waited for
		}
		p, ok := s.tryAcquire(ctx, now, c.ticket)
		if ok {
			return p, nil
		}
		if p, err = c.queue(ctx, l); err != errNotUsable {
			return p, err
		}
		if !l.accepted.Load() { // it served nobody
			outlived++
		}
	}
	return permit{}, &AuthError{Provider: s.provider, Op: login, At: time.Now(), Err: errOutlived}
}

// queue waits for a permit to send a request with l, or with the token that has
// replaced it by then. It returns errNotUsable if there is none any more.
func (c *call) queue(ctx context.Context, l *lease) (permit, error) {
	tokens, s := c.client.tokens, &c.client.sender
	p, waited, err := s.acquire(ctx, c.ticket.low(), func() (permit, error) {
		return s.queue.acquire(ctx, c.ticket, func() bool { return tokens.usable(l) })
	})
	c.waited += waited
	if err != nil {
		return p, err
	}
	if c.lease = tokens.newest(ctx, s, l); c.lease == nil {
		s.giveBack(p)
		return permit{}, errNotUsable
	}
	return p, nil
}

// maxOutlived is how many tokens may end before the turn of a call without having
// served any other. Without a bound, tokens that live shorter than a turn takes would
// cost one login after the other.
const maxOutlived = 1

var errOutlived = errors.New("the tokens end before the turn of a request comes")

// pass sends a request that goes elsewhere as it is.
func (t *client) pass(req *http.Request) (*http.Response, error) {
	if t.passing.Add(1); t.passing.Load() > 1 && isCircle() {
		t.passing.Add(-1)
		closeBody(req.Body)
		return nil, errOwnBase
	}
	defer t.passing.Add(-1)
	return t.sender.roundTripper().RoundTrip(req)
}

// isCircle reports whether the goroutine that calls pass does so within pass, more often
// than there are Transports on top of each other. The request itself must not be marked,
// as it is not ours.
func isCircle() bool {
	callers := make([]uintptr, 512)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	pass, more := frames.Next()
	found := 0
	for more {
		var f runtime.Frame
		if f, more = frames.Next(); f.Function == pass.Function {
			found++
		}
	}
	return found >= maxStacked
}

// maxStacked is how many Transports may be on top of each other.
const maxStacked = 3

// destination returns which of the origins req goes to; -1 if it goes elsewhere, or
// was sent here by somebody else.
func (t *Transport) destination(req *http.Request) (int, error) {
	switch {
	case t.err != nil:
		return -1, t.err
	case t.client.sender.sentBy(req.Context()):
		return -1, errOwnBase
	}
	to, err := signable(t.client.origins, req)
	if err != nil {
		t.client.refuse(req.Context(), err)
	}
	return to, err
}

// refuse records a call that cannot be sent as it is.
func (t *client) refuse(ctx context.Context, err error) {
	began := time.Now()
	ctx, span := t.sender.telemetry.startCall(ctx)
	c := call{client: t}
	c.end(ctx, span, began, nil, err)
}

// SignIn returns nil as soon as there is a good token. If there is none, it signs in
// by t's own Base, queue and telemetry; its error is the one that a call would get.
// It waits for no permit of its own. Call it at start-up, or as a readiness probe:
// once a second, it costs no more token requests than calls do.
func (t *Transport) SignIn(ctx context.Context) error {
	t.once.Do(t.init)
	if t.err != nil {
		return t.err
	}
	_, _, err := t.client.tokens.lease(ctx, time.Now(), &t.client.sender, nil)
	return err
}

// CloseIdleConnections calls the method of that name of the Base, and of the
// provider's Base for token requests, if they have it. http.Client's method of the
// same name calls it.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.init)
	if t.err != nil {
		return
	}
	for _, base := range []http.RoundTripper{t.client.sender.roundTripper(), t.client.oauth} {
		if base, ok := base.(interface{ CloseIdleConnections() }); ok {
			base.CloseIdleConnections()
		}
	}
}

func (t *Transport) init() {
	t.err = errors.New("partnerauth: a provider of telemetry panicked at first use")
	t.client, t.err = t.prepare()
}

// prepare checks the configuration and makes it ready.
func (t *Transport) prepare() (*client, error) {
	c := &client{}
	provider := ""
	source, ours := t.Source.(*Source)
	switch {
	case t.Source == nil:
		return nil, configError("", "Transport.Source is nil")
	case ours && (source == nil || source.account == nil):
		return nil, errNoProvider
	case ours && source.account.err != nil:
		return nil, source.account.err
	case ours:
		provider, c.authorize, c.oauth = source.account.Name, source.account.Authorize, source.account.Base
		c.tokens, c.origins = source, []*origin{source.account.origin}
	case len(t.Origins) == 0:
		return nil, configError("", "Transport.Origins is empty, and only a *Source knows its own")
	default:
		c.tokens = newCustomSource(t.Source)
	}
	if len(t.Origins) > 0 {
		c.origins = nil
	}
	for i, url := range t.Origins {
		o, err := parseOrigin(fmt.Sprintf("Transport.Origins[%d]", i), url)
		if err != nil {
			return nil, configError("", "%w", err)
		}
		c.origins = append(c.origins, o)
	}
	queue, err := queueOf(t.Limiter)
	if err != nil {
		return nil, err
	}
	s := &c.sender
	s.base, s.queue, s.provider = t.Base, queue, provider
	s.telemetry = newTelemetry(provider, t.TracerProvider, t.MeterProvider, t.Propagator)
	for _, o := range c.origins {
		c.endpoints = append(c.endpoints, newEndpoint(o.host, o.portNumber(), s.telemetry.provider))
	}
	return c, nil
}

// Client returns a new http.Client for the account: that of a Transport with a new
// TokenSource, p.Base, and otherwise the defaults. Share it: each Client has a token
// and a quota of its own.
func (p Provider) Client() *http.Client {
	return &http.Client{Transport: &Transport{Source: p.TokenSource(), Base: p.Base}}
}

// A call is one RoundTrip to a pinned origin.
type call struct {
	client *client
	to     int    // index of its origin
	ticket ticket // its place in the queue, the same for all attempts
	next   retry

	// of the last attempt
	attempts int
	lease    *lease
	rejected *lease        // if it was answered 401
	from     string        // where the token came from
	waited   time.Duration // for permits, of all attempts
	pace     float64       // of the quota
}

// end records the call's span and metrics.
func (c *call) end(ctx context.Context, span trace.Span, began time.Time, resp *http.Response, err error) {
	failed := failureOf(ctx, resp, err)
	t := c.client.sender.telemetry
	t.metrics.recordCall(ctx, began, templateOf(ctx), failed.kind)
	if !span.IsRecording() {
		span.End()
		return
	}
	var kv [6]attribute.KeyValue
	list := append(kv[:0], keyAttempts.Int(c.attempts), keyWaitTime.Float64(c.waited.Seconds()))
	if len(t.provider) > 0 && c.lease != nil {
		list = append(list, keyTokenSource.String(c.from))
	}
	if c.attempts > 0 && c.pace < 1 {
		list = append(list, keyPace.Float64(c.pace))
	}
	if resp != nil {
		list = append(list, semconv.HTTPResponseStatusCode(resp.StatusCode))
	}
	endSpan(span, failed, append(list, errorAttributes(err)...)...)
}

// errorAttributes returns the attributes of a call's span that describe err.
func errorAttributes(err error) (kv []attribute.KeyValue) {
	if err == nil {
		return nil
	}
	if auth, ok := errors.AsType[*AuthError](err); ok && auth.StatusCode > 0 {
		kv = append(kv, keyTokenStatus.Int(auth.StatusCode))
	}
	limited, ok := errors.AsType[interface {
		error
		RetryAfter() time.Duration
	}](err)
	if ok && errors.Is(err, ErrRateLimited) && limited.RetryAfter() > 0 {
		kv = append(kv, keyRetryAfter.Float64(limited.RetryAfter().Seconds()))
	}
	return kv
}
