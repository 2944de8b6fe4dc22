package model

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// (7, 19) A renewal that nobody waits for gets its permit from any Limiter, however long
// that takes, as long as the token lives. It asks once, and a Limiter that refuses is
// not asked over and over.
func TestRenewalByAnyLimiter(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lifetime := time.Duration(rapid.IntRange(10, 600).Draw(rt, "lifetime s")) * time.Second
		takes := ms(rt, 0, 100_000, "a permit takes")
		refuses := rapid.Bool().Draw(rt, "refuses")
		renewalByAnyLimiter(t, rt, lifetime, takes, refuses)
	})
}

// Histories that once failed.
func TestRenewalByAnyLimiterRows(t *testing.T) {
	for _, row := range []struct {
		name            string
		lifetime, takes time.Duration
		refuses         bool
	}{
		{"waits in ever smaller steps as the token ends", 10 * time.Second, 6 * time.Second, false},
		{"a permit takes longer than a second", 100 * time.Second, 5 * time.Second, false},
		{"the Limiter refuses at once", time.Minute, 0, true},
	} {
		t.Run(row.name, rapid.MakeCheck(func(rt *rapid.T) { renewalByAnyLimiter(t, rt, row.lifetime, row.takes, row.refuses) }))
	}
}

func renewalByAnyLimiter(t *testing.T, rt *rapid.T, lifetime, takes time.Duration, refuses bool) {
	play(t, rt, func() {
		p := &partner{rt: rt, lifetime: lifetime}
		source := p.source()
		asked := 0
		transport := &partnerauth.Transport{Source: source, Base: p, Limiter: limiterFunc(func(ctx context.Context) error {
			if clock() < lifetime/2 {
				return nil
			}
			if asked++; asked > 100 {
				rt.Fatalf("asked %d times by %v", asked, clock())
			}
			if refuses {
				return errors.New("no")
			}
			return rest(ctx, takes)
		})}
		join(rt, time.Minute, call(transport, 1, context.Background()))
		sleepUntil(lifetime * 86 / 100)
		if _, err := source.TokenContext(context.Background()); err != nil {
			rt.Errorf("the token is good and cannot be had: %v", err)
		}
		time.Sleep(2*lifetime + 2*takes)
		switch refreshes := len(p.of(refreshPath)); {
		case refuses:
		case takes < lifetime/10 && refreshes != 1:
			rt.Errorf("%d refreshes, want 1", refreshes)
		}
	})
}
