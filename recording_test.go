package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/partnerauth/partnerauth"
)

// A recording is all that a Transport exports.
type recording struct {
	spans  *tracetest.SpanRecorder
	tracer *sdktrace.TracerProvider
	reader *sdkmetric.ManualReader
	meter  *sdkmetric.MeterProvider
	since  time.Time
}

func newRecording(opts ...sdktrace.TracerProviderOption) *recording {
	r := &recording{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader(), since: time.Now()}
	r.tracer = sdktrace.NewTracerProvider(append([]sdktrace.TracerProviderOption{sdktrace.WithSpanProcessor(r.spans)}, opts...)...)
	r.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	return r
}

// transport is one that is recorded, and otherwise signs in to base.
func (r *recording) transport(base http.RoundTripper) *partnerauth.Transport {
	return &partnerauth.Transport{
		Source: partnerauth.NowPost{Email: "shop@example.com", Password: "hunter2", BaseURL: apiURL}.TokenSource(),
		Base:   base, TracerProvider: r.tracer, MeterProvider: r.meter, Propagator: propagation.TraceContext{},
	}
}

// plain is a recorded Transport that never has to sign in.
func (r *recording) plain(base http.RoundTripper, origins ...string) *partnerauth.Transport {
	if len(origins) == 0 {
		origins = []string{apiURL}
	}
	tr := r.transport(base)
	tr.Source, tr.Origins = static("static"), origins
	return tr
}

func (r *recording) byName(name string) []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(r.ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != name })
}

// clients are the spans of attempts.
func (r *recording) clients() []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(r.ended(), func(s sdktrace.ReadOnlySpan) bool { return s.SpanKind() != trace.SpanKindClient })
}

// ended are the spans in the order of their start.
func (r *recording) ended() []sdktrace.ReadOnlySpan {
	done := r.spans.Ended()
	slices.SortStableFunc(done, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	return done
}

// tree draws the spans that began after since, one line each, indented below
// their parents and in the order of their start: name, kind, status, when and
// how long, attributes, links.
func (r *recording) tree(t testing.TB, times bool) string {
	t.Helper()
	spans := r.spans.Started()
	spans = slices.DeleteFunc(spans, func(s sdktrace.ReadWriteSpan) bool { return s.StartTime().Before(r.since) })
	slices.SortStableFunc(spans, func(a, b sdktrace.ReadWriteSpan) int { return a.StartTime().Compare(b.StartTime()) })
	known := map[trace.SpanID]sdktrace.ReadOnlySpan{}
	for _, s := range spans {
		errorIf(t, s.EndTime().IsZero(), "span %q has not ended", s.Name())
		known[s.SpanContext().SpanID()] = s
	}
	var b strings.Builder
	var draw func(parent trace.SpanID, indent string)
	draw = func(parent trace.SpanID, indent string) {
		for _, s := range spans {
			if s.Parent().SpanID() != parent {
				continue
			}
			errorIf(t, parent.IsValid() && s.SpanContext().TraceID() != known[parent].SpanContext().TraceID(),
				"%q is in another trace than its parent", s.Name())
			fmt.Fprintf(&b, "%s%s %s %s", indent, s.Name(), strings.ToUpper(s.SpanKind().String()), s.Status().Code)
			if s.Status().Description != "" {
				fmt.Fprintf(&b, "(%s)", s.Status().Description)
			}
			if times {
				fmt.Fprintf(&b, " @%v+%v", s.StartTime().Sub(r.since), s.EndTime().Sub(s.StartTime()))
			}
			for _, kv := range attributes(s) {
				b.WriteString(" " + kv)
			}
			for _, e := range s.Events() {
				b.WriteString(" event=" + e.Name)
			}
			for _, l := range s.Links() {
				target := known[l.SpanContext.SpanID()]
				if target == nil || target.SpanContext().TraceID() != l.SpanContext.TraceID() {
					t.Errorf("%q links to an unknown span", s.Name())
					continue
				}
				fmt.Fprintf(&b, " ->%s@%v", target.Name(), target.StartTime().Sub(r.since))
			}
			b.WriteString("\n")
			draw(s.SpanContext().SpanID(), indent+"  ")
		}
	}
	draw(trace.SpanID{}, "")
	lines := strings.Count(b.String(), "\n")
	errorIf(t, lines != len(spans), "%d of %d spans have a parent that was never started", len(spans)-lines, len(spans))
	return b.String()
}

// attributes are those of a span, but for what TestAttempt shows of every CLIENT.
func attributes(s sdktrace.ReadOnlySpan) (out []string) {
	for _, kv := range s.Attributes() {
		key, value := string(kv.Key), kv.Value.String()
		switch key {
		case "http.request.method", "server.address", "server.port", "network.protocol.version":
			continue
		case "url.full":
			value = strings.Replace(value, apiURL, "~", 1)
			if value == "~"+attributeOf(s, "url.template") {
				value = "~template"
			}
		case "partnerauth.rate_limit.pace":
			value = below(1, kv.Value.AsFloat64())
		}
		out = append(out, key+"="+value)
	}
	slices.Sort(out)
	for i := range out {
		out[i] = short.Replace(out[i])
	}
	return out
}

// short makes the names of attributes fit into a line; no two become the same.
var short = strings.NewReplacer("partnerauth.rate_limit.", "limit.", "partnerauth.", "", "error.type", "error",
	"url.template", "template", "url.full", "url", "http.response.status_code", "status", "http.request.resend_count", "resend",
	"http.request.method", "method", "network.protocol.version", "protocol")

func attributeOf(s sdktrace.ReadOnlySpan, key string) string { return mapped(s.Attributes())[key] }

// below hides what is the Quota's own affair: how far below full a value is.
func below(full, value float64) string {
	if value > 0 && value < full {
		return fmt.Sprint("below ", full)
	}
	return fmt.Sprint(value)
}

func mapped(kvs []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		m[string(kv.Key)] = kv.Value.String()
	}
	return m
}

