package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// A step is one thing that happens, so long after the one before.
type step struct {
	After    time.Duration
	Op       string
	Via      int           // which Transport
	Patience time.Duration // of a call or of Quota.Wait; 0: endless
	Body     string        // none, again, once
	Way      time.Duration // of a request by hand
}

// A history is what happens to one or two Transports.
type history struct {
	Requests   int
	Window     time.Duration
	Transports int
	OneSource  bool
	OneQuota   bool
	Source     string // "": a *Source
	Limiter    string // "": a Quota
	Lifetime   time.Duration
	Steps      []step
	API, Sign  []reply // in this order, until all is well
}

func drawHistory(rt *rapid.T) history {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(rt, label) }
	h := history{Transports: rapid.IntRange(1, 2).Draw(rt, "transports")}
	h.Requests, h.Window = quotas(rt)
	if h.Transports == 2 {
		h.OneSource, h.OneQuota = rapid.Bool().Draw(rt, "one source"), rapid.Bool().Draw(rt, "one quota")
	}
	h.Source = pick("source", "", "", "", "Token", "TokenContext", "Invalidate", "both")
	h.Limiter = pick("limiter", "", "", "", "rate", "func")
	w := int(h.Window.Milliseconds())
	h.Lifetime = time.Duration(rapid.SampledFrom([]int{1, 10, w/1000 + 1, 3600, 86400}).Draw(rt, "lifetime s")) * time.Second
	guard := int(guardOf(h.Window).Milliseconds())
	replies := func(statuses ...int) *rapid.Generator[[]reply] {
		return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) reply {
			r := reply{Out: ms(rt, 0, guard, "out"), Back: ms(rt, 0, rapid.SampledFrom([]int{0, w / 10, w, 3 * w}).Draw(rt, "slow"), "back")}
			switch r.Status = rapid.SampledFrom(statuses).Draw(rt, "status"); r.Status {
			case 1:
				r.Status, r.Err = 0, errNetwork
			case 2:
				r.Status, r.Err = 0, errDial
			case 401:
				if rapid.Bool().Draw(rt, "scope") {
					r.Header = map[string]string{"WWW-Authenticate": `Bearer error="insufficient_scope"`}
				}
			case 429, 503:
				r.Header = rapid.SampledFrom([]map[string]string{
					nil, {"Retry-After": "0"}, {"Retry-After": "1"}, {"Retry-After": "70"}, {"Retry-After": "9999"}, {"RateLimit": `"x"; r=0; t=2`},
					{"Retry-After": "soon", "X-RateLimit-Reset": "3"}, {"Retry-After": "Sat, 01 Jan 2000 00:01:00 GMT"},
				}).Draw(rt, "headers")
			case 200:
				r.Status = 0
				r.Header = rapid.SampledFrom([]map[string]string{nil, nil, {"RateLimit": "remaining=0, reset=1"}}).Draw(rt, "headers")
			}
			return r
		}), 0, 20)
	}
	h.API = replies(200, 200, 200, 401, 403, 429, 503, 500, 1, 2).Draw(rt, "answers")
	h.Sign = replies(200, 200, 401, 403, 429, 503, 500, 1, 2).Draw(rt, "answers to token requests")
	h.Steps = rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
		s := step{Via: rapid.IntRange(0, h.Transports-1).Draw(rt, "via")}
		s.After = ms(rt, 0, rapid.SampledFrom([]int{0, 10, w / 10, 2 * w}).Draw(rt, "pace"), "after")
		s.Op = pick("op", "call", "call", "call", "call", "call", "cancel", "invalidate", "revoke", "skew", "hand")
		if rapid.Bool().Draw(rt, "hurry") {
			s.Patience = ms(rt, 1, 3*w, "patience")
		}
		s.Body = pick("body", "none", "again", "once")
		s.Way = ms(rt, 0, 1000, "way")
		return s
	}), 1, 60).Draw(rt, "steps")
	return h
}

// A side is one Transport of a history, and what it is made of.
type side struct {
	*partner
	custom    *custom
	source    oauth2.TokenSource
	quota     *partnerauth.Quota // nil: another Limiter
	granted   *atomic.Int64      // by a func
	transport *partnerauth.Transport
	callers   []*caller
	byHand    []time.Duration // arrivals
}

var errLimiter = errors.New("the limiter says no")

