package partnerauth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func orderBody(id string) string {
	return fmt.Sprintf(`{"partner_order_id":%q,"pudo_point_id":"pudo-1","customer":{"name":"N","email":"n@example.com","phone":"1"},`+
		`"items":[{"name":"%s","qty":1,"price":1,"weight_kg":1}]}`, id, strings.Repeat("x", 20_000))
}

// All tokens are revoked under 200 goroutines that create orders.
func TestRevokedUnderLoad(t *testing.T) {
	for _, useTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", useTLS), func(t *testing.T) {
			server := partnertest.StartNowPost(partnertest.Options{TLS: useTLS, Limit: -1})
			defer server.Close()
			base := server.Transport()
			defer base.CloseIdleConnections()
			client := &http.Client{Transport: &partnerauth.Transport{
				Source: partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: server.URL}.TokenSource(),
				Base:   base, Limiter: &partnerauth.Quota{Requests: 10_000},
			}}
			const workers, each = 200, 5
			var done atomic.Int32
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := range each {
						resp, err := client.Post(server.URL+"/api/v1/orders", "application/json", strings.NewReader(orderBody(fmt.Sprintf("order-%d-%d", w, i))))
						if err != nil {
							t.Error(err)
							return
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						if resp.StatusCode/100 != 2 {
							t.Errorf("got %s, want an order", resp.Status)
						}
						if done.Add(1) == workers*each/2 {
							server.RevokeAll()
						}
					}
				})
			}
			wg.Wait()
			for w := range workers {
				for i := range each {
					if n := server.Created(fmt.Sprintf("order-%d-%d", w, i)); n != 1 {
						t.Errorf("order-%d-%d was created %d times, want once", w, i, n)
					}
				}
			}
			if n := server.LoginRequests(); n != 2 {
				t.Errorf("got %d logins, want 2: the first and one for all", n)
			}
			if server.Status(401) == 0 {
				t.Error("nobody was answered 401, so nothing was tested")
			}
		})
	}
}

// Ten thousand requests that all get 401 for the same token cost one login.
func TestManyRejectionsOneLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		var arrived sync.WaitGroup
		arrived.Add(10_000)
		rt := s.transport(nil)
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("Authorization") == "Bearer token-1" {
				arrived.Done()
				arrived.Wait()
				return answer(req, 401, ""), nil
			}
			return s.RoundTrip(req)
		})
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() {
				if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 {
					t.Errorf("got %d, want 200", code)
				}
			})
		}
		wg.Wait()
		if s.logins != 2 {
			t.Errorf("got %d logins, want 2", s.logins)
		}
	})
}

// A 401 that comes late must not drop the token that has replaced the rejected.
func TestLateRejectionKeepsTheNewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{api: func(req *http.Request) (*http.Response, error) { return answer(req, 200, ""), nil }}
		rt := s.transport(nil)
		slow := make(chan struct{})
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := s.RoundTrip(req)
			if req.URL.Path == "/slow" && resp.StatusCode == 401 {
				<-slow
			}
			return resp, err
		})
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		s.revokeAll()
		go func() { status(t, rt, newRequest(t, "GET", shopURL+"/slow", "")) }()
		synctest.Wait()
		status(t, rt, newRequest(t, "GET", shopURL+"/", "")) // signs in again
		before, _ := rt.Source.Token()
		close(slow)
		synctest.Wait()
		after, _ := rt.Source.Token()
		if before != after || s.logins != 2 {
			t.Errorf("got %d logins, want 2 and the token kept", s.logins)
		}
	})
}

