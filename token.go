package partnerauth

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

const (
	// graceLifetime is how long a token is used that had expired on arrival. It is
	// renewed before that, at most eight times a minute.
	graceLifetime = 10 * time.Second
	// minLifetime is how much of its lifetime a token must have left on arrival not
	// to count as expired. Less would cost a token request for each call.
	minLifetime = 50 * time.Millisecond
	// maxLifetime is longer than any token lives.
	maxLifetime = 10 * 365 * 24 * time.Hour
	// maxToken is the longest token, and token type, that is sent.
	maxToken = 16 << 10
	// lagTime is how long a partner may take until it knows a token that it has
	// just issued: replicas and clocks lag 1 to 3 s.
	lagTime = 5 * time.Second
)

// A lease is a token and the time it is good for. Only accepted changes.
type lease struct {
	token         *oauth2.Token
	authorization []string  // values of the Authorization header, shared by all requests
	issued        time.Time // when the answer came, to whichever process
	renew         time.Time // from then on it should be renewed, though it is still good
	ends          time.Time // zero: never

	expiredOnArrival bool        // by its own answer
	fromStore        bool        // another process has fetched it
	turn             int64       // of a customSource: rejections before it was asked for
	accepted         atomic.Bool // by the partner, for one request at least
}

// A leaseState is how much a token is still worth.
type leaseState int

const (
	expired   leaseState = iota // must not be sent; also the state of no lease
	renewable                   // good, and to be renewed
	fresh
)

func (l *lease) state(now time.Time) leaseState {
	switch {
	case l == nil || !l.ends.IsZero() && !now.Before(l.ends):
		return expired
	case !l.renew.IsZero() && !now.Before(l.renew):
		return renewable
	}
	return fresh
}

// good reports whether l may be sent.
func (l *lease) good(now time.Time) bool { return l.state(now) != expired }

// text returns the token's text, by which tokens are compared; "" for no lease.
func (l *lease) text() string {
	if l == nil {
		return ""
	}
	return l.token.AccessToken
}

// newLease returns the lease of a token whose lifetime counts from when its request
// was sent: the partner began to count no earlier. A token that had expired by its
// own answer is good for a short while.
func newLease(token *oauth2.Token, lifetime time.Duration, sent, received time.Time) *lease {
	l := &lease{issued: received, ends: sent.Add(min(lifetime, maxLifetime))}
	if l.ends.Sub(received) < minLifetime {
		l.expiredOnArrival, sent = true, received
		l.ends = received.Add(graceLifetime)
	}
	// between 75 % and 85 %, so that many processes do not renew at once
	lifetime = l.ends.Sub(sent)
	l.renew = sent.Add(lifetime*3/4 + rand.N(lifetime/10+1))
	shown := *token
	shown.Expiry, shown.ExpiresIn = l.ends.Round(0), 0 // without the monotonic reading
	if shown.TokenType == "" {
		shown.TokenType = "Bearer"
	}
	l.token = &shown
	l.authorization = []string{shown.Type() + " " + shown.AccessToken}
	return l
}

// accept notes that the partner has accepted the token.
func (l *lease) accept() {
	if !l.accepted.Load() {
		l.accepted.Store(true)
	}
}

// isYoung reports whether the partner may not know the token yet.
func (l *lease) isYoung(now time.Time) bool { return now.Sub(l.issued) < lagTime && !l.accepted.Load() }

// standIn returns a copy of l that is to be replaced at a given time.
func (l *lease) standIn(until time.Time) *lease {
	c := &lease{token: l.token, authorization: l.authorization, issued: l.issued, renew: until, ends: l.ends}
	c.accepted.Store(true)
	return c
}

// sendable reports whether s can be sent in a header: visible ASCII, at most 16 KiB.
func sendable(s string) bool {
	return s != "" && len(s) <= maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// lifetimeOf returns how long a token lives: the least of what its answer says. date
// is the time of the answer by the partner's clock, zero if it named none, which
// makes our own clock's setting irrelevant. It reports false if the answer says
// nothing.
func lifetimeOf(token *oauth2.Token, date, sent time.Time) (time.Duration, bool) {
	least, known := maxLifetime, false
	consider := func(lifetime time.Duration) { least, known = min(least, lifetime), true }
	if n, ok := token.Extra("expires_in").(float64); ok {
		consider(seconds(n))
	} else if token.ExpiresIn != 0 {
		consider(seconds(float64(token.ExpiresIn)))
	}
	byOurClock := token.Expiry != token.Expiry.Round(0) // it has a monotonic reading
	switch {
	case token.Expiry.IsZero():
	case byOurClock:
		consider(token.Expiry.Sub(sent))
	case !date.IsZero():
		consider(token.Expiry.Truncate(time.Second).Sub(date)) // a Date has no fractions either
	}
	if lifetime, ok := jwtLifetime(token.AccessToken, date); ok {
		consider(lifetime)
	}
	if !known && !token.Expiry.IsZero() {
		return min(time.Until(token.Expiry), maxLifetime), true
	}
	return least, known
}

// jwtLifetime reads the lifetime of a JWT (RFC 7519): exp minus the partner's date,
// or where that is unknown or not positive exp minus iat, else exp minus nbf. The
// signature is not checked: the token is the partner's own.
func jwtLifetime(token string, date time.Time) (time.Duration, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, false
	}
	var claims struct{ Exp, Iat, Nbf *float64 }
	if json.Unmarshal(payload, &claims) != nil || claims.Exp == nil {
		return 0, false
	}
	left := seconds(*claims.Exp - float64(date.Unix()))
	switch {
	case !date.IsZero() && left > 0:
		return left, true
	case claims.Iat != nil:
		return seconds(*claims.Exp - *claims.Iat), true
	case claims.Nbf != nil:
		return seconds(*claims.Exp - *claims.Nbf), true
	}
	return 0, false
}

