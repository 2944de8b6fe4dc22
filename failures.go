package partnerauth

import (
	"math/rand/v2"
	"time"
)

// failures are what the last fetches' failures on one way have come to.
type failures struct {
	err    *AuthError
	count  int
	until  time.Time // no fetch starts before
	secret string    // that was refused, if that is what failed
}

// refusals is how long refused credentials are not sent again, the last for all
// that follow: a partner locks accounts, for the process with the new password as
// well as for the one with the old.
var refusals = [...]time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 15 * time.Minute,
}

// holds reports whether a secret is one that was refused and must not be tried
// again yet.
func (b failures) holds(secret string) bool {
	return b.err.refused() && secret == b.secret && time.Now().Before(b.until)
}

// with is b and err, after which no fetch starts for longer than before. It puts
// that into err.
func (b failures) with(err *AuthError, secret string) failures {
	wait := backoff(b.count, 500*time.Millisecond, 30*time.Second)
	if err.refused() {
		wait = refusals[min(b.count, len(refusals)-1)]
		wait += rand.N(wait / 2)
	}
	err.RetryAfter = max(err.RetryAfter, wait)
	return failures{err, b.count + 1, time.Now().Add(err.RetryAfter), secret}
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

// key is the way that failures are met on: all ways are one where token requests
// have a Base of their own.
func (s *Source) key(via *sender) *sender {
	if s.provider.base != nil {
		return s.own
	}
	return s.way(via)
}

// forbidding are the failures for which no fetch may start yet. s.mu is held.
func (s *Source) forbidding(now time.Time, via *sender) failures {
	for _, way := range [...]*sender{s.key(via), nil} {
		if b := s.failures[way]; b != nil && now.Before(b.until) {
			return *b
		}
	}
	return failures{}
}