func TestUnauthorizedAnswers(t *testing.T) {
	always := func(req *http.Request) (*http.Response, error) { return answer(req, 401, "always"), nil }

	t.Run("second 401 is returned as it is", func(t *testing.T) {
		s := &shop{api: always}
		resp, err := s.transport(nil).RoundTrip(newRequest(t, "POST", shopURL+"/", "body"))
		if err != nil || resp.StatusCode != 401 {
			t.Fatalf("got %v, %v, want 401", resp, err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "always" {
			t.Errorf("got body %q, want it whole", body)
		}
		if s.calls != 2 || s.logins != 2 {
			t.Errorf("got %d calls and %d logins, want 2 and 2", s.calls, s.logins)
		}
	})

	t.Run("a body that cannot be had again", func(t *testing.T) {
		s := &shop{}
		rt := s.transport(nil)
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		s.revokeAll()
		req := newRequest(t, "POST", shopURL+"/", "")
		req.Body = io.NopCloser(strings.NewReader("once"))
		if code := status(t, rt, req); code != 401 {
			t.Errorf("got %d, want the 401", code)
		}
		if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 || s.unauthorized != 1 {
			t.Errorf("got %d after %d rejections, want 200 with a new token at once", code, s.unauthorized)
		}
	})

	t.Run("GetBody fails", func(t *testing.T) {
		s := &shop{api: always}
		req := newRequest(t, "POST", shopURL+"/", "body")
		req.GetBody = func() (io.ReadCloser, error) { return nil, errShop }
		if code := status(t, s.transport(nil), req); code != 401 || s.calls != 1 {
			t.Errorf("got %d after %d calls, want the 401 after one", code, s.calls)
		}
	})

	t.Run("failed login after 401", func(t *testing.T) {
		s := &shop{login: func(n int, req *http.Request) *http.Response {
			if n > 1 {
				return answer(req, 403, "")
			}
			return nil
		}}
		rt := s.transport(nil)
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		s.revokeAll()
		client := &http.Client{Transport: rt}
		_, err := client.Get(shopURL + "/")
		var auth *partnerauth.AuthError
		if !errors.As(err, &auth) || auth.StatusCode != 403 || auth.Op != "login" || !errors.Is(err, partnerauth.ErrCredentials) {
			t.Errorf("got %v, want an AuthError with 403", err)
		}
	})

	t.Run("an endpoint that misuses 401", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &shop{api: always}
			rt := s.transport(&partnerauth.Quota{})
			for range 500 {
				if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 401 {
					t.Fatalf("got %d, want 401", code)
				}
			}
			if s.logins < 4 || s.logins > 25 {
				t.Errorf("500 calls cost %d logins, want 4 to 25", s.logins)
			}
			token, _ := rt.Source.Token()
			s.api = nil
			if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 {
				t.Errorf("got %d elsewhere, want 200", code)
			}
			if now, _ := rt.Source.Token(); now != token {
				t.Error("the token was not kept")
			}
		})
	})
}

// A source of the user's own with our methods is treated like ours.
type wrappedSource struct{ *partnerauth.Source }

func TestForeignSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		quota := &partnerauth.Quota{Requests: 3}
		rt := &partnerauth.Transport{Source: wrappedSource{s.source()}, Origins: []string{shopURL}, Base: s, Limiter: quota}
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		s.revokeAll()
		began := time.Now()
		if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 || s.logins != 2 {
			t.Errorf("got %d after %d logins, want 200 after 2", code, s.logins)
		}
		if time.Since(began) < time.Minute {
			t.Error("the login of a wrapped Source took no permit")
		}
	})

	plain := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "key", TokenType: "token"})
	calls := 0
	rt := &partnerauth.Transport{Source: plain, Origins: []string{shopURL}, Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
		calls++
		if got := req.Header.Get("Authorization"); got != "token key" {
			t.Errorf("got Authorization %q", got)
		}
		return answer(req, 401, ""), nil
	})}
	if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 401 || calls != 1 {
		t.Errorf("got %d after %d calls, want the 401 of one", code, calls)
	}

	for name, source := range map[string]oauth2.TokenSource{
		"error": tokenFunc(func() (*oauth2.Token, error) { return nil, errShop }),
		"nil":   tokenFunc(func() (*oauth2.Token, error) { return nil, nil }),
		"bytes": tokenFunc(func() (*oauth2.Token, error) { return &oauth2.Token{AccessToken: "a\r\nb"}, nil }),
	} {
		body := &trackedBody{Reader: strings.NewReader("x")}
		req := newRequest(t, "POST", shopURL+"/", "")
		req.Body = body
		rt := &partnerauth.Transport{Source: source, Origins: []string{shopURL}, Base: rt.Base}
		_, err := rt.RoundTrip(req)
		var auth *partnerauth.AuthError
		if !errors.As(err, &auth) || auth.Op != "token" || (name == "error") != errors.Is(err, errShop) {
			t.Errorf("%s: got %v, want an AuthError about the token", name, err)
		}
		if body.closed.Load() != 1 {
			t.Errorf("%s: body closed %d times", name, body.closed.Load())
		}
	}
}

