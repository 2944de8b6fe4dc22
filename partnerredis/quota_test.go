package partnerredis

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/redis/go-redis/v9"
)

func newQuota(t *testing.T, s *server) *Quota {
	t.Helper()
	client := s.client()
	t.Cleanup(func() { client.Close() })
	return &Quota{Client: client, Name: "test", Window: window}
}

func TestFields(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer client.Close()
	tests := []struct {
		q    *Quota
		want string
	}{
		{&Quota{Name: "a"}, "Quota.Client is nil"},
		{&Quota{Client: client}, `Quota.Name is ""`},
		{&Quota{Client: client, Name: "a}b"}, `Quota.Name is "a}b"`},
		{&Quota{Client: client, Name: "a", Requests: -1}, "Quota.Requests is -1, want 1 to 1000000"},
		{&Quota{Client: client, Name: "a", Window: time.Microsecond}, "Quota.Window is 1µs, want 1ms to 24h0m0s"},
		{&Quota{Client: client, Name: "a", Burst: 101}, "Quota.Burst is 101, want 1 to Requests, 100"},
		{&Quota{Client: client, Name: "a", Replicas: -1}, "Quota.Replicas is -1, want 0 or more"},
	}
	for _, test := range tests {
		for range 2 {
			_, err := test.q.Permit(context.Background(), 1)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		}
	}
	if got := (&Quota{Client: client, Name: "a"}).Period(); got != time.Minute {
		t.Errorf("got a period of %v, want a minute", got)
	}
}

// TestScripts counts what grants cost, and what idleness does.
func TestScripts(t *testing.T) {
	s := startServer(t)
	q := newQuota(t, s)
	ctx := context.Background()
	if err := grant(ctx, q); err != nil { // loads the script
		t.Fatal(err)
	}

	before := s.scripts()
	for range 10 {
		if err := grant(ctx, q); err != nil {
			t.Fatal(err)
		}
		pass(50 * time.Millisecond)
	}
	pass(window) // a timer would have told late answers
	if got := s.scripts() - before; got > 10 {
		t.Errorf("alone: got %d scripts for 10 grants", got)
	}

	before = s.scripts()
	goroutines := runtime.NumGoroutine()
	pass(window)
	if got := s.scripts() - before; got > 0 {
		t.Errorf("idle: got %d scripts", got)
	}
	until(t, 2*time.Second, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })

	before = s.scripts()
	l := newLine(q)
	var all sync.WaitGroup
	for range 80 {
		all.Go(func() {
			p, err := l.permit(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			p.Settle(200, 0)
		})
	}
	all.Wait()
	got := float64(s.scripts()-before) / 80
	t.Logf("burst: %.2f scripts a grant", got)
	if got > 0.75 {
		t.Errorf("burst: got %.2f scripts a grant, want about a half", got)
	}
}

