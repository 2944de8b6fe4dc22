package partnerauth_test

import (
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
				began := time.Now()
				_, err := try(deadline(t, 10*time.Second), rt, "/")
				errorIf(t, err != nil, "an interactive call: %v", err)
				if waited := int64(time.Since(began)) - int64(200*time.Millisecond); waited > longest.Load() {
					longest.Store(waited)
				}
			})
			time.Sleep(time.Second)
		}
		wg.Wait()
		t.Logf("the batch got %d, the longest wait was %v", batched.Load(), time.Duration(longest.Load()))
		errorIf(t, time.Duration(longest.Load()) > 2*time.Second, "an interactive call waited %v, want 2 s at most", time.Duration(longest.Load()))
		// 98.4 a minute in all, 60 of them interactive, and a tenth kept free
		errorIf(t, batched.Load() < 250, "the batch got %d in 10 minutes, want the rest", batched.Load())
		for _, s := range rec.byName("partnerauth.rate_limit.wait") {
			if priority := attributeOf(s, "partnerauth.rate_limit.priority"); priority != "low" {
				t.Fatalf("a wait of more than a second has the priority %q", priority)
			}
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
		for _, at := range log {
			n := within(log, at, at+time.Minute)
			errorIf(t, n > 90, "%d of low priority within a minute, want 90 at most", n)
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
		began := time.Now()
		_, err := try(partnerauth.WithLowPriority(deadline(t, 10*time.Second)), rt, "/")
		errorIf(t, !errors.Is(err, partnerauth.ErrRateLimited) || time.Since(began) > 0, "got %v after %v, want to be refused at once", err, time.Since(began))
		_, err = try(partnerauth.WithLowPriority(deadline(t, 2*time.Minute)), rt, "/")
		errorIf(t, err != nil, "got %v with two minutes", err)
	})
}
