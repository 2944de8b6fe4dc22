package bench

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/partnerauth/partnerauth"
)

// seen is a Base that remembers what was sent.
type seen struct {
	base    http.RoundTripper
	mu      sync.Mutex
	headers []http.Header
	protos  []string
}

func (s *seen) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := s.base.RoundTrip(req)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers = append(s.headers, req.Header)
	if err == nil {
		s.protos = append(s.protos, resp.Proto)
	}
	return resp, err
}

// A table of figures is worth nothing if one of the peers does not do its work.
func TestPeers(t *testing.T) {
	loopback := StartLoopback()
	defer loopback.Close()
	http1, http2 := loopback.Transport(false), loopback.Transport(true)
	defer http1.CloseIdleConnections()
	defer http2.CloseIdleConnections()
	for _, base := range []struct {
		name, target, proto string
		base                http.RoundTripper
	}{
		{"memory", Target, "HTTP/1.1", Memory{}},
		{"http1", loopback.URL, "HTTP/1.1", http1},
		{"http2", loopback.URL, "HTTP/2.0", http2},
	} {
		for _, mode := range AllModes {
			for _, p := range In(mode) {
				t.Run(base.name+"/"+string(mode)+"/"+p.Name, func(t *testing.T) {
					sent := &seen{base: base.base}
					call, err := p.New(Setup{Base: sent, Target: base.target, Telemetry: NewTelemetry(mode)})
					if err != nil {
						t.Fatal(err)
					}
					for range 2 {
						if err := Do(call, NewRequest(base.target)); err != nil {
							t.Fatal(err)
						}
					}
					if len(sent.headers) != 2 {
						t.Fatalf("got %d requests, want 2", len(sent.headers))
					}
					want := ""
					if strings.Contains(p.Features, "token") {
						want = "Bearer " + Token
					}
					if got := sent.headers[1].Get("Authorization"); got != want {
						t.Errorf("got Authorization %q, want %q", got, want)
					}
					if got := sent.headers[1].Get("Accept"); got != "application/json" {
						t.Errorf("got Accept %q, want that of the request", got)
					}
					traced := strings.Contains(p.Features, "token") && strings.Contains(p.Features, "spans") && mode != Unset && mode != Noop
					if got := sent.headers[1].Get("Traceparent") != ""; got != traced {
						t.Errorf("got a traceparent: %v, want %v", got, traced)
					}
					if got := sent.protos[1]; got != base.proto {
						t.Errorf("got %s, want %s", got, base.proto)
					}
				})
			}
		}
	}
}

// What the SDK is measured with has to be what ours asks of it.
func TestSDKRowIsOurs(t *testing.T) {
	record := func(name string) ([]sdktrace.ReadOnlySpan, map[string]int) {
		spans, reader := tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
		tel := NewTelemetry(Metrics)
		tel.Tracers = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
		tel.Meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		call, err := ByName(name).New(Setup{Base: Memory{}, Target: Target, Telemetry: tel})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Do(call, NewRequest(Target)); err != nil {
				t.Fatal(err)
			}
		}
		var rm metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &rm); err != nil {
			t.Fatal(err)
		}
		points := map[string]int{}
		for _, m := range rm.ScopeMetrics[0].Metrics {
			if h, ok := m.Data.(metricdata.Histogram[float64]); ok {
				for _, p := range h.DataPoints {
					if p.Attributes.HasValue("url.template") {
						continue // the login's
					}
					points[m.Name] = max(points[m.Name], p.Attributes.Len())
				}
			}
		}
		ended := spans.Ended()
		return ended[len(ended)-2:], points // of the second call, which found a token
	}
	want, wantPoints := record("sdk")
	got, gotPoints := record(Ours)
	for i, kind := range []trace.SpanKind{trace.SpanKindClient, trace.SpanKindInternal} {
		if want[i].SpanKind() != kind || got[i].SpanKind() != kind {
			t.Errorf("span %d: SDK has kind %v, ours %v, want %v", i, want[i].SpanKind(), got[i].SpanKind(), kind)
		}
		if want[i].Name() != got[i].Name() {
			t.Errorf("span %d: SDK has name %q, ours %q", i, want[i].Name(), got[i].Name())
		}
		a, b := keys(want[i]), keys(got[i])
		if a != b {
			t.Errorf("span %d: SDK has attributes %s, ours %s", i, a, b)
		}
	}
	for _, name := range []string{"http.client.request.duration", "partnerauth.rate_limit.wait_time", "partnerauth.call.duration"} {
		if wantPoints[name] == 0 || wantPoints[name] != gotPoints[name] {
			t.Errorf("%s: SDK has %d attributes, ours %d", name, wantPoints[name], gotPoints[name])
		}
	}
}

