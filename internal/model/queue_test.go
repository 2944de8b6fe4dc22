package model

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// A plan is a history of callers at one partner.
type plan struct {
	Requests int
	Window   time.Duration
	Warm     bool          // there is a token before
	Login    time.Duration // how long it takes
	Revoke   time.Duration // when the tokens are revoked; 0: never
	Gaps     []time.Duration
	Replies  []reply // to the callers; a second attempt is answered at once
}

func drawPlan(rt *rapid.T) plan {
	p := plan{Warm: rapid.Bool().Draw(rt, "warm")}
	p.Requests, p.Window = quotas(rt)
	w := int(p.Window.Milliseconds())
	p.Login = ms(rt, 0, min(2*w, 28_000), "login") + 3*time.Microsecond
	gap := rapid.SampledFrom([]int{0, 20, w / 10, w}).Draw(rt, "gap")
	for range rapid.IntRange(1, 3*p.Requests+2).Draw(rt, "calls") {
		// odd, so that no two things happen at the same time by chance
		odd := time.Duration(len(p.Gaps)) * time.Microsecond
		p.Gaps = append(p.Gaps, ms(rt, 0, gap, "gap")+7*time.Microsecond)
		p.Replies = append(p.Replies, reply{Back: ms(rt, 0, w/10, "latency") + 101*odd})
	}
	return p
}

// reply is what the plan has for the first attempt of each caller.
func (p plan) reply(a *attempt) reply {
	if a.path != apiPath || a.again {
		return reply{}
	}
	return p.Replies[a.call-1]
}

// A played plan is what has come of it.
type played struct {
	*partner
	callers []*caller
	quota   *partnerauth.Quota
}

// deadline gives a caller a deadline.
type deadline struct {
	caller int
	at     time.Duration
}

// play plays the plan, with nobody in a hurry but one.
func (p plan) play(t *testing.T, rt *rapid.T, hurry deadline) (out played) {
	play(t, rt, func() {
		s := &partner{rt: rt, answer: func(_ int, a *attempt) reply {
			if a.path != apiPath {
				return reply{Back: p.Login}
			}
			return p.reply(a)
		}}
		out = played{partner: s, quota: &partnerauth.Quota{Requests: p.Requests, Window: p.Window}}
		source := s.source()
		transport := &partnerauth.Transport{Source: source, Base: s, Limiter: out.quota}
		if p.Warm {
			s.signIn(source)
		}
		if p.Revoke > 0 {
			time.AfterFunc(p.Revoke, func() { s.revoke() })
		}
		for i, gap := range p.Gaps {
			time.Sleep(gap)
			ctx := context.Background()
			if hurry.at > 0 && hurry.caller == i {
				ctx = within(hurry.at)
			}
			out.callers = append(out.callers, call(transport, i+1, ctx))
		}
		join(rt, 2*time.Hour, out.callers...)
	})
	return out
}

// (19) Whoever comes first goes first, as soon as there is a token: on a cold Source and
// after a revocation as well.
func TestOrderOfArrival(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := drawPlan(rt)
		if rapid.Bool().Draw(rt, "revocation") {
			p.Revoke = ms(rt, 1, int(3*p.Window.Milliseconds()), "revoked")
		}
		out := p.play(t, rt, deadline{})
		inOrder(rt, out.partner, out.callers...)
		inWindow(rt, p.Requests, p.Window, out.arrivals())
		for _, c := range out.callers {
			if c.status != 200 {
				rt.Errorf("call %d: %d, %v", c.id, c.status, c.err)
			}
		}
	})
}

// A news is what makes turns later than they were.
type news struct {
	name string
	add  func(*rapid.T, *plan)
}

var allNews = []news{
	{"nothing", func(*rapid.T, *plan) {}},
	{"hung", func(rt *rapid.T, p *plan) {
		w := int(p.Window.Milliseconds())
		p.any(rt).Back = ms(rt, w, 4*w, "hung")
	}},
	{"pause", func(rt *rapid.T, p *plan) {
		r := p.any(rt)
		r.Status, r.Header = 503, map[string]string{"Retry-After": rapid.SampledFrom([]string{"1", "2", "7", "30", "100"}).Draw(rt, "pause s")}
	}},
	{"lesson", func(rt *rapid.T, p *plan) { p.any(rt).Status = 429 }},
	{"pause and lesson", func(rt *rapid.T, p *plan) {
		r := p.any(rt)
		r.Status, r.Header = 429, map[string]string{"Retry-After": rapid.SampledFrom([]string{"1", "2", "7", "30", "100"}).Draw(rt, "pause s")}
	}},
}

