package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// flushTime is how long a collector may take at the end. One that is not there
// does not keep the program.
const flushTime = 3 * time.Second

// export sets OpenTelemetry's global providers, which is all that partnerauth
// needs, and returns what sends the rest at the end, also when ctx has ended.
func export(ctx context.Context) (flush func(context.Context) error, err error) {
	for _, signal := range []string{"", "TRACES_", "METRICS_"} {
		name := "OTEL_EXPORTER_OTLP_" + signal + "PROTOCOL"
		if protocol := os.Getenv(name); protocol != "" && protocol != "http/protobuf" {
			return nil, fmt.Errorf("%s is %q, and this program speaks http/protobuf only", name, protocol)
		}
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "partnerauth-collector")),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // last, so that OTEL_SERVICE_NAME wins
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}

	spans := []trace.TracerProviderOption{trace.WithResource(res)}
	if wanted("TRACES") {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, err
		}
		spans = append(spans, trace.WithBatcher(exporter))
	}
	metrics := []metric.Option{metric.WithResource(res)}
	if wanted("METRICS") {
		exporter, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, err
		}
		metrics = append(metrics, metric.WithReader(metric.NewPeriodicReader(exporter)))
	}

	traces, meters := trace.NewTracerProvider(spans...), metric.NewMeterProvider(metrics...)
	otel.SetTracerProvider(traces)
	otel.SetMeterProvider(meters)
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		// ForceFlush returns an error for what could not be sent; Shutdown of spans does not.
		return errors.Join(traces.ForceFlush(ctx), traces.Shutdown(ctx), meters.Shutdown(ctx))
	}, nil
}

// wanted reports whether the environment leaves a signal in.
func wanted(signal string) bool { return os.Getenv("OTEL_"+signal+"_EXPORTER") != "none" }
