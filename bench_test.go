package partnerauth_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
)

// underRace reports whether the race detector is on. It adds allocations of its
// own and lets sync.Pool forget at random, so that none can be counted.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}()

// abundance is a Quota that lets everybody go at once and still does its work.
func abundance() *partnerauth.Quota {
	return &partnerauth.Quota{Requests: 1_000_000, Window: time.Millisecond}
}

// cheapAnswer is what costs least to return.
func cheapAnswer(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}, nil
}

// signedIn is a Transport with a fresh token.
func signedIn(t testing.TB) *partnerauth.Transport {
	rt := &partnerauth.Transport{Source: new(partner).nowPost(), Base: roundTripFunc(cheapAnswer), Limiter: abundance()}
	if _, err := rt.Source.Token(); err != nil {
		t.Fatal(err)
	}
	return rt
}

func TestAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates, too")
	}
	rt, req := signedIn(t), newRequest(t, "GET", apiURL+"/orders", "")
	req.Header.Set("Accept", "application/json")
	source, quota := rt.Source.(*partnerauth.Source), abundance()
	for _, c := range []struct {
		name  string
		most  float64
		bytes uint64
		call  func()
	}{
		// 10 and 1.5 kB are for us, the rest is the Base's answer
		{"a call with otel's globals unset", 10 + 1, 1536 + 200, func() { rt.RoundTrip(req) }},
		{"Source.Token on a fresh token", 0, 0, func() { source.Token() }},
		{"Source.TokenContext on a fresh token", 0, 0, func() { source.TokenContext(t.Context()) }},
		{"Quota.Wait when nobody waits", 0, 200, func() { quota.Wait(t.Context()) }},
	} {
		n := testing.AllocsPerRun(1000, c.call)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 1000 {
			c.call()
		}
		runtime.ReadMemStats(&after)
		bytes := (after.TotalAlloc - before.TotalAlloc) / 1000
		errorIf(t, n > c.most || bytes > c.bytes, "%s makes %v allocations of %d B, want at most %v of %d B", c.name, n, bytes, c.most, c.bytes)
	}
}

// BenchmarkWaiters shows what a waiting caller costs when n of them leave, are
// refused or go at once: ns/waiter must not grow with n.
func BenchmarkWaiters(b *testing.B) {
	for _, scene := range []struct {
		name, pause string
		idle        time.Duration // that passes of it
		begin       func(leave context.CancelFunc, longer chan string)
	}{
		{"leave", "300", 0, func(leave context.CancelFunc, _ chan string) { leave() }},
		{"refused", "300", 0, func(_ context.CancelFunc, longer chan string) { longer <- "900" }},
		{"go", "2", 2 * time.Second, func(context.CancelFunc, chan string) {}},
	} {
		for _, n := range []int{1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", scene.name, n), func(b *testing.B) {
				var took time.Duration
				for b.Loop() {
					rt, longer := paused(n, scene.pause)
					ctx, cancel := context.WithTimeout(b.Context(), 600*time.Second)
					began := time.Now().Add(scene.idle)
					callers := gather(ctx, rt, n)
					if now := time.Now(); now.After(began) {
						began = now
					}
					scene.begin(cancel, longer)
					callers.Wait()
					took += time.Since(began)
					cancel()
					close(longer)
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
	callers := atOnce(n, func(int) { try(c, rt, "/") })
	<-c.all
	return callers
}

// paused is a Transport with places for n callers and a pause for them to wait
// in. An earlier request is answered when the channel says how long to wait.
func paused(n int, retryAfter string) (*partnerauth.Transport, chan string) {
	started, longer := make(chan struct{}), make(chan string)
	rt := new(partner).custom(static("t"), &partnerauth.Quota{Requests: n + 2, Window: time.Hour})
	rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
		resp, _ := cheapAnswer(req)
		resp.Header = http.Header{}
		switch req.URL.Path {
		case "/early":
			close(started)
			resp.StatusCode = 503
			resp.Header.Set("Retry-After", <-longer)
		case "/pause":
			resp.StatusCode = 503
			resp.Header.Set("Retry-After", retryAfter)
		}
		return resp, nil
	})
	go try(context.Background(), rt, "/early")
	<-started
	try(context.Background(), rt, "/pause")
	return rt, longer
}
