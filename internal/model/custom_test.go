package model

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// A custom is a TokenSource of a user's own. Its methods beside Token are those
// of the types that embed it.
type custom struct {
	partner *partner
	slow    time.Duration // a new token

	mu      sync.Mutex
	current string
	n       int
	told    map[string]time.Duration // that a token is rejected

	invalidate func() // after the token was dropped
}

func (c *custom) Token() (*oauth2.Token, error) { return c.get(context.Background()) }

func (c *custom) get(ctx context.Context) (*oauth2.Token, error) {
	c.mu.Lock()
	token := c.current
	if token == "" {
		c.n++
		token = fmt.Sprintf("c%d", c.n)
		c.current = token
		c.partner.issue(token)
	}
	c.mu.Unlock()
	if err := rest(ctx, c.slow); err != nil {
		return nil, err
	}
	return &oauth2.Token{AccessToken: token, TokenType: "Bearer"}, nil
}

func (c *custom) drop(t *oauth2.Token) {
	c.mu.Lock()
	if c.told == nil {
		c.told = map[string]time.Duration{}
	}
	if _, again := c.told[t.AccessToken]; !again {
		c.told[t.AccessToken] = clock()
	}
	if c.current == t.AccessToken {
		c.current = ""
	}
	c.mu.Unlock()
	if c.invalidate != nil {
		c.invalidate()
	}
}

type invalidating struct{ *custom }

func (c invalidating) Invalidate(t *oauth2.Token) { c.drop(t) }

type patient struct{ *custom }

func (c patient) TokenContext(ctx context.Context) (*oauth2.Token, error) { return c.get(ctx) }

type full struct{ *custom }

func (c full) TokenContext(ctx context.Context) (*oauth2.Token, error) { return c.get(ctx) }
func (c full) Invalidate(t *oauth2.Token)                              { c.drop(t) }

// source is c with or without the methods.
func (c *custom) source(kind string) oauth2.TokenSource {
	switch kind {
	case "Invalidate":
		return invalidating{c}
	case "TokenContext":
		return patient{c}
	case "both":
		return full{c}
	}
	return c
}

// (12, 21) Of calls that queue when a token is rejected none is sent with it, none
// gets a 401, and an Invalidate that is slow or calls the same client holds up
// nobody but the call that told.
func TestCustomInvalidate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		if rapid.Bool().Draw(rt, "no quota") {
			n = 1_000_000
		}
		kind := rapid.SampledFrom([]string{"Invalidate", "both"}).Draw(rt, "source")
		how := rapid.SampledFrom([]string{"quick", "slow", "calls the client"}).Draw(rt, "Invalidate")
		slow := rapid.SampledFrom([]time.Duration{0, 10 * time.Millisecond, 300 * time.Millisecond}).Draw(rt, "Token")
		latency := ms(rt, 0, 50, "latency")
		gap := rapid.SampledFrom([]int{0, 5, 100}).Draw(rt, "gap")
		revoked := ms(rt, 0, 2000, "revoked")
		play(t, rt, func() {
			p := &partner{rt: rt, answer: func(int, *attempt) reply { return reply{Out: latency, Back: latency} }}
			source := &custom{partner: p, slow: slow}
			transport := &partnerauth.Transport{
				Source: source.source(kind), Origins: []string{origin}, Base: p,
				Limiter: &partnerauth.Quota{Requests: n, Window: window},
			}
			switch how {
			case "slow":
				source.invalidate = func() { time.Sleep(1700 * time.Millisecond) }
			case "calls the client":
				source.invalidate = func() {
					req, _ := http.NewRequest("GET", origin, nil)
					if _, err := transport.RoundTrip(req); err != nil {
						rt.Errorf("the call of Invalidate: %v", err)
					}
				}
			}
			time.AfterFunc(revoked+1, func() { p.revoke() })
			var callers []*caller
			for i := range 40 {
				time.Sleep(time.Duration(gap) * time.Millisecond)
				callers = append(callers, call(transport, i+1, context.Background()))
			}
			if !join(rt, time.Duration(100)*(window+2*time.Second), callers...) {
				return
			}
			held := 0
			for _, c := range callers {
				if c.status != 200 {
					rt.Errorf("call %d, from %v to %v: %d, %v", c.id, c.start, c.end, c.status, c.err)
				}
				// a token for each attempt, and one more if the source was asked in
				// the very moment in which it was told; Token is asked by one at a time
				questions := 3 * slow
				if kind == "Invalidate" {
					questions *= 40
				}
				if c.end-c.start > questions+4*latency {
					held++
				}
			}
			if n > 1000 && held > 1 {
				rt.Errorf("%d calls were held up", held)
			}
			for _, a := range p.all() {
				if told, ok := source.told[a.token]; ok && a.sent > told {
					rt.Errorf("call %d sent %s at %v, the source was told at %v", a.call, a.token, a.sent, told)
				}
			}
			inWindow(rt, n, window, p.arrivals())
		})
	})
}

// (17) A slow source does not hold a 429 back for longer either.
func TestHeldBackByCustom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		slow := ms(rt, 0, 100_000, "Token")
		play(t, rt, func() {
			p := &partner{rt: rt}
			source := &custom{partner: p}
			transport := &partnerauth.Transport{
				Source: source.source("both"), Origins: []string{origin}, Base: p,
				Limiter: &partnerauth.Quota{Requests: n, Window: window},
			}
			p.answer = func(i int, _ *attempt) reply {
				if i > 0 {
					return reply{}
				}
				source.slow = slow
				return reply{Status: 429, Header: map[string]string{"Retry-After": "0"}}
			}
			c := call(transport, 1, context.Background())
			join(rt, time.Hour, c)
			inTime(rt, p, c, window)
		})
	})
}
