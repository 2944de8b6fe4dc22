package main

import (
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// An observer has the spans for the picture. What sends them to a collector is
// in examples/collector.
type observer struct {
	spans  *tracetest.SpanRecorder
	drawn  int // of its spans
	traces *trace.TracerProvider
}

func observe() *observer {
	ended := tracetest.NewSpanRecorder()
	return &observer{spans: ended, traces: trace.NewTracerProvider(
		// The picture needs every span, whatever OTEL_TRACES_SAMPLER says.
		trace.WithSampler(trace.AlwaysSample()), trace.WithSpanProcessor(ended),
	)}
}

// take returns the spans that have ended since it was last called. One that
// ends meanwhile is the next call's, which the recorder's Reset would lose.
func (o *observer) take() []trace.ReadOnlySpan {
	spans := o.spans.Ended()[o.drawn:]
	o.drawn += len(spans)
	return spans
}
