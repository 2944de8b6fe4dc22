package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

var stressTime = flag.Duration("stress", 100*time.Millisecond, "how long each part of TestStress goes on")

// A turmoil is a partner, a Store and a Limiter where everything happens at random, in
// real time: answers, latency, revocations, and code that panics or ends its goroutine.
type turmoil struct {
	wild    bool        // code panics and ends goroutines
	calm    atomic.Bool // all is well from now on
	revoked atomic.Int64
	issued  atomic.Int64
	open    atomic.Int64 // bodies of answers
	permits atomic.Int64 // not yet settled or returned
	twice   atomic.Int64 // permits that ended twice

	mu     sync.Mutex
	record []byte
	until  time.Time
	locked bool
}

// chance is true in one of n times, while all is not well.
func (s *turmoil) chance(n int) bool { return !s.calm.Load() && rand.IntN(n) == 0 }

func (s *turmoil) stumble() {
	switch {
	case !s.wild:
	case s.chance(150):
		panic("stumbled")
	case s.chance(150):
		runtime.Goexit()
	}
}

// rest takes up to most.
func (s *turmoil) rest(ctx context.Context, most time.Duration) error {
	s.stumble()
	return rest(ctx, 1+rand.N(most))
}

var (
	errStress = errors.New("at random")
	tooMany   = http.Header{"Retry-After": {"0"}}
)

func (s *turmoil) RoundTrip(req *http.Request) (*http.Response, error) {
	if body := req.Body; body != nil {
		if s.chance(3) { // it is read after the answer, as net/http may do
			go func() {
				defer body.Close()
				io.Copy(io.Discard, body)
			}()
		} else {
			defer body.Close()
			io.Copy(io.Discard, body)
		}
	}
	if err := s.rest(req.Context(), 3*time.Millisecond); err != nil {
		return nil, err
	}
	var number int64
	fmt.Sscanf(req.Header.Get("Authorization"), "Bearer t%d", &number)
	signIn := kind(req.URL.Path) != apiPath
	status, header, text := 200, http.Header{}, ""
	switch {
	case s.chance(50):
		return nil, errDial
	case s.chance(50):
		return nil, errNetwork
	case s.chance(50):
		status = 500 + rand.IntN(4)
	case s.chance(50):
		status, header = 429, tooMany.Clone()
	case s.chance(80):
		status = 503
		header.Set("RateLimit", `"x"; r=0; t=0`)
	case signIn && s.chance(1000): // which holds all back for a second
		status = 401
	case signIn:
		text = s.answer()
	case number <= s.revoked.Load():
		status = 401
	}
	s.open.Add(1)
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header, Request: req,
		Body: &turmoilBody{Reader: strings.NewReader(text), open: &s.open},
	}, nil
}

// answer issues a token that lives for up to two seconds.
func (s *turmoil) answer() string {
	ends := time.Now().Add(rand.N(2 * time.Second))
	if s.calm.Load() {
		ends = time.Now().Add(time.Hour)
	}
	return fmt.Sprintf(`{"success":true,"data":{"token":"t%d","expiresAt":%q}}`, s.issued.Add(1), ends.UTC().Format(time.RFC3339Nano))
}

// A turmoilBody is the body of an answer, open until it is closed.
type turmoilBody struct {
	io.Reader
	open *atomic.Int64
	once sync.Once
}

func (b *turmoilBody) Close() error {
	b.once.Do(func() { b.open.Add(-1) })
	return nil
}

