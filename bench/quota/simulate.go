package main

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

const (
	target   = "https://partner.example.com"
	limit    = 100 // requests in any window
	window   = time.Minute
	duration = 4 * time.Minute
	hungry   = 50 // goroutines that always have another request

	minLatency, maxLatency = 20 * time.Millisecond, 800 * time.Millisecond // each way
)

// A client is one way to stay inside the limit.
type client struct {
	name string
	ours bool
	over func(base http.RoundTripper) http.RoundTripper
}

var clients = []client{
	{"rate.Limiter, 100 a minute, burst 100", false, limiter(100, 100)},
	{"rate.Limiter, 80 a minute, burst 20", false, limiter(80, 20)},
	{"partnerauth, as it comes", true, func(base http.RoundTripper) http.RoundTripper {
		source := partnerauth.Ndovu{ClientID: "acme", ClientSecret: "secret", BaseURL: target}.TokenSource()
		return &partnerauth.Transport{Source: source, Base: base}
	}},
}

func limiter(perMinute, burst int) func(http.RoundTripper) http.RoundTripper {
	return func(base http.RoundTripper) http.RoundTripper {
		l := rate.NewLimiter(rate.Every(time.Minute/time.Duration(perMinute)), burst)
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if err := l.Wait(req.Context()); err != nil {
				return nil, err
			}
			return base.RoundTrip(req)
		})
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A server counts requests when they arrive and refuses none, so that it shows
// what another would have refused. It is as far away as chance will have it.
type server struct {
	start time.Time

	mu       sync.Mutex
	chance   *rand.Rand
	arrivals []time.Duration // since start
}

func (s *server) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	there, back := s.latency(), s.latency() // by order of sending, whoever sends
	s.mu.Unlock()
	time.Sleep(there)
	s.mu.Lock()
	s.arrivals = append(s.arrivals, time.Since(s.start))
	s.mu.Unlock()
	time.Sleep(back)
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1,
		Body:    io.NopCloser(strings.NewReader(`{"access_token":"t","token_type":"Bearer","expires_in":3600}`)),
		Request: req,
	}, nil
}

func (s *server) latency() time.Duration {
	return minLatency + time.Duration(s.chance.Int64N(int64(maxLatency-minLatency)))
}

// simulate lets the hungry loose on a server and returns when their requests
// arrived there. It is for virtual time.
func (c client) simulate() []time.Duration {
	s := &server{start: time.Now(), chance: rand.New(rand.NewPCG(1, 2))}
	way := c.over(s)
	ctx, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	var wg sync.WaitGroup
	for range hungry {
		wg.Go(func() {
			for {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, target+"/api/v3/partners/acme/plans", nil)
				if err != nil {
					panic(err)
				}
				resp, err := way.RoundTrip(req)
				if err != nil {
					return // the time is over
				}
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	slices.Sort(s.arrivals)
	return s.arrivals
}

// A caller makes ten calls at once each minute, of which the server refuses one.
const (
	lightCalls   = 10
	lightMinutes = 30
	stray        = 21 // the first call of the third minute
)

// strayAnswers answers everything within 40 ms, and one call with a bare 429.
func strayAnswers() http.RoundTripper {
	var calls atomic.Int64
	return roundTripFunc(func(req *http.Request) (*http.Response, error) {
		status := http.StatusOK
		if calls.Add(1) == stray {
			status = http.StatusTooManyRequests
		}
		time.Sleep(40 * time.Millisecond)
		return &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody, Request: req}, nil
	})
}

// longestCalls returns how long the longest call of each minute took, in seconds.
// It is for virtual time.
func longestCalls(quota *partnerauth.Quota) (seconds []float64) {
	way := &partnerauth.Transport{
		Source:  oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"}),
		Origins: []string{target}, Limiter: quota, Base: strayAnswers(),
	}
	start := time.Now()
	for minute := range lightMinutes {
		time.Sleep(time.Duration(minute)*time.Minute - time.Since(start))
		var wg sync.WaitGroup
		took := make([]float64, lightCalls)
		for i := range took {
			wg.Go(func() {
				began := time.Now()
				req, err := http.NewRequest(http.MethodGet, target+"/api/v3/partners/acme/plans", nil)
				if err != nil {
					panic(err)
				}
				resp, err := way.RoundTrip(req)
				if err != nil {
					panic(err)
				}
				resp.Body.Close()
				took[i] = time.Since(began).Seconds()
			})
		}
		wg.Wait()
		seconds = append(seconds, slices.Max(took))
	}
	return seconds
}

// What the Quota of version 0.1 made of the same calls, recorded at commit
// 149ab19: as it comes, and with Burst 10.
var (
	before = []float64{
		0.04, 0.04, 0.68, 5.66, 4.41, 3.16, 1.91, 0.66, 0.66, 0.66, 0.66, 0.66, 0.66, 0.66, 0.66,
		0.66, 0.66, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04,
	}
	beforeBurst10 = []float64{
		0.04, 0.04, 0.68, 5.66, 5.65, 5.65, 5.64, 5.64, 5.01, 5.00, 5.00, 4.99, 4.99, 4.37, 4.36,
		4.36, 4.35, 4.35, 3.73, 3.72, 3.72, 3.72, 3.71, 3.10, 3.09, 3.09, 3.09, 3.09, 2.47, 2.47,
	}
)

// A step is a time at which the server's count changed, and to what.
type step struct {
	at    time.Duration
	count int
}

// count returns how many requests arrived within the window before each moment.
func count(arrivals []time.Duration) []step {
	steps := []step{{0, 0}}
	in, out := 0, 0
	for in < len(arrivals) {
		at := arrivals[in]
		if leaves := arrivals[out] + window; out < in && leaves <= at {
			at = leaves
			out++
		} else {
			in++
		}
		if at > duration {
			break
		}
		steps = append(steps, step{at, in - out})
	}
	return append(steps, step{duration, steps[len(steps)-1].count})
}

func peak(steps []step) int {
	return slices.MaxFunc(steps, func(a, b step) int { return a.count - b.count }).count
}
