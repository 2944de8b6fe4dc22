package bench

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
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
	var calls atomic.Int64
	started, longer := make(chan struct{}), make(chan string)
	rt := &partnerauth.Transport{
		Source:  oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"}),
		Origins: []string{"https://load.example"},
		Limiter: &partnerauth.Quota{Requests: n + 2, Window: time.Hour},
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
	resume := time.Now().Add(2 * time.Second)
	gather(context.Background(), rt, n).Wait()
	longer <- "0"
	return time.Since(resume)
}

type baseFunc func(*http.Request) (*http.Response, error)

func (f baseFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
