package partnerauth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

// How a token is fetched, which is the Op of an AuthError as well.
const (
	login   = "login"
	refresh = "refresh"
)

// Why a token is fetched.
const (
	missing      = "missing"
	expiring     = "expiring"
	unauthorized = "unauthorized"
)

// Logins that 401s on tokens just issued may cost: ten in a row, then one in
// 45 seconds. An endpoint that misuses 401 gets no more than that.
const (
	reloginBurst = 10
	reloginEvery = 45 * time.Second
)

// A lease is a token and the time it is good for. It does not change.
type lease struct {
	token         *oauth2.Token
	authorization []string  // values of the header, shared by all requests
	renew         time.Time // from then on it should be renewed, though it is still good
	ends          time.Time
	spent         bool // its own answer says that it is over
}

func (l *lease) good(now time.Time) bool { return l != nil && now.Before(l.ends) }

// renewAt is l with another time for its renewal, which at its end is too late.
func (l *lease) renewAt(t time.Time) *lease {
	later := *l
	later.renew = t
	if t.After(l.ends) {
		later.renew = l.ends
	}
	return &later
}

// A Source is one account's token: an oauth2.TokenSource that signs in when
// first asked, renews the token in the background from about 80 % of its
// lifetime on, and lets one fetch serve all who wait. NowPost.TokenSource and
// Ndovu.TokenSource make Sources; the zero value only returns an error.
//
// A Source is safe for concurrent use and has nothing to close. While it has a
// fresh token, asking for it takes no lock and allocates nothing. What fmt,
// slog and encoding/json make of a *Source contains no secret; do not copy one.
//
// Used in a Transport, its token requests go through that Transport's queue and
// telemetry and, unless the provider has a Base of its own, through its Base;
// so do those that Token starts later. They carry the trace and the baggage of
// the caller's context, and no other value of it.
type Source struct {
	provider *provider // a pointer, which fmt does not follow

	current  atomic.Pointer[lease] // the one token; nil: none, or it was rejected
	relogins *rate.Limiter

	mu      sync.Mutex
	flight  *flight // the one fetch under way
	setback setback // of flights that failed since the last that did not
	trigger string  // of a fetch for want of a token
	wire    *wire   // of the Transport that last fetched; nil: none yet
}

func newRelogins() *rate.Limiter {
	return rate.NewLimiter(rate.Every(reloginEvery), reloginBurst)
}

var errNoProvider = configError("", "the Source was not made by NowPost.TokenSource or Ndovu.TokenSource")

func newSource(p *provider) *Source {
	if p.err != nil {
		p.err = &AuthError{Provider: p.name, Op: "config", Err: p.err}
	}
	return &Source{provider: p, trigger: missing, relogins: newRelogins()}
}

// Token returns the current token, or waits until there is one: TokenContext
// without a context. It makes Source an oauth2.TokenSource.
func (s *Source) Token() (*oauth2.Token, error) {
	return s.TokenContext(context.Background())
}

// TokenContext returns the current token, or waits until there is one. The end
// of ctx ends this caller's wait and nobody else's; the fetch goes on, for at
// most 30 seconds on the wire. The token must not be changed.
//
// Every error is an *[AuthError]. Credentials that were refused are not tried
// again for a second at first and up to a minute later on, and other failures
// for half a second up to 30; meanwhile callers get the same error at once.
func (s *Source) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	l, _, err := s.obtain(ctx, wireFrom(ctx))
	if err != nil {
		return nil, err
	}
	return l.token, nil
}

// Invalidate forgets token if it is still the current one, so that the next
// caller signs in. An answer to a token request sent before is not used any
// more. A Transport calls it for a token that was answered 401.
func (s *Source) Invalidate(token *oauth2.Token) {
	if s == nil || token == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.current.Load(); l != nil && l.token.AccessToken == token.AccessToken {
		s.forget()
	}
}

// forget drops the current token. A fetch under way may have been answered
// before whatever made the token invalid, so it starts over. s.mu is held.
func (s *Source) forget() {
	s.current.Store(nil)
	s.trigger = unauthorized
	if s.flight != nil {
		s.flight.stale = true
		s.flight.cancel()
	}
}

// reject is Invalidate for the token of l, which a partner answered with 401.
// It reports whether another token can be had: it is somebody else's new one,
// or a login that the limit for fruitless logins allows.
func (s *Source) reject(l *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.current.Load(); now == nil || now.token != l.token {
		return true
	}
	if !s.relogins.Allow() {
		return false
	}
	s.forget()
	return true
}

// renewed returns the current token if it is good, nil otherwise. It may be
// another than that from before a wait. It never waits, but starts a renewal
// that has come due meanwhile.
func (s *Source) renewed(ctx context.Context, w *wire, _ *lease) *lease {
	l := s.current.Load()
	switch now := time.Now(); {
	case !l.good(now):
		return nil
	case !now.Before(l.renew):
		l, _, _, _ = s.board(ctx, w)
	}
	return l
}

// obtain returns the current token and where it came from: "cache", "login",
// "refresh", or "shared" for somebody else's fetch. Token requests go by w; nil
// is the wire of the last Transport or the Source's own.
func (s *Source) obtain(ctx context.Context, w *wire) (*lease, string, error) {
	if s == nil || s.provider == nil {
		return nil, "", errNoProvider
	}
	if l := s.current.Load(); l != nil && time.Now().Before(l.renew) {
		return l, "cache", nil
	}
	if s.provider.err != nil {
		return nil, "", s.provider.err
	}
	l, f, leads, err := s.board(ctx, w)
	if l != nil || err != nil {
		return l, "cache", err
	}
	if w != nil {
		// whoever waits for the token needs a permit, too
		if err := w.queue.inTime(ctx, new(permit)); err != nil {
			return nil, "", err
		}
	}
	return s.await(ctx, f, leads)
}