func (p *plan) any(rt *rapid.T) *reply {
	return &p.Replies[rapid.IntRange(0, len(p.Replies)-1).Draw(rt, "reply")]
}

const bit = time.Millisecond

// slack is what after a lesson a turn may be off from what can be told of it: the
// pace comes back while one waits, and who of two goes first in the same instant
// is worth an interval.
func (n news) slack(p plan, d time.Duration) time.Duration {
	if !strings.Contains(n.name, "lesson") {
		return 0
	}
	return d*6/100 + p.Window/time.Duration(p.Requests)
}

// hurry draws a plan and one caller of it that has to wait, and tells when its
// turn comes if it is in no hurry.
func (n news) hurry(t *testing.T, rt *rapid.T) (p plan, free played, i int, turn time.Duration) {
	p = drawPlan(rt)
	p.Warm, p.Login = true, 0 // a turn is exact only for those that have a token
	n.add(rt, &p)
	i = rapid.IntRange(0, len(p.Gaps)-1).Draw(rt, "caller in a hurry")
	if free = p.play(t, rt, deadline{}); rt.Failed() {
		rt.FailNow()
	}
	if turn = free.sent(i + 1); turn-free.callers[i].start < 2*bit {
		rt.Skip("no wait")
	}
	return p, free, i, turn
}

// (20) Nobody is refused whose turn comes before its deadline.
func TestNoneRefusedInTime(t *testing.T) {
	for _, news := range allNews {
		t.Run(news.name, rapid.MakeCheck(func(rt *rapid.T) {
			p, _, i, turn := news.hurry(t, rt)
			got := p.play(t, rt, deadline{i, turn + bit + news.slack(p, turn)})
			for _, a := range got.all() {
				if a.path == apiPath && a.status != 200 && a.back == turn {
					rt.Skip("at the same time as the news, which was first this time")
				}
			}
			if c := got.callers[i]; got.sent(c.id) < 0 {
				rt.Errorf("call %d, begun at %v, deadline %v, has its turn at %v: got sent at %v (-1: never), end %v, %v",
					c.id, c.start, turn+bit, turn, got.sent(c.id), c.end, c.err)
			}
		}))
	}
}

// (20) Nobody is left waiting whose turn cannot come: it is told as soon as that is
// known.
func TestToldAtOnce(t *testing.T) {
	for _, news := range allNews {
		t.Run(news.name, rapid.MakeCheck(func(rt *rapid.T) {
			p, free, i, turn := news.hurry(t, rt)
			until := turn - bit - news.slack(p, turn)
			got := p.play(t, rt, deadline{i, until})
			c := got.callers[i]
			if until <= c.start {
				rt.Skip("no wait")
			}
			if sent := got.sent(c.id); 0 <= sent && sent < turn {
				rt.Skip("at the same time as the news, it was first this time")
			}
			// what makes the turn what it is: an answer a window and a guard before,
			// or the news
			known := max(c.start, turn-p.Window-guardOf(p.Window))
			refused := time.Duration(-1)
			for _, a := range free.all() {
				if a.status == 429 {
					refused = max(refused, a.back)
				}
			}
			for _, a := range free.all() {
				// an answer to what was sent before a refusal shows how much was borne
				if a.path == apiPath && (a.status != 200 || a.sent <= refused) && a.back <= turn {
					known = max(known, a.back)
				}
			}
			if c.err == nil || c.end > min(known, until)+time.Microsecond {
				rt.Errorf("call %d, begun at %v, deadline %v, has its turn at %v, which is known at %v: got end %v, %v",
					c.id, c.start, until, turn, known, c.end, c.err)
			}
		}))
	}
}

