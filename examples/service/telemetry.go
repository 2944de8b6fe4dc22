package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// telemetry is passed to what needs it. OpenTelemetry's globals stay unset.
type telemetry struct {
	log     *slog.Logger
	tracers *sdktrace.TracerProvider
	meters  *metric.MeterProvider
	metrics http.Handler
}

// newTelemetry logs to w and keeps metrics for Prometheus. Traces are not exported, but their ids are in the log and in
// the requests to the partner. To export them, add sdktrace.WithBatcher with an exporter to the TracerProvider.
func newTelemetry(w io.Writer) (*telemetry, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, err
	}
	return &telemetry{
		log:     slog.New(tracedLog{slog.NewJSONHandler(w, nil)}),
		tracers: sdktrace.NewTracerProvider(),
		meters:  metric.NewMeterProvider(metric.WithReader(exporter)),
		metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}, nil
}

// tracedLog adds the ids of the context's trace and span to each line.
type tracedLog struct{ slog.Handler }

func (h tracedLog) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h tracedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tracedLog{h.Handler.WithAttrs(attrs)}
}
func (h tracedLog) WithGroup(name string) slog.Handler { return tracedLog{h.Handler.WithGroup(name)} }
