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

// serialAndParallel measures what newCall makes, alone and at once.
func serialAndParallel(b *testing.B, name string, newCall func(*testing.B) func()) {
	b.Run(name+"/serial", func(b *testing.B) {
		call := newCall(b)
		b.ReportAllocs()
		for b.Loop() {
			call()
		}
	})
	b.Run(name+"/parallel", func(b *testing.B) {
		call := newCall(b)
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				call()
			}
		})
	})
}

func BenchmarkTransport(b *testing.B) {
	recorder := func(sampler sdktrace.Sampler) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(sink{}))
	}
	for _, telemetry := range []struct {
		name string
		set  func(*partnerauth.Transport)
	}{
		{"unset", func(*partnerauth.Transport) {}},
		{"noop", func(rt *partnerauth.Transport) {
			rt.TracerProvider, rt.MeterProvider = tracenoop.NewTracerProvider(), metricnoop.NewMeterProvider()
		}},
		{"never", func(rt *partnerauth.Transport) {
			rt.TracerProvider, rt.Propagator = recorder(sdktrace.NeverSample()), propagation.TraceContext{}
		}},
		{"always+metrics", func(rt *partnerauth.Transport) {
			rt.TracerProvider, rt.Propagator = recorder(sdktrace.AlwaysSample()), propagation.TraceContext{}
			rt.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		}},
	} {
		serialAndParallel(b, telemetry.name, func(b *testing.B) func() {
			rt, req := signedIn(b), newRequest(b, "GET", apiURL+"/orders", "")
			telemetry.set(rt)
			return func() { rt.RoundTrip(req) }
		})
	}
}

// A sink is where recorded spans end.
type sink struct{ sdktrace.SpanProcessor }

func (sink) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (sink) OnEnd(sdktrace.ReadOnlySpan)                     {}

func BenchmarkSourceToken(b *testing.B) {
	source := signedIn(b).Source
	serialAndParallel(b, "fresh", func(*testing.B) func() { return func() { source.Token() } })
}

func BenchmarkQuotaWait(b *testing.B) {
	for name, l := range map[string]partnerauth.Limiter{"Quota": abundance(), "rate.Limiter": rate.NewLimiter(1e9, 1_000_000)} {
		serialAndParallel(b, name, func(b *testing.B) func() { return func() { l.Wait(b.Context()) } })
	}
}
