package bench

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// BenchmarkWaiters shows what a waiting caller costs when n of them do the same
// at once: ns/waiter must not grow with n.
func BenchmarkWaiters(b *testing.B) {
	for _, scene := range []struct {
		name string
		run  func(n int) time.Duration
	}{{"leave", leaveTogether}, {"refused", refusedTogether}, {"go", goTogether}} {
		for _, n := range []int{1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", scene.name, n), func(b *testing.B) {
				var took time.Duration
				for b.Loop() {
					took += scene.run(n)
				}
				b.ReportMetric(float64(took.Nanoseconds())/float64(n*b.N), "ns/waiter")
			})
		}
	}
}

// A crowd is a context for n callers that notices when all of them wait.
type crowd struct {
	context.Context
	n       int64
	waiting atomic.Int64
	all     chan struct{}
}

func (c *crowd) Done() <-chan struct{} {
	if c.waiting.Add(1) == c.n {
		close(c.all)
	}
	return c.Context.Done()
}

// gather starts n callers under ctx and returns when they wait.
func gather(ctx context.Context, rt http.RoundTripper, n int) *sync.WaitGroup {
	c := &crowd{Context: ctx, n: int64(n), all: make(chan struct{})}
	var callers sync.WaitGroup
	for range n {
		callers.Go(func() {
			req, _ := http.NewRequestWithContext(c, "GET", "https://load.example/", nil)
			rt.RoundTrip(req)
		})
	}
	<-c.all
	return &callers
}

// paused is a Transport with places for n callers and a pause for them to wait
// in. A second request is answered when the channel says how long to wait.
func paused(n int, retryAfter string) (*partnerauth.Transport, chan string) {
	return pausedWith(n, retryAfter, Unset)
}

func pausedWith(n int, retryAfter string, mode Mode) (*partnerauth.Transport, chan string) {
	telemetry := NewTelemetry(mode)
	var calls atomic.Int64
	started, longer := make(chan struct{}), make(chan string)
	rt := &partnerauth.Transport{
		Source:         oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"}),
		Origins:        []string{"https://load.example"},
		Limiter:        &partnerauth.Quota{Requests: n + 2, Window: time.Hour},
		TracerProvider: telemetry.Tracers, MeterProvider: telemetry.Meters, Propagator: telemetry.Propagator,
		Base: baseFunc(func(req *http.Request) (*http.Response, error) {
			resp := &http.Response{StatusCode: 503, Header: http.Header{}, Body: http.NoBody}
			switch calls.Add(1) {
			case 1:
				close(started)
				resp.Header.Set("Retry-After", <-longer)
			case 2:
				resp.Header.Set("Retry-After", retryAfter)
			default:
				resp.StatusCode = 200
			}
			return resp, nil
		}),
	}
	one, _ := http.NewRequest("GET", "https://load.example/", nil)
	go rt.RoundTrip(one)
	<-started
	two, _ := http.NewRequest("GET", "https://load.example/", nil)
	rt.RoundTrip(two)
	return rt, longer
}

func leaveTogether(n int) time.Duration {
	rt, longer := paused(n, "900")
	ctx, cancel := context.WithCancel(context.Background())
	callers := gather(ctx, rt, n)
	began := time.Now()
	cancel()
	callers.Wait()
	longer <- "0"
	return time.Since(began)
}

func refusedTogether(n int) time.Duration {
	rt, longer := paused(n, "300")
	ctx, cancel := context.WithTimeout(context.Background(), 600*time.Second)
	defer cancel()
	callers := gather(ctx, rt, n)
	began := time.Now()
	longer <- "900"
	callers.Wait()
	return time.Since(began)
}

func goTogether(n int) time.Duration {
	rt, longer := paused(n, "2")
	resume := time.Now().Add(3 * time.Second) // whole seconds may have been rounded down
	gather(context.Background(), rt, n).Wait()
	longer <- "0"
	return time.Since(resume)
}

type baseFunc func(*http.Request) (*http.Response, error)

func (f baseFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// BenchmarkCrowd is what ten thousand callers cost that join the queue during a pause,
// are looked at when it is made longer, half of which then leave while the others go:
// processor time, since they sleep for most of it.
func BenchmarkCrowd(b *testing.B) {
	const n = 10_000
	var busy time.Duration
	for b.Loop() {
		rt, longer := paused(n, "2")
		leaving, cancel := context.WithTimeout(context.Background(), time.Hour)
		staying, done := context.WithTimeout(context.Background(), time.Hour)
		before := processorTime()
		first := gather(leaving, rt, n/2)
		second := gather(staying, rt, n/2)
		longer <- "3"
		time.Sleep(100 * time.Millisecond)
		cancel()
		first.Wait()
		second.Wait()
		busy += processorTime() - before
		done()
	}
	b.ReportMetric(float64(busy.Milliseconds())/float64(b.N), "cpu-ms")
}

// processorTime is what the process has used so far.
func processorTime() time.Duration {
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// BenchmarkWaitingMemory is what a caller that waits for its turn takes beside its
// goroutine, its stack and its request.
func BenchmarkWaitingMemory(b *testing.B) {
	const n = 10_000
	for _, mode := range []Mode{Unset, Metrics} {
		b.Run(string(mode), func(b *testing.B) {
			bare := baseFunc(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				return nil, req.Context().Err()
			})
			memoryOf(n, bare, func() {}) // the runtime keeps the goroutines for those that come later
			var heap, stack float64
			for b.Loop() {
				h, _ := memoryOf(n, bare, func() {})
				rt, longer := pausedWith(n, "900", mode)
				hOwn, sOwn := memoryOf(n, rt, func() { longer <- "0" })
				heap, stack = heap+hOwn-h, stack+sOwn
			}
			b.ReportMetric(heap/n/float64(b.N), "heap-B/waiter")
			b.ReportMetric(stack/n/float64(b.N), "stack-B/waiter")
		})
	}
}

// memoryOf returns what n callers take while they wait.
func memoryOf(n int, rt http.RoundTripper, end func()) (heap, stack float64) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	heap, stack = memory()
	callers := gather(ctx, rt, n)
	time.Sleep(50 * time.Millisecond) // until the last one sleeps
	h, s := memory()
	cancel()
	callers.Wait()
	end()
	return h - heap, s - stack
}

func memory() (heap, stack float64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc), float64(m.StackInuse)
}
