package partnerauth_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// renewalsAnswer makes p answer so to renewals of the first token, which lives an hour.
func (p *partner) renewalsAnswer(r reply) *partner {
	p.lifetime = time.Hour
	p.script = func(a asked) reply {
		if a.op != "call" && a.at > 0 && a.at < time.Hour {
			return r
		}
		return reply{}
	}
	return p
}

// A renewal that meets a limit of its own does not stop the calls that have a token: no
// call waits longer than a window for it, and most do not wait at all.
func TestRenewalThatIsLimited(t *testing.T) {
	t.Parallel()
	for _, limited := range []reply{{status: 429}, busy("5"), busy("1800")} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p := new(partner).renewalsAnswer(limited)
			rt := p.transportOf(pr, &partnerauth.Quota{})
			get(t, rt, "/")
			time.Sleep(44 * time.Minute)
			var worst, sum time.Duration
			for began := time.Now(); time.Since(began) < 15*time.Minute; time.Sleep(2 * time.Second) {
				took := elapsed(func() { get(t, rt, "/") })
				worst, sum = max(worst, took), sum+took
			}
			n := p.count("refresh") + p.count("login") - 1
			errorIf(t, worst > time.Minute+time.Second, "a call with a good token waited %v, want a window at most", worst)
			errorIf(t, sum > 7*time.Minute, "calls with a good token waited %v in all", sum)
			errorIf(t, n < 1 || n > 30, "%d renewals were tried in the last fifth of the lifetime, want a few", n)
			time.Sleep(3 * time.Minute) // it has ended
			code, err := try(deadline(t, 2*time.Minute), rt, "/")
			errorIf(t, code != 200, "got %d, %v once the token had ended and logins were served", code, err)
		})
	}
}

// Callers that have a token go before a renewal that nobody waits for, unless the token
// ends before their turn.
func TestCallersGoBeforeRenewals(t *testing.T) {
	for left, want := range map[time.Duration]string{ // of the token, when the callers come
		8 * time.Minute:  "call call call call call refresh",
		10 * time.Second: "refresh call call call call call", // it ends before the turn of the last
	} {
		bubble(t, left.String(), func(t *testing.T) {
			p := &partner{lifetime: time.Hour}
			rt := p.transport(&partnerauth.Quota{Requests: 10, FixedRate: true})
			get(t, rt, "/")
			time.Sleep(time.Hour - left - 56*time.Second)
			others := p.custom(static("token-1"), rt.Limiter) // which renew nothing
			for range 10 {
				get(t, others, "/")
				time.Sleep(3 * time.Second)
			}
			time.Sleep(26 * time.Second) // the next slot is free in five seconds
			before := len(p.seen())
			atOnce(5, func(int) { get(t, rt, "/") }).Wait()
			time.Sleep(2 * time.Minute)
			var got []string
			for _, a := range p.seen()[before:] {
				got = append(got, a.op)
			}
			errorIf(t, strings.Join(got, " ") != want, "got %q, want %q", got, want)
			errorIf(t, p.count("call 401") > 0, "a token was sent after its end")
		})
	}
}

// A renewal that fails is nothing to callers until the token ends. Then they get its error,
// and with the next that succeeds a token again. An outage costs at most 120 requests.
func TestFailedRenewalServesTheOldToken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		fails       reply
		least, most int           // requests in the last minutes of the token
		within      time.Duration // of the partner's recovery there is a token
	}{
		{name: "503", fails: reply{status: 503}, least: 20, most: 120, within: time.Minute},
		{name: "401", fails: reply{status: 401}, least: 4, most: 30, within: 25 * time.Minute},
		{name: "no token", fails: reply{body: "{}"}, least: 20, most: 120, within: time.Minute},
		{name: "network", fails: reply{err: errBusy}, least: 20, most: 120, within: time.Minute},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p := &partner{lifetime: time.Hour}
			began := time.Now()
			var recovered atomic.Bool // between two fetches
			p.script = func(a asked) reply {
				if a.n > 0 && !recovered.Load() {
					return c.fails
				}
				return reply{}
			}
			source := p.source(pr)
			for ; time.Since(began) < 81*time.Minute+c.within; time.Sleep(2 * time.Second) {
				recovered.Store(time.Since(began) >= 80*time.Minute)
				token, err := source.Token()
				switch age := time.Since(began); {
				case age < time.Hour && (err != nil || token.AccessToken != "token-1"):
					t.Fatalf("%s: got %v, %v after %v, want the first token", c.name, token, err, age)
				case age == time.Hour:
					n := len(p.seen()) - 1
					errorIf(t, n < c.least || n > c.most, "%s: %d requests in twelve minutes, want %d to %d", c.name, n, c.least, c.most)
				case age > time.Hour && age < 80*time.Minute && err == nil:
					t.Fatalf("%s: got %v after %v", c.name, token, age)
				case age > 80*time.Minute+c.within && err != nil:
					t.Fatalf("%s: got %v after %v", c.name, err, age)
				}
			}
			kept := pr.name == "acme" && c.name != "401" // its refresh token, which nobody has refused
			errorIf(t, kept && !strings.HasSuffix(p.ops(), "refresh"), "%s: ended with a login, want a refresh", c.name)
		})
	}
}

