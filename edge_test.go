package partnerauth_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// A steppedLimiter waits until the test says how it went.
type steppedLimiter chan chan error

func (l steppedLimiter) Wait(context.Context) error {
	c := make(chan error)
	l <- c
	return <-c
}

// A Limiter that fails for a request which has gone meanwhile, and is back in
// the queue as its own retry, must not take the retry out of it.
func TestLimiterFailsForTheAttemptBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens, sent := 0, 0
		limiter := make(steppedLimiter)
		rt := &partnerauth.Transport{
			Source: tokenFunc(func() (*oauth2.Token, error) {
				tokens++
				token := &oauth2.Token{AccessToken: "t"}
				if tokens == 1 {
					token.Expiry = time.Now().Add(time.Second)
				}
				return token, nil
			}),
			Origins: []string{shopURL}, Limiter: limiter,
			Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if sent++; sent == 1 {
					resp := answer(req, 429, "")
					resp.Header.Set("Retry-After", "0")
					return resp, nil
				}
				return answer(req, 200, ""), nil
			}),
		}
		call := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
				done <- err
			}()
			synctest.Wait()
			return done
		}
		first := call(t.Context()) // its token ends while it waits
		one := <-limiter
		ctx, cancel := context.WithCancel(t.Context())
		second := call(ctx)
		time.Sleep(2 * time.Second)
		one <- nil // the first gives its permit back, the second goes, gets 429 and comes again
		two := <-limiter
		synctest.Wait()
		two <- errShop
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case <-second:
		default:
			t.Fatal("the second call hangs although it was cancelled")
		}
		third := call(t.Context())
		for range 3 {
			select {
			case c := <-limiter:
				c <- nil
			default:
			}
			synctest.Wait()
		}
		for name, done := range map[string]chan error{"first": first, "third": third} {
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, errShop) {
					t.Errorf("%s: %v", name, err)
				}
			default:
				t.Errorf("the %s call hangs", name)
			}
		}
	})
}

// A foreign token that is over is sent: the server decides.
func TestForeignTokenThatIsOver(t *testing.T) {
	for _, l := range limiters {
		synctest.Test(t, func(t *testing.T) {
			sent := 0
			rt := &partnerauth.Transport{
				Source:  oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t", Expiry: time.Now().Add(time.Second)}),
				Origins: []string{shopURL}, Limiter: l.make(),
				Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
					sent++
					return answer(req, 200, ""), nil
				}),
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			for range 110 { // so that some wait
				if _, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx)); err != nil {
					t.Fatalf("%s: %v after %d", l.name, err, sent)
				}
			}
		})
	}
}

// An overriddenLimiter has the methods of *rate.Limiter and a Wait of its own.
type overriddenLimiter struct {
	*rate.Limiter
	waits int
}

func (l *overriddenLimiter) Wait(ctx context.Context) error {
	l.waits++
	return l.Limiter.Wait(ctx)
}

func TestLimiterThatEmbedsAnother(t *testing.T) {
	limiter := &overriddenLimiter{Limiter: rate.NewLimiter(rate.Inf, 1)}
	rt := &partnerauth.Transport{Source: tokenSource("t"), Origins: []string{shopURL}, Limiter: limiter, Base: &shop{}}
	for range 3 {
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
	}
	if limiter.waits != 3 {
		t.Errorf("its own Wait was asked %d times, want 3", limiter.waits)
	}
}

// The hooks of a caller see its own request and not the token's.
func TestHooksDoNotSeeTokenRequests(t *testing.T) {
	var login atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/auth") {
			login.Store(true)
			io.WriteString(w, `{"access_token":"t","expires_in":3600}`)
		}
	}))
	defer server.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	client := partnerauth.Ndovu{ClientID: "id", ClientSecret: "secret", BaseURL: server.URL, Base: base}.Client()
	requests := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { requests++ },
		WroteHeaderField: func(key string, values []string) {
			if key == "Authorization" && strings.HasPrefix(values[0], "Basic") {
				t.Errorf("a hook was shown %s", values[0])
			}
		},
	})
	if code := status(t, client.Transport, newRequest(t, "GET", server.URL+"/", "").WithContext(ctx)); code != 200 || requests != 1 || !login.Load() {
		t.Errorf("got %d and %d requests, want 200 and 1", code, requests)
	}
}