// board returns the current token if it is good, starting its renewal if that
// is due. Otherwise it returns the flight to wait for, starting it if there is
// none, or the error of a failed one that must not be repeated yet.
func (s *Source) board(ctx context.Context, w *wire) (l *lease, f *flight, leads bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l = s.current.Load()
	switch good := l.good(now); {
	case good && now.Before(l.renew):
		return l, nil, false, nil
	case good && s.flight == nil:
		s.current.Store(l.renewAt(l.ends)) // others need not look into it meanwhile
		s.launch(ctx, w, l)
		return l, nil, false, nil
	case good:
		return l, nil, false, nil
	case s.flight != nil:
		return nil, s.flight, false, nil
	case now.Before(s.setback.until):
		return nil, nil, false, s.setback.err
	case ctx.Err() != nil:
		return nil, nil, false, s.gaveUp(ctx)
	}
	return nil, s.launch(ctx, w, nil), true, nil
}

// launch starts the fetch of a new token, in place of l if that is still good.
// s.mu is held, and no flight is under way.
func (s *Source) launch(ctx context.Context, w *wire, l *lease) *flight {
	f := &flight{source: s, wire: s.wireFor(w), op: login, trigger: s.trigger, current: l, done: make(chan struct{})}
	if l != nil && !l.spent && s.provider.refreshes {
		f.op = refresh
	}
	f.ctx, f.cancel = context.WithCancel(detached(ctx))
	s.flight = f
	go f.run()
	return f
}

// detached is a context of a flight's own, which has of its caller's only what
// gives it its place in the trace. Other values, httptrace hooks among them, are
// not for requests that the caller does not know of.
func detached(ctx context.Context) context.Context {
	own := trace.ContextWithSpan(context.Background(), trace.SpanFromContext(ctx))
	return baggage.ContextWithBaggage(own, baggage.FromContext(ctx))
}

// wireFor is the wire for token requests, given that of the Transport that
// needs a token, if there is one.
func (s *Source) wireFor(w *wire) wire {
	if w != nil {
		s.wire = w
	} else if s.wire == nil {
		s.wire = &wire{base: http.DefaultTransport, telemetry: newTelemetry(s.provider.name, nil, nil, nil)}
	}
	own := *s.wire
	if base := s.provider.base; base != nil {
		own.base = base
	}
	return own
}

// await waits for f to land or for the end of ctx.
func (s *Source) await(ctx context.Context, f *flight, leads bool) (*lease, string, error) {
	start := time.Now()
	var err error
	select {
	case <-f.done:
		err = f.err
	case <-ctx.Done():
		err = s.gaveUp(ctx)
	}
	if !leads {
		f.wire.recordShared(ctx, start, f.span.Load(), err)
	}
	switch {
	case err != nil:
		return nil, "", err
	case leads:
		return f.lease, f.op, nil
	}
	return f.lease, "shared", nil
}

// gaveUp is the error of a caller whose ctx ended before there was a token.
func (s *Source) gaveUp(ctx context.Context) error {
	return &AuthError{Provider: s.provider.name, Op: login, Err: fmt.Errorf("gave up waiting: %w", ended(ctx))}
}

// land makes what flight f brought known, unless a token was rejected since it
// started: then it reports false, and f has to log in.
func (s *Source) land(f *flight, got fetched) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.cancel()
	if f.stale {
		f.stale, f.op, f.trigger, f.current, f.used = false, login, s.trigger, nil, 0
		f.ctx, f.cancel = context.WithCancel(detached(f.ctx))
		return false
	}
	s.flight = nil
	if got.err == nil {
		s.setback = setback{}
		s.trigger = expiring
		s.current.Store(got.lease)
		f.lease = got.lease
		return true
	}
	s.setback.add(time.Now(), got.err)
	if old := s.current.Load(); old != nil {
		s.current.Store(old.renewAt(s.setback.until))
	}
	f.err = got.err
	return true
}

// A setback is what the last flights' failures have come to.
type setback struct {
	err   *AuthError
	count int
	until time.Time // no flight starts before
}

// add makes callers wait longer after each failure. Refused credentials are
// asked about less often, as a partner locks accounts.
func (b *setback) add(now time.Time, err *AuthError) {
	first, most := 500*time.Millisecond, 30*time.Second
	if refused(err.StatusCode) {
		first, most = time.Second, time.Minute
	}
	err.RetryAfter = max(err.RetryAfter, backoff(b.count, first, most))
	b.count++
	b.err, b.until = err, now.Add(err.RetryAfter)
}

// backoff is the wait after n failures: at least first, doubling, at most most,
// spread over half of itself so that many processes do not come at once.
func backoff(n int, first, most time.Duration) time.Duration {
	d := most * 2 / 3
	if n < 16 {
		d = min(d, first<<n)
	}
	return d + rand.N(d/2)
}

// Format implements fmt.Formatter, for all verbs that go vet accepts: it tells
// the provider, and nothing secret.
func (s *Source) Format(f fmt.State, _ rune) {
	provider := ""
	if s != nil && s.provider != nil {
		provider = s.provider.name
	}
	fmt.Fprintf(f, "partnerauth.Source{%s}", provider)
}

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (s *Source) MarshalText() ([]byte, error) { return fmt.Append(nil, s), nil }

type wireKey struct{}

// withWire lets a source of the user's own that wraps a Source send its token
// requests like those of a Source.
func withWire(ctx context.Context, w *wire) context.Context {
	return context.WithValue(ctx, wireKey{}, w)
}

func wireFrom(ctx context.Context) *wire {
	w, _ := ctx.Value(wireKey{}).(*wire)
	return w
}
