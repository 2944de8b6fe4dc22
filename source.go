package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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
// so do those that Token starts later. Of the caller's context they carry the
// place in its trace, and no other value.
type Source struct {
	provider *provider // a pointer, which fmt does not follow

	current  atomic.Pointer[lease]  // the one token; nil: none, or it was rejected
	last     atomic.Pointer[sender] // of the Transport that last fetched
	own      *sender                // for as long as no Transport has
	relogins *rate.Limiter

	mu        sync.Mutex
	fetch     *fetch                // the one under way
	trigger   string                // of a fetch for want of a token
	last401   string                // the last token that was rejected, which a Store may still have
	overtaken string                // and the last that such a rejection has overtaken
	failures  map[*sender]*failures // of fetches since the last that did not fail; nil: met on any way
}

func newRelogins() *rate.Limiter {
	return rate.NewLimiter(rate.Every(reloginEvery), reloginBurst)
}

var errNoProvider = configError("", "the Source was not made by NowPost.TokenSource or Ndovu.TokenSource")

func newSource(p *provider) *Source {
	if p.err != nil {
		p.err = &AuthError{Provider: p.name, Op: "config", Err: p.err}
	}
	return &Source{
		provider: p, trigger: missing, relogins: newRelogins(), failures: map[*sender]*failures{},
		own: &sender{queue: unlimited(), telemetry: newTelemetry(p.name, nil, nil, nil)},
	}
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
// again for a second at first and for a quarter of an hour later on, and other
// failures for half a second up to 30; meanwhile callers get the same error.
func (s *Source) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	if s == nil || s.provider == nil {
		return nil, errNoProvider
	}
	if l := s.fresh(); l != nil {
		return l.token, nil
	}
	l, err := s.wait(ctx, senderFrom(ctx))
	if err != nil {
		return nil, err
	}
	return l.token, nil
}

// wait waits for a token, but not for leave to send a request with it.
func (s *Source) wait(ctx context.Context, via *sender) (*lease, error) {
	if ctx.Err() != nil {
		return nil, s.gaveUp(ended(ctx))
	}
	q := unlimited()
	w := &waiter{queue: q, line: &q.own, ctx: ctx, tokens: s, via: via}
	_, err := w.wait()
	if w.joined.fetch != nil && !w.joined.leads {
		s.way(via).recordShared(ctx, w.joined)
	}
	switch {
	case err == nil || isAuth(err):
		return w.lease, err
	case w.lease.good(time.Now()): // it came at the very end
		return w.lease, nil
	}
	return nil, s.gaveUp(ended(ctx))
}

// fresh is the current token if it need not be renewed, else nil.
func (s *Source) fresh() *lease {
	if l := s.current.Load(); l != nil && time.Now().Before(l.renew) {
		return l
	}
	return nil
}

func (s *Source) ask(context.Context, *sender, bool) (*lease, error) { return s.fresh(), nil }

// seek returns the token to send, starting its renewal if that is due, or else
// the fetch to wait for and whether this call has started it, or the error of a
// failed one that must not be repeated yet. It does not wait. Token requests go
// via a Transport's sender; nil is that of the last Transport, or the Source's
// own. A caller that may not start a fetch gets errOutlived.
func (s *Source) seek(ctx context.Context, via *sender, _ *lease, start bool) (l *lease, f *fetch, leads bool, err error) {
	if l = s.fresh(); l != nil {
		return l, nil, false, nil
	}
	if s.provider.err != nil {
		return nil, nil, false, s.provider.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l = s.current.Load()
	failed := s.forbidding(now, via)
	switch {
	case l.good(now):
		if s.fetch == nil && failed == nil && !now.Before(l.renew) {
			s.start(ctx, via, l, nil)
		}
		return l, nil, false, nil
	case s.fetch != nil:
		s.fetch.awaited.Store(true)
		return nil, s.fetch, false, nil
	case failed != nil && !(failed.err.refused() && (s.provider.asks || s.provider.store != nil)):
		return nil, nil, false, failed.err
	case !start:
		return nil, nil, false, &AuthError{Provider: s.provider.name, Op: login, Err: errOutlived}
	}
	return nil, s.start(ctx, via, nil, failed), true, nil
}

var errOutlived = errors.New("the tokens end before the turn of a request comes")

// start starts the fetch of a new token, in place of l if that is still good, or
// with another secret than was refused. s.mu is held, and no fetch is under way.
func (s *Source) start(ctx context.Context, via *sender, l *lease, refused *failures) *fetch {
	if via != nil {
		s.last.Store(via)
	}
	via = s.way(via)
	f := &fetch{
		source: s, via: via, sender: via, op: login, trigger: s.trigger, renews: l,
		done: make(chan struct{}),
	}
	if l != nil && !l.over && s.provider.refreshes {
		f.op = refresh
	}
	if refused != nil {
		f.refused = *refused
	}
	f.pending.Store(true)
	f.awaited.Store(l == nil)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	s.fetch = f
	go f.run(ctx)
	return f
}

// way is the sender that token requests take, given that of the Transport that
// needs a token, if there is one.
func (s *Source) way(via *sender) *sender {
	if via == nil {
		via = s.last.Load()
	}
	if via == nil {
		via = s.own
	}
	return via
}

// finish makes what fetch f brought known, unless a rejection has overtaken it.
func (s *Source) finish(f *fetch, l *lease, err *AuthError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.cancel()
	if s.fetch != f {
		if l != nil {
			s.overtaken = l.token.AccessToken // a Store may have it
		}
		return
	}
	s.fetch = nil
	if err == nil {
		clear(s.failures)
		s.trigger = expiring
		s.current.Store(l)
		f.lease, f.brought = l, f.op
		if f.op == fromStore && f.trigger == unauthorized {
			s.relogins.ReserveN(time.Now(), -1) // it was no login
		}
		return
	}
	f.err = err
	if f.idle = err == f.refused.err || err.Op == "config"; f.idle {
		return // the partner was not asked
	}
	way := s.key(f.via)
	if err.refused() {
		way = nil
	}
	s.failuresOn(way).add(time.Now(), err)
	s.failures[way].secret = f.secret
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

// forget drops the current token. A fetch under way may have been answered
// before whatever made the token invalid, so it is taken off the Source, and who
// waited for it looks for another. s.mu is held.
func (s *Source) forget() {
	s.last401 = s.current.Swap(nil).token.AccessToken
	s.trigger = unauthorized
	if f := s.fetch; f != nil {
		s.fetch = nil
		f.cancel()
		f.release()
	}
}

// rejected reports whether that is the token that was rejected last, or that was
// on its way then.
func (s *Source) rejected(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return token == s.last401 || token == s.overtaken
}

// spoil makes a token one that a rejection has overtaken.
func (s *Source) spoil(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overtaken = token
}

// gaveUp is the error of a caller whose context ended before there was a token.
func (s *Source) gaveUp(why error) *AuthError {
	return &AuthError{Provider: s.provider.name, Op: login, Err: fmt.Errorf("gave up waiting: %w", why)}
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