type tokenFunc func() (*oauth2.Token, error)

func (f tokenFunc) Token() (*oauth2.Token, error) { return f() }

// A misused 401 is bounded for foreign sources too.
func TestForeignInvalidateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{api: func(req *http.Request) (*http.Response, error) { return answer(req, 401, ""), nil }}
		rt := &partnerauth.Transport{Source: wrappedSource{s.source()}, Origins: []string{shopURL}, Base: s}
		for range 500 {
			status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		}
		if s.logins < 4 || s.logins > 25 {
			t.Errorf("500 calls cost %d logins, want 4 to 25", s.logins)
		}
	})
}

func TestRateLimitedAnswers(t *testing.T) {
	limited := func(retryAfter string, times int) (*shop, *partnerauth.Transport) {
		s := &shop{}
		s.api = func(req *http.Request) (*http.Response, error) {
			if s.count(&s.calls) <= times {
				resp := answer(req, 429, "slow down")
				if retryAfter != "" {
					resp.Header.Set("Retry-After", retryAfter)
				}
				return resp, nil
			}
			return answer(req, 200, ""), nil
		}
		return s, s.transport(&partnerauth.Quota{})
	}
	for _, test := range []struct {
		name       string
		retryAfter string
		times      int
		deadline   time.Duration
		status     int
		calls      int
		took       time.Duration
	}{
		{"pause and once more", "7", 1, 0, 200, 2, 7 * time.Second},
		{"no header is an interval", "", 1, 0, 200, 2, 600 * time.Millisecond},
		{"a second 429 is returned", "7", 2, 0, 429, 2, 7 * time.Second},
		{"past the deadline", "7", 1, 5 * time.Second, 429, 1, 0},
		{"within the deadline", "7", 1, 8 * time.Second, 200, 2, 7 * time.Second},
		{"more than two windows", "121", 1, 0, 429, 1, 0},
		{"two windows", "120", 1, 0, 200, 2, 2 * time.Minute},
		{"at once", "0", 1, 0, 200, 2, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rt := limited(test.retryAfter, test.times)
				ctx := t.Context()
				if test.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.deadline)
					defer cancel()
				}
				began := time.Now()
				code := status(t, rt, newRequest(t, "POST", shopURL+"/", "body").WithContext(ctx))
				if took := time.Since(began); code != test.status || s.calls != test.calls || took < test.took || took > test.took+time.Second {
					t.Errorf("got %d after %d calls and %v, want %d after %d and %v", code, s.calls, took, test.status, test.calls, test.took)
				}
			})
		})
	}

	t.Run("everybody pauses, queued requests too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, rt := limited("30", 1)
			go status(t, rt, newRequest(t, "GET", shopURL+"/first", ""))
			synctest.Wait()
			began := time.Now()
			status(t, rt, newRequest(t, "GET", shopURL+"/second", ""))
			if took := time.Since(began); took < 30*time.Second {
				t.Errorf("the second went after %v, want the pause of 30 s", took)
			}
			want := []string{"/api/v1/auth/login", "/first", "/first", "/second"}
			if !slices.Equal(s.order, want) {
				t.Errorf("got order %v, want %v", s.order, want)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s.calls = 0 // the next gets a 429 again
			if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "").WithContext(ctx)); code != 429 {
				t.Errorf("got %d, want 429", code)
			}
			began = time.Now()
			_, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
			if !errors.Is(err, partnerauth.ErrRateLimited) || time.Since(began) > 0 {
				t.Errorf("got %v after %v, want ErrRateLimited at once", err, time.Since(began))
			}
		})
	})

	t.Run("a pause refuses those in the queue who cannot wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &shop{}
			hold := make(chan struct{})
			s.api = func(req *http.Request) (*http.Response, error) {
				<-hold
				resp := answer(req, 429, "")
				resp.Header.Set("Retry-After", "90")
				return resp, nil
			}
			rt := s.transport(&partnerauth.Quota{Requests: 2})
			go rt.RoundTrip(newRequest(t, "POST", shopURL+"/", ""))
			synctest.Wait()
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 80*time.Second)
				defer cancel()
				began := time.Now()
				_, err := rt.RoundTrip(newRequest(t, "GET", shopURL+"/", "").WithContext(ctx))
				if !errors.Is(err, partnerauth.ErrRateLimited) || time.Since(began) != 5*time.Second {
					t.Errorf("got %v after %v, want ErrRateLimited when the pause began", err, time.Since(began))
				}
			}()
			time.Sleep(5 * time.Second)
			close(hold)
			time.Sleep(time.Hour)
		})
	})

	t.Run("503 pauses and is returned", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &shop{}
			s.api = func(req *http.Request) (*http.Response, error) {
				resp := answer(req, 503, "")
				resp.Header.Set("Retry-After", "20")
				return resp, nil
			}
			rt := s.transport(nil)
			if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 503 || s.calls != 1 {
				t.Errorf("got %d after %d calls, want 503 after one", code, s.calls)
			}
			began := time.Now()
			status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
			if took := time.Since(began); took != 20*time.Second {
				t.Errorf("the next went after %v, want 20 s", took)
			}
		})
	})

	t.Run("429 and then 401", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, rt := limited("1", 1)
			api := s.api
			s.api = func(req *http.Request) (*http.Response, error) {
				s.revokeAll()
				return api(req)
			}
			if code := status(t, rt, newRequest(t, "PUT", shopURL+"/", "body")); code != 200 {
				t.Errorf("got %d, want 200 after one more try for each", code)
			}
		})
	})
}

