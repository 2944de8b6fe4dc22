package partnerauth_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/partnerauth/partnerauth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a response as net/http makes them.
func answer(req *http.Request, status int, body string) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

const shopURL = "https://shop.example"

// A shop is NowPost in memory, for virtual time: an http.RoundTripper that
// issues the tokens token-1, token-2 and so on.
type shop struct {
	lifetime time.Duration
	login    func(n int, req *http.Request) *http.Response // nil, or returning nil: a token
	refresh  func(n int, req *http.Request) *http.Response
	api      func(req *http.Request) (*http.Response, error) // for requests with a good token; nil: 200

	mu                       sync.Mutex
	tokens                   map[string]time.Time // and when they end
	logins, refreshes, calls int
	unauthorized             int
	order                    []string        // of the paths asked for
	times                    []time.Duration // when they were, since the first
	began                    time.Time
	held                     time.Time // until then the client has a good token
}

func (s *shop) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := s.serve(req)
	if resp != nil && resp.Header.Get("X-Ends") != "" {
		s.mu.Lock()
		s.held, _ = time.Parse(time.RFC3339Nano, resp.Header.Get("X-Ends"))
		s.mu.Unlock()
	}
	return resp, err
}

func (s *shop) serve(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	if s.began.IsZero() {
		s.began = time.Now()
	}
	s.order = append(s.order, req.URL.Path)
	s.times = append(s.times, time.Since(s.began))
	s.mu.Unlock()
	switch req.URL.Path {
	case "/api/v1/auth/login":
		s.mu.Lock()
		s.logins++
		n := s.logins
		s.mu.Unlock()
		if s.login != nil {
			if resp := s.login(n, req); resp != nil {
				return resp, nil
			}
		}
	case "/api/v1/auth/refresh":
		s.mu.Lock()
		s.refreshes++
		n := s.refreshes
		s.mu.Unlock()
		if !s.accepts(req) {
			return answer(req, 401, `{"success":false}`), nil
		}
		if s.refresh != nil {
			if resp := s.refresh(n, req); resp != nil {
				return resp, nil
			}
		}
	default:
		if !s.accepts(req) {
			s.mu.Lock()
			s.unauthorized++
			s.mu.Unlock()
			return answer(req, 401, "who are you?"), nil
		}
		s.mu.Lock()
		s.calls++
		s.mu.Unlock()
		if s.api != nil {
			return s.api(req)
		}
		return answer(req, 200, "ok"), nil
	}
	return s.issue(req), nil
}

// issue makes a token and the answer that brings it.
func (s *shop) issue(req *http.Request) *http.Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = map[string]time.Time{}
	}
	lifetime := s.lifetime
	if lifetime == 0 {
		lifetime = 24 * time.Hour
	}
	token := fmt.Sprintf("token-%d", len(s.tokens)+1)
	ends := time.Now().Add(lifetime)
	s.tokens[token] = ends
	resp := answer(req, 200, fmt.Sprintf(`{"success":true,"data":{"token":%q,"expiresAt":%q}}`, token, ends.UTC().Format(time.RFC3339Nano)))
	resp.Header.Set("X-Ends", ends.Format(time.RFC3339Nano))
	resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return resp
}

func (s *shop) accepts(req *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends, ok := s.tokens[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
	return ok && time.Now().Before(ends)
}

func (s *shop) revokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token := range s.tokens {
		s.tokens[token] = time.Time{}
	}
}

func (s *shop) count(what *int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *what
}

func (s *shop) source() *partnerauth.Source {
	return partnerauth.NowPost{Email: "e@example.com", Password: "p", BaseURL: shopURL, Base: s}.TokenSource()
}

// transport has a quota that nothing here reaches, unless limiter is given.
func (s *shop) transport(limiter partnerauth.Limiter) *partnerauth.Transport {
	if limiter == nil {
		limiter = &partnerauth.Quota{Requests: 1_000_000}
	}
	return &partnerauth.Transport{Source: s.source(), Base: s, Limiter: limiter}
}

func newRequest(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// status sends req, drains the answer and returns its status.
func status(t testing.TB, rt http.RoundTripper, req *http.Request) int {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}