// seconds returns n seconds, or as much of it as a lifetime can be.
func seconds(n float64) time.Duration {
	limit := maxLifetime.Seconds()
	return time.Duration(max(-limit, min(limit, n)) * float64(time.Second))
}

// Logins that 401s on tokens just issued may cost. A partner whose new tokens count
// a little late, and an endpoint that misuses 401, get no more than these.
const (
	maxUnproven  = 3 // in a row, without one token that was accepted
	reloginBurst = 10
	reloginEvery = 45 * time.Second // and then one each
	maxUnusable  = 16               // tokens that a history remembers
)

// A rejection is what follows from a 401.
type rejection int

const (
	keepToken    rejection = iota // the caller gets the 401
	useCurrent                    // somebody else has replaced the token
	usePrevious                   // the partner may not know the token yet
	useNext                       // the token only stood in for the next
	fetchAnother                  // forget the token and sign in again
)

// knownTokens are the tokens that a partner or a Store may return again though they are
// of no use. Tokens are compared by their text. It is safe for concurrent use.
type knownTokens struct {
	mu       sync.Mutex
	unusable []string // rejected, or overtaken by a rejection; the last few
	lived    *lease   // the last one that had not expired on arrival
}

// forbid marks a token as unusable, even if the partner or a Store returns it again.
func (k *knownTokens) forbid(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if token == "" || slices.Contains(k.unusable, token) {
		return
	}
	if k.unusable = append(k.unusable, token); len(k.unusable) > maxUnusable {
		k.unusable = k.unusable[1:]
	}
}

// allow makes a token usable that the partner has issued, perhaps again.
func (k *knownTokens) allow(l *lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unusable = slices.DeleteFunc(k.unusable, func(t string) bool { return t == l.text() })
	if !l.expiredOnArrival {
		k.lived = l
	}
}

func (k *knownTokens) forbids(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.unusable, token)
}

// before returns the lease that a new one of that token follows: the one it renews, or
// that of the same token; nil if neither was ever good by its own answer.
func (k *knownTokens) before(token string, renews *lease) *lease {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case renews != nil && !renews.expiredOnArrival:
		return renews
	case k.lived.text() == token:
		return k.lived
	}
	return nil
}

// A history is what decides about 401s: which token a renewal has replaced, and how
// many logins they have cost. Whoever has a history guards it with a mutex.
type history struct {
	previous *lease // that a renewal has replaced; nil: none
	next     *lease // that previous is sent in place of until the partner knows it; nil: none

	unproven int // logins after a 401, or instead of a refresh, since a token was accepted
	relogins *rate.Limiter
}

func newHistory() history {
	return history{relogins: rate.NewLimiter(rate.Every(reloginEvery), reloginBurst)}
}

// decide returns what follows from a 401 to a request that was sent with l.
func (h *history) decide(l, current *lease, now time.Time) rejection {
	switch {
	case current.text() != l.text():
		return useCurrent
	case h.next != nil:
		return useNext
	case l.isYoung(now) && h.previous.good(now) && h.previous.text() != l.text():
		return usePrevious
	case !h.mayLogin(l, now):
		return keepToken
	}
	return fetchAnother
}

// mayLogin reports whether a 401 to l is worth a login.
func (h *history) mayLogin(l *lease, now time.Time) bool {
	if l.accepted.Load() {
		h.unproven = 0
	}
	switch {
	case l.isYoung(now) && l.fromStore: // that process sees to it, and another login would end its token
		return false
	case h.unproven >= maxUnproven && now.Sub(l.issued) < reloginEvery:
		return false
	}
	return h.relogins.TokensAt(now) >= 1
}

// loggedIn counts a login that a 401 led to, or that renewed a token; n is -1 to
// take it back.
func (h *history) loggedIn(now time.Time, n int) {
	h.unproven = max(0, h.unproven+n)
	h.relogins.ReserveN(now, n)
}