func (h history) sides(rt *rapid.T) (sides []*side) {
	for i := range h.Transports {
		s := &side{partner: &partner{rt: rt, lifetime: h.Lifetime}, granted: new(atomic.Int64)}
		s.partner.init()
		s.custom = &custom{partner: s.partner}
		if s.source = s.custom.source(h.Source); h.Source == "" {
			s.source = s.partner.source()
		}
		if i > 0 && h.OneSource {
			s.partner, s.custom, s.source = sides[0].partner, sides[0].custom, sides[0].source
		}
		s.partner.answer = func(n int, a *attempt) reply {
			switch {
			case s.partner.well.Load():
			case a.path == apiPath && n < len(h.API):
				return h.API[n]
			case a.path != apiPath && n < len(h.Sign):
				return h.Sign[n]
			}
			return reply{}
		}
		var limiter partnerauth.Limiter
		switch h.Limiter {
		case "rate":
			limiter = rate.NewLimiter(rate.Limit(float64(h.Requests)/h.Window.Seconds()), h.Requests)
		case "func":
			limiter = limiterFunc(func(ctx context.Context) error {
				if err := rest(ctx, h.Window/time.Duration(h.Requests)); err != nil {
					return errLimiter
				}
				s.granted.Add(1)
				return nil
			})
		default:
			if s.quota = (&partnerauth.Quota{Requests: h.Requests, Window: h.Window}); i > 0 && h.OneQuota {
				s.quota = sides[0].quota
			}
			limiter = s.quota
		}
		if i > 0 && h.OneQuota {
			limiter, s.granted = sides[0].transport.Limiter, sides[0].granted
		}
		s.transport = &partnerauth.Transport{Source: s.source, Origins: []string{origin}, Base: s.partner, Limiter: limiter}
		sides = append(sides, s)
	}
	return sides
}

// TestHistories walks through random histories.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := drawHistory(rt)
		play(t, rt, func() {
			sides := h.sides(rt)
			h.play(sides)
			for _, s := range sides {
				if !join(rt, 5*time.Hour, s.callers...) {
					return
				}
			}
			for _, s := range sides {
				s.well.Store(true)
			}
			time.Sleep(time.Hour)
			for i, s := range sides {
				c := call(s.transport, 9000+i, context.Background())
				join(rt, time.Hour, c)
				toldNever := strings.HasPrefix(h.Source, "Token")
				short := h.Lifetime <= time.Duration(2*h.Transports)*(h.Window+guardOf(h.Window))
				if c.status != 200 && !(c.status == 401 && toldNever) && !(isAuth(c.err) && short) {
					rt.Errorf("when all is well: %d, %v", c.status, c.err)
				}
			}
			synctest.Wait()
			for i, s := range sides {
				s.checkCalls(rt)
				s.checkTokens(rt, h)
				if h.Source == "" && h.Limiter == "" {
					inOrder(rt, s.partner, s.callers...)
				}
				if i == 0 || !h.OneQuota {
					h.checkPace(rt, s, sides)
				}
			}
		})
	})
}

func (h history) play(sides []*side) {
	var cancels []func()
	id := 0
	for _, step := range h.Steps {
		time.Sleep(step.After)
		synctest.Wait()
		s := sides[step.Via]
		switch step.Op {
		case "call":
			id++
			ctx := context.Background()
			if step.Patience > 0 {
				ctx = within(clock() + step.Patience)
			}
			ctx, cancel := context.WithCancel(ctx)
			c := &caller{id: id, ctx: ctx, method: "POST", done: make(chan struct{})}
			switch step.Body {
			case "again":
				c.body = strings.NewReader("body")
			case "once":
				c.body = io.MultiReader(strings.NewReader("body"))
			}
			context.AfterFunc(ctx, func() { c.over.CompareAndSwap(0, int64(clock())+1) })
			cancels = append(cancels, cancel)
			s.callers = append(s.callers, c)
			c.run(s.transport)
		case "cancel":
			if len(cancels) > 0 {
				cancels[len(cancels)*3/4]()
			}
		case "invalidate":
			if source, ok := s.source.(*partnerauth.Source); ok {
				token := s.lastToken()
				s.reject(token, clock())
				source.Invalidate(&oauth2.Token{AccessToken: token})
			}
		case "revoke":
			s.revoke()
		case "skew":
			s.mu.Lock()
			s.skew += step.Way*1000 - 500*time.Second
			s.mu.Unlock()
		case "hand":
			if s.quota == nil {
				break
			}
			go func() {
				ctx := context.Background()
				if step.Patience > 0 {
					ctx = within(clock() + step.Patience)
				}
				if s.quota.Wait(ctx) == nil {
					s.mu.Lock()
					s.byHand = append(s.byHand, clock()+step.Way)
					s.mu.Unlock()
				}
			}()
		}
	}
}

// lastToken is the last that was sent.
func (p *partner) lastToken() (last string) {
	for _, a := range p.all() {
		if a.token != "" {
			last = a.token
		}
	}
	return last
}

