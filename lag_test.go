package partnerauth_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// A laggard is a partner that takes a while to know the tokens that it has issued. They
// live an hour from then on.
type laggard struct {
	partner
	lag    time.Duration
	ends   bool // the token before ends with each new one
	issued []time.Time
}

func (l *laggard) answer(a asked) reply {
	now, n, good := time.Now(), 0, false
	fmt.Sscanf(a.token, "token-%d", &n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > 0 {
		from := l.issued[n-1].Add(l.lag)
		good = !now.Before(from) && now.Before(l.issued[n-1].Add(time.Hour)) && (!l.ends || n == len(l.issued))
	}
	switch {
	case a.op == "call" && good:
		return reply{status: 200, after: 20 * time.Millisecond}
	case a.op == "call":
		return reply{status: 401, after: 20 * time.Millisecond}
	case a.op == "refresh" && !good:
		return reply{status: 401}
	}
	l.issued = append(l.issued, now.Add(50*time.Millisecond))
	return reply{status: 200, header: dated(now), body: granted(fmt.Sprint("token-", len(l.issued)), time.Hour), after: 50 * time.Millisecond}
}

// lagging reports whether a token was issued so shortly before.
func (l *laggard) lagging(lag time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.issued, func(at time.Time) bool { return time.Since(at).Abs() < lag+200*time.Millisecond })
}

// step is how long callers wait: not long where there is something to see.
func (l *laggard) step() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.issued); time.Since(l.issued[n-1]) < 10*time.Second {
		return 700 * time.Millisecond
	}
	return time.Minute
}

// A fresh token that the partner does not know yet costs at most three logins a renewal,
// none where the token before it is still good; and only calls inside the lag see a 401.
func TestFreshTokenThatIsRefusedForAMoment(t *testing.T) {
	t.Parallel()
	for _, lag := range []time.Duration{300 * time.Millisecond, 2 * time.Second, 3 * time.Second} {
		for _, ends := range []bool{false, true} {
			for _, processes := range []int{1, 3} {
				bubble(t, fmt.Sprintf("%v, the token before ends %t, %d processes", lag, ends, processes), func(t *testing.T) {
					for provider := range new(partner).everybody(nil) {
						var store partnerauth.Store
						if processes > 1 {
							store = new(memory)
						}
						l := &laggard{lag: lag, ends: ends}
						l.script = l.answer
						seen := lag
						if ends && processes > 1 {
							seen = 5 * time.Second // each leaves it to the one that has signed in
						}
						began := time.Now()
						atOnce(processes, func(i int) {
							rt := l.transport(nil)
							rt.Source = l.everybody(store)[provider]
							for time.Since(began) < 12*time.Hour {
								at := time.Since(began)
								if get(t, rt, "/") == 401 {
									errorIf(t, !l.lagging(seen), "%s: the call after %v got a 401 outside of the lag", provider, at)
									errorIf(t, !ends && at > 10*time.Second, "%s: the call after %v got a 401 although the token before was good", provider, at)
								}
								time.Sleep(l.step() - time.Duration(i)*70*time.Millisecond)
							}
						}).Wait()
						logins, renewals := l.count("login"), l.count("refresh 200")
						if provider != "nowpost" {
							renewals = len(slices.CompactFunc(slices.Clone(l.issued), func(a, b time.Time) bool { return b.Sub(a).Abs() < time.Minute })) - 1
						}
						most := map[bool]int{true: 36, false: 4}[ends] // 4: the first has none before it
						if !ends && provider != "nowpost" {
							most += renewals
						}
						errorIf(t, logins > most || renewals < 12 || renewals > 17, "%s: %d logins, %d renewals, want %d logins at most", provider, logins, renewals, most)
						time.Sleep(2 * time.Hour)
					}
				})
			}
		}
	}
}

// An endpoint that misuses 401 costs at least three logins in a row, since it may be the
// tokens after all, and at most 25 for 500 calls and 100 in ten minutes.
func TestMisusedUnauthorizedIsBounded(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration
		calls int
		most  int
		mixed bool // with calls that are served
	}{
		{name: "500 at once", calls: 500, most: 25},
		{name: "500, mixed", calls: 500, most: 25, mixed: true},
		{name: "ten minutes", every: 100 * time.Millisecond, calls: 6000, most: 100},
		{name: "ten minutes, mixed", every: 100 * time.Millisecond, calls: 6000, most: 100, mixed: true},
	} {
		for _, shared := range []bool{false, true} {
			bubble(t, fmt.Sprintf("%s, shared %t", c.name, shared), func(t *testing.T) {
				for provider := range new(partner).everybody(nil) {
					var store partnerauth.Store
					if shared {
						store = new(memory)
					}
					p := new(partner).on("/misuse", reply{status: 401})
					rt := p.transport(nil)
					rt.Source = p.everybody(store)[provider]
					afterThree := 0
					for range c.calls {
						code := get(t, rt, "/misuse")
						errorIf(t, code != 401, "%s: got %d", provider, code)
						if c.mixed {
							errorIf(t, get(t, rt, "/") != 200, "%s: a call elsewhere failed", provider)
						}
						if afterThree == 0 && p.count("/misuse") > 5 {
							afterThree = p.count("login")
						}
						time.Sleep(c.every)
					}
					n := p.count("login")
					errorIf(t, n > c.most, "%s: %d calls cost %d logins, want %d at most", provider, c.calls, n, c.most)
					errorIf(t, afterThree < 4, "%s: %d logins after the first calls, want three after the first", provider, afterThree)
					synctest.Wait()
				}
			})
		}
	}
}
