package partnerauth

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// Where a token comes from that was not fetched for the call.
const (
	fromCache  = "cache"
	fromOthers = "shared" // another call has fetched it
)

// Why a token is fetched. The other reason is unauthorized.
const (
	missing  = "missing"
	expiring = "expiring"
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

	current atomic.Pointer[lease]  // nil: there is none, or it was rejected
	last    atomic.Pointer[sender] // of the Transport that last fetched
	own     *sender                // for as long as no Transport has

	known knownTokens

	// mu guards what follows, and changes of current. Nothing waits while holding
	// it, and no foreign code runs under it.
	mu       sync.Mutex
	history  history
	fetch    *fetch               // the one under way
	trigger  string               // of a fetch for want of a token
	renewing *oauth2.Token        // the last token, if it has a RefreshToken; it may have ended
	setbacks map[*sender]*setback // since the last success, by setbackKey
	refusal  refusal              // of the credentials, on whatever way
}

var errNoProvider = configError("", "the Source was not made by a TokenSource method")

// TokenSource returns a new Source for the account. Share it: each Source signs in for
// itself.
func (p Provider) TokenSource() *Source {
	return &Source{
		account: newAccount(p), trigger: missing, history: newHistory(), setbacks: map[*sender]*setback{},
		own: &sender{queue: unlimited(), telemetry: newTelemetry(p.Name, nil, nil, nil), provider: p.Name},
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
	if l := s.current.Load(); l.state(now) == fresh {
		return l, fromCache, nil
	}
	switch {
	case s.account.err != nil:
		return nil, "", s.account.err
	case ctx.Err() != nil:
		return nil, "", s.gaveUp(ctx, nil)
	}
	began := time.Now()
	for {
		good, f, own, err := s.join(ctx, via)
		if f == nil {
			return good, fromCache, err
		}
		l, from, err := s.wait(ctx, f)
		if !own {
			s.way(via).telemetry.sharedWaitSpan(ctx, began, f.spanContext(), failureOf(ctx, nil, err))
			from = fromOthers
		}
		switch {
		case l != nil:
			return l, from, nil
		case good.good(time.Now()): // a renewal that was waited for
			return good, fromCache, nil
		case err != nil:
			return nil, "", err
		}
		// A rejection has overtaken the fetch: look again.
	}
}

// wait waits for f's token. It returns neither a token nor an error if a rejection has
// overtaken f.
func (s *Source) wait(ctx context.Context, f *fetch) (*lease, string, error) {
	select {
	case <-f.done:
		if f.got.err != nil {
			return nil, "", f.got.err
		}
		return f.got.lease, f.got.from, nil
	case <-ctx.Done():
		return nil, "", s.gaveUp(ctx, f)
	}
}

// join returns a token that is good, if there is one, and the fetch to wait for, if
// there is one. It starts a fetch that is due and allowed, own then being true. It
// returns an error if there is no token and none may be fetched yet.
func (s *Source) join(ctx context.Context, via *sender) (good *lease, f *fetch, own bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l := s.advanceLocked(now)
	if state := l.state(now); state != expired {
		if state == renewable && s.fetch == nil && s.heldBackLocked(now, via, true) == nil {
			own = true
			s.startLocked(ctx, via, now, l)
		}
		if s.account.savesBeforeExit() {
			f = s.fetch
		}
		return l, f, own, nil
	}
	if s.fetch == nil {
		if err := s.heldBackLocked(now, via, false); err != nil {
			return nil, nil, false, err
		}
		own = true
		s.startLocked(ctx, via, now, nil)
	}
	s.fetch.want()
	return nil, s.fetch, own, nil
}

// advanceLocked returns the current lease. The one that another stood in for is
// current when its time has come.
func (s *Source) advanceLocked(now time.Time) *lease {
	l := s.current.Load()
	if next := s.history.next; next != nil && l.state(now) != fresh {
		s.history.next, s.history.previous = nil, nil
		s.current.Store(next)
		return next
	}
	return l
}

// startLocked starts the fetch of a new token, in place of l if that is still good. No
// other is under way.
func (s *Source) startLocked(ctx context.Context, via *sender, now time.Time, l *lease) {
	if via != nil {
		s.last.Store(via)
	}
	plan := fetchPlan{trigger: s.trigger, renews: l, refusal: s.refusal}
	switch {
	case s.account.Refresh == nil || s.refusal.holds(now):
	case l != nil && !l.expiredOnArrival:
		plan.refreshes = l.token
	default:
		plan.refreshes = s.renewing
	}
	f, fetching := newFetch(s.account, &s.known, s.way(via), now, plan)
	if s.refusal.mayAsk(now) {
		s.refusal.asked = now
	}
	if s.fetch = f; l == nil {
		f.want() // before it may ask
	}
	go f.run(fetching, spanContextFrom(ctx), s.finish)
}

// way returns the sender that token requests take: of the Transport that needs a
// token, the last that did, or the Source's own.
func (s *Source) way(via *sender) *sender {
	if via == nil {
		via = s.last.Load()
	}
	if via == nil {
		via = s.own
	}
	return via
}

// setbackKey returns the sender whose failures hold back a fetch. All senders share one
// key if token requests have a Base of their own.
func (s *Source) setbackKey(via *sender) *sender {
	if s.account.Base != nil {
		return s.own
	}
	return s.way(via)
}

// heldBackLocked returns an earlier failure if no fetch may start yet because of it. A
// renewal, which nobody waits for, may have to wait longer.
func (s *Source) heldBackLocked(now time.Time, via *sender, renewal bool) error {
	if b := s.setbacks[s.setbackKey(via)]; b != nil {
		until := b.callers
		if renewal {
			until = b.until
		}
		if now.Before(until) {
			return b.err.again(now, until)
		}
	}
	if r := &s.refusal; r.holds(now) && !r.mayAsk(now) && s.account.Store == nil {
		return r.err.again(now, r.until)
	}
	return nil
}

// finish makes the result of fetch f known, unless a rejection has overtaken it.
func (s *Source) finish(f *fetch, got result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetch != f {
		s.known.forbid(got.lease.text())
		return
	}
	s.fetch = nil
	if got.lease != nil {
		s.adoptLocked(f, got)
	} else {
		s.holdLocked(f, got)
	}
	f.got = got
	close(f.done)
}

// adoptLocked makes a new token the current one.
func (s *Source) adoptLocked(f *fetch, got result) {
	l, h := got.lease, &s.history
	same := f.plan.renews.text() == l.text()
	if f.plan.renews != nil && f.plan.renews.accepted.Load() {
		h.unproven = 0
		if same {
			l.accept()
		}
	}
	switch {
	case got.from == fromStore && f.plan.trigger == unauthorized:
		h.loggedIn(l.issued, -1) // it was no login of ours
	case got.from != fromStore && f.plan.trigger == expiring: // one login may follow at once
		h.unproven = max(h.unproven, maxUnproven-1)
	}
	h.previous, h.next = f.plan.renews, nil
	s.known.allow(l)
	if s.renewing = nil; l.token.RefreshToken != "" {
		s.renewing = l.token
	}
	clear(s.setbacks)
	s.refusal = refusal{}
	s.trigger = expiring
	s.current.Store(l)
}

// holdLocked remembers why a fetch has failed, and for how long.
func (s *Source) holdLocked(f *fetch, got result) {
	if got.forgetRefresh {
		s.renewing = nil
	}
	switch {
	case got.sentNothing:
		s.refusal.varies = s.refusal.varies || got.refusal.varies
		s.refusal.record = cmp.Or(got.refusal.record, s.refusal.record)
	case got.err.isRefusal():
		s.refusal = got.refusal
	default:
		key := s.setbackKey(f.way)
		s.setbacks[key] = s.setbacks[key].with(got.err, f.plan.renews != nil)
	}
}

// Invalidate forgets token if it is still the current one, so that the next caller
// signs in. An answer to a token request that was sent before is not used any more. A
// Transport calls it for a token that was answered 401.
func (s *Source) Invalidate(token *oauth2.Token) {
	if s == nil || token == nil || s.account == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known.forbid(token.AccessToken)
	switch token.AccessToken {
	case s.current.Load().text():
		s.forgetLocked(s.history.next)
	case s.history.next.text():
		s.history.next = nil
	case s.history.previous.text():
		s.history.previous = nil
	}
}

// reject handles a 401 to a request sent with l. It reports whether the call should be
// retried.
func (s *Source) reject(l *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, current := time.Now(), s.current.Load()
	switch s.history.decide(l, current, now) {
	case keepToken:
		return false
	case useCurrent:
		if l.text() == s.history.previous.text() {
			s.history.previous = nil // it was rejected too
		}
	case usePrevious:
		s.history.next = current
		s.current.Store(s.history.previous.standIn(current.issued.Add(lagTime)))
	case useNext:
		s.known.forbid(l.text())
		s.forgetLocked(s.history.next)
	case fetchAnother:
		s.known.forbid(l.text())
		s.history.loggedIn(now, 1)
		s.forgetLocked(nil)
	}
	return true
}

// forgetLocked drops the current token, for next if there is one. A fetch under way
// may have been answered before whatever made the token invalid, so it is taken off
// the Source, and its waiters start over.
func (s *Source) forgetLocked(next *lease) {
	s.current.Store(next)
	s.history.previous, s.history.next = nil, nil
	s.trigger = unauthorized
	if f := s.fetch; f != nil {
		s.fetch = nil
		f.cancel()
		s.known.forbid(f.saving.Load().text())
		close(f.done)
	}
}

// newest returns the current token if it is good, starting its renewal if that is due.
func (s *Source) newest(ctx context.Context, via *sender, _ *lease) *lease {
	switch l := s.current.Load(); l.state(time.Now()) {
	case fresh:
		return l
	case renewable:
		good, _, _, _ := s.join(ctx, via)
		return good
	}
	return nil
}

func (s *Source) usable(*lease) bool { return s.current.Load().good(time.Now()) }

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