// A command that runs every minute finishes and saves the renewal that it begins: at most
// two token requests for all runs in the last fifth of a lifetime.
func TestShortProgramsFinishTheirRenewals(t *testing.T) {
	for _, answers := range []reply{{after: 300 * time.Millisecond}, {status: 503, after: 300 * time.Millisecond}} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p, store := new(partner).renewalsAnswer(answers), new(memory)
			run := func() {
				ended := new(atomic.Bool)
				rt := p.fleetOf(pr, 1, program{store, true, ended}, samePassword)[0]
				for range 3 {
					errorIf(t, get(t, rt, "/") != 200, "a call failed")
				}
				ended.Store(true)
			}
			for range 59 {
				run()
				time.Sleep(time.Minute)
			}
			n := p.count("login") + p.count("refresh") - 1
			errorIf(t, answers.status == 0 && n > 2, "%d token requests in the last fifth of a lifetime, want two at most", n)
			errorIf(t, p.count("call 401") > 0, "%d calls had a token that had ended", p.count("call 401"))
			time.Sleep(time.Minute)
			run()
			synctest.Wait()
		})
	}
}

// Other programs do not wait for a renewal, and a caller's own deadline is not the renewal's.
func TestOthersDoNotWaitForRenewals(t *testing.T) {
	for saves, want := range map[bool]time.Duration{false: 0, true: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := new(partner).on("refresh", reply{after: 5 * time.Second})
			rt := p.fleet(1, program{new(memory), saves, new(atomic.Bool)}, samePassword)[0]
			get(t, rt, "/")
			time.Sleep(22 * time.Hour)
			took := elapsed(func() { get(t, rt, "/") })
			errorIf(t, took != want, "SavesBeforeExit %t: a call took %v, want %v", saves, took, want)
			time.Sleep(22 * time.Hour)
			code, err := try(deadline(t, time.Second), rt, "/")
			errorIf(t, err == nil && code != 200, "got %d, %v within a second", code, err)
			time.Sleep(time.Minute)
		})
	}
}

// A process that stood still in a token request, as in docker pause, is served when it
// wakes: a request that took more than its limit and a second does not count.
func TestFrozenProcess(t *testing.T) {
	for _, c := range []struct {
		late  time.Duration // how long the request took beyond its limit, by the clock
		times int
		again bool // the partner is asked again at once
	}{
		{500 * time.Millisecond, 1, false}, {1100 * time.Millisecond, 1, true}, {time.Hour, 1, true}, {5 * time.Second, 3, true},
	} {
		for _, op := range []string{"login", "refresh"} {
			bubble(t, fmt.Sprint(op, " ", c.late, " ", c.times), func(t *testing.T) {
				p, frozen := new(partner), 0
				took, path := 30*time.Second+c.late, loginPath
				if op == "refresh" {
					took, path = 20*time.Second+c.late, renewPath // it leaves ten seconds for a login
				}
				rt := p.transport(nil)
				rt.Source = account()
				rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
					if strings.HasSuffix(req.URL.Path, path) && frozen < c.times {
						frozen++
						time.Sleep(took) // whatever becomes of the context
						return nil, req.Context().Err()
					}
					return p.RoundTrip(req)
				})
				began := time.Now()
				code, err := try(t.Context(), rt, "/")
				late := time.Since(began) - time.Duration(c.times)*took
				if op == "refresh" {
					must(t, err)
					time.Sleep(22 * time.Hour)
					get(t, rt, "/") // notices
					time.Sleep(time.Duration(c.times) * (took + time.Second))
					synctest.Wait()
					errorIf(t, c.again != (p.ops() == "login refresh"), "got %q, want the refresh again: %t", p.ops(), c.again)
				} else if c.again {
					errorIf(t, code != 200 || late > 2*time.Second, "got %d, %v, %v after waking, want 200 within two seconds",
						code, err, late)
				} else {
					errorIf(t, err == nil, "got %d from a partner that takes longer than the limit", code)
				}
				time.Sleep(time.Hour)
			})
		}
	}
}

// A renewal that is overtaken by a rejection is known as such before its Store has saved
// it, whatever token it brings.
func TestOvertakenRenewalIsNotTakenFromTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{unlocking: time.Second}
		p := new(partner)
		source := providers[0].config(credentials{id: "e", secret: "p", base: p, store: store}).TokenSource()
		first, err := source.Token()
		must(t, err)
		time.Sleep(22 * time.Hour)
		var n atomic.Int64
		store.before = func(context.Context) error {
			if n.Add(1) == 4 { // Load, TryLock, Load, Save
				source.Invalidate(first)
			}
			return nil
		}
		source.Token() // starts a renewal
		synctest.Wait()
		token, err := source.Token() // the Store has it by now, and its lock is still held
		must(t, err)
		errorIf(t, token.AccessToken != "token-3", "got %q after %s, want the token of a login after the rejection",
			token.AccessToken, p.ops())
	})
}

// A token that has ended is refreshed if it has a RefreshToken. Where that fails, whatever
// the partner says, the account signs in after the pause that it asks for.
func TestRefreshOfAnEndedTokenFails(t *testing.T) {
	for name, r := range map[string]reply{
		"limited":              {status: 429, header: headers("Retry-After: 60")},
		"limited for a moment": {status: 429, header: headers("Retry-After: 5")},
		"away":                 {status: 503, header: headers("Retry-After: 60")},
		"broken":               {err: errTest},
		"refused":              {status: 404, body: "{}"},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p := (&partner{lifetime: time.Hour}).on("refresh", r)
			rt := p.transportOf(pr, nil)
			get(t, rt, "/")
			time.Sleep(time.Hour)
			for began := time.Now(); time.Since(began) < 70*time.Second; time.Sleep(time.Second) {
				try(deadline(t, 10*time.Second), rt, "/")
			}
			code := get(t, rt, "/")
			errorIf(t, code != 200 || p.count("login") != 2, "%s: got %d after %s, want a second login", name, code, p.ops())
			errorIf(t, p.count("refresh") > 3, "%s: %d refreshes, want 3 at most", name, p.count("refresh"))
		})
	}
}