// The rejected answer is drained, so that the second attempt finds its
// connection free.
func TestRejectedAnswerFreesItsConnection(t *testing.T) {
	var conns sync.Map
	var rejected atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		conns.Store(req.RemoteAddr, true)
		switch {
		case strings.HasSuffix(req.URL.Path, "/login"):
			io.WriteString(w, `{"token":"t"}`)
		case !rejected.Swap(true):
			w.WriteHeader(401)
			w.Write(bytes.Repeat([]byte("no "), 10_000))
		}
	}))
	defer server.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt := &partnerauth.Transport{Source: partnerauth.NowPost{Email: "e", Password: "p", BaseURL: server.URL}.TokenSource(), Base: base}
	if code := status(t, rt, newRequest(t, "GET", server.URL, "")); code != 200 {
		t.Errorf("got %d, want 200", code)
	}
	n := 0
	conns.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("used %d connections, want 1", n)
	}
}

// A rejected answer whose body never ends costs a second, not for ever.
func TestRejectedAnswerThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{}
		rt := s.transport(nil)
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := s.RoundTrip(req)
			if s.count(&s.calls) == 1 && s.count(&s.logins) == 1 {
				resp.StatusCode = 401
				r, _ := io.Pipe()
				resp.Body = r
			}
			return resp, err
		})
		began := time.Now()
		if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 || time.Since(began) > 2*time.Second {
			t.Errorf("got %d after %v, want 200 within two seconds", code, time.Since(began))
		}
	})
}

func TestTokenStaysAtItsOrigin(t *testing.T) {
	var leaked atomic.Value
	elsewhere := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if auth := req.Header.Get("Authorization"); auth != "" {
			leaked.Store(auth)
		}
		io.WriteString(w, "elsewhere")
	})
	other := httptest.NewServer(elsewhere)
	defer other.Close()
	plain := httptest.NewServer(elsewhere)
	defer plain.Close()

	target := ""
	home := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/api/v1/auth/login":
			io.WriteString(w, `{"token":"t"}`)
		case "/go":
			http.Redirect(w, req, target, http.StatusTemporaryRedirect)
		default:
			if req.Header.Get("Authorization") != "Bearer t" {
				t.Errorf("no token at %s", req.URL)
			}
		}
	}))
	defer home.Close()
	pool := home.Client().Transport.(*http.Transport)
	defer pool.CloseIdleConnections()
	rt := &partnerauth.Transport{Source: partnerauth.NowPost{Email: "e", Password: "p", BaseURL: home.URL}.TokenSource(), Base: pool}
	client := &http.Client{Transport: rt}

	_, port, _ := strings.Cut(strings.TrimPrefix(home.URL, "https://"), ":")
	for _, test := range []struct{ name, target string }{
		{"other port of the same host", other.URL},
		{"other host", strings.Replace(other.URL, "127.0.0.1", "localhost", 1)},
		{"https to http", plain.URL},
		{"same origin, written otherwise", "HTTPS://127.0.0.1:" + port + "/"},
	} {
		target = test.target
		resp, err := client.Get(home.URL + "/go")
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if auth := leaked.Swap(""); auth != nil && auth != "" {
			t.Errorf("%s: the token arrived: %v", test.name, auth)
		}
	}

	base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
		t.Errorf("%s was sent", req.URL)
		return nil, errShop
	})
	rt = &partnerauth.Transport{Source: (&shop{}).source(), Base: base, Origins: []string{"https://API.example.com:443/v1"}}
	body := &trackedBody{Reader: strings.NewReader("x")}
	req := newRequest(t, "POST", "http://api.example.com/v1/orders", "")
	req.Body = body
	if _, err := rt.RoundTrip(req); !errors.Is(err, partnerauth.ErrInsecureURL) || body.closed.Load() != 1 {
		t.Errorf("got %v, body closed %d times, want ErrInsecureURL and once", err, body.closed.Load())
	}
}

