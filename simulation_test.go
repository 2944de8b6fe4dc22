package partnerauth_test

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

// A policy is how a server counts: whether a request that arrives at a time
// since its start is inside 100 a minute.
type policy func(at time.Duration) bool

const minute = time.Minute

// alignedWindow counts in windows of the server's clock.
func alignedWindow() policy {
	var window time.Duration
	count := 0
	return func(at time.Duration) bool {
		if w := at / minute; w != window {
			window, count = w, 0
		}
		count++
		return count <= 100
	}
}

// openedWindow counts in windows that the first request opens, as
// express-rate-limit does.
func openedWindow() policy {
	var opened time.Duration
	count := 0
	return func(at time.Duration) bool {
		if count == 0 || at-opened >= minute {
			opened, count = at, 0
		}
		count++
		return count <= 100
	}
}

// slidingLog counts what came in the last minute.
func slidingLog() policy {
	var log []time.Duration
	return func(at time.Duration) bool {
		for len(log) > 0 && log[0] <= at-minute {
			log = log[1:]
		}
		if len(log) >= 100 {
			return false
		}
		log = append(log, at)
		return true
	}
}

// tokenBucket refills 100 a minute and holds 100.
func tokenBucket() policy {
	limiter := rate.NewLimiter(100./60, 100)
	return func(at time.Duration) bool { return limiter.AllowN(time.Unix(0, 0).Add(at), 1) }
}

// leakyBucket leaks 100 a minute and holds 20 more, as nginx limit_req does.
func leakyBucket() policy {
	var full float64
	var last time.Duration
	return func(at time.Duration) bool {
		excess := max(0, full-(at-last).Minutes()*100) + 1
		if excess > 21 {
			return false
		}
		full, last = excess, at
		return true
	}
}

// slidingCounter weighs the count of the window before.
func slidingCounter() policy {
	counts := map[int]float64{}
	return func(at time.Duration) bool {
		whole, part := math.Modf(at.Minutes())
		w := int(whole)
		if counts[w-1]*(1-part)+counts[w]+1 > 100 {
			return false
		}
		counts[w]++
		return true
	}
}

// wholeSeconds is a sliding log on a clock that has no fractions, and that keeps
// what came exactly a minute ago.
func wholeSeconds() policy {
	counts := map[time.Duration]int{} // by second
	return func(at time.Duration) bool {
		n, now := 0, at.Truncate(time.Second)
		for second := now - minute; second <= now; second += time.Second {
			n += counts[second]
		}
		if n >= 100 {
			return false
		}
		counts[now]++
		return true
	}
}

// slow is p by a clock that loses 100 µs a second.
func slow(p policy) policy { return func(at time.Duration) bool { return p(at - at/10_000) } }

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
	ok := s.policy(now)
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

// simulate lets 50 callers call without a pause for a time.
func simulate(t *testing.T, p policy, seed uint64, slow bool, length time.Duration) (r simResult) {
	synctest.Test(t, func(t *testing.T) {
		r.simServer = &simServer{policy: p, start: time.Now(), random: rand.New(rand.NewPCG(seed, 1)), slow: slow}
		rt := (&partner{script: r.simServer.answer}).custom(static("t"), nil)
		var mu sync.Mutex
		atOnce(50, func(int) {
			for time.Since(r.start) < length {
				began := time.Now()
				code := get(t, rt, "/")
				mu.Lock()
				r.longest = max(r.longest, time.Since(began))
				if code == 429 {
					r.callers429++
				}
				mu.Unlock()
			}
		}).Wait()
	})
	return r
}

var policies = []struct {
	name   string
	make   func() policy
	learns bool // it is stricter than a count
}{
	{"aligned window", alignedWindow, false},
	{"opened window", openedWindow, false},
	{"sliding log", slidingLog, false},
	{"token bucket", tokenBucket, false},
	{"leaky bucket, burst 20", leakyBucket, true},
	{"sliding counter", slidingCounter, true},
	{"sliding log, clock 100 ppm slow", func() policy { return slow(slidingLog()) }, false},
	{"opened window, clock 100 ppm slow", func() policy { return slow(openedWindow()) }, false},
	{"sliding log of whole seconds", wholeSeconds, false},
}

func TestSimulation(t *testing.T) {
	for _, p := range policies {
		for seed := range uint64(6) {
			r := simulate(t, p.make(), seed, seed%2 == 1, 10*minute)
			served, last := r.perMinute(0, 10*minute), r.perMinute(5*minute, 10*minute)
			t.Logf("%-34s served %5.1f, last 5 %5.1f, %3d refused, %2d of them late, longest %s", p.name, served, last, len(r.refused), len(r.late), r.longest.Round(time.Second))
			errorIf(t, r.callers429 > 0, "%s: %d callers got a 429, want none", p.name, r.callers429)
			if !p.learns {
				errorIf(t, served < 97 || len(r.refused) > 0, "%s: served %.1f a minute and %d refused, want 97 at least and none", p.name, served, len(r.refused))
				continue
			}
			n := within(r.late, 0, 3*minute)
			errorIf(t, n > 10, "%s: %d refused in the first 3 minutes after the first 429 came back, want 10 at most", p.name, n)
			for m := 3 * minute; m < 10*minute; m += minute {
				n := within(r.late, m, m+minute)
				errorIf(t, n > 2, "%s: %d refused in a minute, want 2 at most", p.name, n)
			}
			errorIf(t, last < 85, "%s: served %.1f a minute in the last five, want 85 at least", p.name, last)
		}
	}
}

func TestStrayRefusal(t *testing.T) {
	for seed := range uint64(3) {
		done, window := false, openedWindow()
		r := simulate(t, func(at time.Duration) bool {
			if !done && at >= 90*time.Second {
				done = true
				return false
			}
			return window(at)
		}, seed, true, 75*minute)
		back := r.first + unnamed
		errorIf(t, r.callers429 > 0 || len(r.refused) != 1, "got %d refusals, %d of them by callers, want 1 and 0", len(r.refused), r.callers429)
		soon, later := r.perMinute(back, back+5*minute), r.perMinute(back+45*minute, back+60*minute)
		errorIf(t, soon < 85 || later < 95, "served %.1f a minute right after and %.1f at the end of the hour, want 85 and 95", soon, later)
	}
}
