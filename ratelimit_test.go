package partnerauth_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// limiters are the kinds that are queued for, each at 100 a minute. burst is
// what they let through at once.
var limiters = []struct {
	name  string
	burst int
	make  func() partnerauth.Limiter
}{
	{"Quota", 100, func() partnerauth.Limiter { return &partnerauth.Quota{} }},
	{"rate.Limiter", 1, func() partnerauth.Limiter { return rate.NewLimiter(100./60, 1) }},
	{"unknown", 1, func() partnerauth.Limiter { return limiterFunc(rate.NewLimiter(100./60, 1).Wait) }},
	{"PermitLimiter", 1, func() partnerauth.Limiter { return &permits{before: rate.NewLimiter(100./60, 1).Wait} }},
}

func TestHundredAtOnceFromIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quota partnerauth.Quota
		for range 3 {
			took := elapsed(func() {
				for range 100 {
					must(t, quota.Wait(t.Context()))
				}
			})
			errorIf(t, took > time.Second, "100 permits took %v, want them within a second", took)
			time.Sleep(2 * time.Minute)
		}
	})
}

func TestBurstIsRespected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quota := &partnerauth.Quota{Burst: 10}
		time.Sleep(time.Hour)
		began := time.Now()
		for n := 1; n <= 100; n++ {
			quota.Wait(t.Context())
			switch took := time.Since(began); {
			case n == 10 && took > 0, n == 11 && took != 600*time.Millisecond, n == 100 && (took < 53*time.Second || took > 55*time.Second):
				t.Errorf("permit %d came after %v, want ten at once and then one in 600ms", n, took)
			}
		}
	})
}

// All Transports that share a Quota, and Wait by hand, count together.
func TestSharedQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quota, p := &partnerauth.Quota{}, new(partner)
		one, two := p.transport(quota), p.transport(quota)
		two.Source = one.Source
		ctx := deadline(t, 59*time.Second)
		for range 33 {
			get(t, one, "/")
			get(t, two, "/")
			must(t, quota.Wait(ctx))
		}
		// 99 and the login
		err := quota.Wait(ctx)
		errorIf(t, !errors.Is(err, partnerauth.ErrRateLimited), "got %v, want ErrRateLimited", err)
		refused(t, ctx, two, 0)
		must(t, quota.Wait(t.Context())) // without a deadline
	})
}

// A call that hangs frees its place after two windows; one that is given up
// keeps it for a window and a second from then.
func TestHungAndGivenUpCalls(t *testing.T) {
	for _, c := range []struct {
		name        string
		givenUp     time.Duration // after
		least, most time.Duration // that the place is kept from then
	}{
		{"hung", 0, 121 * time.Second, 122 * time.Second},
		{"given up", 10 * time.Second, 61 * time.Second, 61 * time.Second},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := new(partner).on("/hang", reply{after: forever})
			rt := p.transport(&partnerauth.Quota{Requests: 2})
			ctx, giveUp := context.WithCancel(t.Context())
			wg := atOnce(1, func(int) { try(ctx, rt, "/hang") })
			synctest.Wait()
			time.Sleep(c.givenUp)
			if c.givenUp > 0 {
				giveUp()
				wg.Wait()
			}
			took := elapsed(func() {
				get(t, rt, "/") // in place of the login
				get(t, rt, "/") // in place of the one that hangs
			})
			errorIf(t, took < c.least || took > c.most, "the call kept its place for %v, want %v", took, c.least)
			giveUp()
			wg.Wait()
		})
	}
}

// Low priority comes after all others that wait, through any Limiter, and in its
// own order.
func TestLowPriorityGoesLast(t *testing.T) {
	for _, l := range limiters {
		bubble(t, l.name, func(t *testing.T) {
			p := &partner{open: true}
			rt := p.custom(static("t"), l.make())
			for range l.burst {
				get(t, rt, "/")
			}
			var wg sync.WaitGroup
			for i, path := range []string{"/low/1", "/low/2", "/3", "/low/4", "/5", "/6"} {
				ctx := t.Context()
				if i < 2 || i == 3 {
					ctx = partnerauth.WithLowPriority(ctx)
				}
				wg.Go(func() { try(ctx, rt, path) })
				synctest.Wait()
			}
			wg.Wait()
			var order []string
			for _, a := range p.seen()[l.burst:] {
				order = append(order, a.path)
			}
			slices.Sort(order[:3]) // which a Quota lets go in the same instant
			got := strings.Join(order, " ")
			errorIf(t, got != "/3 /5 /6 /low/1 /low/2 /low/4", "got %s", got)
		})
	}
}

// A batch of a thousand and one interactive call a second on one client.
func TestBatchBesideInteractiveCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rec, p := newRecording(), &partner{open: true,
			script: func(asked) reply { return reply{status: 200, after: 200 * time.Millisecond} }}
		rt := rec.plain(p)
		var batched atomic.Int64
		low := partnerauth.WithLowPriority(leaving(t, 10*time.Minute))
		wg := atOnce(1000, func(int) {
			if code, _ := try(low, rt, "/low"); code == 200 {
				batched.Add(1)
			}
		})
		time.Sleep(time.Millisecond)
		var longest atomic.Int64
		for range 599 {
			wg.Go(func() {
				took := elapsed(func() {
					_, err := try(deadline(t, 10*time.Second), rt, "/")
					errorIf(t, err != nil, "an interactive call: %v", err)
				})
				longest.Store(max(longest.Load(), int64(took)))
			})
			time.Sleep(time.Second)
		}
		wg.Wait()
		took := time.Duration(longest.Load())
		errorIf(t, took > 2200*time.Millisecond, "an interactive call took %v, want 200 ms and 2 s at most", took)
		// 98.4 a minute in all, 60 of them interactive, and a tenth kept free
		errorIf(t, batched.Load() < 250, "the batch got %d in 10 minutes, want the rest", batched.Load())
		for _, s := range rec.byName("partnerauth.rate_limit.wait") {
			priority := attributeOf(s, "partnerauth.rate_limit.priority")
			errorIf(t, priority != "low", "a wait of more than a second has the priority %q", priority)
		}
	})
}

func TestBatchAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partner{open: true}
		rt := p.custom(static("t"), nil)
		low, began := partnerauth.WithLowPriority(t.Context()), time.Now()
		atOnce(1000, func(int) { try(low, rt, "/") }).Wait()
		pace := 1000 / time.Since(began).Minutes()
		errorIf(t, pace < 85, "a batch alone got %.1f a minute, want 85 at least", pace)
		// and it always left a tenth
		var log []time.Duration
		for _, a := range p.seen() {
			log = append(log, a.at)
		}
		for i := 90; i < len(log); i++ {
			errorIf(t, log[i]-log[i-90] < time.Minute, "more than 90 of low priority within %v", log[i]-log[i-90])
		}
	})
}
