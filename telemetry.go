package partnerauth

import (
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
	"go.opentelemetry.io/otel/trace"
)

const (
	scopeName = "github.com/partnerauth/partnerauth"
	version   = "0.1.0" // of the module, as CHANGELOG.md has it
)

// Attributes of our own; all others are OpenTelemetry's.
const (
	keyProvider     = attribute.Key("partnerauth.provider")
	keyAttempts     = attribute.Key("partnerauth.attempts")
	keyWaitTime     = attribute.Key("partnerauth.rate_limit.wait_time")
	keyWaitResult   = attribute.Key("partnerauth.rate_limit.result")
	keyPriority     = attribute.Key("partnerauth.rate_limit.priority")
	keyPace         = attribute.Key("partnerauth.rate_limit.pace")
	keyTokenSource  = attribute.Key("partnerauth.token.source")
	keyRetryAfter   = attribute.Key("partnerauth.rate_limit.retry_after")
	keyTokenStatus  = attribute.Key("partnerauth.token.status_code")
	keyOperation    = attribute.Key("partnerauth.token.operation")
	keyTrigger      = attribute.Key("partnerauth.token.trigger")
	keyResendReason = attribute.Key("partnerauth.resend.reason")
)

// How a wait for the rate limit ended.
const (
	acquired         = "acquired"
	canceled         = "canceled"
	deadlineExceeded = "deadline_exceeded"
)

// telemetry makes the spans and metrics of one account.
type telemetry struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	foreign    bool // the propagator is otel's global, and not one for partners

	callName string
	provider []attribute.KeyValue // none for a source of the user's own

	duration httpconv.ClientRequestDuration
	waits    metric.Float64Histogram
	waited   map[string][]metric.RecordOption // by result
	queued   metric.Int64UpDownCounter
	pace     metric.Float64Gauge
	lastPace atomic.Uint64 // as math.Float64bits, to record changes only
	fetches  metric.Float64Histogram
	resends  metric.Int64Counter
}

// newTelemetry takes what is nil from otel's globals. An instrument that the
// provider cannot make is a no-op.
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
	t := &telemetry{
		tracer:     tp.Tracer(scopeName, trace.WithInstrumentationVersion(version), trace.WithSchemaURL(semconv.SchemaURL)),
		propagator: p,
		foreign:    global,
		callName:   "partnerauth call",
		waited:     map[string][]metric.RecordOption{},
	}
	if provider != "" {
		t.callName = provider + " call"
		t.provider = []attribute.KeyValue{keyProvider.String(provider)}
	}
	for _, result := range []string{acquired, canceled, deadlineExceeded} {
		t.waited[result] = []metric.RecordOption{metric.WithAttributeSet(t.set(keyWaitResult.String(result)))}
	}

	m := mp.Meter(scopeName, metric.WithInstrumentationVersion(version), metric.WithSchemaURL(semconv.SchemaURL))
	t.duration, _ = httpconv.NewClientRequestDuration(m)
	t.waits, _ = m.Float64Histogram("partnerauth.rate_limit.wait_time", metric.WithUnit("s"),
		metric.WithDescription("Time that a request waited for leave to be sent."),
		metric.WithExplicitBucketBoundaries(0, .01, .1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900))
	t.queued, _ = m.Int64UpDownCounter("partnerauth.rate_limit.queued_requests", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that wait for leave to be sent."))
	t.lastPace.Store(math.Float64bits(1))
	t.pace, _ = m.Float64Gauge("partnerauth.rate_limit.pace", metric.WithUnit("1"),
		metric.WithDescription("Share of the full pace that is left after answers of status 429."))
	t.fetches, _ = m.Float64Histogram("partnerauth.token.fetch.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of getting a token, waits and tries included."),
		metric.WithExplicitBucketBoundaries(.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900))
	t.resends, _ = m.Int64Counter("partnerauth.resends", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that were sent once more."))
	return t
}

func (t *telemetry) set(kv ...attribute.KeyValue) attribute.Set {
	return attribute.NewSet(append(kv, t.provider...)...)
}

// startCall opens the span that ties the parts of one call together.
func (t *telemetry) startCall(ctx context.Context) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, t.callName)
}