// (20, 21) On a cold Source all wait for the token first, and only then for a turn. When
// it comes, as many go at once as there are places, and whoever cannot go before the
// deadline is told in the same instant.
func TestTokenThenTurn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		w := int(window.Milliseconds())
		login := ms(rt, 100, 20_000, "login")
		patience := rapid.SliceOfN(rapid.IntRange(1, 20_000+3*w), 1, 3*n+2).Draw(rt, "patience ms")
		play(t, rt, func() {
			p := &partner{rt: rt, answer: func(_ int, a *attempt) reply {
				if a.path != apiPath {
					return reply{Back: login}
				}
				return reply{}
			}}
			transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: &partnerauth.Quota{Requests: n, Window: window}}
			var callers []*caller
			for i, d := range patience {
				callers = append(callers, call(transport, i+1, within(time.Duration(d)*time.Millisecond+1)))
			}
			if !join(rt, time.Hour, callers...) {
				return
			}
			next := min(login, window) + window + guardOf(window) // when the place of the login is free
			free := n - 1
			if next <= login {
				free = n
			}
			alive, sent := 0, 0
			for i, c := range callers {
				end := time.Duration(patience[i])*time.Millisecond + 1
				if end > login {
					alive++
				}
				if p.sent(c.id) == login {
					sent++
				}
				switch {
				case end <= login && c.end != end:
					rt.Errorf("call %d waits for the token to %v, deadline %v", c.id, c.end, end)
				case login < end && end < next && c.end != login: // it goes, or is told
					rt.Errorf("call %d is told at %v, deadline %v, token at %v", c.id, c.end, end, login)
				}
			}
			if want := min(alive, free); sent != want {
				rt.Errorf("%d go as soon as there is a token, want %d", sent, want)
			}
		})
	})
}

// (18) Places as plain arithmetic: each is free again a window and a guard after
// its answer, or after a window without one, and somebody who waits takes it at
// that moment, whoever looked in between.
func TestLateAnswers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := drawPlan(rt)
		p.Warm, p.Login = true, 0
		w := int(p.Window.Milliseconds())
		for i := range p.Replies {
			p.Replies[i].Back = ms(rt, 0, rapid.SampledFrom([]int{w / 10, w, 3 * w}).Draw(rt, "slowness"), "latency")
		}
		var looks []time.Duration
		for range rapid.IntRange(0, 5).Draw(rt, "looks") {
			looks = append(looks, ms(rt, 1, 5*w, "look"))
		}
		round := p.Window + guardOf(p.Window)
		places := slices.Repeat([]time.Duration{0}, p.Requests)
		at, last := time.Duration(0), time.Duration(0)
		var came, want []time.Duration
		for i, gap := range p.Gaps {
			at += gap
			slices.Sort(places)
			sent := max(at, last, places[0])
			places[0] = sent + min(p.Replies[i].Back, p.Window) + round
			want, last, came = append(want, sent), sent, append(came, at)
		}
		waiting := func(at time.Duration) bool { // so a look is never granted
			for i := range want {
				if came[i] < at && at < want[i]-1 {
					return true
				}
			}
			return false
		}
		var got []time.Duration
		play(t, rt, func() {
			s := &partner{rt: rt, answer: func(_ int, a *attempt) reply { return p.reply(a) }}
			quota := &partnerauth.Quota{Requests: p.Requests, Window: p.Window}
			source := s.source()
			transport := &partnerauth.Transport{Source: source, Base: s, Limiter: quota}
			s.signIn(source)
			for _, look := range looks {
				if waiting(look) {
					time.AfterFunc(look, func() {
						ctx := within(clock() + 1)
						if quota.Wait(ctx) == nil {
							rt.Errorf("got a permit at %v", clock())
						}
					})
				}
			}
			var callers []*caller
			for i, gap := range p.Gaps {
				time.Sleep(gap)
				callers = append(callers, call(transport, i+1, context.Background()))
			}
			join(rt, time.Hour, callers...)
			for _, c := range callers {
				got = append(got, s.sent(c.id))
			}
		})
		if !slices.Equal(got, want) {
			rt.Errorf("got sent at %v\nwant      at %v", got, want)
		}
	})
}

