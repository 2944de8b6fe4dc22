package partnerauth_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A laggard is a partner that takes a while to know the tokens that it has issued. They
// live an hour from then on.
type laggard struct {
	partner
	lag  time.Duration
	ends bool // the token before ends with each new one

	answering sync.Mutex // guards issued
	issued    []time.Time
}

func (l *laggard) answer(a asked) reply {
	now, n, good := time.Now(), 0, false
	fmt.Sscanf(a.token, "token-%d", &n)
	l.answering.Lock()
	defer l.answering.Unlock()
	if n > 0 {
		from := l.issued[n-1].Add(l.lag)
		good = !now.Before(from) && now.Before(l.issued[n-1].Add(time.Hour)) && (!l.ends || n == len(l.issued))
	}
	switch {
	case a.op == "call" && good:
		return reply{status: 200, after: 20 * time.Millisecond}
	case a.op == "call":
		return reply{status: 401, after: 20 * time.Millisecond}
	case a.token != "" && !good:
		return reply{status: 401}
	}
	l.issued = append(l.issued, now.Add(50*time.Millisecond))
	return reply{status: 200, header: dated(now), after: 50 * time.Millisecond,
		body: granted(fmt.Sprint("token-", len(l.issued)), time.Hour)}
}

// issuedWithin reports whether a token was issued within d of now.
func (l *laggard) issuedWithin(d time.Duration) bool {
	l.answering.Lock()
	defer l.answering.Unlock()
	return slices.ContainsFunc(l.issued, func(at time.Time) bool { return time.Since(at).Abs() < d })
}

// A fresh token that the partner does not know yet costs at most three logins a renewal,
// none where the token before it is still good; and only calls inside the lag see a 401.
func TestFreshTokenThatIsRefusedForAMoment(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lag       time.Duration
		ends      bool
		processes int
	}{
		{300 * time.Millisecond, false, 1}, {300 * time.Millisecond, true, 1},
		{3 * time.Second, false, 1}, {3 * time.Second, true, 1}, {3 * time.Second, false, 3}, {3 * time.Second, true, 3},
	} {
		for _, pr := range providers {
			bubble(t, fmt.Sprintf("%s, %v, the token before ends %t, %d processes", pr.name, c.lag,
				c.ends, c.processes), func(t *testing.T) {
				l := &laggard{lag: c.lag, ends: c.ends}
				l.script = l.answer
				all := l.fleetOf(pr, c.processes, storeIf(c.processes > 1), samePassword)
				seen := c.lag
				if c.ends && c.processes > 1 {
					seen = 5 * time.Second // each leaves it to the one that has signed in
				}
				began := time.Now()
				atOnce(c.processes, func(i int) {
					for time.Since(began) < 4*time.Hour {
						at := time.Since(began)
						if get(t, all[i], "/") == 401 {
							errorIf(t, !l.issuedWithin(seen+200*time.Millisecond), "the call after %v got a 401 outside of the lag", at)
							errorIf(t, !c.ends && at > 10*time.Second, "the call after %v got a 401 although the token before was good", at)
						}
						step := time.Minute
						if l.issuedWithin(10 * time.Second) {
							step = 700 * time.Millisecond
						}
						time.Sleep(step - time.Duration(i)*70*time.Millisecond)
					}
				}).Wait()
				time.Sleep(time.Minute)
				synctest.Wait()
				renewals := len(slices.CompactFunc(slices.Clone(l.issued), func(a, b time.Time) bool {
					return b.Sub(a).Abs() < time.Minute
				})) - 1
				errorIf(t, renewals < 4 || renewals > 5, "%d renewals in four hours, want one in 80 %% of each", renewals)
				most := 3 * (renewals + 1)
				if !c.ends {
					most = 4 + renewals // the first has none before it
				}
				errorIf(t, len(l.issued) > most, "%d tokens for %d renewals, want %d at most", len(l.issued), renewals, most)
				time.Sleep(2 * time.Hour)
			})
		}
	}
}

// An endpoint that misuses 401 costs at least three logins in a row, since it may be the
// tokens after all, and at most 25 for 500 calls and 100 in ten minutes.
func TestMisusedUnauthorizedIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		every  time.Duration
		calls  int
		most   int
		mixed  bool // with calls that are served
		shared bool // the Store
	}{
		{name: "500 at once", calls: 500, most: 25},
		{name: "500 at once, mixed", calls: 500, most: 25, mixed: true},
		{name: "ten minutes", every: 500 * time.Millisecond, calls: 1200, most: 100},
		{name: "ten minutes, mixed, shared", every: 500 * time.Millisecond, calls: 1200, most: 100, mixed: true, shared: true},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p := new(partner).on("/misuse", reply{status: 401})
			rt := p.fleetOf(pr, 1, storeIf(c.shared), samePassword)[0]
			afterThree := 0
			for range c.calls {
				errorIf(t, get(t, rt, "/misuse") != 401, "%s: the 401 was not returned", c.name)
				errorIf(t, c.mixed && get(t, rt, "/") != 200, "%s: a call elsewhere failed", c.name)
				if afterThree == 0 && p.count("/misuse") > 5 {
					afterThree = p.count("login") + p.count("refresh")
				}
				time.Sleep(c.every)
			}
			n := p.count("login")
			errorIf(t, n > c.most, "%s: %d logins, want %d at most", c.name, n, c.most)
			errorIf(t, afterThree < 4, "%s: %d logins after the first calls, want three after the first", c.name, afterThree)
			synctest.Wait()
		})
	}
}
