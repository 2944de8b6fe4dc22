package partnerauth_test

import (
	"cmp"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
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

// An nginx is limit_req as nginx computes it: milliseconds, thousandths of a
// request, and what it refuses is not counted.
type nginx struct {
	burst  int64
	excess int64
	last   time.Duration
	known  bool
}

func (n *nginx) allow(at time.Duration) bool {
	at = at.Truncate(time.Millisecond)
	excess := int64(0)
	if n.known {
		excess = max(0, n.excess-100*1000/60*(at-n.last).Milliseconds()/1000+1000)
	}
	if excess > n.burst*1000 {
		return false
	}
	n.excess, n.last, n.known = excess, at, true
	return true
}

// delay is how long nginx holds back what it has just let in, without nodelay.
func (n *nginx) delay() time.Duration { return time.Duration(n.excess) * time.Minute / 100_000 }

// haproxy counts in its stick table, that is the requests that it refuses, too,
// and weighs the count of the period before.
func haproxy() policy {
	var period time.Duration
	var now, before float64
	return func(at time.Duration) bool {
		switch p := at / minute; {
		case p > period+1:
			before, now, period = 0, 0, p
		case p > period:
			before, now, period = now, 0, p
		}
		now++
		return now+before*(1-(at%minute).Minutes()) <= 100
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
	status int                  // of a refusal; 0: 429
	delay  func() time.Duration // before the answer to what was let in; nil: none
	jitter time.Duration        // each way

	served  []time.Duration // when
	refused []time.Duration // when sent
	first   time.Duration   // when the first 429 had come back; 0: none yet
	late    []time.Duration // refused of those sent after that
}

// latency is that of one way, and passes.
func (s *simServer) latency() {
	if s.jitter > 0 {
		s.mu.Lock()
		d := time.Duration(s.random.Int64N(int64(s.jitter)))
		s.mu.Unlock()
		time.Sleep(d)
	}
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
	var held time.Duration
	if ok && s.delay != nil {
		held = s.delay()
	}
	if ok {
		s.served = append(s.served, now)
	} else {
		s.refused = append(s.refused, sent)
		if s.first > 0 && sent > s.first {
			s.late = append(s.late, sent)
		}
	}
	s.mu.Unlock()
	time.Sleep(held)
	s.latency()
	if ok {
		return reply{status: 200}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == 0 {
		s.first = time.Since(s.start)
	}
	return reply{status: cmp.Or(s.status, 429)}
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
	returned []time.Duration // when callers got a refusal
	longest  time.Duration   // that a caller waited for an answer
}

// simulate lets 50 callers call without a pause for a time.
func simulate(t *testing.T, p policy, seed uint64, slow bool, length time.Duration) (r simResult) {
	return simulateAt(t, &simServer{policy: p, slow: slow}, 50, seed, length)
}

// simulateAt does it with so many callers at that server.
func simulateAt(t *testing.T, s *simServer, callers int, seed uint64, length time.Duration) (r simResult) {
	synctest.Test(t, func(t *testing.T) {
		r.simServer = s
		s.start, s.random = time.Now(), rand.New(rand.NewPCG(seed, 1))
		rt := (&partner{script: r.simServer.answer}).custom(static("t"), nil)
		var mu sync.Mutex
		atOnce(callers, func(int) {
			for time.Since(r.start) < length {
				began := time.Now()
				code := get(t, rt, "/")
				mu.Lock()
				r.longest = max(r.longest, time.Since(began))
				if code != 200 {
					r.returned = append(r.returned, time.Since(r.start))
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
			errorIf(t, len(r.returned) > 0, "%s: %d callers got a 429, want none", p.name, len(r.returned))
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
		errorIf(t, len(r.returned) > 0 || len(r.refused) != 1, "got %d refusals, %d of them by callers, want 1 and 0", len(r.refused), len(r.returned))
		soon, later := r.perMinute(back, back+5*minute), r.perMinute(back+45*minute, back+60*minute)
		errorIf(t, soon < 85 || later < 95, "served %.1f a minute right after and %.1f at the end of the hour, want 85 and 95", soon, later)
		// 97 a minute is what it bears without it
		hour := r.perMinute(90*time.Second, 90*time.Second+60*minute)
		errorIf(t, hour < 0.95*97, "served %.1f a minute in the hour after it, want 95 %% of 97 at least", hour)
	}
}

var simulatedHours = flag.Float64("hours", 1, "how long TestLongRun simulates")

// In the long run: no 429 that could be avoided, and hardly less than the limit.
func TestLongRun(t *testing.T) {
	length := time.Duration(*simulatedHours * float64(time.Hour))
	for i, p := range []func() policy{alignedWindow, openedWindow, slidingLog} {
		for _, slow := range []bool{false, true} {
			r := simulateAt(t, &simServer{policy: p(), slow: slow}, 12, uint64(i), length)
			served := r.perMinute(0, length)
			t.Logf("policy %d, slow %t: %.1f a minute, %d refused", i, slow, served, len(r.refused))
			errorIf(t, served < 97 || len(r.refused) > 0, "policy %d, slow %t: %.1f a minute and %d refused, want 97 at least and none", i, slow, served, len(r.refused))
		}
	}
}

// Gateways that are stricter than a count, as they are set up by default.
func TestStrictServers(t *testing.T) {
	limitReq := func(burst int64, status int, delayed bool) func() *simServer {
		return func() *simServer {
			n := &nginx{burst: burst}
			s := &simServer{policy: n.allow, status: status, jitter: 100 * time.Millisecond}
			if delayed {
				s.delay = n.delay
			}
			return s
		}
	}
	const callers, length, any = 40, 12 * minute, math.MaxInt
	for _, c := range []struct {
		name       string
		make       func() *simServer
		from       time.Duration // when it has been learnt
		least      float64       // served a minute from then on
		all, later int           // refused at most in all, and from then on
		returned   int           // to callers from then on
	}{
		{"nginx burst=20 nodelay, 429", limitReq(20, 429, false), 2 * minute, 85, 40, 40, 0},
		{"nginx burst=20 nodelay, 503", limitReq(20, 503, false), 2 * minute, 85, 40, 40, 40},
		{"nginx burst=20, 429", limitReq(20, 429, true), 2 * minute, 85, 40, 40, 0},
		{"nginx burst=20, 503", limitReq(20, 503, true), 2 * minute, 85, 40, 40, 40},
		{"nginx, 429", limitReq(0, 429, false), 2 * minute, 55, any, 30, 0},
		{"haproxy, 429", func() *simServer { return &simServer{policy: haproxy(), jitter: 100 * time.Millisecond} }, 2 * minute, 95, any, 20, 0},
		{"httprate, 429", func() *simServer { return &simServer{policy: slidingCounter(), jitter: 100 * time.Millisecond} }, 2 * minute, 95, any, 20, 0},
	} {
		for seed := range uint64(3) {
			r := simulateAt(t, c.make(), callers, seed, length)
			served, later, returned := r.perMinute(c.from, length), within(r.refused, c.from, length), within(r.returned, c.from, length)
			t.Logf("%-28s %5.1f a minute, %3d refused, %2d of them later, %d returned", c.name, served, len(r.refused), later, returned)
			errorIf(t, served < c.least, "%s: served %.1f a minute, want %v at least", c.name, served, c.least)
			errorIf(t, len(r.refused) > c.all || later > c.later || returned > c.returned,
				"%s: %d refused, %d of them after %v and %d of those to callers, want %d, %d and %d at most", c.name, len(r.refused), later, c.from, returned, c.all, c.later, c.returned)
		}
	}
}

// Two programs on one account, with no knowledge of each other, at a server that
// says what remains.
func TestTwoProgramsOnOneAccount(t *testing.T) {
	for name, window := range map[string]time.Duration{"a minute": minute, "three seconds": 3 * time.Second} {
		for _, legacy := range []bool{true, false} {
			bubble(t, fmt.Sprint(name, " legacy ", legacy), func(t *testing.T) {
				time.Sleep(time.Until(in2026)) // its epoch is not taken for a delta
				var mu sync.Mutex
				var opened time.Time
				count, answers, refused := 0, 0, 0
				start := time.Now()
				p := &partner{open: true, script: func(asked) reply {
					time.Sleep(20 * time.Millisecond)
					mu.Lock()
					defer mu.Unlock()
					now := time.Now()
					if now.Sub(opened) >= window {
						opened, count = now, 0
					}
					count++
					ends := opened.Add(window)
					left, delta := strconv.Itoa(max(0, 100-count)), strconv.Itoa(int(math.Ceil(ends.Sub(now).Seconds())))
					r := reply{status: 200, header: headers("Date: " + now.UTC().Format(http.TimeFormat))}
					if legacy {
						r.header.Set("X-RateLimit-Remaining", left)
						r.header.Set("X-RateLimit-Reset", fmt.Sprint(ends.Add(time.Second-1).Unix()))
					} else {
						r.header.Set("RateLimit", `"100-in-window"; r=`+left+`; t=`+delta)
					}
					if count > 100 {
						r.status = 429
						r.header.Set("Retry-After", delta)
					}
					if now.Sub(start) >= window {
						if answers++; r.status == 429 {
							refused++
						}
					}
					return r
				}}
				length := 20 * window
				rts := []*partnerauth.Transport{p.custom(static("t"), &partnerauth.Quota{Window: window}), p.custom(static("t"), &partnerauth.Quota{Window: window})}
				atOnce(40, func(i int) {
					for time.Since(start) < length {
						get(t, rts[i%2], "/")
					}
				}).Wait()
				t.Logf("%d of %d refused, %.0f%% used", refused, answers, float64(answers)/19)
				errorIf(t, float64(refused) > 0.02*float64(answers) || answers < 19*80, "%d of %d refused, want 2 %% at most and 80 a window", refused, answers)
			})
		}
	}
}

// What never left gives its place back.
func TestFailuresBeforeThereIsAConnection(t *testing.T) {
	alert := fmt.Errorf("x: %w", dialError("remote error")) // TLS
	for name, c := range map[string]struct {
		err  error
		back bool
	}{
		"dial":              {dialError("dial"), true},
		"proxy's dial":      {dialError("proxyconnect"), true},
		"SOCKS":             {dialError("socks connect"), true},
		"CONNECT refused":   {errors.New("Proxy Authentication Required"), true},
		"alert":             {alert, true},
		"certificate":       {&tls.CertificateVerificationError{Err: errTest}, true},
		"no TLS":            {tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, true},
		"handshake timeout": {errors.New("net/http: TLS handshake timeout"), true},
		"read":              {dialError("read"), false},
		"write":             {dialError("write"), false},
		"EOF":               {io.ErrUnexpectedEOF, false},
	} {
		bubble(t, name, func(t *testing.T) {
			p := new(partner).on("call", reply{err: c.err}, reply{})
			p.open = true
			rt := p.custom(static("t"), &partnerauth.Quota{Requests: 1})
			_, err := try(t.Context(), rt, "/")
			errorIf(t, err == nil || name == "CONNECT refused" && !strings.Contains(err.Error(), "proxy"), "got %v", err)
			began := time.Now()
			get(t, rt, "/")
			errorIf(t, (time.Since(began) == 0) != c.back, "the next call went after %v, place back %t wanted", time.Since(began), c.back)
		})
	}
}

// Ten workers that retry all the time while the partner is away for 5 s: it is
// back for them at once, with the whole window.
func TestBackAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		p := &partner{open: true}
		p.script = func(asked) reply {
			if !up.Load() {
				return reply{err: dialing}
			}
			return reply{status: 200, after: 20 * time.Millisecond}
		}
		rt := p.custom(static("t"), nil)
		time.AfterFunc(5*time.Second, func() { up.Store(true) })
		var mu sync.Mutex
		var served []time.Duration
		began := time.Now()
		atOnce(10, func(int) {
			for time.Since(began) < 10*time.Second {
				if _, err := try(deadline(t, time.Second), rt, "/"); err == nil {
					mu.Lock()
					served = append(served, time.Since(began)-5*time.Second)
					mu.Unlock()
				}
				time.Sleep(200 * time.Millisecond)
			}
		}).Wait()
		errorIf(t, len(served) != 100 || served[0] > time.Second, "%d served, the first after %v, want 100 and 1 s", len(served), served[:min(1, len(served))])
	})
}
