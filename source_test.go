package partnerauth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

var errTest = errors.New("the shop is closed")

// One lifetime by the clock, on real connections, and what a refresh looks like
// there.
func TestShortTokensOnSockets(t *testing.T) {
	if testing.Short() {
		t.Skip("waits a second by the clock; TestTokensOfAnyLifetime shows the same in virtual time")
	}
	t.Parallel()
	server, rt := onSockets(t, partnertest.Options{Lifetime: time.Second, Limit: -1})
	server.Inject(partnertest.Fault{Path: renewPath, Delay: 100 * time.Millisecond})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for after := 0; after < 10; { // calls with the new token
		<-tick.C
		var code int
		took := elapsed(func() { code = status(t, rt, newRequest(t, "GET", server.URL+"/api/v1/orders", "")) })
		// a machine may stall for longer than a token lives
		errorIf(t, code != 200 && took < time.Second, "got status %d after %v, want 200", code, took)
		if server.Refreshes() > 0 {
			after++
		}
	}
	for _, r := range server.Requests() {
		if r.Path == renewPath {
			checkWire(t, r, "HTTP/1.1", renewPath, "", "Authorization: "+r.Header.Get("Authorization")) // which the server has checked
		}
	}
	// a renewal that may be under way is given up for a login, so that no
	// goroutine is left over
	if _, err := reject(rt).Token(); err != nil {
		t.Error(err)
	}
}

// The ctx of the caller that started a fetch is not that of the fetch.
func TestLeaderCancelsAndOthersGetTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("login", reply{after: time.Second})
		source := p.nowPost()
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			_, err := source.TokenContext(ctx)
			errorIf(t, !errors.Is(err, context.Canceled) || !errors.Is(err, errTest), "got %v, want context.Canceled and its cause", err)
		}()
		synctest.Wait()
		cancel(errTest)
		synctest.Wait()
		_, err := source.Token()
		errorIf(t, err != nil || p.count("login") != 1, "got %v after %d logins, want a token of one", err, p.count("login"))
		if _, err := p.nowPost().TokenContext(ctx); !errors.Is(err, context.Canceled) || p.count("login") != 1 {
			t.Errorf("got %v, want no login for a caller that has gone already", err)
		}
	})
}

// A token that is revoked while it is renewed is replaced by a login, even if the Store has
// it still. Whatever the renewal brings later is not sent: it may have been answered before
// the revocation.
func TestRevokedDuringRenewal(t *testing.T) {
	const takes = 10 * time.Second // the renewal
	for _, c := range []struct {
		name   string
		brings string        // the token of the renewal
		sent   time.Duration // when the request that gets the 401, since the renewal began
		answer time.Duration // likewise, the 401
		byHand bool          // Invalidate is called in place of the 401
		store  bool          // there is one
		slow   bool          // its Save takes two seconds
		deaf   bool          // the Base ignores its context
	}{
		{name: "another token", brings: "new", sent: time.Second, answer: time.Second},
		{name: "invalidated by hand", brings: "new", sent: time.Second, answer: time.Second, byHand: true},
		{name: "with a Store", brings: "new", sent: time.Second, answer: time.Second, store: true},
		{name: "the same text again", brings: "token-1", sent: time.Second, answer: time.Second},
		{name: "the same text again, before the 401", brings: "token-1", sent: time.Second, answer: takes + time.Second},
		{name: "overtaken while it is saved", brings: "new", sent: takes + time.Second, answer: takes + time.Second, store: true,
			slow: true},
		{name: "a Base that ignores its context", brings: "new", sent: time.Second, answer: time.Second, deaf: true},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p, account := new(partner), good(nil)
			var fetches, saves, secrets atomic.Int64
			account.secret, account.ask = "", func(context.Context) (string, error) { secrets.Add(1); return "secret", nil }
			p.script = func(a asked) reply {
				switch {
				case a.op != "call" && fetches.Add(1) == 2:
					saves.Store(1)
					return reply{after: takes, header: dated(time.Now()), body: granted(c.brings, 24*time.Hour)}
				case a.path == "/rejected" && a.token == "token-1":
					return reply{status: 401, after: c.answer - c.sent}
				case a.op == "call" && a.token == "new":
					t.Errorf("%s: the token of the overtaken renewal was sent", c.name)
				}
				return reply{}
			}
			account.base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if c.deaf {
					req = req.WithContext(context.WithoutCancel(req.Context()))
				}
				return p.RoundTrip(req)
			})
			var most time.Duration // from the 401 on until the call has succeeded
			if c.store {
				most = 2 * time.Second                  // for the lock
				account.store = &memory{after: func() { // the record is there before Save returns
					if saves.Add(-1) == 0 && c.slow {
						time.Sleep(most)
					}
				}}
			}
			rt := p.transport(nil)
			source := pr.config(account).TokenSource()
			rt.Source = source
			get(t, rt, "/")
			first, _ := source.Token()
			time.Sleep(22 * time.Hour)
			get(t, rt, "/") // begins the renewal
			time.Sleep(c.sent)
			if c.byHand {
				source.Invalidate(first)
			}
			var code int
			took := elapsed(func() { code = get(t, rt, "/rejected") }) - (c.answer - c.sent)
			errorIf(t, code != 200, "%s: got %d, want 200 with another token", c.name, code)
			errorIf(t, took > most, "%s: the call went on for %v after its 401, want %v", c.name, took, most)
			time.Sleep(time.Minute) // all that was overtaken has ended
			get(t, rt, "/")
			last := p.seen()[len(p.seen())-1]
			errorIf(t, last.status != 200 || last.token != "token-2", "%s: a minute later: %d with %q", c.name, last.status, last.token)
			want := "login " + pr.renews + " login"
			if pr.name == "acme" {
				want = "login refresh refresh" // its refresh token is good still
			}
			errorIf(t, p.ops() != want, "%s: got %q, want %q", c.name, p.ops(), want)
			errorIf(t, int(secrets.Load()) != p.count("login"), "%s: the Func was asked %d times, want once a login",
				c.name, secrets.Load())
		})
	}
}

func TestInvalidateForgetsOnlyTheCurrentToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner)
		source := p.nowPost()
		source.Invalidate(nil)
		first, _ := source.Token()
		copied := *first
		source.Invalidate(&copied)
		second, _ := source.Token()
		source.Invalidate(first) // late
		third, err := source.Token()
		must(t, err)
		errorIf(t, second == first, "a copy of the token did not invalidate it")
		errorIf(t, third != second, "an older token invalidated the current one")
		errorIf(t, p.ops() != "login login", "got %s, want two logins", p.ops())
	})
}

// A Source that a Transport has used keeps to its quota when asked by hand.
func TestTokenByHandKeepsToTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner)
		rt := p.transport(&partnerauth.Quota{Requests: 2})
		get(t, rt, "/") // and the login: nothing is left
		source := reject(rt)
		took := elapsed(func() { _, err := source.Token(); must(t, err) })
		errorIf(t, took < time.Minute, "took %v, want a login when the quota allows it", took)
	})
}

// The hooks of a caller see its own request and not the token's.
func TestHooksDoNotSeeTokenRequests(t *testing.T) {
	server, rt := onSockets(t, partnertest.Options{})
	requests := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { requests++ }})
	code := status(t, rt, newRequest(t, "GET", server.URL+"/api/v1/orders", "").WithContext(ctx))
	errorIf(t, code != 200 || requests != 1 || server.Logins() != 1,
		"got %d, %d requests and %d logins, want 200, one and one", code, requests, server.Logins())
}