func keys(s sdktrace.ReadOnlySpan) string {
	var all []string
	for _, kv := range s.Attributes() {
		all = append(all, string(kv.Key))
	}
	return strings.Join(all, " ")
}

// What is measured with 100 a minute must not wait in its 90 calls.
func TestMinute(t *testing.T) {
	for _, name := range []string{Stack, Ours} {
		synctest.Test(t, func(t *testing.T) {
			call, err := ByName(name).New(Setup{Base: Memory{}, Target: Target, Minute: true})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			for range 1 + minuteCalls {
				if err := Do(call, NewRequest(Target)); err != nil {
					t.Fatal(err)
				}
			}
			if got := time.Since(start); got != 0 {
				t.Errorf("%s: %d calls waited %v, want none to wait", name, 1+minuteCalls, got)
			}
			for range minutely {
				if err := Do(call, NewRequest(Target)); err != nil {
					t.Fatal(err)
				}
			}
			if time.Since(start) == 0 {
				t.Errorf("%s: %d calls did not wait, want a limit of %d", name, 1+minuteCalls+minutely, minutely)
			}
		})
	}
}

// Allocations do not depend on the machine, so they are held to here; times are
// in the table.
func TestAllocations(t *testing.T) {
	if raceDetector() {
		t.Skip("the race detector allocates")
	}
	for _, mode := range AllModes {
		t.Run(string(mode), func(t *testing.T) {
			stack, _ := allocations(t, Stack, mode)
			ours, bytes := allocations(t, Ours, mode)
			t.Logf("stack %v, ours %v and %.0f B", stack, ours, bytes)
			if ours*2 > stack {
				t.Errorf("got %v allocations a call, want at most half of the stack's %v", ours, stack)
			}
			if mode == Unset && (ours > 10 || bytes > 1536) {
				t.Errorf("got %v allocations and %.0f B a call, want at most 10 and 1536", ours, bytes)
			}
		})
	}
}

func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// allocations counts those of one call in memory.
func allocations(t *testing.T, peer string, mode Mode) (count, bytes float64) {
	t.Helper()
	call, err := ByName(peer).New(Setup{Base: Memory{}, Target: Target, Telemetry: NewTelemetry(mode)})
	if err != nil {
		t.Fatal(err)
	}
	return perRun(t, func(req *http.Request) error { return Do(call, req) })
}

// perRun is like testing.AllocsPerRun, with bytes.
func perRun(t *testing.T, do func(*http.Request) error) (count, bytes float64) {
	t.Helper()
	const runs = 2000
	req := NewRequest(Target)
	var err error
	once := func() {
		if e := do(req); e != nil {
			err = e
		}
	}
	count = testing.AllocsPerRun(runs, once)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		once()
	}
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	return count, float64(after.TotalAlloc-before.TotalAlloc) / runs
}

func TestTokenAllocatesNothing(t *testing.T) {
	source := NewSource(Setup{Target: Target})
	count, _ := perRun(t, func(*http.Request) error { _, err := source.Token(); return err })
	if count != 0 {
		t.Errorf("got %v allocations for a fresh token, want 0", count)
	}
}

func TestWaitAllocatesNothing(t *testing.T) {
	quota := &partnerauth.Quota{Requests: plenty, Window: plentyTime}
	count, _ := perRun(t, func(*http.Request) error { return quota.Wait(t.Context()) })
	if count != 0 {
		t.Errorf("got %v allocations for a permit that is there, want 0", count)
	}
}
