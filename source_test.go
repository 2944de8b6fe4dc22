package partnerauth_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestColdSourceLogsInOnce(t *testing.T) {
	server := partnertest.StartNowPost(partnertest.Options{TLS: true, Latency: 20 * time.Millisecond})
	defer server.Close()
	base := server.Transport()
	defer base.CloseIdleConnections()
	source := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: server.URL, Base: base}.TokenSource()
	var wg sync.WaitGroup
	for range 2000 {
		wg.Go(func() {
			if _, err := source.Token(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := server.LoginRequests(); n != 1 {
		t.Errorf("got %d login requests, want 1", n)
	}
}

// Nobody waits for a renewal while the old token is good, and nobody sees a 401.
func TestShortTokensUnderLoad(t *testing.T) {
	for name, renewal := range map[string]time.Duration{"fast": 0, "slow": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &shop{lifetime: 4 * time.Second}
				s.refresh = func(_ int, req *http.Request) *http.Response {
					resp := s.issue(req) // its life begins before the answer has made its way
					time.Sleep(renewal)
					return resp
				}
				rt := s.transport(nil)
				if status(t, rt, newRequest(t, "GET", shopURL+"/", "")) != 200 {
					t.Fatal("no first answer")
				}
				var wg sync.WaitGroup
				for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
					wg.Go(func() {
						asked := time.Now()
						s.mu.Lock()
						good := asked.Before(s.held)
						s.mu.Unlock()
						if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 {
							t.Errorf("got status %d, want 200", code)
						}
						if waited := time.Since(asked); good && waited > 0 {
							t.Errorf("waited %v while there was a good token", waited)
						}
					})
				}
				wg.Wait()
				time.Sleep(time.Minute) // for the last renewal
				if s.unauthorized > 0 {
					t.Errorf("%d requests were answered 401, want none", s.unauthorized)
				}
			})
		})
	}
}

func TestShortTokensOnSockets(t *testing.T) {
	t.Parallel()
	server := partnertest.StartNowPost(partnertest.Options{Lifetime: 4 * time.Second, Limit: -1})
	defer server.Close()
	server.Inject(partnertest.Fault{Path: "/api/v1/auth/refresh", Delay: 3 * time.Second})
	base := server.Transport()
	defer base.CloseIdleConnections()
	source := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: server.URL}.TokenSource()
	rt := &partnerauth.Transport{Source: source, Base: base, Limiter: &partnerauth.Quota{Requests: 10_000}}
	var wg sync.WaitGroup
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 { // 10 s
		<-tick.C
		wg.Go(func() {
			if code := status(t, rt, newRequest(t, "GET", server.URL+"/api/v1/orders", "")); code != 200 {
				t.Errorf("got status %d, want 200", code)
			}
		})
	}
	wg.Wait()
	land(t, source)
}

// land waits for a renewal that may be under way, by making it start over.
func land(t *testing.T, source *partnerauth.Source) {
	t.Helper()
	token, err := source.Token()
	if err != nil {
		t.Fatal(err)
	}
	source.Invalidate(token)
	if _, err := source.Token(); err != nil {
		t.Fatal(err)
	}
}

func TestCallerLeavesHangingLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recovered := make(chan struct{})
		s := &shop{login: func(n int, req *http.Request) *http.Response {
			select {
			case <-recovered:
			case <-req.Context().Done():
			}
			return nil
		}}
		source := s.source()
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := source.TokenContext(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 100*time.Millisecond {
				t.Errorf("got %v after %v, want a deadline exceeded after 100ms", err, time.Since(began))
			}
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := source.TokenContext(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Second)
		close(recovered)
		wg.Wait()
		if s.logins != 1 {
			t.Errorf("got %d logins, want 1", s.logins)
		}
	})
}