// checkCalls checks what each call got, when, and how often it was sent.
func (s *side) checkCalls(rt *rapid.T) {
	for _, c := range s.callers {
		var sent []*attempt
		for _, a := range s.of(apiPath) {
			if a.call == c.id {
				sent = append(sent, a)
			}
		}
		typed := c.err == nil || isAuth(c.err)
		for _, want := range []error{partnerauth.ErrRateLimited, context.DeadlineExceeded, context.Canceled, errNetwork, errDial, errLimiter} {
			typed = typed || errors.Is(c.err, want)
		}
		over := time.Duration(c.over.Load() - 1)
		again := map[int]int{}
		for i, a := range sent[:max(0, len(sent)-1)] {
			if again[a.status]++; again[a.status] > 1 || a.status != 401 && a.status != 429 {
				rt.Errorf("call %d: sent again after %d at %v, at %v", c.id, a.status, a.back, sent[i+1].sent)
			}
		}
		once := fmt.Sprintf("%T", c.body) == "*io.multiReader"
		switch {
		case !typed:
			rt.Errorf("call %d: an error of no type: %v", c.id, c.err)
		case over >= 0 && c.end > max(over, c.start):
			rt.Errorf("call %d: its context ended at %v, the call at %v", c.id, over, c.end)
		case over < 0 && (errors.Is(c.err, context.DeadlineExceeded) && !isAuth(c.err) || errors.Is(c.err, context.Canceled)):
			_, bounded := c.ctx.Deadline()
			if !bounded || !errors.Is(c.err, partnerauth.ErrRateLimited) {
				rt.Errorf("call %d: %v, and its context had not ended", c.id, c.err)
			}
		case once && len(sent) > 1:
			rt.Errorf("call %d: sent %d times, and its body cannot be had again", c.id, len(sent))
		case c.err == nil && !slices.ContainsFunc(sent, func(a *attempt) bool { return a.status == c.status }):
			rt.Errorf("call %d: got %d, which nobody answered", c.id, c.status)
		}
	}
}

// checkTokens checks that no token was sent that had ended or was known to be
// rejected, and that one flight at a time got them.
func (s *side) checkTokens(rt *rapid.T, h history) {
	if h.Source != "" {
		for _, a := range s.all() {
			if told, ok := s.custom.told[a.token]; ok && a.sent > told && h.Transports == 1 {
				rt.Errorf("call %d sent %s at %v, the source was told at %v", a.call, a.token, a.sent, told)
			}
		}
		return
	}
	notExpired(rt, s.partner)
	s.checkRejected()
	for _, a := range s.all() {
		if since, ok := s.rejected[a.token]; ok && a.sent > since {
			rt.Errorf("%s sent to %s at %v for call %d, rejected at %v", a.token, a.path, a.sent, a.call, since)
		}
	}
	all := s.all()
	for i, a := range all {
		for _, b := range all[:i] {
			if a.path != apiPath && b.path != apiPath && !a.dead && b.sent <= a.sent && a.sent < b.back {
				rt.Errorf("%s at %v beside %s, from %v to %v", a.path, a.sent, b.path, b.sent, b.back)
			}
		}
	}
}

// checkPace checks what came through the Limiter of s.
func (h history) checkPace(rt *rapid.T, s *side, sides []*side) {
	var sent []time.Duration
	seen := map[*partner]bool{}
	for _, o := range sides {
		if o != s && !h.OneQuota {
			continue
		}
		sent = append(sent, o.byHand...)
		if !seen[o.partner] {
			seen[o.partner] = true
			for _, a := range o.all() {
				if h.Limiter == "" && a.left {
					sent = append(sent, a.arrived)
				} else if h.Limiter != "" {
					sent = append(sent, a.sent)
				}
			}
		}
	}
	slices.Sort(sent)
	switch {
	case h.Transports == 2 && !h.OneQuota && h.OneSource: // what went which way is not known
	case h.Limiter == "":
		inWindow(rt, h.Requests, h.Window, sent)
	case h.Limiter == "func":
		if n := int(s.granted.Load()); n < len(sent) {
			rt.Errorf("%d requests, %d permits", len(sent), n)
		}
	default:
		for i := range sent {
			for j := range i {
				if most := float64(h.Requests) * (1 + (sent[i]-sent[j]).Seconds()/h.Window.Seconds()); float64(i-j+1-h.Transports) > most+0.001 {
					rt.Errorf("%d requests from %v to %v", i-j+1, sent[j], sent[i])
					return
				}
			}
		}
	}
}

// checkRejected notes the tokens that the client knows to be rejected: by the first 401
// to a call, if the token had been accepted before. Another may be new to the partner,
// or the 401 be misused.
func (s *side) checkRejected() {
	answers := slices.DeleteFunc(s.of(apiPath), func(a *attempt) bool { return a.status == 0 })
	slices.SortStableFunc(answers, func(a, b *attempt) int { return int(a.back - b.back) })
	before, accepted, rejections := map[int]bool{}, map[string]time.Duration{}, 0
	for _, a := range answers {
		if a.status != 401 {
			if _, ok := accepted[a.token]; !ok {
				accepted[a.token] = a.back
			}
			continue
		}
		if before[a.call] || a.scope {
			continue
		}
		before[a.call] = true
		rejections++
		if since, ok := accepted[a.token]; ok && since < a.back && rejections <= 10 { // beyond that the 401 may be misused
			s.reject(a.token, a.back)
		}
	}
}