// (17) An answer 429 is returned two windows and a second later at the latest, whatever pause
// another asks for meanwhile, and also where the token ends then.
func TestHeldBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		w := int(window.Milliseconds())
		first := rapid.IntRange(0, max(1, 2*w/1000)).Draw(rt, "Retry-After")
		others := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) reply {
			return reply{
				Status: rapid.SampledFrom([]int{429, 503, 200}).Draw(rt, "status"), Back: ms(rt, 1, w, "latency"),
				Header: map[string]string{"Retry-After": rapid.SampledFrom([]string{"1", "60", "900"}).Draw(rt, "pause")},
			}
		}), 0, n).Draw(rt, "others")
		back := ms(rt, 0, w/2, "latency")
		revoked := rapid.Bool().Draw(rt, "revoked")
		login := ms(rt, 0, 29_000, "login")
		play(t, rt, func() {
			s := &partner{rt: rt, lifetime: 24 * time.Hour, answer: func(i int, a *attempt) reply {
				switch {
				case a.path != apiPath:
					return reply{Back: login}
				case i == 0:
					return reply{Status: 429, Back: back, Header: map[string]string{"Retry-After": strconv.Itoa(first)}}
				case i <= len(others):
					return others[i-1]
				}
				return reply{}
			}}
			source := s.source()
			transport := &partnerauth.Transport{Source: source, Base: s, Limiter: &partnerauth.Quota{Requests: n, Window: window}}
			token := s.signIn(source)
			callers := []*caller{call(transport, 1, context.Background())}
			for i := range others {
				callers = append(callers, call(transport, 2+i, context.Background()))
			}
			if revoked {
				time.AfterFunc(back+1, func() { source.Invalidate(token) })
			}
			join(rt, 3*time.Hour, callers...)
			for _, c := range callers {
				inTime(rt, s, c, window)
			}
		})
	})
}

// inTime reports a caller that got its 429, or an error in its place, later than
// two windows and a second after it: seconds may have been rounded down.
func inTime(rt *rapid.T, p *partner, c *caller, window time.Duration) {
	var answers []*attempt
	for _, a := range p.of(apiPath) {
		if a.call == c.id {
			answers = append(answers, a)
		}
	}
	for i, a := range answers {
		next := c.end
		if i+1 < len(answers) {
			next = answers[i+1].sent
		}
		if a.status == 429 && next > a.back+2*window+time.Second+1 {
			rt.Errorf("call %d: 429 at %v held back until %v, longer than two windows of %v and a second", c.id, a.back, next, window)
		}
	}
	if c.err != nil && len(answers) > 0 && answers[len(answers)-1].status == 429 {
		rt.Errorf("call %d: got %v in place of its 429", c.id, c.err)
	}
}

// (18) Quota.Wait by hand keeps its promise though each request is up to a second
// on its way.
func TestByHand(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		type hand struct{ Gap, Way, Patience time.Duration }
		hands := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) hand {
			h := hand{Gap: ms(rt, 0, 300, "gap"), Way: ms(rt, 0, 1000, "way")}
			if rapid.Bool().Draw(rt, "hurry") {
				h.Patience = ms(rt, 1, 2*int(window.Milliseconds()), "patience")
			}
			return h
		}), 1, 4*n).Draw(rt, "hands")
		calls := rapid.IntRange(0, n).Draw(rt, "calls")
		play(t, rt, func() {
			s := &partner{rt: rt, answer: func(int, *attempt) reply { return reply{Out: 50 * time.Millisecond / 4} }}
			quota := &partnerauth.Quota{Requests: n, Window: window}
			transport := &partnerauth.Transport{Source: s.source(), Base: s, Limiter: quota}
			arrivals := make(chan time.Duration, len(hands))
			var callers []*caller
			for i, h := range hands {
				time.Sleep(h.Gap)
				if i < calls {
					callers = append(callers, call(transport, i+1, context.Background()))
				}
				go func() {
					ctx := context.Background()
					if h.Patience > 0 {
						ctx = within(clock() + h.Patience)
					}
					begun := clock()
					err := quota.Wait(ctx)
					switch {
					case err == nil:
						arrivals <- clock() + h.Way
					case !errors.Is(err, partnerauth.ErrRateLimited) || clock() > begun+h.Patience:
						rt.Errorf("by hand: %v after %v of %v", err, clock()-begun, h.Patience)
					}
				}()
			}
			join(rt, time.Hour, callers...)
			time.Sleep(time.Hour)
			synctest.Wait()
			close(arrivals)
			all := s.arrivals()
			for at := range arrivals {
				all = append(all, at)
			}
			inWindow(rt, n, window, all)
		})
	})
}
