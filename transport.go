package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

// A Transport is an http.RoundTripper that puts a token on requests to its
// Origins, keeps them inside the quota, and traces them. Requests to anywhere
// else go to the Base as they are, so that a redirect takes no token along:
// where a 401 surprises you, compare the hosts.
//
// A request answered 401 is sent once more with a new token, and one answered
// 429 once more after the pause that the answer asks for, if its body can be had
// again (http.NoBody or GetBody), and for 429 if the pause is within the
// context's deadline and at most two windows. Everything else is an answer and
// is returned as it is.
//
// Errors, beside those of Base: [*AuthError] where there is no token,
// [ErrRateLimited] where the turn would come after the deadline,
// [ErrInsecureURL], and the context's. Time in the queue counts towards
// http.Client.Timeout.
//
// A Transport needs a Source; other zero values mean the stated defaults. It is
// safe for concurrent use and must not be changed or copied after first use.
type Transport struct {
	// Source has the tokens; required. A source of your own that has the methods
	// TokenContext or Invalidate of [Source] is treated like one; of one that has
	// not, a 401 is returned as it is.
	Source oauth2.TokenSource

	// Base sends the requests; nil is http.DefaultTransport.
	Base http.RoundTripper

	// Limiter is asked before each attempt, token requests included; nil is a
	// new zero Quota: 100 requests in any minute.
	Limiter Limiter

	// Origins are URLs with the schemes, hosts and ports that may see the token;
	// their paths do not matter. Empty is that of a *Source's BaseURL. For any
	// other source they are required.
	Origins []string

	TracerProvider trace.TracerProvider          // nil is OpenTelemetry's global
	MeterProvider  metric.MeterProvider          // nil is OpenTelemetry's global
	Propagator     propagation.TextMapPropagator // nil is OpenTelemetry's global

	once    sync.Once
	account *account
	err     error
}

// An account is a Transport's configuration, made ready for use.
type account struct {
	wire
	tokens  tokens
	origins []*origin
}

// tokens is how a Transport uses its source.
type tokens interface {
	// obtain returns a token and where it came from, and may wait.
	obtain(ctx context.Context, w *wire) (*lease, string, error)
	// renewed returns the token to send after a wait, given that from before it,
	// or nil if it has to be obtained.
	renewed(ctx context.Context, w *wire, l *lease) *lease
	// reject forgets a token that was answered 401, and reports whether it is
	// worth obtaining another.
	reject(l *lease) bool
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.init)
	to, err := t.destination(req)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	if to == nil {
		return t.account.base.RoundTrip(req)
	}
	ctx, span := t.account.startCall(req.Context())
	c := call{account: t.account, ctx: ctx, req: req, origin: to, body: bodyOf(req), totals: totals{pace: 1}}
	resp, err := c.roundTrip()
	c.endCall(ctx, span, &c.totals, resp, err)
	return resp, err
}

// destination is the pinned origin that req goes to, nil if it goes elsewhere.
func (t *Transport) destination(req *http.Request) (*origin, error) {
	if t.err != nil {
		return nil, t.err
	}
	if req.URL == nil {
		return nil, errors.New("partnerauth: the request has no URL")
	}
	return pinned(t.account.origins, req.URL)
}

// CloseIdleConnections does that for the Base, if it can. http.Client has a
// method of the same name that calls it.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.init)
	if t.err != nil {
		return
	}
	if base, ok := t.account.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

func (t *Transport) init() {
	source, ours := t.Source.(*Source)
	provider := ""
	a := &account{tokens: source}
	switch {
	case t.Source == nil:
		t.err = configError("", "Transport.Source is nil")
		return
	case ours && (source == nil || source.provider == nil):
		t.err = errNoProvider
		return
	case ours:
		provider = source.provider.name
		if t.err = source.provider.err; t.err != nil {
			return
		}
		a.origins = []*origin{source.provider.origin}
	case len(t.Origins) == 0:
		t.err = configError("", "Transport.Origins is empty, and only a *Source knows its own")
		return
	default:
		a.tokens = newForeignSource(t.Source)
	}
	if len(t.Origins) > 0 {
		a.origins = nil
	}
	for i, url := range t.Origins {
		o, err := parseOrigin(fmt.Sprintf("Transport.Origins[%d]", i), url)
		if err != nil {
			t.err = configError("", "%w", err)
			return
		}
		a.origins = append(a.origins, o)
	}
	if a.queue, t.err = queueOf(t.Limiter); t.err != nil {
		return
	}
	if a.base = t.Base; a.base == nil {
		a.base = http.DefaultTransport
	}
	a.telemetry = newTelemetry(provider, t.TracerProvider, t.MeterProvider, t.Propagator)
	t.account = a
}

