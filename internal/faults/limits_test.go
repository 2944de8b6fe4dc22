package faults

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// The limiters run side by side and before all other tests, whose load would blur their timing.
func TestLimiters(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 40 s")
	}
	t.Run("nginx", testNginxLimits)
	t.Run("haproxy", testHaproxyLimit)
	t.Run("two programs", testTwoPrograms)
}

// newLimited is a partner without a limit of its own, for a limiter to stand before, and the window that the limiter
// counts 100 requests in: a minute takes too long for every day, and all that matters scales with it.
func newLimited(t *testing.T) (url string, window time.Duration) {
	t.Helper()
	partner := partnertest.StartNowPost(partnertest.Options{Limit: -1, Forget: true})
	t.Cleanup(partner.Close)
	if *long {
		return partner.URL, time.Minute
	}
	return partner.URL, 3 * time.Second
}

// A tally counts by window since the first request.
type tally struct {
	served   []int // calls that succeeded
	refused  []int // answers 429 and 503 that the limiter gave
	returned []int // those that callers saw
}

// atLeast checks that so many were served in each window from one on; where windows are short, on average, since a
// machine that stalls for a tenth of a second does so for a good part of one.
func (got tally) atLeast(t *testing.T, want, from int) {
	t.Helper()
	rest := got.served[from:]
	if least := slices.Min(rest); *long && least < want {
		t.Errorf("%d served in a window from number %d on, want %d at least", least, from+1, want)
	}
	if all := sum(rest); all < want*len(rest) {
		t.Errorf("%d served in %d windows from number %d on, want %d each", all, len(rest), from+1, want)
	}
}

// hunger has 40 callers who never have enough ask through a limiter for so many windows. Each way takes up to a 600th
// of a window more or less: 100 ms in a minute.
func hunger(t *testing.T, url string, window time.Duration, windows int) tally {
	t.Helper()
	base := newWire(&http.Transport{})
	base.jitter = window / 600
	shop := newProgram(t, url, &partnerauth.Quota{Requests: 100, Window: window}, base)

	begun := time.Now()
	// not a deadline, which would have calls refused whose turn comes after it
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(time.Duration(windows)*window, cancel).Stop()
	var mu sync.Mutex
	var calls []mark
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for n := 0; n < most && ctx.Err() == nil; n++ {
				status := shop.list(ctx)
				if ctx.Err() != nil {
					return
				}
				mu.Lock()
				calls = append(calls, mark{time.Now(), status})
				mu.Unlock()
				if status != http.StatusOK {
					rest(ctx, window/600)
				}
			}
		})
	}
	wg.Wait()

	got := tally{make([]int, windows), make([]int, windows), make([]int, windows)}
	count := func(marks []mark, into []int, statuses ...int) {
		for _, m := range marks {
			for _, s := range statuses {
				if n := int(m.at.Sub(begun) / window); s == m.status && n < windows {
					into[n]++
				}
			}
		}
	}
	count(calls, got.served, http.StatusOK)
	count(calls, got.returned, 429, 503)
	count(base.noted(), got.refused, 429, 503)
	failed := make([]int, windows)
	count(calls, failed, 0)
	t.Logf("by window of %v: served %v, refused %v, returned %v", window, got.served, got.refused, got.returned)
	if n := sum(failed); n > 0 {
		t.Errorf("%d calls ended in an error", n)
	}
	return got
}

// list asks for the orders and returns the answer's status, 0 where there is none.
func (p *program) list(ctx context.Context) int {
	req, err := http.NewRequestWithContext(ctx, "GET", p.url+"/api/v1/orders", nil)
	if err != nil {
		return 0
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func sum(counts []int) int {
	all := 0
	for _, n := range counts {
		all += n
	}
	return all
}

// Two programs on one account, neither knowing of the other and each with the whole quota, at the limiter that most
// Node services have, with its default headers. In the first window they learn; from then on they believe what the
// headers say, and few answers are a 429.
func testTwoPrograms(t *testing.T) {
	t.Parallel()
	const window, span = 3 * time.Second, 24 * time.Second
	partner := partnertest.StartNowPost(partnertest.Options{Headers: "legacy", Limit: 100, Window: window})
	t.Cleanup(partner.Close)
	ctx, cancel := context.WithTimeout(context.Background(), span)
	defer cancel()
	work := shift{callers: 20, patience: 2 * window, pause: 50 * time.Millisecond}
	worked := make(chan []outcome)
	for _, name := range []string{"one", "two"} {
		base := newWire(partner.Transport())
		base.jitter = 5 * time.Millisecond
		p := newProgram(t, partner.URL, &partnerauth.Quota{Requests: 100, Window: window}, base)
		go func() { worked <- work.run(ctx, p, name) }()
	}
	outcomes := append(<-worked, <-worked...)

	audit(t, partner, outcomes, &partnerauth.Quota{Requests: most, Window: window}) // each keeps its own, and neither the partner's
	answers, refused := 0, 0
	requests := partner.Requests()
	for _, r := range requests {
		if r.Time.Sub(requests[0].Time) >= window {
			answers++
			if r.Status == http.StatusTooManyRequests {
				refused++
			}
		}
	}
	t.Logf("%d of %d answers after the first window are 429; failures: %s", refused, answers, failures(outcomes))
	// what is on its way when the other program has taken the last place is refused, as a Quota sends bursts again soon
	if refused*10 > answers {
		t.Errorf("%d of %d answers are 429, want 10 %% at most", refused, answers)
	}
	// a reset in whole seconds costs up to one more a window, so that three quarters are within reach
	if want := int(span/window) * 100 / 2; answers-refused < want {
		t.Errorf("%d requests served in %v, want half of the limit, %d", answers-refused, span, want)
	}
}