func TestElsewhereIsUntouched(t *testing.T) {
	s := &shop{}
	rt := s.transport(&partnerauth.Quota{Requests: 1})
	var got *http.Request
	rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
		got = req
		return answer(req, 401, ""), nil
	})
	for range 10 {
		req := newRequest(t, "GET", "https://elsewhere.example/", "")
		if code := status(t, rt, req); code != 401 || got != req {
			t.Fatalf("got %d, want the Base's own answer to the caller's own request", code)
		}
	}
	if s.logins != 0 {
		t.Errorf("got %d logins, want none", s.logins)
	}
}

type trackedBody struct {
	io.Reader
	closed atomic.Int32
}

func (b *trackedBody) Close() error {
	b.closed.Add(1)
	return nil
}

// The contract of http.RoundTripper, on every way that a request can take.
func TestRoundTripperContract(t *testing.T) {
	ok := func(req *http.Request) (*http.Response, error) { return answer(req, 200, ""), nil }
	for _, test := range []struct {
		name  string
		base  func(s *shop) http.RoundTripper
		want  int // 0: an error
		tries int // that read a body
	}{
		{"200", func(s *shop) http.RoundTripper { return s }, 200, 1},
		{"401 and 200", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if req.Header.Get("Authorization") == "Bearer token-1" {
					s.revokeAll()
				}
				return s.RoundTrip(req)
			})
		}, 200, 2},
		{"error", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if strings.HasPrefix(req.URL.Path, "/api") {
					return s.RoundTrip(req)
				}
				req.Body.Close()
				return nil, errShop
			})
		}, 0, 1},
		{"response and error", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if strings.HasPrefix(req.URL.Path, "/api") {
					return s.RoundTrip(req)
				}
				req.Body.Close()
				return answer(req, 200, ""), errShop
			})
		}, 0, 1},
		{"nil and nil", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if strings.HasPrefix(req.URL.Path, "/api") {
					return s.RoundTrip(req)
				}
				req.Body.Close()
				return nil, nil
			})
		}, 0, 1},
		{"login fails", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) { return answer(req, 401, ""), nil })
		}, 0, 1},
		{"nil body", func(s *shop) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				resp, err := s.RoundTrip(req)
				if !strings.HasPrefix(req.URL.Path, "/api") {
					resp.Body = nil
				}
				return resp, err
			})
		}, 200, 1},
	} {
		for _, method := range []string{"GET", "POST", "ODD\x01"} {
			t.Run(test.name+" "+method, func(t *testing.T) {
				s := &shop{api: ok}
				base := test.base(s)
				rt := &partnerauth.Transport{Source: s.source(), Base: base}
				if test.name == "login fails" {
					rt.Source = partnerauth.NowPost{Email: "e", Password: "p", BaseURL: shopURL, Base: base}.TokenSource()
				}
				var bodies []*trackedBody
				open := func() (io.ReadCloser, error) {
					b := &trackedBody{Reader: strings.NewReader("body")}
					bodies = append(bodies, b)
					return b, nil
				}
				req := newRequest(t, "GET", shopURL+"/", "")
				req.Method = method
				req.Header = http.Header{"Accept": {"a/b"}, "Authorization": {"mine"}, "Nil": nil}
				req.Body, _ = open()
				req.GetBody = open
				header, copied := maps.Clone(req.Header), *req
				resp, err := rt.RoundTrip(req)
				if (test.want == 0) != (err != nil) || (resp == nil) != (err != nil) {
					t.Fatalf("got %v, %v", resp, err)
				}
				if err == nil {
					if resp.StatusCode != test.want || resp.Body == nil || resp.Request != req {
						t.Errorf("got status %d, body %v, request %p, want %d and the caller's request", resp.StatusCode, resp.Body, resp.Request, test.want)
					}
					resp.Body.Close()
				}
				if !maps.EqualFunc(header, req.Header, slices.Equal) || req.Method != copied.Method || req.URL != copied.URL || req.Body != copied.Body {
					t.Errorf("the request was changed: %v", req)
				}
				if len(bodies) != test.tries {
					t.Errorf("%d bodies were opened, want %d", len(bodies), test.tries)
				}
				for i, b := range bodies {
					if b.closed.Load() != 1 {
						t.Errorf("body %d was closed %d times, want once", i, b.closed.Load())
					}
				}
			})
		}
	}

	t.Run("bad requests", func(t *testing.T) {
		s := &shop{}
		rt := s.transport(nil)
		if code := status(t, rt, &http.Request{URL: &url.URL{Scheme: "https", Host: "shop.example", Path: "/"}}); code != 200 {
			t.Errorf("nil header and no method: got %d, want 200", code)
		}
		if _, err := rt.RoundTrip(&http.Request{}); err == nil {
			t.Error("no URL: got no error")
		}
	})

	t.Run("with net/http", func(t *testing.T) {
		server := partnertest.StartNowPost(partnertest.Options{})
		defer server.Close()
		base := server.Transport()
		defer base.CloseIdleConnections()
		rt := &partnerauth.Transport{
			Source: partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: server.URL}.TokenSource(), Base: base,
		}
		defer (&http.Client{Transport: rt}).CloseIdleConnections()
		for _, fault := range []partnertest.Fault{{}, {Reset: true}, {Cut: true}, {Status: 500}, {Status: 401}} {
			server.ClearFaults()
			fault.Path = "/api/v1/orders"
			if fault.Reset || fault.Cut || fault.Status > 0 {
				server.Inject(fault)
			}
			var mu sync.Mutex
			var bodies []*trackedBody
			open := func() (io.ReadCloser, error) {
				mu.Lock()
				defer mu.Unlock()
				bodies = append(bodies, &trackedBody{Reader: strings.NewReader(orderBody("o"))})
				return bodies[len(bodies)-1], nil
			}
			req := newRequest(t, "POST", server.URL+"/api/v1/orders", "")
			req.Body, _ = open()
			req.GetBody = open
			resp, err := rt.RoundTrip(req)
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if fault.Reset != (err != nil) {
				t.Errorf("%+v: got %v", fault, err)
			}
			for i, b := range bodies {
				if b.closed.Load() != 1 {
					t.Errorf("%+v: body %d was closed %d times, want once", fault, i, b.closed.Load())
				}
			}
		}
	})
}

func TestTokenThatEndsInTheQueueIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{lifetime: 20 * time.Second}
		rt := s.transport(&partnerauth.Quota{Requests: 2})
		status(t, rt, newRequest(t, "GET", shopURL+"/", ""))
		time.Sleep(5 * time.Second)
		if code := status(t, rt, newRequest(t, "GET", shopURL+"/", "")); code != 200 || s.unauthorized != 0 {
			t.Errorf("got %d and %d rejections, want 200 and a token replaced before it was sent", code, s.unauthorized)
		}
	})
}

func TestClientForBothPartners(t *testing.T) {
	shop := partnertest.StartNowPost(partnertest.Options{TLS: true})
	defer shop.Close()
	base := shop.Transport()
	defer base.CloseIdleConnections()
	client := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: shop.URL + "/", Base: base}.Client()
	resp, err := client.Get(shop.URL + "/api/v1/orders")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("got %s over %s, want 200 over HTTP/2", resp.Status, resp.Proto)
	}

	plans := partnertest.StartNdovu(partnertest.Options{})
	defer plans.Close()
	base = &http.Transport{TLSClientConfig: &tls.Config{}}
	defer base.CloseIdleConnections()
	client = partnerauth.Ndovu{ClientID: partnertest.ClientID, ClientSecret: partnertest.ClientSecret, BaseURL: plans.URL, Base: base}.Client()
	resp, err = client.Get(plans.URL + "/api/v3/partners/acme/plans?currency=KES")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("got %s, want 200", resp.Status)
	}
}
