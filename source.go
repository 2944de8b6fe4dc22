package partnerauth

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// A Source is one account's token: an oauth2.TokenSource that signs in when first
// asked, renews the token in the background from about 80 % of its lifetime on, and
// lets one fetch serve all who wait. Provider.TokenSource, NowPost.TokenSource and
// Ndovu.TokenSource make Sources; the zero value only returns an error.
//
// A Source is safe for concurrent use and has nothing to close. While it has a fresh
// token, asking for it takes no lock and allocates nothing. What fmt, slog and
// encoding/json print of a *Source contains no secret. Do not copy a Source.
//
// In a Transport, its token requests go through that Transport's queue and telemetry
// and, unless the provider has a Base of its own, through its Base; so do those that
// Token starts later. Of the caller's context they carry the trace context and no
// other value.
type Source struct {
	account *account // a pointer, which fmt does not follow

	current atomic.Pointer[lease] // nil: there is none, or it was rejected

	// mu guards what follows, and changes of current. Nothing waits while holding
	// it, and no foreign code runs under it.
	mu       sync.Mutex
	fetch    *fetch   // the one under way
	way      *sender  // of the Transport that last fetched, the Source's own before
	last     *lease   // the last token that was fetched, which may have ended or been rejected
	previous *lease   // the token before it, a stand-in for it until the partner knows it; nil: none
	unusable []string // tokens that were rejected, or overtaken by a rejection; the last few
	relogins relogins
	setbacks map[*sender]setback // since the last success, by setbackKeyLocked
	refusal  refusal             // of the credentials, on whatever way
}

// maxUnusable is how many unusable tokens are remembered.
const maxUnusable = 16

var errNoProvider = configError("", "the Source was not made by a TokenSource method")

// TokenSource returns a new Source for the account. Share it: each Source signs in for
// itself.
func (p Provider) TokenSource() *Source {
	return &Source{
		account: newAccount(p), relogins: newRelogins(), setbacks: map[*sender]setback{},
		way: &sender{queue: unlimited(), telemetry: newTelemetry(p.Name, nil, nil, nil), provider: p.Name},
	}
}

// Token returns the current token, or waits until there is one: TokenContext without
// a context. It makes Source an oauth2.TokenSource.
func (s *Source) Token() (*oauth2.Token, error) {
	return s.TokenContext(context.Background())
}

// TokenContext returns the current token, or waits until there is one. The end of ctx
// ends this caller's wait and nobody else's; the fetch goes on, for at most 30 seconds
// on the wire. The token must not be changed.
//
// Every error is an *[AuthError]. After refused credentials the partner is not asked
// again with the same ones for a second at first and for a quarter of an hour later
// on, and after other failures for half a second up to 30. Meanwhile callers get that
// failure again.
func (s *Source) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	if s == nil || s.account == nil {
		return nil, errNoProvider
	}
	l, _, err := s.lease(ctx, time.Now(), senderFrom(ctx), nil)
	if err != nil {
		return nil, err
	}
	return l.token, nil
}

// lease returns a token to send and where it came from, waiting for a fetch if there
// is none.
func (s *Source) lease(ctx context.Context, now time.Time, via *sender, _ *lease) (*lease, string, error) {
	if l := s.current.Load(); l.isFresh(now) {
		return l, fromCache, nil
	}
	switch {
	case s.account.err != nil:
		return nil, "", s.account.err
	case ctx.Err() != nil:
		return nil, "", s.gaveUp(ctx, nil)
	}
	for {
		good, f, own, err := s.join(ctx, via)
		if f == nil || good != nil && !s.account.savesBeforeExit() {
			return good, fromCache, err
		}
		l, err := s.wait(ctx, f)
		if !own {
			cmp.Or(via, f.sender).telemetry.sharedWaitSpan(ctx, now, f.spanContext(), failureOf(ctx, nil, err))
		}
		switch {
		case l != nil && own:
			return l, l.from, nil
		case l != nil:
			return l, fromOthers, nil
		case good.isGood(time.Now()): // a renewal that was waited for
			return good, fromCache, nil
		case err != nil:
			return nil, "", err
		}
		// A rejection has overtaken the fetch: look again.
	}
}

// wait waits for f's token. It returns neither a token nor an error if a rejection has
// overtaken f.
func (s *Source) wait(ctx context.Context, f *fetch) (*lease, error) {
	select {
	case <-f.ctx.Done():
		switch err := context.Cause(f.ctx); err {
		case context.Canceled:
			return f.lease.Load(), nil
		case errOvertaken:
			return nil, nil
		default:
			return nil, err
		}
	case <-ctx.Done():
		return nil, s.gaveUp(ctx, f)
	}
}