// A login that takes long is one login, whoever waits for it.
func TestSlowLoginIsOneLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		slow := roundTripFunc(func(req *http.Request) (*http.Response, error) {
			time.Sleep(9 * time.Second)
			return s.RoundTrip(req)
		})
		source := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: shopURL, Base: slow}.TokenSource()
		began := time.Now()
		var wg sync.WaitGroup
		for _, patience := range []time.Duration{time.Second, 10 * time.Second} {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := source.TokenContext(ctx)
				if took := time.Since(began); took != min(patience, 9*time.Second) || (err == nil) != (patience > 9*time.Second) {
					t.Errorf("a caller with %v got %v after %v", patience, err, took)
				}
			})
		}
		wg.Wait()
		if s.logins != 1 {
			t.Errorf("got %d logins, want one", s.logins)
		}
	})
}

func TestFlightIsLimitedToThirtySecondsOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := roundTripFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		source := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: shopURL, Base: hang}.TokenSource()
		began := time.Now()
		_, err := source.Token()
		var auth *partnerauth.AuthError
		if !errors.As(err, &auth) || auth.Op != "login" {
			t.Errorf("got %v, want an AuthError of a login", err)
		}
		if took := time.Since(began); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("took %v, want 30 s and the pause between two tries", took)
		}
	})
}

// The ctx of the caller that started a fetch is not that of the fetch.
func TestLeaderCancelsAndOthersGetTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{login: func(int, *http.Request) *http.Response {
			time.Sleep(time.Second)
			return nil
		}}
		source := s.source()
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			if _, err := source.TokenContext(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, errShop) {
				t.Errorf("got %v, want context.Canceled and its cause", err)
			}
		}()
		synctest.Wait()
		cancel(errShop)
		synctest.Wait()
		if _, err := source.Token(); err != nil {
			t.Error(err)
		}
		if s.logins != 1 {
			t.Errorf("got %d logins, want 1", s.logins)
		}
	})
}

var errShop = errors.New("the shop is closed")

// An answer to a token request sent before an invalidation proves nothing.
func TestInvalidationOutrunsRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late atomic.Bool
		s := &shop{lifetime: time.Hour}
		s.refresh = func(_ int, req *http.Request) *http.Response {
			resp := s.issue(req) // before the answer takes its time
			select {
			case <-time.After(3 * time.Second):
			case <-req.Context().Done():
				late.Store(true)
			}
			return resp
		}
		source := s.source()
		first, err := source.Token()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(55 * time.Minute)
		if again, _ := source.Token(); again != first {
			t.Fatal("a caller had to wait for the renewal")
		}
		time.Sleep(time.Second) // the refresh is under way
		source.Invalidate(first)
		began := time.Now()
		token, err := source.Token()
		if err != nil || token.AccessToken != "token-3" || time.Since(began) > 0 {
			t.Errorf("got %v, %v after %v, want token-3 of a new login at once", token, err, time.Since(began))
		}
		time.Sleep(time.Minute)
		if now, _ := source.Token(); now != token {
			t.Errorf("the late answer replaced the newer token")
		}
		if !late.Load() || s.logins != 2 || s.refreshes != 1 {
			t.Errorf("got %d logins and %d refreshes, want 2 and 1, with the refresh given up", s.logins, s.refreshes)
		}
	})
}

func TestInvalidateForgetsOnlyTheCurrentToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		source := s.source()
		source.Invalidate(nil)
		first, _ := source.Token()
		copied := *first
		source.Invalidate(&copied)
		second, _ := source.Token()
		source.Invalidate(first) // late
		third, err := source.Token()
		if err != nil || second == first || third != second {
			t.Errorf("got %v, %v, %v, %v, want a second token that stays", first, second, third, err)
		}
		if s.logins != 2 || s.refreshes != 0 {
			t.Errorf("got %d logins and %d refreshes, want 2 and 0", s.logins, s.refreshes)
		}
	})
}

func TestFailedRenewalServesTheOldToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failing atomic.Bool
		var tries []time.Time
		s := &shop{lifetime: time.Hour}
		fail := func(_ int, req *http.Request) *http.Response {
			if failing.Load() {
				s.mu.Lock()
				tries = append(tries, time.Now())
				s.mu.Unlock()
				return answer(req, 503, "")
			}
			return nil
		}
		s.login, s.refresh = fail, fail
		source := s.source()
		first, err := source.Token()
		if err != nil {
			t.Fatal(err)
		}
		failing.Store(true)
		for began := time.Now(); time.Since(began) < 59*time.Minute; time.Sleep(time.Second) {
			if now, err := source.Token(); now != first {
				t.Fatalf("got %v, %v after %v, want the first token until it ends", now, err, time.Since(began))
			}
		}
		synctest.Wait()
		s.mu.Lock()
		n := len(tries)
		s.mu.Unlock()
		if n < 20 || n > 15*60/20*6+60 {
			t.Errorf("got %d token requests in about 12 minutes, want some every 20 to 30 s", n)
		}
		failing.Store(false)
		time.Sleep(31 * time.Second)
		source.Token()
		synctest.Wait()
		if now, err := source.Token(); err != nil || now == first {
			t.Errorf("got %v, %v after the partner recovered, want a new token", now, err)
		}
	})
}

func TestRefusedCredentialsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{login: func(_ int, req *http.Request) *http.Response { return answer(req, 401, "no") }}
		source := s.source()
		_, first := source.Token()
		var seen []time.Duration
		logins, last := 1, time.Now()
		for range 600 * 5 {
			_, err := source.Token()
			if !errors.Is(err, partnerauth.ErrCredentials) {
				t.Fatalf("got %v, want ErrCredentials", err)
			}
			if s.logins == logins && err != first {
				t.Fatal("another error without another login")
			}
			if s.logins > logins {
				seen = append(seen, time.Since(last))
				logins, last, first = s.logins, time.Now(), err
			}
			time.Sleep(200 * time.Millisecond)
		}
		if len(seen) < 8 {
			t.Fatalf("got %d logins in ten minutes, want more", len(seen))
		}
		for i, gap := range seen {
			if least := min(40*time.Second, time.Second<<i); gap < least || gap > min(60*time.Second, 3*least/2)+200*time.Millisecond {
				t.Errorf("login %d came after %v, want %v and up to half of it more", i+2, gap, least)
			}
		}
	})
}

// A Source that a Transport has used keeps to its quota when asked by hand.
func TestTokenByHandKeepsToTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{lifetime: time.Hour}
		quota := &partnerauth.Quota{Requests: 2}
		rt := s.transport(quota)
		status(t, rt, newRequest(t, "GET", shopURL+"/", "")) // and the login: nothing is left
		source := rt.Source.(*partnerauth.Source)
		first, _ := source.Token()
		source.Invalidate(first)
		began := time.Now()
		if _, err := source.Token(); err != nil || time.Since(began) < time.Minute {
			t.Errorf("got %v after %v, want a login when the quota allows it", err, time.Since(began))
		}
	})
}

// A partner that is away for long is not waited for inside one fetch.
func TestLongUnavailabilityIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{login: func(_ int, req *http.Request) *http.Response {
			resp := answer(req, 503, "")
			resp.Header.Set("Retry-After", "600")
			return resp
		}}
		source := s.source()
		began := time.Now()
		_, err := source.Token()
		var auth *partnerauth.AuthError
		if !errors.As(err, &auth) || auth.StatusCode != 503 || auth.RetryAfter != 10*time.Minute || time.Since(began) > 0 {
			t.Errorf("got %v after %v, want the 503 and its Retry-After at once", err, time.Since(began))
		}
		time.Sleep(599 * time.Second)
		if source.Token(); s.logins != 1 {
			t.Errorf("got %d logins, want one until the partner is back", s.logins)
		}
	})
}
