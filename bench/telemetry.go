package bench

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// A Mode is how a process has set OpenTelemetry up.
type Mode string

const (
	Unset   Mode = "unset"   // not at all
	Noop    Mode = "noop"    // no-op providers
	Never   Mode = "never"   // an SDK that samples nothing, no metrics
	Always  Mode = "always"  // an SDK that records every span, no metrics
	Metrics Mode = "metrics" // the same, and metrics
)

// AllModes are all of them, the cheapest first.
var AllModes = []Mode{Unset, Noop, Never, Always, Metrics}

// A Telemetry is what a peer is given for a Mode: for Unset nothing, so that it
// asks for the globals, which nobody has set.
type Telemetry struct {
	Tracers    trace.TracerProvider
	Meters     metric.MeterProvider
	Propagator propagation.TextMapPropagator
}

// NewTelemetry sets a mode up. Spans are recorded and then discarded, metrics
// are aggregated and never read.
func NewTelemetry(mode Mode) Telemetry {
	t := Telemetry{nooptrace.NewTracerProvider(), noopmetric.NewMeterProvider(), propagation.TraceContext{}}
	switch mode {
	case Unset:
		return Telemetry{}
	case Never:
		t.Tracers = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()), sdktrace.WithSpanProcessor(discard{}))
	case Metrics:
		t.Meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		fallthrough
	case Always:
		t.Tracers = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSpanProcessor(discard{}))
	}
	return t
}

func (t Telemetry) global() bool { return t.Tracers == nil }

func (t Telemetry) otelhttp() []otelhttp.Option {
	if t.global() {
		return nil
	}
	return []otelhttp.Option{
		otelhttp.WithTracerProvider(t.Tracers), otelhttp.WithMeterProvider(t.Meters), otelhttp.WithPropagators(t.Propagator),
	}
}

type discard struct{}

func (discard) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (discard) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (discard) Shutdown(context.Context) error                  { return nil }
func (discard) ForceFlush(context.Context) error                { return nil }

// newSDK is what OpenTelemetry's SDK alone takes for the spans and metrics that
// ours makes of a call: an INTERNAL and a CLIENT span with the same attributes,
// and a value for each of three histograms. All that can be is made beforehand.
func newSDK(s Setup) (Call, error) {
	const scope = "github.com/partnerauth/partnerauth/bench"
	tracer := s.Telemetry.Tracers.Tracer(scope)
	meter := s.Telemetry.Meters.Meter(scope)
	duration, err := httpconv.NewClientRequestDuration(meter)
	if err != nil {
		return nil, err
	}
	waits, err := meter.Float64Histogram("partnerauth.rate_limit.wait_time", metric.WithUnit("s"))
	if err != nil {
		return nil, err
	}
	calls, err := meter.Float64Histogram("partnerauth.call.duration", metric.WithUnit("s"))
	if err != nil {
		return nil, err
	}
	provider := attribute.String("partnerauth.provider", "ndovu")
	address := []attribute.KeyValue{
		attribute.String("http.request.method", "GET"), attribute.String("server.address", "partner.example.com"), attribute.Int("server.port", 443),
	}
	status, version := attribute.Int("http.response.status_code", 200), attribute.String("network.protocol.version", "1.1")
	attemptStart := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(address...)}
	outcome := []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(append(address, status, version, provider)...))}
	waited := []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(
		attribute.String("partnerauth.rate_limit.result", "acquired"), provider))}
	called := []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(provider))}

	return func(req *http.Request) (*http.Response, error) {
		ctx, call := tracer.Start(req.Context(), "ndovu call")
		if waits.Enabled(ctx) {
			waits.Record(ctx, 0, waited...)
		}
		ctx, attempt := tracer.Start(ctx, "GET", attemptStart...)
		start := time.Now()
		resp, err := s.Base.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		if duration.Enabled(ctx) {
			duration.Float64Histogram.Record(ctx, time.Since(start).Seconds(), outcome...)
		}
		if attempt.IsRecording() {
			attempt.SetAttributes(attribute.String("url.full", Target+Path), status, version)
		}
		attempt.End()
		if call.IsRecording() {
			call.SetAttributes(attribute.Int("partnerauth.attempts", 1), attribute.Float64("partnerauth.rate_limit.wait_time", 0),
				attribute.String("partnerauth.token.source", "cache"), status)
		}
		call.End()
		if calls.Enabled(ctx) {
			calls.Record(ctx, time.Since(start).Seconds(), called...)
		}
		return resp, nil
	}, nil
}