// A caller that is cancelled at the very moment of its turn leaves the place to
// others.
func TestCancelledAtItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		var dead atomic.Int32
		rt := s.transport(&partnerauth.Quota{Requests: 40, Window: 10 * time.Second})
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Context().Err() != nil {
				dead.Add(1)
			}
			return s.RoundTrip(req)
		})
		for range 39 {
			status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		}
		free := time.Now().Add(10500 * time.Millisecond)
		for range 40 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Until(free), cancel)
			go rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
		}
		time.Sleep(11 * time.Second)
		// a cancellation can still come between the turn and the sending
		if dead.Load() > 10 {
			t.Errorf("%d of 40 requests were sent for callers that had gone, want hardly any", dead.Load())
		}
	})
}

// Permits given back while there is no token do not slow down those after them.
func TestGivenBackPermitsCostNoPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{login: func(n int, _ *http.Request) *http.Response {
			if n > 1 {
				time.Sleep(7 * time.Second)
			}
			return nil
		}}
		rt := s.transport(&partnerauth.Quota{Burst: 20})
		for range 19 {
			status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		}
		began, done := time.Now(), make(chan bool)
		for range 30 {
			go func() {
				status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
				done <- true
			}()
		}
		synctest.Wait()
		source := rt.Source.(*partnerauth.Source)
		token, _ := source.Token()
		source.Invalidate(token)
		for range 30 {
			<-done
		}
		// 30 permits and a login at 100 a minute
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("30 calls took %v, want less than 20 s", took)
		}
	})
}

// A stubborn source invalidates nothing.
type stubborn struct{ oauth2.TokenSource }

func (stubborn) Invalidate(*oauth2.Token) {}

func TestInvalidateThatDoesNotHelp(t *testing.T) {
	sent := 0
	rt := &partnerauth.Transport{
		Source:  stubborn{oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"})},
		Origins: []string{shopURL}, Limiter: rate.NewLimiter(rate.Inf, 1),
		Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
			sent++
			return answer(req, 401, ""), nil
		}),
	}
	for range 500 {
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
	}
	if sent > 510 {
		t.Errorf("500 calls cost %d requests, want hardly more than 500", sent)
	}
}

// A countedConn counts writes.
type countedConn struct {
	net.Conn
	writes *atomic.Int32
}

func (c countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// A small POST goes out in as few writes as without a Transport.
func TestWritesOfASmallPost(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { io.Copy(io.Discard, req.Body) }))
	defer server.Close()
	var writes atomic.Int32
	base := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return countedConn{conn, &writes}, err
	}}
	defer base.CloseIdleConnections()
	rt := &partnerauth.Transport{Source: tokenSource("t"), Origins: []string{server.URL}, Base: base}
	for range 10 {
		status(t, rt, newRequest(t, "POST", server.URL, "hello"))
	}
	if n := writes.Load(); n != 10 {
		t.Errorf("10 POSTs took %d writes, want 10", n)
	}
}

// An error page is one however long it is.
func TestLongErrorPageIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{login: func(n int, req *http.Request) *http.Response {
			if n == 1 {
				return answer(req, 502, strings.Repeat("x", 2<<20))
			}
			return nil
		}}
		if _, err := s.source().Token(); err != nil || s.logins != 2 {
			t.Errorf("got %v after %d logins, want a token of the second", err, s.logins)
		}
	})
}

// A permit that came in a pause for somebody who then left is not kept.
func TestPermitOfSomebodyWhoLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, sent := make(steppedLimiter), 0
		rt := &partnerauth.Transport{Source: tokenSource("t"), Origins: []string{shopURL}, Limiter: limiter}
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			sent++
			resp := answer(req, 503, "")
			resp.Header.Set("Retry-After", "10")
			return resp, nil
		})
		go rt.RoundTrip(newRequest(t, "GET", shopURL+"/", ""))
		one := <-limiter
		ctx, cancel := context.WithCancel(t.Context())
		go rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
		synctest.Wait()
		one <- nil // the first goes and starts a pause, during which the second is granted
		two := <-limiter
		synctest.Wait()
		two <- nil
		synctest.Wait()
		cancel()
		time.Sleep(time.Hour)
		before := sent
		go rt.RoundTrip(newRequest(t, "GET", shopURL+"/", ""))
		three := <-limiter // which deadlocks if it is not asked
		if sent != before {
			t.Errorf("%d requests went without asking the Limiter", sent-before)
		}
		three <- nil
	})
}
