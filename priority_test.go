package partnerauth_test

import (
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

// Low priority comes after all others that wait, through any Limiter, and in its
// own order.
func TestLowPriorityGoesLast(t *testing.T) {
	for _, l := range append(limiters, struct {
		name  string
		burst int
		make  func() partnerauth.Limiter
	}{"PermitLimiter", 1, func() partnerauth.Limiter { return &permits{before: rate.NewLimiter(100./60, 1).Wait} }}) {
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
		rec, p := newRecording(), &partner{open: true, script: func(asked) reply { return reply{status: 200, after: 200 * time.Millisecond} }}
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

// A deadline that low priority cannot meet is refused at once, too, and one that
// it can meet is not.
func TestLowPriorityWithADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partner{open: true}
		rt := p.custom(static("t"), nil)
		for range 95 {
			get(t, rt, "/")
		}
		refused(t, partnerauth.WithLowPriority(deadline(t, 10*time.Second)), rt, 0)
		_, err := try(partnerauth.WithLowPriority(deadline(t, 2*time.Minute)), rt, "/")
		errorIf(t, err != nil, "got %v with two minutes", err)
	})
}