// join returns a token that is good, if there is one, and the fetch under way, if there
// is one. It starts a fetch that is due and allowed, own then being true. It
// returns an error if there is no token and none may be fetched yet.
func (s *Source) join(ctx context.Context, via *sender) (good *lease, f *fetch, own bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l := s.currentLocked(now)
	renewal := l.isGood(now)
	if s.fetch == nil && !l.isFresh(now) && s.nextLocked() == nil {
		if err = s.heldBackLocked(now, via, renewal); err == nil {
			own = true
			s.startLocked(ctx, via, now)
		}
	}
	switch {
	case renewal:
		return l, s.fetch, own, nil
	case s.fetch == nil:
		return nil, nil, false, err
	}
	s.fetch.wanted.Store(true)
	return nil, s.fetch, own, nil
}

// nextLocked returns the token that the current one is a stand-in for, since the partner may
// not know it yet; nil if there is none.
func (s *Source) nextLocked() *lease {
	if l := s.current.Load(); l == nil || l == s.last {
		return nil
	}
	return s.last
}

// currentLocked returns the current token. The one that it is a stand-in
// for becomes current when its time has come.
func (s *Source) currentLocked(now time.Time) *lease {
	l := s.current.Load()
	if next := s.nextLocked(); next != nil && (!next.isYoung(now) || !l.isGood(now)) {
		l = next
		s.current.Store(l)
	}
	return l
}

// startLocked starts the fetch of a new token. No other is under way.
func (s *Source) startLocked(ctx context.Context, via *sender, now time.Time) {
	s.way = cmp.Or(via, s.way)
	if s.refusal.asks = s.refusal.mayAsk(now); s.refusal.asks {
		s.refusal.asked = now
	}
	f := &fetch{
		account: s.account, sender: s.way, began: now, trigger: expiring, last: s.last, unusable: s.unusable,
		store: s.account.Store, refusal: s.refusal,
	}
	f.ctx, f.end = context.WithCancelCause(context.Background())
	switch {
	case s.last == nil:
		f.trigger = missing
	case s.current.Load() == nil:
		f.trigger = unauthorized
	}
	if s.account.Base != nil {
		f.sender = s.way.withBase(s.account.Base)
	}
	renews := f.renews()
	switch {
	case s.account.Refresh == nil || s.last == nil || s.refusal.holds(now):
	case renews != nil && !renews.expiredOnArrival, s.last.token.RefreshToken != "" && !s.refusal.ofRefresh:
		f.refreshes = s.last.token
	}
	if s.fetch = f; renews == nil {
		f.wanted.Store(true) // before it may ask
	}
	go f.run(spanContextFrom(ctx), s.finish)
}

// setbackKeyLocked returns the sender whose failures hold back a fetch. All senders
// share one key if token requests have a Base of their own.
func (s *Source) setbackKeyLocked(via *sender) *sender {
	if s.account.Base != nil {
		return nil
	}
	return cmp.Or(via, s.way)
}

// heldBackLocked returns an earlier failure if no fetch may start yet because of it. A
// renewal, which nobody waits for, may have to wait longer.
func (s *Source) heldBackLocked(now time.Time, via *sender, renewal bool) error {
	if b := s.setbacks[s.setbackKeyLocked(via)]; b.holds(now) && (renewal || !b.renewals) {
		return b.err.again(now)
	}
	if r := &s.refusal; r.holds(now) && !r.mayAsk(now) && s.account.Store == nil {
		return r.err.again(now)
	}
	return nil
}

// finish makes the result of fetch f known, unless a rejection has overtaken it.
func (s *Source) finish(f *fetch, l *lease, err *AuthError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetch != f {
		return
	}
	s.fetch = nil
	switch {
	case err != nil:
		s.holdLocked(f, err)
		f.end(err)
	case l == nil || l.from == fromStore && slices.Contains(s.unusable, l.text()):
		f.end(errOvertaken)
	default:
		s.adoptLocked(f, l)
		f.lease.Store(l)
		f.end(nil)
	}
}

