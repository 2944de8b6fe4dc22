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
	secret string    // of the last login
}

// refusals is how long refused credentials are not sent again, the last for all
// that follow: a partner locks accounts, for the process with the new password as
// well as for the one with the old.
var refusals = [...]time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 15 * time.Minute,
}

// add makes callers wait longer after each failure.
func (b *failures) add(now time.Time, err *AuthError) {
	err.RetryAfter = max(err.RetryAfter, b.next(err))
	b.count++
	b.err, b.until = err, now.Add(err.RetryAfter)
}

// next is how long no fetch starts after one more failure.
func (b *failures) next(err *AuthError) time.Duration {
	if !err.refused() {
		return backoff(b.count, 500*time.Millisecond, 30*time.Second)
	}
	wait := refusals[min(b.count, len(refusals)-1)]
	return wait + rand.N(wait/2)
}

// holds is how long err, a refusal, is going to be remembered.
func (s *Source) holds(err *AuthError) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	err.RetryAfter = max(err.RetryAfter, s.failuresOn(nil).next(err))
	return err.RetryAfter
}

// failuresOn are those met on one way, nil being any. s.mu is held.
func (s *Source) failuresOn(way *sender) *failures {
	if s.failures[way] == nil {
		s.failures[way] = new(failures)
	}
	return s.failures[way]
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
func (s *Source) forbidding(now time.Time, via *sender) *failures {
	for _, way := range [...]*sender{s.key(via), nil} {
		if b := s.failures[way]; b != nil && now.Before(b.until) {
			return b
		}
	}
	return nil
}