// TestRefusal asks for more than there is, with a deadline.
func TestRefusal(t *testing.T) {
	s := startServer(t)
	q := newQuota(t, s)
	q.Requests = 5
	ctx := context.Background()
	for range 5 {
		if wait := q.Estimate(1); wait != 0 {
			t.Errorf("got an estimate of %v, want none", wait)
		}
		if err := grant(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	if got := q.Estimate(1); got < window-time.Second/2 || got > window+guardOf(window)*2 {
		t.Errorf("got an estimate of %v for the first, want about %v", got, window)
	}
	if got := q.Estimate(6); got < 2*window-time.Second/2 || got > 2*window+time.Second {
		t.Errorf("got an estimate of %v for the sixth, want about %v", got, 2*window)
	}

	short, cancel := context.WithTimeout(ctx, window/2)
	defer cancel()
	for range 3 {
		start := time.Now()
		err := q.Wait(short)
		if took := time.Since(start); took > 200*time.Millisecond || !isRefusal(err) {
			t.Errorf("got %v after %v, want a refusal at once", err, took)
		}
		var r interface{ RetryAfter() time.Duration }
		if errors.As(err, &r) && (r.RetryAfter() < window/2 || r.RetryAfter() > window+time.Second) {
			t.Errorf("got %v to wait, want about %v", r.RetryAfter(), window)
		}
	}
	cancelled, because := context.WithCancelCause(ctx)
	why := errors.New("changed my mind")
	time.AfterFunc(50*time.Millisecond, func() { because(why) })
	if _, err := q.Permit(cancelled, 1); !errors.Is(err, context.Canceled) || !errors.Is(err, why) || errors.Is(err, partnerauth.ErrRateLimited) {
		t.Errorf("got %v, want that it was cancelled, and why", err)
	}
	enough, cancel2 := context.WithTimeout(ctx, 2*window)
	defer cancel2()
	if err := q.Wait(enough); err != nil {
		t.Errorf("got %v, want a permit", err)
	}
}

func guardOf(w time.Duration) time.Duration { return min(maxGuard, w/20) }

// TestReturn gives back what was not sent.
func TestReturn(t *testing.T) {
	q := newQuota(t, startServer(t))
	q.Requests = 3
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), window/2)
		p, err := q.Permit(ctx, 1)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		p.Return()
	}
}

