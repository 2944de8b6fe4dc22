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
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// A policy is how a server counts: whether a request that arrives at a time
// since its start is inside 100 a minute.
type policy func(at time.Duration) bool

const minute = time.Minute

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

// slidingCounter weighs the count of the period before, as haproxy does in its stick
// table, which counts what is refused, too, and go-chi's httprate, which does not.
func slidingCounter(countsRefused bool) policy {
	var period time.Duration
	var now, before float64
	return func(at time.Duration) bool {
		switch p := at / minute; {
		case p > period+1:
			before, now, period = 0, 0, p
		case p > period:
			before, now, period = now, 0, p
		}
		inside := now+1+before*(1-(at%minute).Minutes()) <= 100
		if inside || countsRefused {
			now++
		}
		return inside
	}
}

// sometimes refuses one request in so many for no reason, and counts.
func sometimes(oneIn int) policy {
	random, counted := rand.New(rand.NewPCG(1, 2)), slidingLog()
	return func(at time.Duration) bool { return random.IntN(oneIn) > 0 && counted(at) }
}

// slow is p by a clock that loses 100 µs a second.
func slow(p policy) policy { return func(at time.Duration) bool { return p(at - at/10_000) } }

// A simServer is a partner with a policy and a latency.
type simServer struct {
	policy policy
	status int           // of a refusal; 0: 429
	header http.Header   // of a refusal
	least  time.Duration // latency each way
	jitter time.Duration // up to which is added

	mu      sync.Mutex
	start   time.Time
	random  *rand.Rand
	served  []time.Duration // when
	refused []time.Duration // when sent
}

// latency is that of one way, and passes.
func (s *simServer) latency() {
	d := s.least
	if s.jitter > 0 {
		s.mu.Lock()
		d += time.Duration(s.random.Int64N(int64(s.jitter)))
		s.mu.Unlock()
	}
	time.Sleep(d)
}

func (s *simServer) answer(asked) (r reply) {
	sent := time.Since(s.start)
	s.latency()
	s.mu.Lock()
	now := time.Since(s.start)
	if s.policy(now) {
		r.status = 200
		s.served = append(s.served, now)
	} else {
		r.status, r.header = cmp.Or(s.status, 429), s.header
		s.refused = append(s.refused, sent)
	}
	s.mu.Unlock()
	s.latency()
	return r
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

// simulate lets so many callers call s without a pause for a time, and returns
// when a refusal got to one of them.
func (s *simServer) simulate(t *testing.T, callers int, seed uint64, length time.Duration) (returned []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		s.start, s.random = time.Now(), rand.New(rand.NewPCG(seed, 1))
		rt := (&partner{script: s.answer}).custom(static("t"), nil)
		atOnce(callers, func(int) {
			for time.Since(s.start) < length {
				if get(t, rt, "/") != 200 {
					s.mu.Lock()
					returned = append(returned, time.Since(s.start))
					s.mu.Unlock()
				}
			}
		}).Wait()
	})
	return returned
}

var simulatedHours = flag.Float64("hours", 0.25, "how long TestSimulation and TestDeployUnderLoad simulate")

// The server counts no more than 100 in any minute, and hardly less, at any
// latency. What these two let through, every other way to count does: windows of
// the server's clock, or that the first request opens, or a token bucket.
func TestSimulation(t *testing.T) {
	t.Parallel()
	length := time.Duration(*simulatedHours * float64(time.Hour))
	for name, counting := range map[string]func() policy{
		"sliding log, clock 100 ppm slow": func() policy { return slow(slidingLog()) },
		"sliding log of whole seconds":    wholeSeconds,
	} {
		for seed := range uint64(4) {
			s := &simServer{policy: counting()}
			if seed%2 == 1 {
				s.least, s.jitter = 20*time.Millisecond, 780*time.Millisecond
			}
			s.simulate(t, 50, seed, length)
			served := s.perMinute(0, length)
			t.Logf("%-32s %5.1f a minute, %d refused", name, served, len(s.refused))
			errorIf(t, served < 97, "%s: served %.1f a minute, want 97 at least", name, served)
			errorIf(t, len(s.refused) > 0, "%s: %d refused, want none", name, len(s.refused))
		}
	}
}

func TestStrayRefusal(t *testing.T) {
	t.Parallel()
	stray, counted := time.Duration(0), slidingLog()
	s := &simServer{least: 20 * time.Millisecond, jitter: 780 * time.Millisecond, policy: func(at time.Duration) bool {
		if stray == 0 && at >= 90*time.Second {
			stray = at
			return false
		}
		return counted(at)
	}}
	returned := s.simulate(t, 50, 0, 75*minute)
	back := stray + unnamed
	errorIf(t, len(s.refused) != 1, "got %d refusals, want 1", len(s.refused))
	errorIf(t, len(returned) > 0, "%d refusals reached callers, want none", len(returned))
	soon, later := s.perMinute(back, back+5*minute), s.perMinute(back+45*minute, back+60*minute)
	errorIf(t, soon < 85 || later < 95, "served %.1f a minute right after and %.1f at the end of the hour, want 85 and 95", soon, later)
	// 97 a minute is what it bears without it
	hour := s.perMinute(stray, stray+60*minute)
	errorIf(t, hour < 0.95*97, "served %.1f a minute in the hour after it, want 95 %% of 97 at least", hour)
}

