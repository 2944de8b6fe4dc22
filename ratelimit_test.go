package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// limiters are the two kinds that are queued for.
var limiters = []struct {
	name string
	make func() partnerauth.Limiter
}{
	{"Quota", func() partnerauth.Limiter { return &partnerauth.Quota{} }},
	{"rate.Limiter", func() partnerauth.Limiter { return rate.NewLimiter(100./60, 1) }},
	{"unknown", func() partnerauth.Limiter { return waitOnly{rate.NewLimiter(100./60, 1)} }},
}

// waitOnly hides everything of a Limiter but Wait.
type waitOnly struct{ partnerauth.Limiter }

// drain spends what a limiter would let through at once.
func drain(t *testing.T, rt http.RoundTripper, limiter partnerauth.Limiter) {
	n := 2
	if _, ok := limiter.(*partnerauth.Quota); ok {
		n = 99 // and the login
	}
	for range n {
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
	}
}

func TestHundredAtOnceFromIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quota partnerauth.Quota
		for range 3 {
			began := time.Now()
			for range 100 {
				if err := quota.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("100 permits took %v, want them within a second", took)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// queue500 lets 500 requests queue up behind what a limiter lets through at once.
func queue500(t *testing.T, s *shop, rt *partnerauth.Transport) *sync.WaitGroup {
	drain(t, rt, rt.Limiter)
	s.order, s.times = nil, nil
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() { status(t, rt, newRequest(t, "GET", fmt.Sprintf("%s/%03d", shopURL, i), "")) })
		synctest.Wait()
	}
	return &wg
}

func TestQueueIsInOrder(t *testing.T) {
	for _, l := range limiters {
		t.Run(l.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &shop{}
				queue500(t, s, s.transport(l.make())).Wait()
				// what is let through in the same instant arrives in any order
				for from := 0; from < len(s.order); {
					to := from + 1
					for to < len(s.times) && s.times[to] == s.times[from] {
						to++
					}
					slices.Sort(s.order[from:to])
					from = to
				}
				if len(s.order) != 500 || !slices.IsSorted(s.order) {
					t.Errorf("%d requests arrived, want 500 in order: %v", len(s.order), s.order)
				}
			})
		})
	}
}

// A token request goes with the next permit, whoever else waits.
func TestTokenRequestsGoFirst(t *testing.T) {
	for _, l := range limiters {
		t.Run(l.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &shop{}
				rt := s.transport(l.make())
				source := rt.Source.(*partnerauth.Source)
				wg := queue500(t, s, rt)
				time.Sleep(90 * time.Second)
				token, _ := source.Token()
				source.Invalidate(token)
				asked := time.Since(s.began)
				if _, err := source.Token(); err != nil {
					t.Error(err)
				}
				wg.Wait()
				login := slices.Index(s.order, "/api/v1/auth/login")
				for i, at := range s.times {
					if at > asked && at < s.times[login] {
						t.Errorf("%s went %v before the login", s.order[i], s.times[login]-at)
					}
				}
				if len(s.order) != 501 {
					t.Errorf("%d requests arrived, want 500 and one login", len(s.order))
				}
			})
		})
	}
}

// A renewal that comes due while all callers queue is not forgotten.
func TestRenewalWhileAllQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{lifetime: 4 * time.Minute}
		wg := queue500(t, s, s.transport(rate.NewLimiter(100./60, 1)))
		wg.Wait()
		renewal := slices.Index(s.order, "/api/v1/auth/refresh")
		if renewal < 0 || s.times[renewal] < 3*time.Minute || s.times[renewal] > 4*time.Minute {
			t.Errorf("want a refresh in the last minute of the token, got %v", s.order)
		}
		if s.logins != 1 || s.unauthorized != 0 {
			t.Errorf("got %d logins and %d rejections, want 1 and 0", s.logins, s.unauthorized)
		}
	})
}

// Whoever gives up costs the others nothing.
func TestGivingUpCostsNothing(t *testing.T) {
	for _, l := range limiters {
		for _, callers := range []int{50, 300} {
			t.Run(fmt.Sprintf("%s %d", l.name, callers), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &shop{}
					rt := s.transport(l.make())
					const length = 10 * time.Minute
					began := time.Now()
					random := rand.New(rand.NewPCG(1, 2))
					var mu sync.Mutex
					var wg sync.WaitGroup
					for range callers {
						wg.Go(func() {
							for time.Since(began) < length {
								mu.Lock()
								patience := time.Duration(random.Int64N(int64(time.Minute)))
								mu.Unlock()
								// a cancellation, not a deadline, or it would be refused at once
								ctx, cancel := context.WithCancel(t.Context())
								stop := time.AfterFunc(patience, cancel)
								resp, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
								if err == nil {
									resp.Body.Close()
								} else if !errors.Is(err, context.Canceled) {
									t.Error(err)
								}
								stop.Stop()
								cancel()
							}
						})
					}
					wg.Wait()
					if served := float64(s.calls) / length.Minutes(); served < 95 {
						t.Errorf("served %.1f a minute, want 95", served)
					}
				})
			})
		}
	}
}

