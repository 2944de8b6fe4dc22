package partnerauth_test

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// A schedule is a service that makes so many calls at once, again and again.
type schedule struct {
	calls    int
	every    time.Duration
	rounds   int
	deadline time.Duration // of each call; 0: none
}

// A round is what became of the calls that were made at once.
type round struct {
	failed  int           // without an answer 200
	slow    int           // answered 200 after more than a second
	longest time.Duration // until an answer 200
}

// run makes the calls to s. It belongs in a bubble.
func (c schedule) run(t *testing.T, s *simServer, limiter partnerauth.Limiter) (rounds []round) {
	s.start = time.Now()
	rt := (&partner{script: s.answer}).custom(static("t"), limiter)
	for n := range c.rounds {
		time.Sleep(time.Duration(n)*c.every - time.Since(s.start))
		var r round
		took := make([]time.Duration, c.calls)
		atOnce(c.calls, func(i int) {
			ctx := t.Context()
			if c.deadline > 0 {
				ctx = deadline(t, c.deadline)
			}
			began := time.Now()
			if code, _ := try(ctx, rt, "/"); code == 200 {
				took[i] = time.Since(began)
			}
		}).Wait()
		for _, d := range took {
			r.longest = max(r.longest, d)
			switch {
			case d == 0:
				r.failed++
			case d > time.Second:
				r.slow++
			}
		}
		rounds = append(rounds, r)
	}
	return rounds
}

// refusing is p, but that it refuses the n-th request.
func refusing(n int, p policy) policy {
	return func(at time.Duration) bool {
		n--
		return n != 0 && p(at)
	}
}

func everything(time.Duration) bool { return true }

// fast is what a call takes that does not wait, from a server 40 ms away.
const fast = 50 * time.Millisecond

// A server that has borne a burst will bear it again: a service far below its
// limit has its burst back in the next window, whichever call was refused.
func TestStrayRefusalUnderLightLoad(t *testing.T) {
	t.Parallel()
	for i, header := range []http.Header{nil, headers("Retry-After: 1"), headers("RateLimit: limit=100, remaining=0, reset=3")} {
		for _, burst := range []int{0, 10, 50} {
			for _, refused := range []int{1, 10, 25} {
				window := []time.Duration{minute, 10 * time.Second}[(i+refused)%2]
				bubble(t, fmt.Sprintf("%v, window %v, Burst %d, request %d", header, window, burst, refused), func(t *testing.T) {
					s := &simServer{policy: refusing(refused, everything), header: header, least: 20 * time.Millisecond}
					quota := &partnerauth.Quota{Window: window, Burst: burst}
					rounds := schedule{calls: 10, every: window, rounds: 12}.run(t, s, quota)
					for i, r := range rounds[(refused+9)/10:] {
						most := time.Second
						if i >= 4 {
							most = fast
						}
						errorIf(t, r.longest > most, "round %d after it: a call took %v, want %v at most", i+1, r.longest, most)
						errorIf(t, r.failed > 0, "round %d after it: %d calls failed", i+1, r.failed)
					}
				})
			}
		}
	}
}

// A new process starts while the server still counts what the old one has sent.
func TestDeployUnderLoad(t *testing.T) {
	t.Parallel()
	bad := func(t *testing.T, before int, header http.Header, limiter partnerauth.Limiter) (n int) {
		counted := slidingLog()
		for range before {
			counted(-time.Millisecond)
		}
		s := &simServer{policy: counted, header: header, least: 20 * time.Millisecond}
		service := schedule{calls: 10, every: 10 * time.Second, rounds: int(*simulatedHours * 360), deadline: 5 * time.Second}
		for _, r := range service.run(t, s, limiter) {
			n += r.failed + r.slow
		}
		return n
	}
	for _, c := range []struct {
		before int
		burst  int
		header http.Header
	}{
		{before: 60},
		{before: 90},
		{before: 90, burst: 10},
		{before: 90, header: headers("Retry-After: 1")},
		{before: 100, header: headers("Retry-After: 1")},
	} {
		bubble(t, fmt.Sprintf("%d before, Burst %d, %v", c.before, c.burst, c.header), func(t *testing.T) {
			peer := bad(t, c.before, c.header, rate.NewLimiter(80./60, 20))
			ours := bad(t, c.before, c.header, &partnerauth.Quota{Burst: c.burst})
			t.Logf("%d calls failed or took a second, %d with rate.Limiter", ours, peer)
			errorIf(t, float64(ours) > 1.3*float64(peer)+10, "%d calls failed or took a second, want 1.3 times %d and 10 at most",
				ours, peer)
		})
	}
}

// A daily limit says nothing about the minute.
func TestRefusalForTwoHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &simServer{policy: refusing(1, everything), header: headers("Retry-After: 7200"), least: 20 * time.Millisecond}
		rounds := schedule{calls: 50, every: 20 * time.Minute, rounds: 2}.run(t, s, nil)
		errorIf(t, rounds[1].longest > fast, "afterwards 50 calls at once took %v", rounds[1].longest)
	})
}

// A burst that is too large all the time is tried less and less often, but not
// never: the server may come to bear it.
func TestBurstThatGrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const strict, patience = 120, 140 // minutes
		limited := (&nginx{burst: 20}).allow
		s := &simServer{least: 20 * time.Millisecond, policy: func(at time.Duration) bool { return at > strict*minute || limited(at) }}
		rounds := schedule{calls: 30, every: minute, rounds: strict + patience + 5}.run(t, s, nil)
		refused := len(s.refused) // 9 of them in the first burst
		errorIf(t, refused > 40, "%d refused in %d minutes, want 40 at most", refused, strict)
		for i, r := range rounds[strict+patience:] {
			errorIf(t, r.longest > fast, "minute %d after the server has become patient: a call took %v", patience+i, r.longest)
		}
	})
}
