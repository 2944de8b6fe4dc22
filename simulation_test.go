package partnerauth_test

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// A policy is how a server counts: allow reports whether a request that arrives
// at a time since its start is inside 100 a minute.
type policy interface{ allow(at time.Duration) bool }

const minute = time.Minute

// alignedWindow counts in windows of the server's clock.
type alignedWindow struct{ window, count int }

func (p *alignedWindow) allow(at time.Duration) bool {
	if w := int(at / minute); w != p.window {
		p.window, p.count = w, 0
	}
	p.count++
	return p.count <= 100
}

// openedWindow counts in windows that the first request opens, as
// express-rate-limit does.
type openedWindow struct {
	opened time.Duration
	count  int
}

func (p *openedWindow) allow(at time.Duration) bool {
	if p.count == 0 || at-p.opened >= minute {
		p.opened, p.count = at, 0
	}
	p.count++
	return p.count <= 100
}

// slidingLog counts what came in the last minute.
type slidingLog struct{ log []time.Duration }

func (p *slidingLog) allow(at time.Duration) bool {
	for len(p.log) > 0 && p.log[0] <= at-minute {
		p.log = p.log[1:]
	}
	if len(p.log) >= 100 {
		return false
	}
	p.log = append(p.log, at)
	return true
}

// tokenBucket refills 100 a minute and holds 100.
type tokenBucket struct{ limiter *rate.Limiter }

func (p *tokenBucket) allow(at time.Duration) bool {
	return p.limiter.AllowN(time.Unix(0, 0).Add(at), 1)
}

// leakyBucket leaks 100 a minute and holds 20 more, as nginx limit_req does.
type leakyBucket struct {
	excess float64
	last   time.Duration
}

func (p *leakyBucket) allow(at time.Duration) bool {
	excess := max(0, p.excess-(at-p.last).Minutes()*100) + 1
	if excess > 21 {
		return false
	}
	p.excess, p.last = excess, at
	return true
}

// slidingCounter weighs the count of the window before.
type slidingCounter struct {
	window       int
	before, this float64
}

func (p *slidingCounter) allow(at time.Duration) bool {
	switch w := int(at / minute); {
	case w == p.window+1:
		p.window, p.before, p.this = w, p.this, 0
	case w > p.window:
		p.window, p.before, p.this = w, 0, 0
	}
	_, part := math.Modf(at.Minutes())
	if p.before*(1-part)+p.this+1 > 100 {
		return false
	}
	p.this++
	return true
}

// wholeSeconds is a sliding log on a clock that has no fractions, and that keeps
// what came exactly a minute ago.
type wholeSeconds struct{ slidingLog }

func (p *wholeSeconds) allow(at time.Duration) bool {
	at = at.Truncate(time.Second)
	for len(p.log) > 0 && p.log[0] < at-minute {
		p.log = p.log[1:]
	}
	if len(p.log) >= 100 {
		return false
	}
	p.log = append(p.log, at)
	return true
}

// slowClock is a policy whose clock loses 100 µs a second.
type slowClock struct{ policy }

func (p slowClock) allow(at time.Duration) bool {
	return p.policy.allow(at - at/10_000)
}

// strayRefusal refuses one request for no reason.
type strayRefusal struct {
	policy
	at   time.Duration
	done bool
}

func (p *strayRefusal) allow(at time.Duration) bool {
	if !p.done && at >= p.at {
		p.done = true
		return false
	}
	return p.policy.allow(at)
}

// A simServer is a partner with a policy and a latency each way.
type simServer struct {
	mu     sync.Mutex
	policy policy
	start  time.Time
	random *rand.Rand
	slow   bool

	served  []time.Duration // when
	refused []time.Duration // when sent
	first   time.Duration   // when the first 429 had come back; 0: none yet
	late    []time.Duration // refused of those sent after that
}

// latency is that of one way, and passes.
func (s *simServer) latency() {
	if s.slow {
		s.mu.Lock()
		d := 20*time.Millisecond + time.Duration(s.random.Int64N(int64(780*time.Millisecond)))
		s.mu.Unlock()
		time.Sleep(d)
	}
}

