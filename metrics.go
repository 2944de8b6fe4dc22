package partnerauth

import (
	"context"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
	"go.opentelemetry.io/otel/trace"
)

// Attributes of our own; all others are OpenTelemetry's.
const (
	keyProvider     = attribute.Key("partnerauth.provider")
	keyAttempts     = attribute.Key("partnerauth.attempts")
	keyWaitTime     = attribute.Key("partnerauth.rate_limit.wait_time")
	keyWaitResult   = attribute.Key("partnerauth.rate_limit.result")
	keyPriority     = attribute.Key("partnerauth.rate_limit.priority")
	keyPace         = attribute.Key("partnerauth.rate_limit.pace")
	keyBurst        = attribute.Key("partnerauth.rate_limit.burst")
	keyReason       = attribute.Key("partnerauth.rate_limit.reason")
	keyRetryAfter   = attribute.Key("partnerauth.rate_limit.retry_after")
	keyTokenSource  = attribute.Key("partnerauth.token.source")
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

// metrics are the metrics of one account's requests.
type metrics struct {
	provider []attribute.KeyValue // none for a foreign token source

	calls    metric.Float64Histogram
	attempts httpconv.ClientRequestDuration
	waits    metric.Float64Histogram
	queued   metric.Int64UpDownCounter
	pace     metric.Float64Gauge
	burst    metric.Int64Gauge
	fetches  metric.Float64Histogram
	resends  metric.Int64Counter

	good      []metric.RecordOption // of a call without a failure and a template
	waited    map[string][]metric.RecordOption
	lastPace  atomic.Uint64 // as math.Float64bits, or neverRecorded; to record changes only
	lastBurst atomic.Int64

	mu       sync.Mutex // guards what follows
	waiting  int64      // requests that wait
	recorded int64      // how many of them the counter knows of
}

func newMetrics(m metric.Meter, provider []attribute.KeyValue) *metrics {
	t := &metrics{provider: provider, waited: map[string][]metric.RecordOption{}}
	for _, result := range []string{acquired, canceled, deadlineExceeded} {
		t.waited[result] = t.with(keyWaitResult.String(result))
	}
	t.good = t.with()
	t.calls, _ = m.Float64Histogram("partnerauth.call.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of a call until its answer's headers, waits, token and retries included."),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300))
	t.attempts, _ = httpconv.NewClientRequestDuration(m)
	t.waits, _ = m.Float64Histogram("partnerauth.rate_limit.wait_time", metric.WithUnit("s"),
		metric.WithDescription("Time that a request waited for the rate limit."),
		metric.WithExplicitBucketBoundaries(0, .01, .1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900))
	t.queued, _ = m.Int64UpDownCounter("partnerauth.rate_limit.queued_requests", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that wait for the rate limit."))
	t.lastPace.Store(neverRecorded)
	t.pace, _ = m.Float64Gauge("partnerauth.rate_limit.pace", metric.WithUnit("1"),
		metric.WithDescription("Share of the full pace that is left after refusals by the server."))
	t.burst, _ = m.Int64Gauge("partnerauth.rate_limit.burst", metric.WithUnit("{request}"),
		metric.WithDescription("Most requests that are sent at once."))
	t.fetches, _ = m.Float64Histogram("partnerauth.token.fetch.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of getting a token, waits and tries included."),
		metric.WithExplicitBucketBoundaries(.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900))
	t.resends, _ = m.Int64Counter("partnerauth.resends", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that were sent again after a 401 or 429."))
	return t
}

// with returns the options of a record with kv and the provider.
func (m *metrics) with(kv ...attribute.KeyValue) []metric.RecordOption {
	return []metric.RecordOption{metric.WithAttributeSet(m.set(kv...))}
}

func (m *metrics) set(kv ...attribute.KeyValue) attribute.Set {
	return attribute.NewSet(append(kv, m.provider...)...)
}

// recordCall records a call, whether or not it became a request.
func (m *metrics) recordCall(ctx context.Context, began time.Time, template, failure string) {
	if !m.calls.Enabled(ctx) {
		return
	}
	opts := m.good
	if template != "" || failure != "" {
		opts = m.with(labels(template, failure)...)
	}
	m.calls.Record(ctx, time.Since(began).Seconds(), opts...)
}

// recordAttempt records one request when its headers are in. template is that of a
// token request, "" for all others.
func (m *metrics) recordAttempt(ctx context.Context, e *endpoint, took time.Duration, method, template string, resp *http.Response, failure string) {
	if m.attempts.Enabled(ctx) {
		m.attempts.Float64Histogram.Record(ctx, took.Seconds(), e.series(methodOf(method), template, resp, failure)...)
	}
}

// recordWait records how long a permit was waited for.
func (m *metrics) recordWait(ctx context.Context, waited time.Duration, result string, low bool) {
	if !m.waits.Enabled(ctx) {
		return
	}
	if waited == 0 {
		ctx = context.Background() // a wait that was none makes no exemplar
	}
	opts := m.waited[result]
	if low {
		opts = m.with(keyPriority.String("low"), keyWaitResult.String(result))
	}
	m.waits.Record(ctx, waited.Seconds(), opts...)
}

