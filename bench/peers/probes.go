package main

import (
	"context"
	"net/http"
	"testing"
)

// A probe is one row: what it asks, and what it finds out about a peer.
//
// Where time has to pass it is virtual, by testing/synctest. Where goroutines
// wait for one another it is real and short: some peers hold a mutex meanwhile,
// which virtual time does not get past.
type probe struct {
	title string
	run   func(*testing.T, peer) string
}

var probes = []probe{
	{"logins when 20 callers meet a failing endpoint", failingLogins},
	{"a waiter can leave on its own context", leavingWaiter},
	{"the first caller's cancellation harms nobody else", cancelledLeader},
	{"renewal ahead of expiry", renewalAhead},
	{"jitter", jitter},
	{"renewal fails while the token is good", failingRenewal},
	{"backs off after refused credentials", backOff},
	{"401: forgets the token", forgets},
	{"401: sends the request again", sendsAgain},
	{"keeps the token from a redirect to another host", redirects},
	{"refuses plain http", refusesHTTP},
	{"`%v` of what holds the token hides it", prints},
	{"fetching a token has a span", traces},
	{"the limiter counts logins and retries", limits},
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// start builds a peer's client for p.
func start(t *testing.T, pr peer, p *partner) client {
	return pr.new(t, setup{partner: p, url: apiURL, built: context.Background()})
}

// mustCall makes a call that nothing stands in the way of.
func mustCall(t *testing.T, c client) {
	t.Helper()
	if code, err := c.call(t.Context()); code != http.StatusOK || err != nil {
		t.Fatalf("got status %d, error %v, want 200", code, err)
	}
}

// held answers a token request when released, or when nobody wants it any more.
func held(r *http.Request, release <-chan struct{}) int {
	select {
	case <-release:
	case <-r.Context().Done():
	}
	return http.StatusOK
}
