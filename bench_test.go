package partnerauth_test

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/time/rate"

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
	tr := &partnerauth.Transport{
		Source: partnerauth.NowPost{
			Email: "shop@example.com", Password: "hunter2", BaseURL: apiURL,
			Base: new(partner),
		}.TokenSource(),
		Base: roundTripFunc(cheapAnswer), Limiter: abundance(),
	}
	if _, err := tr.Source.Token(); err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates, too")
	}
	tr := signedIn(t)
	req, _ := http.NewRequest("GET", apiURL+"/orders", nil)
	req.Header.Set("Accept", "application/json")
	call := func() {
		if _, err := tr.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
	}
	// The Base's answer is an allocation, but none of ours.
	base := testing.AllocsPerRun(1000, func() { sinkResponse, _ = cheapAnswer(nil) })
	if n := testing.AllocsPerRun(1000, call) - base; n > 10 {
		t.Errorf("a call with otel's globals unset makes %v allocations, want at most 10", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		call()
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / 1000; n > 1536+uint64(base)*200 {
		t.Errorf("a call with otel's globals unset allocates %d B, want at most 1536 beside the answer", n)
	}

	source := tr.Source.(*partnerauth.Source)
	if n := testing.AllocsPerRun(1000, func() { source.Token() }); n != 0 {
		t.Errorf("Source.Token makes %v allocations on a fresh token, want 0", n)
	}
	if n := testing.AllocsPerRun(1000, func() { source.TokenContext(t.Context()) }); n != 0 {
		t.Errorf("Source.TokenContext makes %v allocations on a fresh token, want 0", n)
	}
	quota := abundance()
	if n := testing.AllocsPerRun(1000, func() { quota.Wait(t.Context()) }); n != 0 {
		t.Errorf("Quota.Wait makes %v allocations when nobody waits, want 0", n)
	}
}

var sinkResponse *http.Response

func BenchmarkTransport(b *testing.B) {
	recorder := func(sampler sdktrace.Sampler) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(sink{}))
	}
	telemetries := []struct {
		name string
		set  func(*partnerauth.Transport)
	}{
		{"unset", func(*partnerauth.Transport) {}},
		{"noop", func(tr *partnerauth.Transport) {
			tr.TracerProvider, tr.MeterProvider = tracenoop.NewTracerProvider(), metricnoop.NewMeterProvider()
		}},
		{"never", func(tr *partnerauth.Transport) {
			tr.TracerProvider, tr.Propagator = recorder(sdktrace.NeverSample()), propagation.TraceContext{}
		}},
		{"always+metrics", func(tr *partnerauth.Transport) {
			tr.TracerProvider, tr.Propagator = recorder(sdktrace.AlwaysSample()), propagation.TraceContext{}
			tr.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		}},
	}
	for _, telemetry := range telemetries {
		newCall := func(b *testing.B) func() {
			tr := signedIn(b)
			telemetry.set(tr)
			req, _ := http.NewRequest("GET", apiURL+"/orders", nil)
			req.Header.Set("Accept", "application/json")
			b.ReportAllocs()
			return func() {
				if _, err := tr.RoundTrip(req); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(telemetry.name+"/serial", func(b *testing.B) {
			call := newCall(b)
			for b.Loop() {
				call()
			}
		})
		b.Run(telemetry.name+"/parallel", func(b *testing.B) {
			call := newCall(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					call()
				}
			})
		})
	}
}

// A sink is where recorded spans end.
type sink struct{}

func (sink) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (sink) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (sink) Shutdown(context.Context) error                  { return nil }
func (sink) ForceFlush(context.Context) error                { return nil }

func BenchmarkSourceToken(b *testing.B) {
	source := signedIn(b).Source
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			source.Token()
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				source.Token()
			}
		})
	})
}

func BenchmarkQuotaWait(b *testing.B) {
	ctx := context.Background()
	limiters := []struct {
		name string
		partnerauth.Limiter
	}{
		{"Quota", abundance()},
		{"rate.Limiter", rate.NewLimiter(1e9, 1_000_000)},
	}
	for _, l := range limiters {
		b.Run(l.name+"/serial", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l.Wait(ctx)
			}
		})
		b.Run(l.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Wait(ctx)
				}
			})
		})
	}
}