// recordPace records the pace and burst of the rate limit if they differ from what was
// recorded last. The first record is the full pace: "nothing was learnt" must not look
// like "nothing is known". A burst of 0 is unknown, and so is the pace then.
func (m *metrics) recordPace(ctx context.Context, pace float64, burst int) {
	if burst == 0 || !m.pace.Enabled(ctx) {
		return
	}
	if bits := math.Float64bits(pace); m.lastPace.Swap(bits) != bits {
		m.pace.Record(ctx, pace, metric.WithAttributes(m.provider...))
	}
	if m.lastBurst.Swap(int64(burst)) != int64(burst) {
		m.burst.Record(ctx, int64(burst), metric.WithAttributes(m.provider...))
	}
}

// neverRecorded is no pace.
const neverRecorded = math.MaxUint64

// addQueued counts a request that begins (1) or ends (-1) to wait. What began before
// there was a MeterProvider is made up for.
func (m *metrics) addQueued(ctx context.Context, n int64) {
	m.mu.Lock()
	m.waiting += n
	change := int64(0)
	if m.queued.Enabled(ctx) {
		change = m.waiting - m.recorded
		m.recorded = m.waiting
	}
	m.mu.Unlock()
	if change != 0 {
		m.queued.Add(ctx, change, metric.WithAttributes(m.provider...))
	}
}

func (m *metrics) addResend(ctx context.Context, reason string) {
	m.resends.Add(ctx, 1, metric.WithAttributeSet(m.set(keyResendReason.String(reason))))
}

func (m *metrics) recordFetch(ctx context.Context, took time.Duration, op, trigger, failure string) {
	m.fetches.Record(ctx, took.Seconds(), m.with(labels("", failure, keyOperation.String(op), keyTrigger.String(trigger))...)...)
}

// labels appends a template and a failure to kv, unless they are "".
func labels(template, failure string, kv ...attribute.KeyValue) []attribute.KeyValue {
	if template != "" {
		kv = append(kv, semconv.URLTemplate(template))
	}
	if failure != "" {
		kv = append(kv, semconv.ErrorTypeKey.String(failure))
	}
	return kv
}

// An endpoint is what telemetry knows of a host and port. The attributes of spans and
// metrics are kept ready-made, so that a call need not build them.
type endpoint struct {
	address, port attribute.KeyValue
	provider      []attribute.KeyValue
	starts        [len(methods)][]trace.SpanStartOption

	mu    sync.Mutex // guards known
	known map[series][]metric.RecordOption
}

func newEndpoint(host string, port int, provider []attribute.KeyValue) *endpoint {
	e := &endpoint{
		address: semconv.ServerAddress(host), port: semconv.ServerPort(port), provider: provider,
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
	status, method     int
	template, protocol string
}

// maxSeries bounds how many of them an endpoint remembers. A server that makes up
// more statuses than that only makes its own calls slower.
const maxSeries = 64

// series returns the attributes of http.client.request.duration.
func (e *endpoint) series(m int, template string, resp *http.Response, failure string) []metric.RecordOption {
	if resp == nil {
		return e.newSeries(m, template, resp, failure)
	}
	key := series{resp.StatusCode, m, template, protocolOf(resp)}
	e.mu.Lock()
	defer e.mu.Unlock()
	opts, ok := e.known[key]
	if !ok {
		opts = e.newSeries(m, template, resp, failure)
		if len(e.known) < maxSeries {
			e.known[key] = opts
		}
	}
	return opts
}

func (e *endpoint) newSeries(m int, template string, resp *http.Response, failure string) []metric.RecordOption {
	kv := appendAnswer([]attribute.KeyValue{methodAttribute(m), e.address, e.port}, resp)
	kv = labels(template, failure, append(kv, e.provider...)...)
	return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(kv...))}
}

// appendAnswer appends what spans and metrics both say of an answer.
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

// methods are those that OpenTelemetry knows. All others are one, last, so that
// a method of odd bytes makes neither a span name nor a series.
var methods = [...]string{
	http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead,
	http.MethodOptions, http.MethodConnect, http.MethodTrace, "QUERY", "HTTP",
}

const otherMethod = len(methods) - 1

// methodOf returns the index in methods of a request's method, "" being GET.
func methodOf(method string) int {
	if method == "" {
		return 0
	}
	if m := slices.Index(methods[:otherMethod], method); m >= 0 {
		return m
	}
	return otherMethod
}

// methodAttribute returns that of methods[m].
func methodAttribute(m int) attribute.KeyValue {
	if m == otherMethod {
		return semconv.HTTPRequestMethodOther
	}
	return semconv.HTTPRequestMethodKey.String(methods[m])
}

// protocolOf returns the network.protocol.version of an answer, "" if unknown.
func protocolOf(resp *http.Response) string {
	return protocols[[2]int{resp.ProtoMajor, resp.ProtoMinor}]
}

var protocols = map[[2]int]string{{1, 0}: "1.0", {1, 1}: "1.1", {2, 0}: "2", {3, 0}: "3"}