// endCall tells what the parts of a call have come to.
func (t *telemetry) endCall(span trace.Span, c *call, resp *http.Response, err error) {
	if !span.IsRecording() {
		span.End()
		return
	}
	var kv [6]attribute.KeyValue
	list := append(kv[:0], keyAttempts.Int(c.attempts), keyWaitTime.Float64(c.waited.Seconds()))
	if len(t.provider) > 0 && c.lease != nil {
		list = append(list, keyTokenSource.String(c.from))
	}
	if c.attempts > 0 && c.permit.pace < 1 {
		list = append(list, keyPace.Float64(c.permit.pace))
	}
	if resp != nil {
		list = append(list, semconv.HTTPResponseStatusCode(resp.StatusCode))
	}
	if auth, ok := errors.AsType[*AuthError](err); ok && auth.StatusCode > 0 {
		list = append(list, keyTokenStatus.Int(auth.StatusCode))
	}
	if wait := refusedWait(err); wait > 0 {
		list = append(list, keyRetryAfter.Float64(wait.Seconds()))
	}
	endSpan(span, errorType(c.ctx, resp, err), list...)
}

// refusedWait is how long the wait would have been that err refuses.
func refusedWait(err error) time.Duration {
	limited, ok := errors.AsType[interface {
		error
		RetryAfter() time.Duration
	}](err)
	if !ok || !errors.Is(err, ErrRateLimited) {
		return 0
	}
	return limited.RetryAfter()
}

// inject writes the place in the trace to a request. A partner is a third party,
// whom baggage is not for.
func (t *telemetry) inject(ctx context.Context, c propagation.TextMapCarrier) {
	if t.foreign && baggage.FromContext(ctx).Len() > 0 {
		ctx = baggage.ContextWithoutBaggage(ctx)
	}
	t.propagator.Inject(ctx, c)
}

// startAttempt opens the CLIENT span of one attempt. What a sampler may ask for
// is there from the start.
func (t *telemetry) startAttempt(ctx context.Context, req *http.Request, a *attempt) (context.Context, trace.Span) {
	if over := trace.SpanFromContext(ctx); !over.IsRecording() && !over.SpanContext().IsValid() {
		return ctx, noSpan // whoever made none above makes none here
	}
	m := methodOf(req.Method)
	name, opts := methods[m], a.origin.starts[m]
	if a.template != "" {
		name += " " + a.template
		opts = append(opts, trace.WithAttributes(semconv.URLTemplate(a.template)))
	}
	if a.resend > 0 {
		opts = append(opts, trace.WithAttributes(semconv.HTTPRequestResendCount(a.resend)))
	}
	return t.tracer.Start(ctx, name, opts...)
}

var noSpan = trace.SpanFromContext(context.Background())

// endAttempt ends an attempt's span and records its duration when its headers
// are in: a body that nobody closes must not lose them.
func (t *telemetry) endAttempt(ctx context.Context, span trace.Span, took time.Duration, req *http.Request, a *attempt, resp *http.Response, err error) {
	m, failure := methodOf(req.Method), errorType(ctx, resp, err)
	if t.duration.Enabled(ctx) {
		t.duration.Float64Histogram.Record(ctx, took.Seconds(), a.origin.outcome(m, a.tokenPath, resp, failure)...)
	}
	if !span.IsRecording() {
		span.End()
		return
	}
	var kv [4]attribute.KeyValue
	list := append(kv[:0], semconv.URLFull(redactURL(req.URL)))
	if m == otherMethod {
		list = append(list, semconv.HTTPRequestMethodOriginal(req.Method))
	}
	endSpan(span, failure, appendAnswer(list, resp)...)
}

// appendAnswer appends what spans and metrics both tell of an answer.
func appendAnswer(kv []attribute.KeyValue, resp *http.Response) []attribute.KeyValue {
	if resp == nil {
		return kv
	}
	kv = append(kv, semconv.HTTPResponseStatusCode(resp.StatusCode))
	if v := protocolOf(resp); v != "" {
		kv = append(kv, semconv.NetworkProtocolVersion(v))
	}
	return kv
}