// TestWait has no queue in front.
func TestWait(t *testing.T) {
	q := newQuota(t, startServer(t))
	q.Requests = 20
	var all sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	ctx, cancel := context.WithTimeout(context.Background(), window/2)
	defer cancel()
	start := time.Now()
	for range 50 {
		all.Go(func() {
			if err := q.Wait(ctx); err != nil {
				if !isRefusal(err) {
					t.Error(err)
				}
				mu.Lock()
				refused++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if refused != 30 || time.Since(start) > window/4 {
		t.Errorf("got %d of 50 refused after %v, want 30 at once", refused, time.Since(start))
	}
}

// TestOrder has callers served as they came.
func TestOrder(t *testing.T) {
	q := newQuota(t, startServer(t))
	q.Requests, q.Window = 10, 200*time.Millisecond
	var mu sync.Mutex
	var order []int
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if err := grant(context.Background(), q); err != nil {
				t.Error(err)
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
		})
		until(t, time.Second, "it waits", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return int(q.callers.Load())+len(order) > i
		})
	}
	all.Wait()
	for i, a := range order {
		for _, b := range order[i:] {
			if a >= b+q.Requests { // those of one window are let go together, and noted as they happen to run
				t.Fatalf("got %v", order)
			}
		}
	}
}

// TestShares has a burst divided among twenty who come at the same time, and
// again when its places are free.
func TestShares(t *testing.T) {
	s := startServer(t)
	const processes, bursts = 20, 2
	var got [processes]atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range processes {
		q := newQuota(t, s)
		l := newLine(q)
		for range 20 {
			all.Go(func() {
				for {
					p, err := l.permit(ctx)
					if err != nil {
						return
					}
					got[i].Add(1)
					p.Settle(200, 0)
				}
			})
		}
	}
	for burst := 1; burst <= bursts; burst++ {
		until(t, 2*window, "the burst is over", func() bool {
			sum := 0
			for i := range got {
				sum += int(got[i].Load())
			}
			return sum >= 100*burst
		})
		for i := range got {
			if n := int(got[i].Load()); n < 2*burst || n > 9*burst {
				t.Errorf("after %d bursts: got %d for process %d, want about %d", burst, n, i, 5*burst)
			}
		}
	}
	cancel()
	all.Wait()
}

// TestPause is a 429 that one of four processes sees.
func TestPause(t *testing.T) {
	t.Parallel()
	s, p := startServer(t), newPartner(t, 100, window)
	p.stop = func(n int) time.Duration {
		if n == 150 { // in the second burst
			return window
		}
		return 0
	}
	c, r, _ := hungry(t, s, p, 4, job{For: 4 * window}, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	under := 0
	for _, at := range p.paused {
		if at.Sub(p.pause.Add(-window)) < 100*time.Millisecond {
			under++ // way when the first answer came
		}
	}
	t.Logf("%d requests were under way", under)
	if got := len(p.paused) - under; got > 0 || r.Refused429 != 1 || c.refused != 0 {
		t.Errorf("got %d requests in a pause, %d answers of 429, %d beside it; want 0, 1, 0", got, r.Refused429, c.refused)
	}
}

// TestLesson has a partner that minds the pace, with bursts of 20. The first
// burst teaches the fleet; 503 teaches it nothing of the pace.
func TestLesson(t *testing.T) {
	t.Parallel()
	for _, sick := range []bool{false, true} {
		t.Run(fmt.Sprintf("by 503 %v", sick), func(t *testing.T) {
			t.Parallel()
			s, p := startServer(t), newPartner(t, 100, window)
			p.leaky, p.sick = 20, sick
			c, r, _ := hungry(t, s, p, 4, job{For: 4 * window}, nil)
			p.mu.Lock()
			defer p.mu.Unlock()
			start, after := p.log[0], 0
			for _, at := range p.log {
				if at.After(p.last.Add(time.Second)) {
					after++
				}
			}
			t.Logf("last refusal after %v; then %d requests", p.last.Sub(start), after)
			if p.last.Sub(start) > window || c.refused > 90 || !sick && r.Refused429 != c.refused || c.used < 0.8 {
				t.Errorf("got %v, the last refusal after %v; want them all in the first burst", c, p.last.Sub(start))
			}
			state := s.client()
			defer state.Close()
			pace, err := state.HGet(context.Background(), "partnerauth:{test}:state", "share").Float64()
			if err != nil || (pace == 1) != sick {
				t.Errorf("got a pace of %v, %v; want less than 1 unless by 503", pace, err)
			}
		})
	}
}

// TestForgives has three processes that send ten requests at once in each window.
// One of them is refused, by chance.
func TestForgives(t *testing.T) {
	t.Parallel()
	const window = 6 * time.Second
	tests := []struct {
		name  string
		burst int
		fixed bool
		pause time.Duration // that the stray 429 asks for
	}{
		{name: "a stray 429", pause: window},
		{name: "Burst 10", burst: 10, pause: window},
		{name: "FixedRate", fixed: true, pause: time.Millisecond},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			var lines []*line
			for range 3 {
				q := newQuota(t, s)
				q.Window, q.Requests, q.Burst, q.FixedRate = window, 20, test.burst, test.fixed // one by one, ten take 2.8 s
				lines = append(lines, newLine(q))
			}
			call := func(l *line, status int, pause time.Duration) time.Duration {
				start := time.Now()
				p, err := l.permit(context.Background())
				if err != nil {
					t.Error(err)
					return 0
				}
				waited := time.Since(start)
				pass(40 * time.Millisecond)
				p.Settle(status, pause)
				return waited
			}
			tick := time.NewTicker(window)
			defer tick.Stop()
			const stray = 1
			for minute := range 4 {
				var longest atomic.Int64
				var all sync.WaitGroup
				for i := range 10 {
					all.Go(func() {
						l, status, pause := lines[i%3], 200, time.Duration(0)
						if minute == stray && i == 5 {
							status, pause = 429, test.pause
						}
						waited := call(l, status, pause)
						for old := longest.Load(); int64(waited) > old && !longest.CompareAndSwap(old, int64(waited)); old = longest.Load() {
						}
						if status == 429 {
							go call(l, 200, 0) // again
						}
					})
				}
				all.Wait()
				got := time.Duration(longest.Load())
				t.Logf("window %d: %v", minute, got)
				if _, burst := lines[0].q.Pace(); minute > stray && (got > 2*time.Second || burst < 10) {
					t.Errorf("window %d after the refusal: got a wait of %v and bursts of %d", minute-stray, got, burst)
				}
				<-tick.C
			}
		})
	}
}