// Load, TryLock, Save and Unlock make it a Store with one record and its Lock.
func (s *turmoil) Load(ctx context.Context, _ string) ([]byte, time.Duration, error) {
	if err := s.rest(ctx, time.Millisecond); err != nil || s.chance(20) {
		return nil, 0, errStress
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := time.Until(s.until); left > 0 {
		return s.record, left, nil
	}
	return nil, 0, nil
}

func (s *turmoil) TryLock(ctx context.Context, _ string) (partnerauth.Lock, error) {
	if err := s.rest(ctx, time.Millisecond); err != nil || s.chance(20) {
		return nil, errStress
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked {
		return nil, nil
	}
	s.locked = true
	time.AfterFunc(time.Second, func() { s.Unlock(context.Background()) }) // as a Store does for a process that has died
	return s, nil
}

func (s *turmoil) Save(_ context.Context, record []byte, good time.Duration) error {
	s.stumble()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record, s.until = record, time.Now().Add(good)
	return nil
}

func (s *turmoil) Unlock(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locked = false
	return nil
}

// A turmoilLimiter is a PermitLimiter.
type turmoilLimiter struct{ *turmoil }

func (l turmoilLimiter) Wait(ctx context.Context) error { return l.rest(ctx, 2*time.Millisecond) }

func (l turmoilLimiter) Permit(ctx context.Context, _ int) (partnerauth.Permit, error) {
	switch err := l.Wait(ctx); {
	case err != nil:
		return nil, err
	case l.chance(50):
		return nil, errStress
	}
	l.permits.Add(1)
	return &turmoilPermit{turmoil: l.turmoil}, nil
}

func (l turmoilLimiter) Estimate(n int) time.Duration { return time.Duration(n) * time.Millisecond }
func (l turmoilLimiter) Period() time.Duration        { return 100 * time.Millisecond }

type turmoilPermit struct {
	*turmoil
	over atomic.Bool
}

func (p *turmoilPermit) end() {
	if p.over.Swap(true) {
		p.twice.Add(1)
		return
	}
	p.permits.Add(-1)
}

func (p *turmoilPermit) Settle(int, time.Duration) { p.end() }
func (p *turmoilPermit) Return()                   { p.end() }

// TestStress lets many callers of several Transports that share a Source and a Limiter
// loose on a turmoil, for the race detector and for deadlocks: every call ends, nothing
// stays open, and afterwards all is as if nothing had been.
//
//	go test -race -run Stress . -args -stress 2m
func TestStress(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, limiter := range []string{"Quota", "rate", "func", "permits"} {
		for _, kind := range []string{"Source", "Store", "custom"} {
			for _, wild := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/wild=%t", limiter, kind, wild), func(t *testing.T) { stress(t, limiter, kind, wild) })
			}
		}
	}
}

func stress(t *testing.T, limiter, kind string, wild bool) {
	s := &turmoil{wild: wild}
	limit := map[string]partnerauth.Limiter{
		"Quota": &partnerauth.Quota{Requests: 50, Window: 40 * time.Millisecond}, "rate": rate.NewLimiter(1000, 20),
		"func": limiterFunc(func(ctx context.Context) error { return s.rest(ctx, 2*time.Millisecond) }), "permits": turmoilLimiter{s},
	}[limiter]
	provider := partnerauth.NowPost{Email: "e@example.com", Password: "secret", BaseURL: origin, Base: s}
	if kind == "Store" {
		provider.Store = s
	}
	source := provider.TokenSource()
	var tokens oauth2.TokenSource = source
	if kind == "custom" {
		tokens = turmoilSource{s, source}
	}
	var transports [3]*partnerauth.Transport
	for i := range transports {
		transports[i] = &partnerauth.Transport{Source: tokens, Base: s, Limiter: limit, Origins: []string{origin}}
	}
	before := runtime.NumGoroutine()
	end := time.Now().Add(*stressTime)
	var callers sync.WaitGroup
	var ended atomic.Int64
	for i := range 60 {
		callers.Go(func() {
			for time.Now().Before(end) {
				done := make(chan struct{})
				go func() { // which may panic, or be ended
					defer close(done)
					defer func() { recover() }()
					s.act(transports[i%len(transports)], source, limit)
				}()
				<-done
				ended.Add(1)
			}
		})
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		callers.Wait()
	}()
	select {
	case <-all:
	case <-time.After(*stressTime + 2*time.Minute):
		stacks := make([]byte, 1<<20)
		t.Fatalf("not all calls have ended\n%s", stacks[:runtime.Stack(stacks, true)])
	}
	s.calm.Store(true)
	s.settled(t, transports[:], before)
	t.Logf("%d calls, %d tokens", ended.Load(), s.issued.Load())
}

// A turmoilSource is a source of a user's own around a Source.
type turmoilSource struct {
	*turmoil
	source *partnerauth.Source
}

func (s turmoilSource) Token() (*oauth2.Token, error) { return s.TokenContext(context.Background()) }

func (s turmoilSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	s.stumble()
	return s.source.TokenContext(ctx)
}

func (s turmoilSource) Invalidate(t *oauth2.Token) {
	s.stumble()
	s.source.Invalidate(t)
}

// act does one thing at random.
func (s *turmoil) act(transport *partnerauth.Transport, source *partnerauth.Source, limit partnerauth.Limiter) {
	ctx := context.Background()
	switch rand.IntN(4) {
	case 0:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, rand.N(20*time.Millisecond))
		defer cancel()
	case 1:
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer time.AfterFunc(rand.N(20*time.Millisecond), cancel).Stop()
		defer cancel()
	}
	if s.chance(5) {
		ctx = partnerauth.WithLowPriority(ctx)
	}
	switch n := rand.IntN(100); {
	case n < 2:
		s.revoked.Store(s.issued.Load())
	case n < 3:
		if token, err := source.TokenContext(ctx); err == nil {
			source.Invalidate(token)
		}
	case n < 5:
		transport.SignIn(ctx)
	case n < 8:
		if quota, ok := limit.(*partnerauth.Quota); ok {
			quota.Wait(ctx)
		}
	default:
		s.call(ctx, transport)
	}
}

func (s *turmoil) call(ctx context.Context, transport *partnerauth.Transport) (int, error) {
	var body io.Reader
	if s.chance(2) {
		body = strings.NewReader("body")
	}
	req, err := http.NewRequestWithContext(ctx, "POST", origin+"/orders", body)
	if err != nil {
		return 0, err
	}
	if body != nil && s.chance(2) {
		req.Body = io.NopCloser(strings.NewReader("file"))
		req.GetBody = func() (io.ReadCloser, error) {
			s.stumble()
			return io.NopCloser(strings.NewReader("file")), nil
		}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, nil
}

// settled checks that all works when all is well, and that nothing is left.
func (s *turmoil) settled(t *testing.T, transports []*partnerauth.Transport, before int) {
	t.Helper()
	// Refusals and failures hold sign-ins back for a while, and 401s are rationed.
	works := func() bool {
		for _, transport := range transports {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			status, err := s.call(ctx, transport)
			cancel()
			if err != nil || status != 200 {
				return false
			}
		}
		return true
	}
	if !soon(3*time.Minute, works) {
		status, err := s.call(context.Background(), transports[0])
		t.Errorf("when all is well: got %d, %v", status, err)
	}
	left := func() bool { return s.open.Load() == 0 && s.permits.Load() == 0 && runtime.NumGoroutine() <= before }
	if !soon(40*time.Second, left) {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d answers are open, %d permits not ended, %d goroutines, %d before\n%s",
			s.open.Load(), s.permits.Load(), runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
	}
	if n := s.twice.Load(); n > 0 {
		t.Errorf("%d permits ended twice", n)
	}
}

// soon waits for a condition.
func soon(patience time.Duration, is func() bool) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return true
		}
	}
	return is()
}