// collect reads all metrics.
func (r *recording) collect(t testing.TB) (all []metricdata.Metrics) {
	t.Helper()
	var rm metricdata.ResourceMetrics
	must(t, r.reader.Collect(context.Background(), &rm))
	for _, scope := range rm.ScopeMetrics {
		all = append(all, scope.Metrics...)
	}
	return all
}

// A point is the value of a metric for one set of attributes, of a histogram the count.
type point struct {
	metricdata.Metrics
	attributes []attribute.KeyValue
	value      float64
	text       string
}

// measured returns the points of all metrics.
func (r *recording) measured(t testing.TB) (all []point) {
	t.Helper()
	add := func(m metricdata.Metrics, set attribute.Set, value float64, text string) {
		all = append(all, point{m, set.ToSlice(), value, text})
	}
	for _, m := range r.collect(t) {
		switch data := m.Data.(type) {
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, float64(p.Count), fmt.Sprintf("count=%d sum=%.3g", p.Count, p.Sum))
			}
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, float64(p.Value), fmt.Sprintf("sum=%d", p.Value))
			}
		case metricdata.Gauge[float64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, p.Value, below(1, p.Value))
			}
		case metricdata.Gauge[int64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, float64(p.Value), below(100, float64(p.Value)))
			}
		default:
			t.Errorf("%s is a %T", m.Name, m.Data)
		}
	}
	return all
}

// points draws all metrics, one line a point: instrument, unit, attributes and value.
func (r *recording) points(t testing.TB) string {
	t.Helper()
	var lines []string
	for _, p := range r.measured(t) {
		var kvs []string
		for _, kv := range p.attributes {
			kvs = append(kvs, short.Replace(string(kv.Key))+"="+kv.Value.String())
		}
		lines = append(lines, fmt.Sprintf("%s %s {%s} %s\n", p.Name, p.Unit, strings.Join(kvs, " "), p.text))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// total returns the sum of the points of a metric.
func (r *recording) total(t testing.TB, metric string) (sum float64) {
	t.Helper()
	for _, p := range r.measured(t) {
		if p.Name == metric {
			sum += p.value
		}
	}
	return sum
}

// compareMetrics checks that what has a span is counted in a metric as well, under the
// same error.type.
func (r *recording) compareMetrics(t testing.TB) {
	t.Helper()
	spans, counted := map[string]float64{}, map[string]float64{}
	for _, s := range r.ended() {
		metric := map[string]string{
			"nowpost call":            "partnerauth.call.duration",
			"partnerauth.token.fetch": "partnerauth.token.fetch.duration",
		}[s.Name()]
		if s.SpanKind() == trace.SpanKindClient {
			metric = "http.client.request.duration"
		}
		if metric != "" {
			spans[metric+" "+attributeOf(s, "error.type")]++
		}
	}
	for _, p := range r.measured(t) {
		if strings.HasSuffix(p.Name, ".duration") {
			counted[p.Name+" "+mapped(p.attributes)["error.type"]] += p.value
		}
	}
	errorIf(t, !maps.Equal(spans, counted), "by error.type there are\n%v spans, and in the metrics\n%v", spans, counted)
}

// sameLines compares two drawings; want may be indented.
func sameLines(t testing.TB, what, got, want string) {
	t.Helper()
	want = regexp.MustCompile(`(?m)^\t*`).ReplaceAllString(strings.Trim(want, "\n\t"), "") + "\n"
	errorIf(t, got != want, "%s:\n--- got\n%s--- want\n%s", what, got, want)
}

// A scene is a recorded Transport in a bubble, whose partner takes 300 ms for a
// token and 100 ms for a call.
type scene struct {
	*testing.T
	*recording
	*partner
	transport *partnerauth.Transport
}

func newScene(t *testing.T) *scene {
	s := &scene{T: t, recording: newRecording(), partner: &partner{lifetime: 1000 * time.Second}}
	s.on("login", reply{after: 300 * time.Millisecond}).on("refresh", reply{after: 300 * time.Millisecond}).on("call", got(200))
	s.transport = s.recording.transport(s.partner)
	return s
}

// got is what a call is answered.
func got(status int) reply { return reply{after: 100 * time.Millisecond, status: status} }

// slowDown is a 429 that says when to come again.
func slowDown() reply {
	r := busy("5")
	r.after = 100 * time.Millisecond
	return r
}

// call makes a call that has to succeed with status.
func (s *scene) call(ctx context.Context, path string, status int) {
	s.Helper()
	if got, err := try(ctx, s.transport, path); got != status {
		s.Errorf("%s: got %d, %v, want status %d", path, got, err, status)
	}
}

// fail makes a call that has to fail with an error that is all of targets.
func (s *scene) fail(ctx context.Context, path string, targets ...error) {
	s.Helper()
	_, err := try(ctx, s.transport, path)
	if err == nil {
		s.Errorf("%s: got no error", path)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			s.Errorf("%s: got %v, want %v", path, err, target)
		}
	}
}

// after7s is a Limiter that lets its first n at once and then one in 7 s.
func after7s(n int) partnerauth.Limiter {
	return limiterFunc(func(ctx context.Context) error {
		if n--; n >= 0 {
			return nil
		}
		return sleep(ctx, 7*time.Second)
	})
}
