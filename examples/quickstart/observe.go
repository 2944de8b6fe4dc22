package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// flushTime is how long a collector may take at the end. One that is not there
// does not keep the program.
const flushTime = 3 * time.Second

// An observer has the spans for the picture, and whatever exports the
// environment asks for.
type observer struct {
	spans   *tracetest.SpanRecorder
	drawn   int // of its spans
	traces  *trace.TracerProvider
	metrics *metric.MeterProvider
}

func observe(ctx context.Context, getenv func(string) string, stderr io.Writer) (*observer, error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		fmt.Fprintln(stderr, "quickstart: telemetry:", err)
	}))
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "partnerauth-quickstart")),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // last, so that OTEL_SERVICE_NAME wins
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	ended := tracetest.NewSpanRecorder()
	// The picture needs every span, whatever OTEL_TRACES_SAMPLER says.
	spans := []trace.TracerProviderOption{
		trace.WithResource(res), trace.WithSampler(trace.AlwaysSample()), trace.WithSpanProcessor(ended),
	}
	if exports(getenv, "TRACES") {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("OTEL_TRACES_EXPORTER and what belongs to it: %w", err)
		}
		spans = append(spans, trace.WithBatcher(exporter))
	}
	metrics := []metric.Option{metric.WithResource(res)}
	if exports(getenv, "METRICS") {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return nil, fmt.Errorf("OTEL_METRICS_EXPORTER and what belongs to it: %w", err)
		}
		metrics = append(metrics, metric.WithReader(reader))
	}
	return &observer{
		spans:   ended,
		traces:  trace.NewTracerProvider(spans...),
		metrics: metric.NewMeterProvider(metrics...),
	}, nil
}

// take returns the spans that have ended since it was last called. One that
// ends meanwhile is the next call's, which the recorder's Reset would lose.
func (o *observer) take() []trace.ReadOnlySpan {
	spans := o.spans.Ended()[o.drawn:]
	o.drawn += len(spans)
	return spans
}

// exports reports whether the environment asks for a signal to be exported.
// Where nothing is set, autoexport would try a collector on localhost.
func exports(getenv func(string) string, signal string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	return getenv("OTEL_"+signal+"_EXPORTER") != "" ||
		getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" ||
		getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

// flush sends what is left, also when ctx has ended. A failure is told, but is
// not one of the program.
func (o *observer) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	for _, shutdown := range []func(context.Context) error{o.traces.Shutdown, o.metrics.Shutdown} {
		if err := shutdown(ctx); err != nil {
			otel.Handle(err)
		}
	}
}
