package partnerauth

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const scopeName = "github.com/partnerauth/partnerauth"

// telemetry makes the spans of one account's requests, and has its metrics. It is
// told plain values and knows nothing of the rest of the package.
type telemetry struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	foreign    bool // the propagator is otel's global, and not one chosen for partners
	metrics    *metrics

	callName string
	provider []attribute.KeyValue // none for a foreign token source
}

func newTelemetry(provider string, tp trace.TracerProvider, mp metric.MeterProvider, p propagation.TextMapPropagator) *telemetry {
	if tp == nil {
		tp = otel.GetTracerProvider()
	}
	if mp == nil {
		mp = otel.GetMeterProvider()
	}
	global := p == nil
	if global {
		p = otel.GetTextMapPropagator()
	}
	version := moduleVersion()
	t := &telemetry{
		tracer:     tp.Tracer(scopeName, trace.WithInstrumentationVersion(version), trace.WithSchemaURL(semconv.SchemaURL)),
		propagator: p,
		foreign:    global,
		callName:   "partnerauth call",
	}
	if provider != "" {
		t.callName = provider + " call"
		t.provider = []attribute.KeyValue{keyProvider.String(provider)}
	}
	meter := mp.Meter(scopeName, metric.WithInstrumentationVersion(version), metric.WithSchemaURL(semconv.SchemaURL))
	t.metrics = newMetrics(meter, t.provider)
	return t
}

// moduleVersion returns this module's version as the program was built with it; ""
// if the build does not say.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, module := range append(info.Deps, &info.Main) {
		if module.Path == scopeName {
			return strings.TrimPrefix(strings.Trim(module.Version, "()"), "v")
		}
	}
	return ""
}

// A failure is how something that failed shows on its span. The zero value is
// success.
type failure struct {
	kind        string // error.type
	description string
}

// startCall opens the span that ties the parts of one call together.
func (t *telemetry) startCall(ctx context.Context) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, t.callName)
}

// inject writes the trace context into a request. A partner is a third party, for
// whom baggage is not meant.
func (t *telemetry) inject(ctx context.Context, c propagation.TextMapCarrier) {
	if t.foreign && baggage.FromContext(ctx).Len() > 0 {
		ctx = baggage.ContextWithoutBaggage(ctx)
	}
	t.propagator.Inject(ctx, c)
}

// startAttempt opens the CLIENT span of one attempt. What a sampler may ask for is
// there from the start. resend is how many requests came before for the same call.
func (t *telemetry) startAttempt(ctx context.Context, e *endpoint, method, template string, resend int) (context.Context, trace.Span) {
	if over := trace.SpanFromContext(ctx); !over.IsRecording() && !over.SpanContext().IsValid() {
		return ctx, noSpan // whoever made none above makes none here
	}
	m := methodOf(method)
	name, opts := methods[m], e.starts[m]
	if template != "" {
		name += " " + template
		opts = append(opts, trace.WithAttributes(semconv.URLTemplate(template)))
	}
	if resend > 0 {
		opts = append(opts, trace.WithAttributes(semconv.HTTPRequestResendCount(resend)))
	}
	return t.tracer.Start(ctx, name, opts...)
}

var noSpan = trace.SpanFromContext(context.Background())

// endAttempt ends an attempt's span when its headers are in: a body that nobody
// closes must not lose it. reason is why the rate limit has learnt from the answer.
func (t *telemetry) endAttempt(span trace.Span, method string, u *url.URL, resp *http.Response, reason string, f failure) {
	if !span.IsRecording() {
		span.End()
		return
	}
	var kv [5]attribute.KeyValue
	list := append(kv[:0], semconv.URLFull(redactURL(u)))
	if methodOf(method) == otherMethod {
		list = append(list, semconv.HTTPRequestMethodOriginal(method))
	}
	if reason != "" {
		list = append(list, keyReason.String(reason))
	}
	endSpan(span, f, appendAnswer(list, resp)...)
}

// waitSpan makes the span of a wait for the rate limit. A wait that nobody would
// notice has none.
func (t *telemetry) waitSpan(ctx context.Context, since time.Time, waited time.Duration, result string, low bool, f failure) {
	if waited < time.Millisecond {
		return
	}
	_, span := t.tracer.Start(ctx, "partnerauth.rate_limit.wait", trace.WithTimestamp(since))
	kv := []attribute.KeyValue{keyWaitResult.String(result)}
	if low {
		kv = append(kv, keyPriority.String("low"))
	}
	endSpan(span, f, kv...)
}