func TestRefusedAtOnce(t *testing.T) {
	for _, test := range []struct {
		name    string
		limiter func() partnerauth.Limiter
		queued  int
		wait    time.Duration // that the refusal tells
	}{
		{"Quota", func() partnerauth.Limiter { return &partnerauth.Quota{} }, 0, 61 * time.Second},
		{"Quota, one round of others ahead", func() partnerauth.Limiter { return &partnerauth.Quota{} }, 150, 122 * time.Second},
		{"rate.Limiter", func() partnerauth.Limiter { return rate.NewLimiter(rate.Every(30*time.Second), 1) }, 0, 30 * time.Second},
		{"rate.Limiter that allows nothing", func() partnerauth.Limiter { return rate.NewLimiter(0, 2) }, 0, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limiter := test.limiter()
				body := &trackedBody{Reader: strings.NewReader("x")}
				sent := 0
				rt := &partnerauth.Transport{
					Source: tokenSource("t"), Origins: []string{shopURL}, Limiter: limiter,
					Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
						sent++
						return answer(req, 200, ""), nil
					}),
				}
				for range 100 {
					if _, ok := limiter.(*partnerauth.Quota); ok || sent == 0 {
						status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
					}
				}
				if strings.Contains(test.name, "nothing") {
					status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
				}
				waiting, leave := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for range test.queued {
					wg.Go(func() {
						if resp, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(waiting)); err == nil {
							resp.Body.Close()
						}
					})
				}
				synctest.Wait()
				before := sent
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				req := newRequest(t, "POST", shopURL+"/", "").WithContext(ctx)
				req.Body = body
				began := time.Now()
				_, err := rt.RoundTrip(req)
				var told interface{ RetryAfter() time.Duration }
				if !errors.Is(err, partnerauth.ErrRateLimited) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &told) {
					t.Fatalf("got %v, want ErrRateLimited and a deadline exceeded", err)
				}
				if d := told.RetryAfter(); d < test.wait || (d > test.wait+time.Second && test.wait < time.Hour) {
					t.Errorf("told to wait %v, want %v", d, test.wait)
				}
				var timeout interface{ Timeout() bool }
				if !errors.As(err, &timeout) || !timeout.Timeout() {
					t.Errorf("%v is no timeout", err)
				}
				if time.Since(began) > 0 || sent != before || body.closed.Load() != 1 {
					t.Errorf("refused after %v, %d sent, body closed %d times, want at once, none, once", time.Since(began), sent-before, body.closed.Load())
				}
				leave()
				wg.Wait()
			})
		})
	}
}

// A tokenSource is a source that is one token.
type tokenSource string

func (s tokenSource) Token() (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: string(s)}, nil
}

func TestLimiterThatFails(t *testing.T) {
	for _, source := range []string{"cached", "cold"} {
		s := &shop{}
		body := &trackedBody{Reader: strings.NewReader("x")}
		rt := &partnerauth.Transport{Source: tokenSource("t"), Origins: []string{shopURL}, Base: s, Limiter: failingLimiter{}}
		if source == "cold" {
			rt.Source, rt.Origins = s.source(), nil
		}
		req := newRequest(t, "POST", shopURL+"/", "")
		req.Body = body
		_, err := rt.RoundTrip(req)
		if !errors.Is(err, errShop) || len(s.order) != 0 || body.closed.Load() != 1 {
			t.Errorf("%s: got %v, %v sent, body closed %d times, want the limiter's error, nothing, once", source, err, s.order, body.closed.Load())
		}
	}
}

// Who has to wait for a token cannot be in time either.
func TestRefusedAtOnceWithoutAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		quota := &partnerauth.Quota{Requests: 1}
		rt := s.transport(quota)
		quota.Wait(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		_, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
		if !errors.Is(err, partnerauth.ErrRateLimited) || time.Since(began) > 0 {
			t.Errorf("got %v after %v, want ErrRateLimited at once", err, time.Since(began))
		}
		time.Sleep(time.Hour) // for the login, which others may want
	})
}

type failingLimiter struct{}

func (failingLimiter) Wait(context.Context) error { return errShop }

func TestThousandOnAColdSource(t *testing.T) {
	for _, l := range limiters {
		t.Run(l.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &shop{}
				rt := s.transport(l.make())
				var wg sync.WaitGroup
				for range 1000 {
					wg.Go(func() {
						if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 {
							t.Errorf("got %d, want 200", code)
						}
					})
				}
				wg.Wait()
				if s.logins != 1 || s.calls != 1000 {
					t.Errorf("got %d logins and %d calls, want 1 and 1000", s.logins, s.calls)
				}
			})
		})
	}
}