// recordWait records how long a permit was waited for. A wait that nobody would
// notice has no span.
func (t *telemetry) recordWait(ctx context.Context, w *waiter, waited time.Duration, err error) {
	var kv []attribute.KeyValue
	if low(w.ticket) {
		kv = append(kv, keyPriority.String("low"))
	}
	result := acquired
	switch {
	case errors.Is(err, ErrRateLimited):
		result = deadlineExceeded
	case err != nil:
		result = canceled
	}
	if t.waits.Enabled(ctx) {
		ctx := ctx
		if waited == 0 {
			ctx = context.Background() // a wait that was none makes no exemplar
		}
		opts := t.waited[result]
		if len(kv) > 0 {
			opts = []metric.RecordOption{metric.WithAttributeSet(t.set(append(kv, keyWaitResult.String(result))...))}
		}
		t.waits.Record(ctx, waited.Seconds(), opts...)
	}
	if waited >= time.Millisecond {
		_, span := t.tracer.Start(ctx, "partnerauth.rate_limit.wait", trace.WithTimestamp(w.since))
		endSpan(span, errorType(ctx, nil, err), append(kv, keyWaitResult.String(result))...)
	}
}

// recordPace records the share of the full pace when it has changed.
func (t *telemetry) recordPace(ctx context.Context, pace float64) {
	if t.lastPace.Load() != math.Float64bits(pace) {
		t.lastPace.Store(math.Float64bits(pace))
		t.pace.Record(ctx, pace, metric.WithAttributes(t.provider...))
	}
}

// addQueued counts a request that begins (1) or ends (-1) to wait.
func (t *telemetry) addQueued(ctx context.Context, n int64) {
	t.queued.Add(ctx, n, metric.WithAttributes(t.provider...))
}

func (t *telemetry) addResend(ctx context.Context, reason string) {
	t.resends.Add(ctx, 1, metric.WithAttributeSet(t.set(keyResendReason.String(reason))))
}

// startFetch opens the span of a token fetch in the trace of the caller that
// waits for it. One that nobody waits for is a trace of its own.
func (t *telemetry) startFetch(ctx context.Context, f *fetch) (context.Context, trace.Span) {
	opts := []trace.SpanStartOption{
		trace.WithAttributes(t.provider...),
		trace.WithAttributes(keyOperation.String(f.op), keyTrigger.String(f.trigger)),
	}
	if f.renews != nil {
		opts = append(opts, trace.WithNewRoot(), trace.WithLinks(trace.LinkFromContext(ctx)))
	}
	return t.tracer.Start(ctx, "partnerauth.token.fetch", opts...)
}

func (t *telemetry) endFetch(ctx context.Context, span trace.Span, start time.Time, f *fetch, err *AuthError) {
	kv := []attribute.KeyValue{keyOperation.String(f.op), keyTrigger.String(f.trigger)}
	failure := ""
	if err != nil {
		failure = errorType(ctx, nil, err)
	}
	endSpan(span, failure, kv...)
	if failure != "" {
		kv = append(kv, semconv.ErrorTypeKey.String(failure))
	}
	if f.idle {
		return
	}
	t.fetches.Record(ctx, time.Since(start).Seconds(), metric.WithAttributeSet(t.set(kv...)))
}

// recordShared notes a wait for somebody else's fetch.
func (t *telemetry) recordShared(ctx context.Context, w *waiter) {
	opts := []trace.SpanStartOption{trace.WithTimestamp(w.joinedAt)}
	if link := w.joined.span.Load(); link != nil {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: *link}))
	}
	_, span := t.tracer.Start(ctx, "partnerauth.token.wait", opts...)
	if failure := errorType(ctx, nil, w.fetchErr); failure != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(failure))
		span.SetStatus(codes.Error, "")
	}
	span.End(trace.WithTimestamp(w.servedAt))
}

// endSpan ends span with kv, as an Error if there is a failure. Its copy of kv
// goes into a pool, so that the list itself can stay on the caller's stack.
func endSpan(span trace.Span, failure string, kv ...attribute.KeyValue) {
	if span.IsRecording() {
		list := attributePool.Get().(*[]attribute.KeyValue)
		*list = append((*list)[:0], kv...)
		if failure != "" {
			*list = append(*list, semconv.ErrorTypeKey.String(failure))
			span.SetStatus(codes.Error, "")
		}
		span.SetAttributes(*list...) // which tracers copy
		attributePool.Put(list)
	}
	span.End()
}

var attributePool = sync.Pool{New: func() any { return new([]attribute.KeyValue) }}

// errorType is the value of error.type, "" where there was no error. A caller
// that cancels makes none.
func errorType(ctx context.Context, resp *http.Response, err error) string {
	switch {
	case err != nil && !errors.Is(ctx.Err(), context.Canceled):
		return typeOf(err)
	case err == nil && resp != nil && resp.StatusCode >= 400:
		return strconv.Itoa(resp.StatusCode)
	}
	return ""
}

