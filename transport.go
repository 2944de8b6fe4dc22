package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

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
// [ErrInsecureURL], one for a request whose Host or URL.Opaque names another host
// than its URL, and the context's. Time in the queue counts towards
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
	Propagator     propagation.TextMapPropagator // nil is OpenTelemetry's global, which then sends no baggage

	once    sync.Once
	account *account
	err     error
}

// An account is a Transport's configuration, made ready for use.
type account struct {
	sender
	tokens  tokenCache
	origins []*origin
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	t.once.Do(t.init)
	to, err := t.destination(req)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	if to == nil {
		return t.account.roundTripper().RoundTrip(req)
	}
	a := t.account
	ctx, span := a.startCall(req.Context())
	c := call{account: a, req: req, origin: to, body: req.Body}
	c.waiter = waiter{queue: a.queue, line: &a.line, ctx: ctx, tokens: a.tokens, via: &a.sender}
	defer func() { c.endCall(span, &c, resp, err) }()
	return c.roundTrip()
}

// destination is the pinned origin that req goes to, nil if it goes elsewhere or
// somebody elsewhere has sent it here.
func (t *Transport) destination(req *http.Request) (*origin, error) {
	if t.err != nil {
		return nil, t.err
	}
	if req.URL == nil {
		return nil, errors.New("partnerauth: the request has no URL")
	}
	to, err := pinned(t.account.origins, req.URL)
	if to == nil || err != nil {
		return nil, err
	}
	if req.URL.Opaque != "" || req.Host != "" && !to.matches(&url.URL{Scheme: to.scheme, Host: req.Host}) {
		return nil, fmt.Errorf("partnerauth: the request's Host or URL.Opaque names another host than its URL, %s", to.host)
	}
	for r := req.Response; r != nil && r.Request != nil && r.Request.URL != nil; r = r.Request.Response {
		if from, err := pinned(t.account.origins, r.Request.URL); from == nil || err != nil {
			return nil, nil // signing it would be a stranger's wish
		}
	}
	return to, nil
}

// SignIn returns nil as soon as there is a good token, for which it signs in by
// t's own Base, queue and telemetry if there is none, or else the error that a
// call would meet. It waits for no permit of its own. Asked every second, as by a
// readiness probe, it costs no more token requests than calls do.
func (t *Transport) SignIn(ctx context.Context) error {
	t.once.Do(t.init)
	if t.err != nil {
		return t.err
	}
	l, err := t.account.tokens.ask(ctx, &t.account.sender, false)
	if l == nil && err == nil {
		_, err = t.Source.(*Source).wait(ctx, &t.account.sender)
	}
	return err
}

// CloseIdleConnections does that for the Base, and for that of the provider's
// token requests, if they can. http.Client has a method of the same name that
// calls it.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.init)
	if t.err != nil {
		return
	}
	bases := []http.RoundTripper{t.account.roundTripper()}
	if s, ok := t.Source.(*Source); ok {
		bases = append(bases, s.provider.base)
	}
	for _, base := range bases {
		if base, ok := base.(interface{ CloseIdleConnections() }); ok {
			base.CloseIdleConnections()
		}
	}
}

func (t *Transport) init() {
	t.err = errors.New("partnerauth: a provider of telemetry panicked at first use")
	t.err = t.prepare()
}

// prepare makes the account.
func (t *Transport) prepare() error {
	source, ours := t.Source.(*Source)
	provider := ""
	a := &account{tokens: source}
	switch {
	case t.Source == nil:
		return configError("", "Transport.Source is nil")
	case ours && (source == nil || source.provider == nil):
		return errNoProvider
	case ours && source.provider.err != nil:
		return source.provider.err
	case ours:
		provider = source.provider.name
		a.origins = []*origin{source.provider.origin}
	case len(t.Origins) == 0:
		return configError("", "Transport.Origins is empty, and only a *Source knows its own")
	default:
		a.tokens = newCustomSource(t.Source)
	}
	if len(t.Origins) > 0 {
		a.origins = nil
	}
	for i, url := range t.Origins {
		o, err := parseOrigin(fmt.Sprintf("Transport.Origins[%d]", i), url)
		if err != nil {
			return configError("", "%w", err)
		}
		a.origins = append(a.origins, o)
	}
	var err error
	if a.queue, err = queueOf(t.Limiter); err != nil {
		return err
	}
	a.base = t.Base
	a.telemetry = newTelemetry(provider, t.TracerProvider, t.MeterProvider, t.Propagator)
	t.account = a
	return nil
}

// A call is one RoundTrip to a pinned origin.
type call struct {
	*account
	waiter // for the next attempt; its place in the queue is the same for all
	req    *http.Request
	origin *origin
	body   io.ReadCloser // of the next attempt, until it is handed to the Base

	permit   permit // of the last attempt
	attempts int
	waited   time.Duration // for permits

	unauthorized, limited bool           // has been sent again after 401, after 429
	reason                string         // why the next attempt is made; "": it is the first
	until                 time.Time      // how long a 429 is held back for it
	kept                  *http.Response // what is returned if it cannot be made
}

// Why a request is sent once more. The other reason is unauthorized.
const rateLimited = "rate_limited"

// roundTrip sends the request until there is an answer for the caller.
func (c *call) roundTrip() (*http.Response, error) {
	if c.ctx.Err() != nil {
		return c.giveUp(ended(c.ctx))
	}
	for {
		err := errNoToken
		for err == errNoToken {
			err = c.admit()
		}
		if err != nil {
			return c.giveUp(err)
		}
		c.discard()
		a := &attempt{
			permit: c.permit, origin: c.origin, authorization: c.lease.authorization,
			body: c.body, template: templateOf(c.ctx), resend: c.attempts,
		}
		c.attempts++
		c.resent = true
		resp, err := c.send(c.ctx, c.req, a)
		if c.reason != "" {
			c.addResend(c.ctx, c.reason)
		}
		if err != nil || !c.again(resp) {
			return resp, err
		}
	}
}

// admit waits for a token and for leave to send one request with it. It never
// holds a permit while it waits for a token, or a hundred who hold permits would
// wait for a login that needs one.
func (c *call) admit() (err error) {
	ctx := c.ctx
	defer func() { c.ctx = ctx }()
	if c.reason == rateLimited {
		bounded, cancel := context.WithDeadline(ctx, c.until)
		defer cancel()
		c.ctx = bounded
	}
	c.queue.arrive(&c.waiter, classOf(ctx))
	c.from = "cache"
	if c.lease, err = c.waiter.tokens.ask(c.ctx, c.via, c.reason == unauthorized); err != nil {
		return err
	}
	var waited time.Duration
	c.permit, waited, err = c.sender.admit(ctx, &c.waiter, c.lease != nil)
	c.waited += waited
	return err
}

// A contextKey is the key of something that a context carries for this package.
type contextKey int

const (
	classKey    contextKey = iota // of WithLowPriority
	templateKey                   // of WithURLTemplate
	senderKey                     // of withSender
)

func closeBody(body io.Closer) {
	if body != nil {
		body.Close()
	}
}
