package partnerauth

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	// shortWhile is how long a token is used whose own answer says that it is
	// over. It is renewed before that, at most eight times a minute.
	shortWhile = 10 * time.Second
	// leastLeft is how much of a lifetime an answer must leave not to count as
	// over. Less would be a token request for each call.
	leastLeft = 50 * time.Millisecond
	// maxToken is the longest token, and token type, that is sent.
	maxToken = 16 << 10
	// maxLifetime is longer than any token lives.
	maxLifetime = 10 * 365 * 24 * time.Hour
)

// A lease is a token and the time it is good for. It does not change.
type lease struct {
	token         *oauth2.Token
	authorization []string  // values of the header, shared by all requests
	renew         time.Time // from then on it should be renewed, though it is still good
	ends          time.Time // zero: it has no end
	over          bool      // its own answer said that it had ended
	rejections    int       // of a customSource, when it was asked for this
	insisted      bool      // a customSource has it still, though it was rejected
}

func (l *lease) good(now time.Time) bool {
	return l != nil && (l.ends.IsZero() || now.Before(l.ends))
}

// has reports whether l is the lease of that token.
func (l *lease) has(token string) bool { return l != nil && l.token.AccessToken == token }

// newLease makes a lease that counts from when its request was sent, since the
// partner began to count no earlier.
func newLease(token string, lifetime time.Duration, sent, received time.Time) *lease {
	l := &lease{authorization: []string{"Bearer " + token}, ends: sent.Add(lifetime)}
	if l.ends.Sub(received) < leastLeft {
		l.over, lifetime, sent = true, shortWhile, received
		l.ends = received.Add(shortWhile)
	}
	// between 75 % and 85 %, so that many processes do not renew at once
	l.renew = sent.Add(lifetime*3/4 + rand.N(lifetime/10+1))
	l.token = &oauth2.Token{AccessToken: token, TokenType: "Bearer", Expiry: l.ends}
	return l
}

// sendable reports whether s can stand in a header: visible ASCII, 16 KiB of it
// at most, which is also how much foreign text is searched for.
func sendable(s string) bool {
	return s != "" && len(s) <= maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// jwtLifetime reads exp minus iat from a token, if it is a JWT that has both
// (RFC 7519). Its signature is not ours to check.
func jwtLifetime(token string) (time.Duration, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, false
	}
	var claims struct{ Exp, Iat *float64 }
	if json.Unmarshal(payload, &claims) != nil || claims.Exp == nil || claims.Iat == nil {
		return 0, false
	}
	return seconds(*claims.Exp - *claims.Iat), true
}

// seconds is n seconds, or as much of it as a lifetime can be.
func seconds(n float64) time.Duration {
	limit := maxLifetime.Seconds()
	return time.Duration(max(-limit, min(limit, n)) * float64(time.Second))
}