// typeOf is the error.type of an error: of a failed login the partner's status, or
// the type of what was wrong with it.
func typeOf(err error) string {
	auth, ok := errors.AsType[*AuthError](err)
	switch {
	case errors.Is(err, ErrCredentials):
		return "credentials_refused"
	case errors.Is(err, ErrRateLimited):
		return "rate_limited"
	case errors.Is(err, errProxy):
		return "proxy_refused"
	case !ok || auth.Op == "config":
	case auth.StatusCode >= 300:
		return strconv.Itoa(auth.StatusCode)
	default:
		for inner := error(auth); inner != nil; inner = errors.Unwrap(inner) {
			err = inner
		}
	}
	return semconv.ErrorType(err).Value.AsString()
}

// An endpoint is what telemetry knows of an origin. The attributes of spans and
// metrics hang on it ready-made, so that a call need not build them.
type endpoint struct {
	address, port attribute.KeyValue
	starts        [len(methods)][]trace.SpanStartOption

	mu    sync.Mutex
	known map[series][]metric.RecordOption
}

func newEndpoint(host string, port int) *endpoint {
	e := &endpoint{
		address: semconv.ServerAddress(host), port: semconv.ServerPort(port),
		known: map[series][]metric.RecordOption{},
	}
	for m := range methods {
		e.starts[m] = slices.Clip([]trace.SpanStartOption{
			trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(methodAttribute(m), e.address, e.port),
		})
	}
	return e
}

// A series is what sets one request's metrics apart from another's at the same
// endpoint.
type series struct {
	status, method int
	path, protocol string
}

// maxSeries bounds how many of them an endpoint remembers. A server that
// makes up more statuses than that only makes its own calls slower.
const maxSeries = 64

// outcome returns the attributes of http.client.request.duration.
func (e *endpoint) outcome(m int, path string, resp *http.Response, failure string) []metric.RecordOption {
	if resp == nil {
		return e.newSeries(m, path, resp, failure)
	}
	key := series{resp.StatusCode, m, path, protocolOf(resp)}
	e.mu.Lock()
	defer e.mu.Unlock()
	opts, ok := e.known[key]
	if !ok {
		opts = e.newSeries(m, path, resp, failure)
		if len(e.known) < maxSeries {
			e.known[key] = opts
		}
	}
	return opts
}

func (e *endpoint) newSeries(m int, path string, resp *http.Response, failure string) []metric.RecordOption {
	kv := appendAnswer([]attribute.KeyValue{methodAttribute(m), e.address, e.port}, resp)
	if path != "" {
		kv = append(kv, semconv.URLTemplate(path))
	}
	if failure != "" {
		kv = append(kv, semconv.ErrorTypeKey.String(failure))
	}
	return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(kv...))}
}

// methods are those that OpenTelemetry knows. All others are one, last, so that
// a method of odd bytes makes neither a span name nor a series.
var methods = [...]string{
	http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead,
	http.MethodOptions, http.MethodConnect, http.MethodTrace, "QUERY", "HTTP",
}

const otherMethod = len(methods) - 1

// methodOf is the index in methods of a request's method, "" being GET.
func methodOf(method string) int {
	if method == "" {
		return 0
	}
	if m := slices.Index(methods[:otherMethod], method); m >= 0 {
		return m
	}
	return otherMethod
}

// methodAttribute is that of methods[m].
func methodAttribute(m int) attribute.KeyValue {
	if m == otherMethod {
		return semconv.HTTPRequestMethodOther
	}
	return semconv.HTTPRequestMethodKey.String(methods[m])
}

// protocolOf is the network.protocol.version of an answer, "" if unknown.
func protocolOf(resp *http.Response) string {
	return protocols[[2]int{resp.ProtoMajor, resp.ProtoMinor}]
}

var protocols = map[[2]int]string{{1, 0}: "1.0", {1, 1}: "1.1", {2, 0}: "2", {3, 0}: "3"}

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

// WithURLTemplate returns a context whose calls are named after template, such
// as /api/v1/orders/{id}, in spans: "GET /api/v1/orders/{id}" instead of "GET".
// It must be one of few, not a path with values in it. The name goes to
// the attribute url.template too, and to no metric.
func WithURLTemplate(ctx context.Context, template string) context.Context {
	return context.WithValue(ctx, templateKey, template)
}

func templateOf(ctx context.Context) string {
	template, _ := ctx.Value(templateKey).(string)
	return template
}
