package model

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// (12) An endpoint that answers 401 whatever the token costs three logins in a row and
// then few.
func TestMisused401(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		latency := ms(rt, 0, 300, "latency")
		gaps := rapid.SliceOfN(rapid.IntRange(0, 3000), 1, 500).Draw(rt, "gaps ms")
		play(t, rt, func() {
			p := &partner{rt: rt, answer: func(_ int, a *attempt) reply {
				if a.path == apiPath {
					return reply{Status: 401, Back: latency}
				}
				return reply{Back: latency}
			}}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: wide()}
			var callers []*caller
			for i, gap := range gaps {
				time.Sleep(time.Duration(gap) * time.Millisecond)
				callers = append(callers, call(transport, i+1, context.Background()))
			}
			join(rt, time.Hour, callers...)
			for _, c := range callers {
				if c.status != 401 {
					rt.Errorf("call %d: got %d, %v, want 401", c.id, c.status, c.err)
				}
			}
			logins := p.of(loginPath)
			within := 0
			for _, a := range logins {
				if a.sent < 45*time.Second {
					within++
				}
			}
			// the first login, three after a 401, and one for each 45 s from then on
			most := 1 + 3 + int(clock()/(45*time.Second))
			if n := p.tokenRequests(); n > most || within > 1+3 {
				rt.Errorf("%d token requests in %v, %d of them in the first 45 s, want %d and 4 at most", n, clock(), within, most)
			}
		})
	})
}

// (12) Tokens that the partner knows a little late, as its replicas and clocks lag. While
// the one before is still good no call sees a 401 and nobody logs in for it; where there
// is none, three logins for each token at most.
func TestLateTokens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lag := ms(rt, 1, 4000, "lag")
		lifetime := time.Duration(rapid.IntRange(120, 3600).Draw(rt, "lifetime s")) * time.Second
		every := ms(rt, 100, 3000, "every")
		latency := ms(rt, 0, 100, "latency")
		lateTokens(t, rt, lag, lifetime, every, latency)
	})
}

func lateTokens(t *testing.T, rt *rapid.T, lag, lifetime, every, latency time.Duration) {
	play(t, rt, func() {
		p := &partner{rt: rt, lifetime: lifetime}
		p.answer = func(_ int, a *attempt) reply {
			if end, ok := p.end(a.token); ok && a.path == apiPath && clock() < end-lifetime+lag {
				return reply{Status: 401, Back: latency}
			}
			return reply{Back: latency}
		}
		transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: wide()}
		var callers []*caller
		for clock() < 3*lifetime && len(callers) < 1000 {
			callers = append(callers, call(transport, len(callers)+1, context.Background()))
			time.Sleep(every)
		}
		join(rt, time.Hour, callers...)
		if n := len(p.of(loginPath)); n > 1+3 {
			rt.Errorf("%d logins, want 4 at most", n)
		}
		for _, c := range callers {
			if c.status != 200 && (c.status != 401 || c.start > 4*(lag+latency)+lagged) {
				rt.Errorf("call %d at %v: got %d, %v", c.id, c.start, c.status, c.err)
			}
		}
	})
}

// lagged is how long the first token may be refused, with logins that bring another.
const lagged = 50 * time.Second

// (10) A token that was answered 401 after it had been renewed does not stand in for the
// one that has replaced it.
func TestRejectedDoesNotStandIn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		latency := ms(rt, 0, 50, "latency")
		gap := ms(rt, 0, 2000, "gap")
		play(t, rt, func() {
			p := &partner{rt: rt, lifetime: 100 * time.Second}
			p.answer = func(_ int, a *attempt) reply {
				switch {
				case a.call == 2 && !a.again:
					return reply{Status: 401, Back: 12 * time.Second}
				case (a.call == 2 || a.call == 4) && a.token != "t3": // both were revoked
					return reply{Status: 401, Back: latency}
				}
				return reply{Back: latency}
			}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: wide()}
			join(rt, time.Hour, call(transport, 1, context.Background()))
			sleepUntil(74 * time.Second)
			two := call(transport, 2, context.Background()) // with t1, whose renewal is not due
			sleepUntil(85500 * time.Millisecond)
			join(rt, time.Hour, call(transport, 3, context.Background())) // now it is
			join(rt, time.Hour, two)
			time.Sleep(gap)
			four := call(transport, 4, context.Background())
			join(rt, time.Hour, four)
			if four.status != 200 || len(p.of(refreshPath)) != 1 {
				rt.Errorf("after both tokens were revoked: got %d, %v, %d refreshes, want 200 and 1", four.status, four.err, len(p.of(refreshPath)))
			}
			for _, a := range p.of(apiPath) {
				if a.call == 4 && a.token == "t1" {
					rt.Errorf("t1, which was rejected at 1m26s, is sent at %v", a.sent)
				}
			}
		})
	})
}