func (s *simServer) answer(asked) reply {
	sent := time.Since(s.start)
	s.latency()
	s.mu.Lock()
	now := time.Since(s.start)
	ok := s.policy.allow(now)
	if ok {
		s.served = append(s.served, now)
	} else {
		s.refused = append(s.refused, sent)
		if s.first > 0 && sent > s.first {
			s.late = append(s.late, sent)
		}
	}
	s.mu.Unlock()
	s.latency()
	if ok {
		return reply{status: 200}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == 0 {
		s.first = time.Since(s.start)
	}
	return reply{status: 429}
}

// within is how many of times are between two.
func within(times []time.Duration, from, to time.Duration) (n int) {
	for _, at := range times {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

// perMinute is how many requests were served a minute between two times.
func (s *simServer) perMinute(from, to time.Duration) float64 {
	return float64(within(s.served, from, to)) / (to - from).Minutes()
}

type simResult struct {
	*simServer
	callers429 int
	longest    time.Duration // that a caller waited for an answer
}

// simulate lets callers call without a pause for a time.
func simulate(t *testing.T, p policy, seed uint64, slow bool, limiter partnerauth.Limiter, callers int, length time.Duration) simResult {
	var r simResult
	synctest.Test(t, func(t *testing.T) {
		s := &simServer{policy: p, start: time.Now(), random: rand.New(rand.NewPCG(seed, 1)), slow: slow}
		r.simServer = s
		rt := (&partner{script: s.answer}).custom(static("t"), limiter)
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for ctx.Err() == nil {
					began := time.Now()
					// not under ctx's deadline, or the last minute would be refusals
					code := get(t, rt, "/")
					mu.Lock()
					r.longest = max(r.longest, time.Since(began))
					if code == 429 {
						r.callers429++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	})
	return r
}

var policies = []struct {
	name string
	make func() policy
}{
	{"a  aligned window", func() policy { return &alignedWindow{} }},
	{"a' opened window", func() policy { return &openedWindow{} }},
	{"b  sliding log", func() policy { return &slidingLog{} }},
	{"c  token bucket", func() policy { return &tokenBucket{rate.NewLimiter(100./60, 100)} }},
	{"d  leaky bucket, burst 20", func() policy { return &leakyBucket{} }},
	{"e  sliding counter", func() policy { return &slidingCounter{} }},
	{"b, clock 100 ppm slow", func() policy { return slowClock{&slidingLog{}} }},
	{"a', clock 100 ppm slow", func() policy { return slowClock{&openedWindow{}} }},
	{"b, whole seconds", func() policy { return &wholeSeconds{} }},
}

func TestSimulation(t *testing.T) {
	t.Logf("%-26s %-8s %6s %6s %6s %6s %8s", "server", "latency", "served", "last 5", "429s", "late", "longest")
	for _, p := range policies {
		for _, slow := range []bool{false, true} {
			for seed := range uint64(3) {
				r := simulate(t, p.make(), seed, slow, nil, 50, 10*minute)
				latency := "0"
				if slow {
					latency = "20-800ms"
				}
				t.Logf("%-26s %-8s %6.1f %6.1f %6d %6d %8s", p.name, latency, r.perMinute(0, 10*minute),
					r.perMinute(5*minute, 10*minute), len(r.refused), len(r.late), r.longest.Round(time.Second))
				learns := p.name[0] == 'd' || p.name[0] == 'e'
				if r.callers429 > 0 {
					t.Errorf("%s: %d callers got a 429, want none", p.name, r.callers429)
				}
				if served := r.perMinute(0, 10*minute); !learns && served < 97 {
					t.Errorf("%s: served %.1f a minute, want 97 at least", p.name, served)
				}
				if !learns && len(r.refused) > 0 {
					t.Errorf("%s: %d requests refused, want none", p.name, len(r.refused))
				}
				if learns {
					if n := within(r.late, 0, 3*minute); n > 10 {
						t.Errorf("%s: %d refused in the first 3 minutes after the first 429 came back, want 10 at most", p.name, n)
					}
					for m := 3 * minute; m < 10*minute; m += minute {
						if n := within(r.late, m, m+minute); n > 2 {
							t.Errorf("%s: %d refused in a minute, want 2 at most", p.name, n)
						}
					}
					if served := r.perMinute(5*minute, 10*minute); served < 85 {
						t.Errorf("%s: served %.1f a minute in the last five, want 85 at least", p.name, served)
					}
				}
			}
		}
	}
}

func TestStrayRefusal(t *testing.T) {
	for seed := range uint64(3) {
		p := &strayRefusal{policy: &openedWindow{}, at: 90 * time.Second}
		r := simulate(t, p, seed, true, nil, 50, 75*minute)
		back := r.first + minute // the pause of a 429 that names no time is a window
		t.Logf("right after %.1f, within the hour %.1f", r.perMinute(back, back+5*minute), r.perMinute(back+45*minute, back+minute*60))
		if r.callers429 > 0 || len(r.refused) != 1 {
			t.Errorf("got %d refusals, %d of them by callers, want 1 and 0", len(r.refused), r.callers429)
		}
		if served := r.perMinute(back, back+5*minute); served < 85 {
			t.Errorf("served %.1f a minute right after, want 85", served)
		}
		if served := r.perMinute(back+45*minute, back+60*minute); served < 95 {
			t.Errorf("served %.1f a minute at the end of the hour, want 95", served)
		}
	}
}
