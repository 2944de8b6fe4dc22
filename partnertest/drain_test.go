package partnertest_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
)

// TestDrain lets a login outlive the caller that started it, in every way that
// keeps one waiting.
func TestDrain(t *testing.T) {
	const login = "/api/v1/auth/login"
	for _, test := range []struct {
		name    string
		options partnertest.Options
		fault   partnertest.Fault
		daily   int // requests; 0: the usual quota
		before  int // calls that use it up
	}{
		{name: "slow", options: partnertest.Options{Latency: 20 * time.Second}},
		{name: "hanging", fault: partnertest.Fault{Path: login, Hang: true}},
		{name: "delayed", fault: partnertest.Fault{Path: login, Delay: time.Hour}},
		{name: "down", fault: partnertest.Fault{Path: login, Status: 503}},
		{name: "reset", fault: partnertest.Fault{Path: login, Reset: true}},
		{name: "told to come back", fault: partnertest.Fault{Path: login, Status: 429, Header: http.Header{"Retry-After": {"900"}}}},
		{name: "told to come back later", fault: partnertest.Fault{Path: login, Status: 503, Header: http.Header{"Retry-After": {"20"}}}},
		{name: "out of quota", options: partnertest.Options{Lifetime: time.Hour}, daily: 3, before: 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				partner := partnertest.NowPostInMemory(test.options)
				t.Cleanup(partner.Drain)
				transport := &partnerauth.Transport{Source: partner.Account().TokenSource(), Base: partner}
				if test.daily > 0 {
					transport.Limiter = &partnerauth.Quota{Requests: test.daily, Window: 24 * time.Hour}
				}
				client := &http.Client{Transport: transport}
				for range test.before {
					call(t, client, "GET", partner.URL+"/api/v1/orders", "")
				}
				time.Sleep(2 * test.options.Lifetime)
				partner.Inject(test.fault)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "GET", partner.URL+"/api/v1/orders", nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp, err := client.Do(req); err == nil {
					resp.Body.Close()
					t.Errorf("got %s, want the error of a caller that gave up", resp.Status)
				}
			})
		})
	}
}

// TestDrainEndsTheStandIn makes calls afterwards: they fail, and the counts are
// still there.
func TestDrainEndsTheStandIn(t *testing.T) {
	end := func(t *testing.T, partner *partnertest.NowPostStandIn, took time.Duration) {
		client := partner.Account().Client()
		call(t, client, "GET", partner.URL+"/api/v1/orders", "")
		began := time.Now()
		partner.Drain()
		partner.Drain()
		if got := time.Since(began); got < took {
			t.Errorf("got %v of draining twice, want %v at least", got, took)
		}
		if resp, err := client.Get(partner.URL + "/api/v1/orders"); err == nil {
			resp.Body.Close()
			t.Errorf("got %s, want an error", resp.Status)
		}
		if got := partner.Logins(); got != 1 {
			t.Errorf("got %d logins, want 1", got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		partner := partnertest.NowPostInMemory(partnertest.Options{})
		t.Cleanup(partner.Drain)
		end(t, partner, 50*time.Hour)
	})
	end(t, partnertest.NowPostInMemory(partnertest.Options{}), 0)
	end(t, partnertest.NowPost(t, partnertest.Options{}), 0)
}