// startFetch opens the span of a token fetch that began earlier, in the trace of the
// caller that waits for it. One that nobody waits for is a trace of its own.
func (t *telemetry) startFetch(ctx context.Context, began time.Time, op, trigger string, background bool) (context.Context, trace.Span) {
	opts := []trace.SpanStartOption{
		trace.WithTimestamp(began),
		trace.WithAttributes(t.provider...),
		trace.WithAttributes(keyOperation.String(op), keyTrigger.String(trigger)),
	}
	if background {
		opts = append(opts, trace.WithNewRoot(), trace.WithLinks(trace.LinkFromContext(ctx)))
	}
	return t.tracer.Start(ctx, "partnerauth.token.fetch", opts...)
}

// endFetch ends the span of a token fetch, whose operation is known only now.
func (t *telemetry) endFetch(span trace.Span, op, trigger string, f failure) {
	endSpan(span, f, keyOperation.String(op), keyTrigger.String(trigger))
}

// sharedWaitSpan makes the span of a wait for somebody else's fetch, linked to it.
func (t *telemetry) sharedWaitSpan(ctx context.Context, since time.Time, fetch trace.SpanContext, f failure) {
	opts := []trace.SpanStartOption{trace.WithTimestamp(since)}
	if fetch.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: fetch}))
	}
	_, span := t.tracer.Start(ctx, "partnerauth.token.wait", opts...)
	endSpan(span, f)
}

// endSpan ends span with kv, as an Error if it failed. Its copy of kv goes into a
// pool, so that the list itself can stay on the caller's stack.
func endSpan(span trace.Span, f failure, kv ...attribute.KeyValue) {
	if span.IsRecording() {
		list := attributePool.Get().(*[]attribute.KeyValue)
		*list = append((*list)[:0], kv...)
		if f.kind != "" {
			*list = append(*list, semconv.ErrorTypeKey.String(f.kind))
			span.SetStatus(codes.Error, f.description)
		}
		span.SetAttributes(*list...) // which tracers copy
		attributePool.Put(list)
	}
	span.End()
}

var attributePool = sync.Pool{New: func() any { return new([]attribute.KeyValue) }}

// A carrier is the header of an attempt for propagators to write to. They name
// their fields in lower case; the usual one need not be turned into canonical
// form, nor need its value have a place of its own.
type carrier struct {
	http.Header
	traceparent [1]string
}

func (c *carrier) Set(key, value string) {
	if key != "traceparent" {
		c.Header.Set(key, value)
		return
	}
	c.traceparent[0] = value
	c.Header["Traceparent"] = c.traceparent[:]
}

func (c *carrier) Keys() []string { return slices.Collect(maps.Keys(c.Header)) }

// redactURL returns u without anything that could be a secret: no user, no query
// values, no fragment.
func redactURL(u *url.URL) string {
	const redacted = "REDACTED"
	var b strings.Builder
	path := u.EscapedPath()
	b.Grow(len(u.Scheme) + len(u.Host) + len(path) + 2*len(u.RawQuery) + 4*len(redacted))
	b.WriteString(u.Scheme)
	b.WriteString("://")
	if u.User != nil {
		b.WriteString(redacted + ":" + redacted + "@")
	}
	b.WriteString(u.Host)
	b.WriteString(path)
	separator := byte('?')
	for query := u.RawQuery; query != ""; separator = '&' {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		b.WriteByte(separator)
		// a pair without a name is all value
		if name, _, ok := strings.Cut(pair, "="); ok {
			b.WriteString(name)
			b.WriteByte('=')
		}
		b.WriteString(redacted)
	}
	return b.String()
}

// WithURLTemplate returns a context whose calls are named after template, such as
// /api/v1/orders/{id}: their spans are called "GET /api/v1/orders/{id}" instead of
// "GET". It is the attribute url.template of these spans and of the metric
// partnerauth.call.duration. Use one of a few templates, and not a path with values
// in it.
func WithURLTemplate(ctx context.Context, template string) context.Context {
	return context.WithValue(ctx, templateKey, template)
}

func templateOf(ctx context.Context) string {
	template, _ := ctx.Value(templateKey).(string)
	return template
}
