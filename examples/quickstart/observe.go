package main

import (
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// An observer keeps the spans for the picture.
type observer struct {
	spans  *tracetest.SpanRecorder
	drawn  int // how many of its spans
	traces *trace.TracerProvider
}

func observe() *observer {
	ended := tracetest.NewSpanRecorder()
	return &observer{spans: ended, traces: trace.NewTracerProvider(
		// The picture needs every span, whatever OTEL_TRACES_SAMPLER says.
		trace.WithSampler(trace.AlwaysSample()), trace.WithSpanProcessor(ended),
	)}
}

// take returns the spans that have ended since its last call. It does not Reset
// the recorder, which would lose a span that ends at that moment.
func (o *observer) take() []trace.ReadOnlySpan {
	spans := o.spans.Ended()[o.drawn:]
	o.drawn += len(spans)
	return spans
}
