package model

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// wide is a quota that nothing here reaches.
func wide() *partnerauth.Quota { return &partnerauth.Quota{Requests: 1_000_000} }

// (5) A token that lives shorter than the turn takes to come costs at most two
// logins a call, and the call ends.
func TestShortToken(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		lifetime := time.Duration(rapid.IntRange(1, 1+int(window/time.Second)).Draw(rt, "lifetime s")) * time.Second
		latency := ms(rt, 0, 500, "latency")
		var gaps []time.Duration
		for range rapid.IntRange(1, 12).Draw(rt, "calls") {
			gaps = append(gaps, ms(rt, 0, int(window.Milliseconds()), "gap"))
		}
		play(t, rt, func() {
			p := &partner{rt: rt, lifetime: lifetime, answer: func(int, *attempt) reply { return reply{Back: latency} }}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: &partnerauth.Quota{Requests: n, Window: window}}
			var callers []*caller
			for i, gap := range gaps {
				time.Sleep(gap)
				callers = append(callers, call(transport, i+1, context.Background()))
			}
			if !join(rt, time.Duration(10*len(gaps))*(window+time.Minute), callers...) {
				return
			}
			if logins := len(p.of(loginPath)); logins > 2*len(gaps) {
				rt.Errorf("%d logins for %d calls", logins, len(gaps))
			}
			inWindow(rt, n, window, p.arrivals())
			notExpired(rt, p)
			for _, c := range callers {
				if c.status != 200 && !isAuth(c.err) {
					rt.Errorf("call %d: %d, %v", c.id, c.status, c.err)
				}
			}
		})
	})
}

// notExpired reports tokens that were sent after their end.
func notExpired(rt *rapid.T, p *partner) {
	for _, a := range p.all() {
		if end, ok := p.end(a.token); ok && a.sent >= end {
			rt.Errorf("%s sent to %s at %v, after its end at %v", a.token, a.path, a.sent, end)
		}
	}
}

// (7) A slow login is one login, whoever waits, and callers leave at their
// deadline or have the token.
func TestSlowLogin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		login := ms(rt, 1, 29_000, "login")
		type one struct{ Gap, Patience time.Duration }
		ones := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) one {
			return one{ms(rt, 0, 2000, "gap"), ms(rt, 1, 40_000, "patience")}
		}), 1, 8).Draw(rt, "callers")
		limiter := rapid.SampledFrom([]string{"nine", "wide", "func"}).Draw(rt, "limiter")
		play(t, rt, func() {
			p := &partner{rt: rt, answer: func(_ int, a *attempt) reply {
				if a.path == loginPath {
					return reply{Back: login}
				}
				return reply{}
			}}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: map[string]partnerauth.Limiter{
				"nine": &partnerauth.Quota{Requests: 9}, "wide": wide(), "func": limiterFunc(func(context.Context) error { return nil }),
			}[limiter]}
			var callers []*caller
			for i, o := range ones {
				time.Sleep(o.Gap)
				callers = append(callers, call(transport, i+1, within(clock()+o.Patience)))
			}
			if !join(rt, time.Hour, callers...) {
				return
			}
			ready := callers[0].start + login
			for i, c := range callers {
				end := c.start + ones[i].Patience
				switch {
				case end == ready: // either
				case end < ready && (c.end != end || !errors.Is(c.err, context.DeadlineExceeded)),
					end > ready && (c.end != max(c.start, ready) || c.status != 200):
					rt.Errorf("call %d, begun at %v, deadline %v, token at %v: got %d, %v at %v", c.id, c.start, end, ready, c.status, c.err, c.end)
				}
			}
			if n := p.tokenRequests(); n != 1 {
				rt.Errorf("%d token requests", n)
			}
		})
	})
}

type limiterFunc func(context.Context) error

func (f limiterFunc) Wait(ctx context.Context) error { return f(ctx) }

