package main

import (
	"fmt"
	"math"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// ahead is how long before the end of the first token the second is fetched,
// under a call every second.
func ahead(t *testing.T, pr peer, lifetime time.Duration, optIn bool) (early time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		p.lifetime = lifetime
		c := pr.new(t, setup{partner: p, url: apiURL, built: t.Context(), optIn: optIn})
		end := time.Now().Add(lifetime)
		for p.countLogins() < 2 {
			if time.Since(end) > time.Minute {
				t.Fatalf("%s: no second login a minute after the token's end", pr.name)
			}
			mustCall(t, c)
			time.Sleep(time.Second)
		}
		early = end.Sub(p.loginHits()[1].at)
	})
	return early
}

// aheadOf is ahead of several clients.
func aheadOf(t *testing.T, pr peer, lifetime time.Duration, optIn bool) []time.Duration {
	all := make([]time.Duration, 6)
	for i := range all {
		all[i] = ahead(t, pr, lifetime, optIn)
	}
	return all
}

// renewsAhead reports whether a peer does, and whether it has to be told to.
func renewsAhead(t *testing.T, pr peer) (renews, optIn bool) {
	known, found := renewers[pr.name]
	if !found {
		known.renews = ahead(t, pr, newPartner().lifetime, false) > 0
		if !known.renews && pr.optIn {
			known.renews = ahead(t, pr, newPartner().lifetime, true) > 0
			known.optIn = known.renews
		}
		renewers[pr.name] = known
	}
	return known.renews, known.optIn
}

var renewers = map[string]struct{ renews, optIn bool }{}

func mean(all []time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	return sum / time.Duration(len(all))
}

func renewalAhead(t *testing.T, pr peer) string {
	renews, optIn := renewsAhead(t, pr)
	if !renews {
		return "no"
	}
	how := whoWaits(t, pr, optIn)
	if optIn {
		return how + ", opt-in"
	}
	const short, long = 20 * time.Minute, 40 * time.Minute
	s, l := mean(aheadOf(t, pr, short, false)), mean(aheadOf(t, pr, long, false))
	if (l - s).Abs() > 30*time.Second {
		share := 1 - l.Seconds()/long.Seconds()
		return fmt.Sprintf("%s, at about %.0f %% of the lifetime", how, math.Round(share*20)*5)
	}
	// The calls are a second apart, so it may have been up to a second earlier.
	return how + ", " + spoken((l + 4*time.Second).Truncate(5*time.Second))
}

func spoken(d time.Duration) string {
	if d%time.Minute == 0 {
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// whoWaits finds out who waits for a renewal ahead of expiry.
func whoWaits(t *testing.T, pr peer, optIn bool) (who string) {
	early := ahead(t, pr, newPartner().lifetime, optIn)
	if optIn {
		early /= 2 // with jitter, it may be twice as early as the next
	}
	synctest.Test(t, func(t *testing.T) {
		p, release := newPartner(), make(chan struct{})
		p.login = func(n int, r *http.Request) int {
			if n == 1 {
				return http.StatusOK
			}
			return held(r, release)
		}
		c := pr.new(t, setup{partner: p, url: apiURL, built: t.Context(), optIn: optIn})
		mustCall(t, c)
		time.Sleep(p.lifetime - early/2)
		var first, second atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() { c.call(t.Context()); first.Store(true) })
		// Whoever waits may hold a mutex, so neither synctest.Wait nor its time is
		// of use here.
		yield(func() bool { return p.countLogins() > 1 })
		wg.Go(func() { c.call(t.Context()); second.Store(true) })
		yield(func() bool { return first.Load() && second.Load() })
		switch {
		case p.countLogins() < 2:
			t.Errorf("%s: no renewal %v before the token's end", pr.name, early/2)
		case first.Load() && second.Load():
			who = "in the background"
		case second.Load():
			who = "one caller waits"
		default:
			who = "blocking"
		}
		close(release)
		wg.Wait()
	})
	return who
}

// yield lets others run until something is so, or they had ample occasion.
func yield(until func() bool) {
	for range 50_000 {
		if until() {
			return
		}
		runtime.Gosched()
	}
}

func jitter(t *testing.T, pr peer) string {
	varies := func(optIn bool) bool {
		all := aheadOf(t, pr, newPartner().lifetime, optIn)
		for _, d := range all {
			if d != all[0] {
				return true
			}
		}
		return false
	}
	switch {
	case varies(false):
		return "yes"
	case pr.optIn && varies(true):
		return "opt-in"
	}
	return "no"
}

// A lastLeg is what comes of a token whose renewal fails, under a call every
// second.
type lastLeg struct {
	failedEarly bool            // a call failed before the token's end
	outlived    bool            // a call was sent with it after its end
	tries       []time.Duration // before its end: when
	calls       int             // before its end, from the first try on
}

func lastOf(t *testing.T, pr peer, code int) (got lastLeg) {
	_, optIn := renewsAhead(t, pr)
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		p.login = func(n int, _ *http.Request) int {
			if n == 1 {
				return http.StatusOK
			}
			return code
		}
		c := pr.new(t, setup{partner: p, url: apiURL, built: t.Context(), optIn: optIn})
		begin := time.Now()
		for time.Since(begin) < p.lifetime+time.Minute {
			at := time.Since(begin)
			before, after := at < p.lifetime, at > p.lifetime
			code, err := c.call(t.Context())
			sent := err == nil && code == http.StatusOK
			synctest.Wait() // a try in the background has been made
			switch {
			case before && !sent:
				got.failedEarly = true
			case after && sent:
				got.outlived = true
			}
			if before && p.countLogins() > 1 {
				got.calls++
			}
			time.Sleep(time.Second)
		}
		for _, h := range p.loginHits()[1:] {
			if at := h.at.Sub(begin); at < p.lifetime {
				got.tries = append(got.tries, at)
			}
		}
	})
	return got
}

func failingRenewal(t *testing.T, pr peer) string {
	got := lastOf(t, pr, http.StatusServiceUnavailable)
	if got.failedEarly {
		return "error"
	}
	text := "serves it"
	switch n := len(got.tries); {
	case n == 1:
		text += ", one try"
	case n > 1:
		text += ", tries again"
	}
	if got.outlived {
		text += ", even when it has ended"
	}
	return text
}

func backOff(t *testing.T, pr peer) string {
	const calls, every = 1200, 3 * time.Second
	logins := 0
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		p.login = func(int, *http.Request) int { return http.StatusUnauthorized }
		c := start(t, pr, p)
		for range calls {
			c.call(t.Context())
			time.Sleep(every)
		}
		logins = p.countLogins()
	})
	if logins < calls {
		// Not the number, which jitter makes a little different each time.
		for _, most := range []int{10, 30, 100, 300} {
			if logins <= most {
				return fmt.Sprintf("yes, at most %d logins in an hour", most)
			}
		}
	}
	got := lastOf(t, pr, http.StatusUnauthorized)
	switch n := len(got.tries); {
	case n == 0 || n == got.calls || got.failedEarly:
		return "no"
	case n == 1:
		return "one try ahead of expiry, else no"
	default:
		every := (got.tries[n-1] - got.tries[0]) / time.Duration(n-1)
		return spoken(every.Round(10*time.Second)) + ", ahead of expiry only"
	}
}