// Gateways that are stricter than a count, as they are set up by default.
func TestStrictServers(t *testing.T) {
	t.Parallel()
	const callers, learnt, length, end = 40, 2 * minute, 12 * minute, 27 * minute
	const usual, far = 100 * time.Millisecond, 800 * time.Millisecond
	bursts := func() policy { return (&nginx{burst: 20}).allow }
	for _, c := range []struct {
		name               string
		policy             policy
		status             int
		jitter             time.Duration
		least              float64 // served a minute once it has been learnt
		soon, later, again int     // refused at most until it has been learnt, until length, and until end
		returned           int     // to callers in all
	}{
		{name: "nginx burst=20 nodelay, 429", policy: bursts(), jitter: usual, least: 96, soon: 35, later: 1},
		{name: "nginx burst=20 nodelay, 503", policy: bursts(), status: 503, jitter: usual, least: 97, soon: 38, later: 1, returned: 38},
		{name: "nginx, 429", policy: new(nginx).allow, jitter: usual, least: 80, soon: 41, later: 3, again: 4, returned: 5},
		{name: "nginx, 429, far", policy: new(nginx).allow, jitter: far, least: 42, soon: 49, later: 15, again: 22, returned: 8},
		{name: "haproxy", policy: slidingCounter(true), jitter: usual, least: 96, soon: 25, later: 1, again: 1, returned: 6},
		{name: "httprate", policy: slidingCounter(false), jitter: usual, least: 96, soon: 25, later: 1, again: 1, returned: 2},
		{name: "one in 10 for no reason", policy: sometimes(10), jitter: usual, least: 40, soon: 25, later: 60, again: 90, returned: 30},
	} {
		s := &simServer{policy: c.policy, status: c.status, jitter: c.jitter}
		returned := len(s.simulate(t, callers, 0, end))
		served := s.perMinute(learnt, end)
		soon, later, again := within(s.refused, 0, learnt), within(s.refused, learnt, length), within(s.refused, length, end)
		t.Logf("%-28s %5.1f a minute, refused %2d, %2d, %3d, %2d returned", c.name, served, soon, later, again, returned)
		errorIf(t, served < c.least, "%s: served %.1f a minute, want %v at least", c.name, served, c.least)
		errorIf(t, soon > c.soon, "%s: %d refused in the first %v, want %d at most", c.name, soon, learnt, c.soon)
		errorIf(t, later > c.later, "%s: %d refused until %v, want %d at most", c.name, later, length, c.later)
		errorIf(t, again > c.again, "%s: %d refused until %v, want %d at most", c.name, again, end, c.again)
		errorIf(t, returned > c.returned, "%s: %d refusals reached callers, want %d at most", c.name, returned, c.returned)
	}
}

// Two programs on one account, with no knowledge of each other, at a server that
// says what remains.
func TestTwoProgramsOnOneAccount(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]time.Duration{"a minute": minute, "three seconds": 3 * time.Second} {
		bubble(t, name, func(t *testing.T) {
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
				ends := math.Ceil(opened.Add(window).Sub(now).Seconds())
				r := reply{status: 200, header: headers(fmt.Sprintf(`RateLimit: "100-in-window"; r=%d; t=%v`, max(0, 100-count), ends))}
				if count > 100 {
					r.status = 429
				}
				if now.Sub(start) >= window {
					if answers++; r.status == 429 {
						refused++
					}
				}
				return r
			}}
			var programs [2]*partnerauth.Transport
			for i := range programs {
				programs[i] = p.custom(static("t"), &partnerauth.Quota{Window: window})
			}
			atOnce(40, func(i int) {
				for time.Since(start) < 20*window {
					get(t, programs[i%2], "/")
				}
			}).Wait()
			// 1.5 to 1.7 % as a rule; who of two goes first in one instant is chance
			errorIf(t, float64(refused) > 0.025*float64(answers), "%d of %d refused, want 2.5 %% at most", refused, answers)
			errorIf(t, answers < 19*80, "%d answers, want 80 a window", answers)
		})
	}
}

// What never left gives its place back.
func TestFailuresBeforeThereIsAConnection(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		back bool
	}{
		"dial":              {dialError("dial"), true},
		"proxy's dial":      {dialError("proxyconnect"), true},
		"SOCKS":             {dialError("socks connect"), true},
		"CONNECT refused":   {errors.New("Proxy Authentication Required"), true},
		"alert of TLS":      {fmt.Errorf("x: %w", dialError("remote error")), true},
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
			took := elapsed(func() { get(t, rt, "/") })
			errorIf(t, (took == 0) != c.back, "the next call went after %v, place back %t wanted", took, c.back)
		})
	}
}

// Ten workers that retry all the time while the partner is away for 5 s: it is
// back for them at once, with the whole window.
func TestBackAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := &partner{open: true, script: func(asked) reply {
			if time.Since(began) < 5*time.Second {
				return reply{err: dialing}
			}
			return reply{status: 200, after: 20 * time.Millisecond}
		}}
		rt := p.custom(static("t"), nil)
		var mu sync.Mutex
		var served []time.Duration
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
		errorIf(t, len(served) != 100, "%d served, want 100", len(served))
		errorIf(t, len(served) > 0 && served[0] > time.Second, "the first was served after %v, want a second at most", served[0])
	})
}