// (8) While the token cannot be renewed but still lives, nobody notices, and the
// partner is asked 120 times in twelve minutes at most.
func TestOutageOfRenewal(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lifetime := time.Duration(rapid.IntRange(60, 1440).Draw(rt, "lifetime min")) * time.Minute
		every := ms(rt, 500, 3000, "every")
		outages := rapid.SliceOfN(rapid.SampledFrom([]reply{
			{Status: 503}, {Status: 500}, {Status: 502, Back: time.Second}, {Err: errNetwork}, {Err: errDial}, {Err: errNetwork, Back: 25 * time.Second},
			{Back: time.Minute}, {Status: 503, Header: map[string]string{"Retry-After": "0"}},
		}), 1, 4).Draw(rt, "outages")
		loginWorks := rapid.Bool().Draw(rt, "login works")
		play(t, rt, func() {
			var out atomic.Bool
			p := &partner{rt: rt, lifetime: lifetime}
			p.answer = func(n int, a *attempt) reply {
				if out.Load() && (a.path == refreshPath || a.path == loginPath && !loginWorks) {
					return outages[n%len(outages)]
				}
				return reply{Back: 20 * time.Millisecond}
			}
			source := p.source()
			transport := &partnerauth.Transport{Source: source, Base: p, Limiter: &partnerauth.Quota{Requests: 300}}
			p.signIn(source)
			sleepUntil(lifetime * 74 / 100)
			out.Store(true)
			var callers []*caller
			sleepUntil(lifetime * 86 / 100)
			for end := min(clock()+12*time.Minute, lifetime-time.Minute); clock() < end; time.Sleep(every) {
				callers = append(callers, call(transport, len(callers)+1, context.Background()))
			}
			out.Store(false)
			join(rt, time.Hour, callers...)
			if n := p.tokenRequests(); n > 120 {
				rt.Errorf("%d token requests", n)
			}
			for _, c := range callers {
				if c.status != 200 || c.end-c.start > time.Second {
					rt.Errorf("call %d, begun at %v: %d, %v after %v", c.id, c.start, c.status, c.err, c.end-c.start)
					return
				}
			}
		})
	})
}

// (9) A wrong password is not tried often enough to lock an account, and not so
// rarely that nobody notices when it works again.
func TestWrongPassword(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		every := ms(rt, 500, 1500, "every")
		status := rapid.SampledFrom([]int{400, 401, 403}).Draw(rt, "status")
		works := ms(rt, 0, 3*3600_000, "works from")
		latency := ms(rt, 0, 2000, "latency")
		play(t, rt, func() {
			p := &partner{rt: rt, answer: func(_ int, a *attempt) reply {
				if a.path == loginPath && clock() < works {
					return reply{Status: status, Back: latency}
				}
				return reply{}
			}}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: wide()}
			var good atomic.Int64 // 1 ns after the first answer
			for ; good.Load() == 0 && clock() < works+time.Hour; time.Sleep(every) {
				synctest.Wait()
				go func() {
					req, _ := http.NewRequest("GET", origin, nil)
					resp, err := transport.RoundTrip(req)
					switch {
					case err == nil && resp.StatusCode == 200:
						good.CompareAndSwap(0, int64(clock())+1)
					case !errors.Is(err, partnerauth.ErrCredentials):
						rt.Errorf("at %v: %v", clock(), err)
					}
				}()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			before := func(at time.Duration) (n int) {
				for _, a := range p.of(loginPath) {
					if a.sent < at {
						n++
					}
				}
				return n
			}
			if works > 10*time.Minute && (before(10*time.Minute) < 3 || before(10*time.Minute) > 7) {
				rt.Errorf("%d logins in 10 minutes, want 3 to 7", before(10*time.Minute))
			}
			if before(time.Hour) > 11 || works > time.Hour && before(time.Hour) > 10 {
				rt.Errorf("%d logins in an hour", before(time.Hour))
			}
			if good := time.Duration(good.Load()); good == 0 || good > works+25*time.Minute {
				rt.Errorf("works from %v, first answer at %v", works, good)
			}
		})
	})
}

func isAuth(err error) bool {
	var auth *partnerauth.AuthError
	return errors.As(err, &auth)
}
