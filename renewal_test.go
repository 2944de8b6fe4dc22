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

// A renewal that meets a limit of its own does not stop the calls that have a token: no
// call waits longer than a window for it, and most do not wait at all.
func TestRenewalThatIsLimited(t *testing.T) {
	t.Parallel()
	for _, header := range []string{"", "Retry-After: 5", "Retry-After: 50", "Retry-After: 1800"} {
		for provider := range new(partner).everybody(nil) {
			bubble(t, provider+" "+header, func(t *testing.T) {
				const life = time.Hour
				no := reply{status: 429}
				if header != "" {
					no.header = headers(header)
				}
				p := &partner{lifetime: life}
				limited := func(a asked) reply {
					if a.op == "refresh" || a.op == "login" && a.at > 0 && a.at < life {
						return no
					}
					return reply{}
				}
				p.script = limited
				rt := p.transport(&partnerauth.Quota{})
				rt.Source = p.everybody(nil)[provider]
				var worst, sum time.Duration
				calls := 0
				for began := time.Now(); time.Since(began) < life-time.Minute; time.Sleep(2 * time.Second) {
					took := elapsed(func() { get(t, rt, "/") })
					worst, sum, calls = max(worst, took), sum+took, calls+1
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
}

// Callers that have a token go before a renewal that nobody waits for, unless the token
// ends before their turn.
func TestCallersGoBeforeRenewals(t *testing.T) {
	for _, c := range []struct {
		name string
		left time.Duration // of the token, when the callers come
		want string
	}{
		{"there is time", 8 * time.Minute, "call call call call call refresh"},
		{"the token ends before the turn of the last", 10 * time.Second, "refresh call call call call call"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{lifetime: time.Hour}
			rt := p.transport(&partnerauth.Quota{Requests: 10, FixedRate: true})
			get(t, rt, "/")
			time.Sleep(time.Hour - c.left - 56*time.Second)
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
			errorIf(t, strings.Join(got, " ") != c.want, "got %q, want %q", got, c.want)
			errorIf(t, p.count("call 401") > 0, "a token was sent after its end")
		})
	}
}

// mortal is a Store of a program that may have ended, and waits for renewals if patient.
type mortal struct {
	*memory
	patient bool
	dead    *atomic.Bool
}

func (m mortal) SavesBeforeExit() bool { return m.patient }

func (m mortal) TryLock(ctx context.Context, key string) (partnerauth.Lock, error) {
	l, err := m.memory.TryLock(ctx, key)
	if l == nil || err != nil {
		return nil, err
	}
	return mortalLock{l, m.dead}, nil
}

type mortalLock struct {
	partnerauth.Lock
	dead *atomic.Bool
}

func (l mortalLock) Save(ctx context.Context, record []byte, good time.Duration) error {
	if l.dead.Load() {
		return errTest // nobody is there to do it
	}
	return l.Lock.Save(ctx, record, good)
}

// A command that runs every minute finishes and saves the renewal that it begins: at most
// two token requests for all runs in the last fifth of a lifetime.
func TestShortProgramsFinishTheirRenewals(t *testing.T) {
	for _, failing := range []bool{false, true} {
		for provider := range new(partner).everybody(nil) {
			bubble(t, fmt.Sprintf("%s, renewals fail %t", provider, failing), func(t *testing.T) {
				slow := reply{after: 300 * time.Millisecond}
				p := (&partner{lifetime: time.Hour}).on("refresh", slow).on("login", slow)
				if failing {
					p.script = func(a asked) reply {
						if a.op == "refresh" || a.op == "login" && a.at > 0 && a.at < time.Hour {
							return reply{status: 503, after: 300 * time.Millisecond}
						}
						return reply{}
					}
				}
				store := new(memory)
				run := func() {
					dead := new(atomic.Bool)
					rt := p.transport(nil)
					rt.Source = p.everybody(mortal{store, true, dead})[provider]
					for range 3 {
						errorIf(t, get(t, rt, "/") != 200, "a call failed")
					}
					dead.Store(true)
				}
				for began := time.Now(); time.Since(began) < 59*time.Minute; time.Sleep(time.Minute) {
					run()
				}
				n := p.count("login") + p.count("refresh") - 1
				errorIf(t, !failing && n > 2, "%d token requests in the last fifth of a lifetime, want two at most", n)
				errorIf(t, p.count("call 401") > 0, "%d calls had a token that had ended", p.count("call 401"))
				time.Sleep(time.Minute)
				run()
				synctest.Wait()
			})
		}
	}
}

// Other programs do not wait for a renewal.
func TestOthersDoNotWaitForRenewals(t *testing.T) {
	for patient, want := range map[bool]time.Duration{false: 0, true: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := new(partner).on("refresh", reply{after: 5 * time.Second})
			rt := p.transport(nil)
			rt.Source = p.everybody(mortal{new(memory), patient, new(atomic.Bool)})["nowpost"]
			get(t, rt, "/")
			time.Sleep(22 * time.Hour)
			took := elapsed(func() { get(t, rt, "/") })
			errorIf(t, took != want, "SavesBeforeExit %t: a call took %v, want %v", patient, took, want)
			time.Sleep(time.Minute)
			if patient { // a caller's own deadline is not the renewal's
				p.on("refresh", reply{after: 5 * time.Second})
				time.Sleep(22 * time.Hour)
				code, err := try(deadline(t, time.Second), rt, "/")
				errorIf(t, err == nil && code != 200, "got %d, %v within a second", code, err)
				time.Sleep(time.Minute)
			}
		})
	}
}

// A process that stood still in a token request, as in docker pause, is served when it
// wakes: a request that took more than its limit and a second does not count.
func TestFrozenProcess(t *testing.T) {
	for _, op := range []string{"login", "refresh"} {
		for _, c := range []struct {
			name  string
			took  time.Duration // of the request, by the clock, its limit being 30 s
			times int
			again bool // the partner is asked again at once
		}{
			{"35 s", 35 * time.Second, 1, true},
			{"an hour", time.Hour, 1, true},
			{"three times", 35 * time.Second, 3, true},
			{"half a second too late", 30*time.Second + 500*time.Millisecond, 1, false},
		} {
			bubble(t, op+", "+c.name, func(t *testing.T) {
				p := &partner{lifetime: 24 * time.Hour}
				frozen := 0
				limit := 30 * time.Second
				if op == "refresh" {
					limit = 20 * time.Second // it leaves ten for a login
				}
				base := roundTripFunc(nil)
				base = func(req *http.Request) (*http.Response, error) {
					if strings.HasSuffix(req.URL.Path, map[string]string{"login": loginPath, "refresh": renewPath}[op]) && frozen < c.times {
						frozen++
						time.Sleep(c.took - 30*time.Second + limit) // whatever becomes of the context
						return nil, req.Context().Err()
					}
					return p.RoundTrip(req)
				}
				rt := &partnerauth.Transport{Source: account(), Base: base}
				if op == "refresh" {
					get(t, rt, "/")
					time.Sleep(22 * time.Hour)
					get(t, rt, "/") // notices
					time.Sleep(time.Duration(c.times) * (c.took + time.Second))
					synctest.Wait()
					errorIf(t, c.again != (p.ops() == "login refresh"), "got %q, want the refresh again: %t", p.ops(), c.again)
					time.Sleep(time.Hour)
					return
				}
				began := time.Now()
				code, err := try(t.Context(), rt, "/")
				late := time.Since(began) - time.Duration(c.times)*c.took
				errorIf(t, c.again && (code != 200 || late > 2*time.Second), "got %d, %v, %v after waking, want 200 within two seconds", code, err, late)
				errorIf(t, !c.again && err == nil, "got %d from a partner that takes longer than the limit", code)
				time.Sleep(time.Minute)
			})
		}
	}
}

// A renewal that is overtaken by a rejection is known as such before its Store has saved
// it, whatever token it brings.
func TestOvertakenRenewalIsNotTakenFromTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := slowToUnlock{new(memory)}
		p := new(partner)
		source := p.everybody(store)["nowpost"]
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
		errorIf(t, token.AccessToken != "token-3", "got %q after %s, want the token of a login after the rejection", token.AccessToken, p.ops())
	})
}

// slowToUnlock is a Store whose locks take a second to be given back.
type slowToUnlock struct{ *memory }

func (s slowToUnlock) TryLock(ctx context.Context, key string) (partnerauth.Lock, error) {
	l, err := s.memory.TryLock(ctx, key)
	if l == nil || err != nil {
		return nil, err
	}
	return slowLock{l}, nil
}

type slowLock struct{ partnerauth.Lock }

func (l slowLock) Unlock(ctx context.Context) error {
	time.Sleep(time.Second)
	return l.Lock.Unlock(ctx)
}