// adoptLocked makes a new token the current one.
func (s *Source) adoptLocked(f *fetch, l *lease) {
	renews := f.renews()
	if renews != nil && renews.accepted.Load() {
		s.relogins.unproven = 0
	}
	switch {
	case l.from == fromStore && f.trigger == unauthorized:
		s.relogins.add(l.issued, -1) // it was no login of ours
	case l.from != fromStore && f.trigger == expiring: // one login may follow at once
		s.relogins.unproven = max(s.relogins.unproven, maxUnproven-1)
	}
	s.last, s.previous = l, nil
	if renews.text() != l.text() {
		s.previous = renews
	}
	clear(s.setbacks)
	s.refusal = refusal{}
	s.current.Store(l)
}

// holdLocked remembers why a fetch has failed, and for how long.
func (s *Source) holdLocked(f *fetch, err *AuthError) {
	s.refusal = f.refusal
	if !err.sentNothing && err != f.refusal.err {
		key := s.setbackKeyLocked(f.sender)
		s.setbacks[key] = s.setbacks[key].with(err, f.renews() != nil)
	}
}

// Invalidate forgets token if it is still the current one, so that the next caller
// signs in. An answer to a token request that was sent before is not used any more. A
// Transport calls it for a token that was answered 401.
func (s *Source) Invalidate(token *oauth2.Token) {
	if s == nil || s.account == nil || token == nil || token.AccessToken == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forbidLocked(token.AccessToken)
	switch token.AccessToken {
	case s.current.Load().text():
		s.forgetLocked(s.nextLocked())
	case s.nextLocked().text():
		s.last = s.current.Load()
	case s.previous.text():
		s.previous = nil
	}
}

// reject handles a 401 to a request sent with l. It reports whether the call should be
// retried.
func (s *Source) reject(l *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, current := time.Now(), s.current.Load()
	switch {
	case current.text() != l.text(): // somebody else has replaced it
		if l.text() == s.previous.text() {
			s.previous = nil // it was rejected too
		}
	case s.nextLocked() != nil: // l is only a stand-in for it
		s.forgetLocked(s.last)
	case l.isYoung(now) && s.previous.isGood(now): // the partner may not know l yet
		s.current.Store(s.previous)
	case !s.relogins.allow(l, now):
		return false
	default:
		s.relogins.add(now, 1)
		s.forgetLocked(nil)
	}
	return true
}

// forbidLocked makes a token unusable, should a Store have it.
func (s *Source) forbidLocked(token string) {
	if token == "" || slices.Contains(s.unusable, token) {
		return
	}
	s.unusable = append(s.unusable, token)
	s.unusable = s.unusable[max(0, len(s.unusable)-maxUnusable):]
}

// forgetLocked drops the current token, for next if there is one. A fetch under way
// may have been answered before whatever made the token invalid, so it is taken off
// the Source, and its waiters start over.
func (s *Source) forgetLocked(next *lease) {
	s.forbidLocked(s.current.Swap(next).text())
	s.previous = nil
	if f := s.fetch; f != nil {
		s.fetch = nil
		f.end(errOvertaken) // first, so that a lease that f has not got yet is not saved
		s.forbidLocked(f.lease.Load().text())
	}
}

// newest returns the current token if it is good, starting its renewal if that is due.
func (s *Source) newest(ctx context.Context, via *sender, _ *lease) *lease {
	l, now := s.current.Load(), time.Now()
	if l.isGood(now) && !l.isFresh(now) {
		l, _, _, _ = s.join(ctx, via)
	}
	if !l.isGood(now) {
		return nil
	}
	return l
}

func (s *Source) usable(*lease) bool { return s.current.Load().isGood(time.Now()) }

func (s *Source) alwaysReplaces() bool { return true }

// gaveUp returns the error of a caller whose context ended before there was a token,
// and what the fetch that it waited for was waiting for.
func (s *Source) gaveUp(ctx context.Context, f *fetch) *AuthError {
	why := fmt.Errorf("gave up waiting: %w", ended(ctx))
	if f != nil {
		if cause := f.waitsFor(ctx); cause != nil {
			why = fmt.Errorf("%w: %w", why, cause)
		}
	}
	return &AuthError{Provider: s.account.Name, Op: login, At: time.Now(), Err: why}
}

// Format implements fmt.Formatter: all verbs print the provider, and nothing secret.
func (s *Source) Format(f fmt.State, _ rune) {
	provider := ""
	if s != nil && s.account != nil {
		provider = s.account.Name
	}
	fmt.Fprintf(f, "partnerauth.Source{%s}", provider)
}

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (s *Source) MarshalText() ([]byte, error) { return fmt.Append(nil, s), nil }