// All Transports that share a Quota, and Wait by hand, count together.
func TestSharedQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quota := &partnerauth.Quota{}
		s := &shop{}
		one, two := s.transport(quota), s.transport(quota)
		two.Source = one.Source
		ctx, cancel := context.WithTimeout(t.Context(), 59*time.Second)
		defer cancel()
		for range 33 {
			status(t, one, newRequest(t, "GET", shopURL+"/", ""))
			status(t, two, newRequest(t, "GET", shopURL+"/", ""))
			if err := quota.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		// 99 and the login
		if err := quota.Wait(ctx); !errors.Is(err, partnerauth.ErrRateLimited) {
			t.Errorf("got %v, want ErrRateLimited", err)
		}
		if _, err := two.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx)); !errors.Is(err, partnerauth.ErrRateLimited) {
			t.Errorf("got %v, want ErrRateLimited", err)
		}
		if err := quota.Wait(t.Context()); err != nil {
			t.Errorf("got %v without a deadline, want a permit", err)
		}
	})
}

func TestBurstIsRespected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quota := &partnerauth.Quota{Burst: 10}
		time.Sleep(time.Hour)
		began := time.Now()
		for range 100 {
			quota.Wait(t.Context())
			if n := time.Since(began); n > 0 {
				break
			}
		}
		times := []time.Duration{time.Since(began)}
		if times[0] != 600*time.Millisecond {
			t.Errorf("the eleventh went after %v, want 600ms", times[0])
		}
		for range 89 {
			quota.Wait(t.Context())
		}
		if took := time.Since(began); took < 53*time.Second || took > 55*time.Second {
			t.Errorf("100 took %v, want 54 s", took)
		}
	})
}

// A call that hangs frees its place after two windows; one that is given up
// keeps it for a window and a second from then.
func TestHungAndGivenUpCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{api: func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == "/hang" {
				<-req.Context().Done()
				return nil, req.Context().Err()
			}
			return answer(req, 200, ""), nil
		}}
		rt := s.transport(&partnerauth.Quota{Requests: 2})
		hung, release := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { rt.RoundTrip(newRequest(t, "GET", shopURL+"/hang", "").WithContext(hung)) })
		synctest.Wait()
		began := time.Now()
		status(t, rt, newRequest(t, "GET", shopURL+"/", "")) // in place of the login
		status(t, rt, newRequest(t, "GET", shopURL+"/", "")) // in place of the hung one
		if took := time.Since(began); took < 121*time.Second || took > 122*time.Second {
			t.Errorf("the hung call kept its place for %v, want two windows and a guard", took)
		}
		release()
		wg.Wait()

		rt = s.transport(&partnerauth.Quota{Requests: 2})
		given, giveUp := context.WithCancel(t.Context())
		wg.Go(func() { rt.RoundTrip(newRequest(t, "GET", shopURL+"/hang", "").WithContext(given)) })
		time.Sleep(10 * time.Second)
		giveUp()
		wg.Wait()
		began = time.Now()
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		if took := time.Since(began); took != 61*time.Second {
			t.Errorf("the call given up kept its place for %v from then, want 61 s", took)
		}
	})
}

// The same with real goroutines, for the race detector: order, cancellation and
// refusal.
func TestQueueRaces(t *testing.T) {
	quota := &partnerauth.Quota{Requests: 20, Window: 20 * time.Millisecond}
	limiter := rate.NewLimiter(1000, 1)
	for _, l := range []partnerauth.Limiter{quota, limiter, waitOnly{limiter}} {
		s := &shop{}
		rt := s.transport(l)
		var served, refused, left atomic.Int32
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				ctx := t.Context()
				switch i % 3 {
				case 1:
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, time.Duration(i)*time.Millisecond/10)
					defer cancel()
				case 2:
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					defer time.AfterFunc(time.Duration(i)*time.Millisecond/10, cancel).Stop()
				}
				resp, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
				switch {
				case err == nil:
					resp.Body.Close()
					served.Add(1)
				case errors.Is(err, context.DeadlineExceeded), strings.Contains(err.Error(), "would exceed context deadline"):
					refused.Add(1) // in the words of a limiter that we do not know
				case errors.Is(err, context.Canceled):
					left.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if served.Load() < 100 || served.Load()+refused.Load()+left.Load() != 300 {
			t.Errorf("%T: %d served, %d refused, %d left, want 100 served at least of 300", l, served.Load(), refused.Load(), left.Load())
		}
		if int(served.Load()) != s.calls {
			t.Errorf("%T: %d served, but %d arrived", l, served.Load(), s.calls)
		}
	}
}
