package partnerauth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"strings"
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

// Where a token comes from that was not fetched for the call.
const (
	fromCache  = "cache"
	fromOthers = "shared" // another call has fetched it
	fromStore  = "store"  // another process has fetched it
)

// A lease is a token and the time it is good for: it is fresh at first, to be renewed
// for the last fifth of its life though it is still good, and never sent when it has
// ended. Only accepted changes.
type lease struct {
	token         *oauth2.Token
	authorization []string  // values of the Authorization header, shared by all requests
	from          string    // how it was fetched
	issued        time.Time // when the answer came, to whichever process
	renew         time.Time // fresh until then
	ends          time.Time // zero: never

	expiredOnArrival bool            // by its own answer
	after            context.Context // of a customSource: the rejection before it was asked for
	accepted         atomic.Bool     // by the partner, for one request at least
}

// isGood reports whether l may be sent.
func (l *lease) isGood(now time.Time) bool {
	return l != nil && (l.ends.IsZero() || now.Before(l.ends))
}

// isFresh reports whether l is good and need not be renewed yet.
func (l *lease) isFresh(now time.Time) bool {
	return l.isGood(now) && now.Before(l.renew)
}

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
)

// A relogins bounds the logins that 401s may cost. Whoever has it guards it with a mutex.
type relogins struct {
	unproven int // logins after a 401, or instead of a refresh, since a token was accepted
	limiter  *rate.Limiter
}

func newRelogins() relogins {
	return relogins{limiter: rate.NewLimiter(rate.Every(reloginEvery), reloginBurst)}
}

// allow reports whether a 401 to l is worth a login.
func (r *relogins) allow(l *lease, now time.Time) bool {
	if l.accepted.Load() {
		r.unproven = 0
	}
	switch {
	case l.isYoung(now) && l.from == fromStore: // that process sees to it, and another login would end its token
		return false
	case r.unproven >= maxUnproven && now.Sub(l.issued) < reloginEvery:
		return false
	}
	return r.limiter.TokensAt(now) >= 1
}

// add counts a login that a 401 led to, or that renewed a token; n is -1 to take it
// back.
func (r *relogins) add(now time.Time, n int) {
	r.unproven = max(0, r.unproven+n)
	r.limiter.ReserveN(now, n)
}