// A call is one RoundTrip to a pinned origin.
type call struct {
	*account
	ctx    context.Context
	req    *http.Request
	origin *origin
	body   io.ReadCloser // of the next attempt; nil: none
	ticket uint64        // in the queue; the same for all attempts
	totals totals

	unauthorized, limited bool // has been sent again after 401, after 429
}

// roundTrip sends the request until there is an answer for the caller. On every
// way out a body that was not handed to the Base is closed.
func (c *call) roundTrip() (*http.Response, error) {
	for {
		a, l, err := c.permit()
		if err != nil {
			return nil, err
		}
		resp, err := c.send(c.ctx, c.req, a)
		if err != nil || !c.again(a, l, resp) {
			return resp, err
		}
	}
}

// permit waits for a token and then for leave to send one request with it. It
// never holds the one while it waits for the other, or a hundred who hold
// permits would wait for a login that needs one. A token that has ended or was
// rejected meanwhile is replaced first, at no loss of place.
func (c *call) permit() (*attempt, *lease, error) {
	for {
		l, from, err := c.tokens.obtain(c.ctx, &c.wire)
		if err != nil {
			closeBody(c.body)
			return nil, nil, err
		}
		a := &attempt{
			permit: permit{ticket: c.ticket},
			origin: c.origin, template: templateOf(c.ctx), resend: c.totals.attempts,
		}
		waited, err := c.admit(c.ctx, a)
		c.ticket = a.permit.ticket
		c.totals.waited += waited
		c.totals.tokenSource = from
		if err != nil {
			closeBody(c.body)
			return nil, nil, err
		}
		c.totals.pace = a.permit.pace
		if waited > 0 {
			l = c.tokens.renewed(c.ctx, &c.wire, l)
		}
		if l != nil {
			c.totals.attempts++
			a.authorization = l.authorization
			a.body.ReadCloser = c.body
			return a, l, nil
		}
		c.giveBack(a)
	}
}

// again reports whether the request is to be sent once more after resp, and if
// so has made everything ready for it.
func (c *call) again(a *attempt, l *lease, resp *http.Response) bool {
	var reason string
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !c.unauthorized && c.tokens.reject(l):
		reason = "unauthorized"
	case resp.StatusCode == http.StatusTooManyRequests && !c.limited && c.worthWaiting(a):
		reason = "rate_limited"
	default:
		return false
	}
	body, ok := rewind(c.req)
	if !ok {
		return false
	}
	discard(resp)
	a.body.Close()
	c.body = body
	c.unauthorized = c.unauthorized || resp.StatusCode == http.StatusUnauthorized
	c.limited = c.limited || resp.StatusCode == http.StatusTooManyRequests
	c.addResend(c.ctx, reason)
	return true
}

// worthWaiting reports whether the pause that the answer to a asked for is one
// to wait for.
func (c *call) worthWaiting(a *attempt) bool {
	return a.pause <= 2*c.queue.window && c.queue.inTime(c.ctx, &a.permit) == nil
}

// rewind returns the body of req for another attempt, if it can be had.
func rewind(req *http.Request) (io.ReadCloser, bool) {
	switch {
	case bodyOf(req) == nil:
		return nil, true
	case req.GetBody == nil:
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil
}

// bodyOf is the body of req, nil if it has none.
func bodyOf(req *http.Request) io.ReadCloser {
	if req.Body == http.NoBody {
		return nil
	}
	return req.Body
}

func closeBody(body io.Closer) {
	if body != nil {
		body.Close()
	}
}