// TestTicketLeft has callers that go and leave a ticket: nobody waits any more, so
// that the burst is there again.
func TestTicketLeft(t *testing.T) {
	t.Parallel()
	q := newQuota(t, startServer(t))
	q.Requests, q.Burst = 20, 5
	take := func(n, waiting int) {
		t.Helper()
		for range n {
			p, err := q.Permit(context.Background(), waiting)
			if err != nil {
				t.Fatal(err)
			}
			p.Settle(200, 0)
		}
	}
	take(q.Burst, 8)
	pass(window + window/2)
	take(1, q.Burst)
	q.mu.Lock()
	defer q.mu.Unlock()
	if got := 1 + len(q.granted); got != q.Burst {
		t.Errorf("got %d permits at once, want %d", got, q.Burst)
	}
}

// TestTeachesNothing has refusals that say nothing about bursts and pace.
func TestTeachesNothing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		fixed  bool
		full   bool // the window is
		single int  // so many requests in place of a burst, of which the last is refused
		status int
		times  int
		pause  time.Duration
		taught bool
	}{
		{name: "a 429", status: 429, times: 1, pause: time.Millisecond, taught: true},
		{name: "a 429 that names a window and two seconds", status: 429, times: 1, pause: window + longPause, taught: true},
		{name: "a 429 that names more", status: 429, times: 1, pause: window + longPause + time.Millisecond},
		{name: "a 429 where the window is full", full: true, status: 429, times: 1, pause: time.Millisecond},
		{name: "a 429 with FixedRate", fixed: true, status: 429, times: 1, pause: time.Millisecond},
		{name: "a 429 after a good answer", single: 2, status: 429, times: 1, pause: time.Millisecond, taught: true},
		{name: "a 429 without one", single: 1, status: 429, times: 1, pause: time.Millisecond},
		{name: "three 503", status: 503, times: 3, taught: true},
		{name: "two 503", status: 503, times: 2},
		{name: "three 503 with FixedRate", fixed: true, status: 503, times: 3},
		{name: "three 503 that name a pause", status: 503, times: 3, pause: time.Millisecond},
		{name: "a 500", status: 500, times: 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			q := newQuota(t, startServer(t))
			q.FixedRate, q.Requests = test.fixed, 20
			n := 10
			if test.full {
				n = 20
			}
			if test.single > 0 {
				n = test.single
			}
			var permits []partnerauth.Permit
			for range n {
				p, err := q.Permit(context.Background(), 1)
				if err != nil {
					t.Fatal(err)
				}
				permits = append(permits, p)
			}
			if n > 1 {
				permits[0].Settle(200, 0)
			}
			for range test.times {
				permits[len(permits)-1].Settle(test.status, test.pause)
				permits = permits[:len(permits)-1]
			}
			tellNow(t, q)
			share, burst := q.Pace()
			if taught := share < 1 || burst < 20; taught != test.taught {
				t.Errorf("got a pace of %v and bursts of %d, want that it is taught: %v", share, burst, test.taught)
			}
		})
	}
}

// tellNow has q tell Redis what it knows, and hear what Redis says.
func tellNow(t *testing.T, q *Quota) {
	t.Helper()
	until(t, 2*time.Second, "what is urgent is told", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.telling == nil && !q.urgent
	})
	q.mu.Lock()
	q.tell(time.Now())
	c := q.telling
	q.mu.Unlock()
	<-c.done
}

// TestSickPartner answers 503 to some, which are no burst: that teaches nothing.
func TestSickPartner(t *testing.T) {
	q := newQuota(t, startServer(t))
	for i := range 12 {
		p, err := q.Permit(context.Background(), 1)
		if err != nil {
			t.Fatal(err)
		}
		p.Settle([]int{200, 503}[i%2], 0)
		pass(2 * window / 100)
	}
	if got := q.Estimate(1); got != 0 {
		t.Errorf("got a wait of %v, want none", got)
	}
}
