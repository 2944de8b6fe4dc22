package partnerauth_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
	"weak"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
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
			value = pace(kv.Value.AsFloat64())
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

// collect reads all metrics.
func (r *recording) collect(t testing.TB) (all []metricdata.Metrics) {
	var rm metricdata.ResourceMetrics
	err := r.reader.Collect(context.Background(), &rm)
	errorIf(t, err != nil, "metrics: %v", err)
	for _, scope := range rm.ScopeMetrics {
		all = append(all, scope.Metrics...)
	}
	return all
}

// points draws all metrics, one line a point: instrument, unit, attributes and
// value, which for a histogram is the count and the sum.
func (r *recording) points(t testing.TB) string {
	t.Helper()
	var lines []string
	add := func(m metricdata.Metrics, set attribute.Set, value string) {
		var kvs []string
		for _, kv := range set.ToSlice() {
			kvs = append(kvs, short.Replace(string(kv.Key))+"="+kv.Value.String())
		}
		lines = append(lines, fmt.Sprintf("%s %s {%s} %s\n", m.Name, m.Unit, strings.Join(kvs, " "), value))
	}
	for _, m := range r.collect(t) {
		switch data := m.Data.(type) {
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, fmt.Sprintf("count=%d sum=%.3g", p.Count, p.Sum))
			}
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, fmt.Sprintf("sum=%d", p.Value))
			}
		case metricdata.Gauge[float64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, pace(p.Value))
			}
		case metricdata.Gauge[int64]:
			for _, p := range data.DataPoints {
				add(m, p.Attributes, burst(p.Value))
			}
		default:
			t.Errorf("%s is a %T", m.Name, m.Data)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// pace hides what is the Quota's own affair.
func pace(share float64) string {
	if share > 0 && share < 1 {
		return "below 1"
	}
	return fmt.Sprint(share)
}

// burst likewise.
func burst(n int64) string {
	if n > 0 && n < 100 {
		return "below 100"
	}
	return fmt.Sprint(n)
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

// signIn is how every scene begins that does not say cold.
const signIn = `
	nowpost call INTERNAL Unset @0s+400ms status=200 attempts=1 limit.wait_time=0 token.source=login
	  partnerauth.token.fetch INTERNAL Unset @0s+300ms provider=nowpost token.operation=login token.trigger=missing
	    POST /api/v1/auth/login CLIENT Unset @0s+300ms status=200 url=~template template=/api/v1/auth/login
	  GET CLIENT Unset @300ms+100ms status=200 url=~/first`

const wrongPassword = "INTERNAL Error(partnerauth: nowpost login: 401 Unauthorized: check the e-mail and password"

// The span trees that one look at a trace must tell the story by.
func TestSpanTree(t *testing.T) {
	ctx := context.Background()
	const due = 900 * time.Second // for a renewal
	limited := func(why string) string { return "INTERNAL Error(partnerauth: rate limited: " + why + ")" }
	tests := []struct {
		name    string
		cold    bool // without the first call; where it succeeds, times are as in signIn
		limiter partnerauth.Limiter
		play    func(s *scene)
		random  bool // times are jittered
		want    string
	}{
		{name: "cold call", cold: true, play: func(s *scene) { s.call(ctx, "/first", 200) }, want: signIn},
		{name: "401, and 429 in spite of the quota, in one call, under a template", play: func(s *scene) {
			s.on("call", got(401), slowDown(), got(200))
			s.call(partnerauth.WithURLTemplate(ctx, "/orders/{id}"), "/7", 200)
		}, want: `
		nowpost call INTERNAL Unset @0s+6.599s status=200 attempts=3 limit.pace=below 1 limit.wait_time=5.999 token.source=cache
		  GET /orders/{id} CLIENT Error @0s+100ms error=401 status=401 url=~/7 template=/orders/{id}
		  partnerauth.token.fetch INTERNAL Unset @100ms+300ms provider=nowpost token.operation=login token.trigger=unauthorized
		    POST /api/v1/auth/login CLIENT Unset @100ms+300ms status=200 url=~template template=/api/v1/auth/login
		  GET /orders/{id} CLIENT Error @400ms+100ms error=429 resend=1 status=429 limit.reason=burst_refused url=~/7 template=/orders/{id}
		  partnerauth.rate_limit.wait INTERNAL Unset @500ms+5.999s limit.result=acquired
		  GET /orders/{id} CLIENT Unset @6.499s+100ms resend=2 status=200 url=~/7 template=/orders/{id}`},
		{name: "wait for the quota, of login and call", cold: true, limiter: after7s(0),
			play: func(s *scene) { s.call(ctx, "/orders", 200) }, want: `
		nowpost call INTERNAL Unset @0s+14.4s status=200 attempts=1 limit.wait_time=7 token.source=login
		  partnerauth.token.fetch INTERNAL Unset @0s+7.3s provider=nowpost token.operation=login token.trigger=missing
		    partnerauth.rate_limit.wait INTERNAL Unset @0s+7s limit.result=acquired
		    POST /api/v1/auth/login CLIENT Unset @7s+300ms status=200 url=~template template=/api/v1/auth/login
		  partnerauth.rate_limit.wait INTERNAL Unset @7.3s+7s limit.result=acquired
		  GET CLIENT Unset @14.3s+100ms status=200 url=~/orders`},
		{name: "somebody else's fetch", cold: true, play: func(s *scene) {
			go s.call(ctx, "/first", 200)
			time.Sleep(50 * time.Millisecond)
			s.call(ctx, "/plans", 200)
		}, want: signIn + `
		nowpost call INTERNAL Unset @50ms+350ms status=200 attempts=1 limit.wait_time=0 token.source=shared
		  partnerauth.token.wait INTERNAL Unset @50ms+250ms ->partnerauth.token.fetch@0s
		  GET CLIENT Unset @300ms+100ms status=200 url=~/plans`},
		{name: "refresh refused, login in the same fetch", play: func(s *scene) {
			s.on("refresh", got(401))
			time.Sleep(due)
			s.call(ctx, "/orders", 200)
			time.Sleep(time.Second)
		}, want: `
		nowpost call INTERNAL Unset @15m0s+100ms status=200 attempts=1 limit.wait_time=0 token.source=cache
		  GET CLIENT Unset @15m0s+100ms status=200 url=~/orders
		partnerauth.token.fetch INTERNAL Unset @15m0s+400ms provider=nowpost token.operation=login token.trigger=expiring` +
			` ->nowpost call@15m0s
		  POST /api/v1/auth/refresh CLIENT Error @15m0s+100ms error=401 status=401 url=~template template=/api/v1/auth/refresh
		  POST /api/v1/auth/login CLIENT Unset @15m0.1s+300ms status=200 url=~template template=/api/v1/auth/login`},
		{name: "failed login, for somebody who waits too, and a call that is spared another", cold: true, play: func(s *scene) {
			s.on("login", got(401))
			go s.fail(ctx, "/orders", partnerauth.ErrCredentials)
			time.Sleep(50 * time.Millisecond)
			s.fail(ctx, "/plans", partnerauth.ErrCredentials)
			synctest.Wait()
			s.fail(ctx, "/orders", partnerauth.ErrCredentials)
		}, want: `
		nowpost call ` + wrongPassword + `) @0s+100ms error=credentials_refused attempts=0 limit.wait_time=0 token.status_code=401
		  partnerauth.token.fetch ` + wrongPassword + `) @0s+100ms error=credentials_refused` +
			` provider=nowpost token.operation=login token.trigger=missing
		    POST /api/v1/auth/login CLIENT Error @0s+100ms error=401 status=401 url=~template template=/api/v1/auth/login
		nowpost call ` + wrongPassword + `) @50ms+50ms error=credentials_refused attempts=0 limit.wait_time=0 token.status_code=401
		  partnerauth.token.wait ` + wrongPassword + `) @50ms+50ms error=credentials_refused ->partnerauth.token.fetch@0s
		nowpost call ` + wrongPassword + ` (asked 0s ago, again in 1s)) @100ms+0s error=credentials_refused` +
			` attempts=0 limit.wait_time=0 token.status_code=401`},
		{name: "login tried again after 500", cold: true, random: true, play: func(s *scene) {
			s.on("login", got(500), reply{})
			s.call(ctx, "/orders", 200)
		}, want: `
		nowpost call INTERNAL Unset status=200 attempts=1 limit.wait_time=0 token.source=login
		  partnerauth.token.fetch INTERNAL Unset provider=nowpost token.operation=login token.trigger=missing
		    POST /api/v1/auth/login CLIENT Error error=500 status=500 url=~template template=/api/v1/auth/login
		    POST /api/v1/auth/login CLIENT Unset resend=1 status=200 url=~template template=/api/v1/auth/login
		  GET CLIENT Unset status=200 url=~/orders`},
		{name: "refused by the quota at once", limiter: &partnerauth.Quota{Requests: 2}, play: func(s *scene) {
			s.fail(deadline(s, 10*time.Second), "/orders", partnerauth.ErrRateLimited, context.DeadlineExceeded)
		}, want: `
		nowpost call ` + limited(`the wait would be 1m0.9s, the deadline is in 10s`) + ` @0s+0s error=rate_limited` +
			` attempts=0 limit.retry_after=60.9 limit.wait_time=0 token.source=cache`},
		{name: "given up at the deadline in the queue, and canceled there", limiter: after7s(2), play: func(s *scene) {
			s.fail(deadline(s, time.Second), "/orders", partnerauth.ErrRateLimited, context.DeadlineExceeded)
			s.fail(leaving(s, time.Second), "/orders", context.Canceled)
		}, want: `
		nowpost call ` + limited(`the deadline passed while waiting`) + ` @0s+1s error=rate_limited` +
			` attempts=0 limit.wait_time=1 token.source=cache
		  partnerauth.rate_limit.wait ` + limited(`the deadline passed while waiting`) + ` @0s+1s error=rate_limited` +
			` limit.result=deadline_exceeded
		nowpost call INTERNAL Unset @1s+1s attempts=0 limit.wait_time=1 token.source=cache
		  partnerauth.rate_limit.wait INTERNAL Unset @1s+1s limit.result=canceled`},
		{name: "canceled during the login, which goes on", cold: true, play: func(s *scene) {
			gone := leaving(s, 100*time.Millisecond)
			go s.fail(gone, "/orders", context.Canceled)
			time.Sleep(50 * time.Millisecond)
			s.fail(gone, "/plans", context.Canceled)
			time.Sleep(time.Second)
		}, want: `
		nowpost call INTERNAL Unset @0s+100ms attempts=0 limit.wait_time=0
		  partnerauth.token.fetch INTERNAL Unset @0s+300ms provider=nowpost token.operation=login token.trigger=missing
		    POST /api/v1/auth/login CLIENT Unset @0s+300ms status=200 url=~template template=/api/v1/auth/login
		nowpost call INTERNAL Unset @50ms+50ms attempts=0 limit.wait_time=0
		  partnerauth.token.wait INTERNAL Unset @50ms+50ms ->partnerauth.token.fetch@0s`},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			s := newScene(t)
			s.transport.Limiter = test.limiter
			if !test.cold {
				s.call(ctx, "/first", 200)
				s.since = time.Now()
			}
			test.play(s)
			synctest.Wait()
			sameLines(t, "spans", s.tree(t, !test.random), test.want)
		})
	}
}

// Every attribute of one attempt, for URLs and methods of all kinds.
func TestAttempt(t *testing.T) {
	const api = "https://api.example/p"
	const other = "http.request.method=_OTHER http.request.method_original="
	for _, c := range []struct {
		method, template, url string
		version               string // of HTTP; "": 1.1
		name, want            string // of what differs from GET https://api.example/p
	}{
		{method: "GET", url: api, name: "GET"},
		{url: api, name: "GET"},
		{method: "POST", url: api, name: "POST", want: "http.request.method=POST"},
		{method: "get", url: api, name: "HTTP", want: other + "get"},
		{method: "HTTP", url: api, name: "HTTP", want: other + "HTTP"},
		{method: "G\x00T\n\xff", url: api, name: "HTTP", want: other + "G\x00T\n\xff"},
		{method: "BREW", template: "/p/{id}", url: api, name: "HTTP /p/{id}", want: other + "BREW url.template=/p/{id}"},

		{method: "GET", url: api + "?a=1&token=s3cret&empty=&b=2&b=3", name: "GET",
			want: "url.full=" + api + "?a=REDACTED&token=REDACTED&empty=REDACTED&b=REDACTED&b=REDACTED"},
		{method: "GET", url: api + "?a=1&s3cret&b=2", name: "GET", want: "url.full=" + api + "?a=REDACTED&REDACTED&b=REDACTED"},
		{method: "GET", url: api + "?a=1;b=s3cret", name: "GET", want: "url.full=" + api + "?a=REDACTED"},
		{method: "GET", url: "https://s3cret@api.example/p?x=1#s3cret", name: "GET",
			want: "url.full=https://REDACTED:REDACTED@api.example/p?x=REDACTED"},
		{method: "GET", url: "https://api.example/a%2Fb/%3Fc", name: "GET", want: "url.full=https://api.example/a%2Fb/%3Fc"},
		{method: "GET", url: "https://api.example:443/p", name: "GET", want: "url.full=https://api.example:443/p"},

		{method: "GET", url: "https://API.Example:8443/p", name: "GET", want: "server.port=8443 url.full=https://API.Example:8443/p"},
		{method: "GET", url: "http://localhost/p", name: "GET",
			want: "server.address=localhost server.port=80 url.full=http://localhost/p"},
		{method: "GET", url: "http://[::1]:8080/p", name: "GET", want: "server.address=::1 server.port=8080 url.full=http://[::1]:8080/p"},

		{method: "GET", url: api, version: "1.0", name: "GET", want: "network.protocol.version=1.0"},
		{method: "GET", url: api, version: "2", name: "GET", want: "network.protocol.version=2"},
		{method: "GET", url: api, version: "3", name: "GET", want: "network.protocol.version=3"},
	} {
		rec := newRecording()
		rt := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
			major, minor := 1, 1
			if c.version != "" {
				major, minor = 0, 0
				fmt.Sscanf(c.version, "%d.%d", &major, &minor)
			}
			return &http.Response{StatusCode: 200, ProtoMajor: major, ProtoMinor: minor}, nil
		}), apiURL, "https://api.example:8443", "http://localhost", "http://[::1]:8080")
		u, _ := url.Parse(c.url)
		req := &http.Request{Method: c.method, URL: u}
		if c.template != "" {
			req = req.WithContext(partnerauth.WithURLTemplate(context.Background(), c.template))
		}
		_, err := rt.RoundTrip(req)
		spans := rec.clients()
		if err != nil || len(spans) != 1 || spans[0].Name() != c.name {
			t.Errorf("%q %s: got %v, %v, want a span named %s", c.method, c.url, err, spans, c.name)
			continue
		}
		want := map[string]string{
			"http.request.method": "GET", "server.address": "api.example", "server.port": "443", "url.full": api,
			"http.response.status_code": "200", "network.protocol.version": "1.1",
		}
		for kv := range strings.SplitSeq(c.want, " ") {
			if key, value, ok := strings.Cut(kv, "="); ok {
				want[key] = value
			}
		}
		got := mapped(spans[0].Attributes())
		errorIf(t, !maps.Equal(got, want), "%q %s:\n got %v\nwant %v", c.method, c.url, got, want)
		// The same in the metric, but for what would be a series per URL.
		for _, key := range []string{"url.full", "url.template", "http.request.method_original"} {
			delete(want, key)
		}
		for _, m := range rec.collect(t) {
			if m.Name != "http.client.request.duration" {
				continue
			}
			set := m.Data.(metricdata.Histogram[float64]).DataPoints[0].Attributes
			got := mapped(set.ToSlice())
			errorIf(t, !maps.Equal(got, want), "%q %s: metric:\n got %v\nwant %v", c.method, c.url, got, want)
		}
	}
}

func mapped(kvs []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		m[string(kv.Key)] = kv.Value.String()
	}
	return m
}

// error.type is the same on the span of what failed, on that of the call, and in
// the metric. That of a login tells what was wrong with it.
func TestErrorType(t *testing.T) {
	for _, c := range []struct {
		op     string
		reply  reply
		want   string
		status string // of the login
	}{
		{"call", reply{status: 399}, "", ""},
		{"call", reply{status: 400}, "400", ""},
		{"call", reply{err: &tls.CertificateVerificationError{}}, "*tls.CertificateVerificationError", ""},
		{"call", reply{err: errors.New("Forbidden")}, "proxy_refused", ""},
		{"call", reply{err: context.DeadlineExceeded}, "context.deadlineExceededError", ""},
		{"call", reply{err: context.Canceled}, "*errors.errorString", ""}, // by the Base
		{"call", reply{after: forever}, "", ""},                           // until the caller cancels
		{"login", reply{status: 401}, "credentials_refused", "401"},
		{"login", reply{status: 403, body: "{}"}, "credentials_refused", "403"},
		{"login", reply{status: 403, body: "<html>"}, "403", "403"},
		{"login", reply{status: 502}, "502", "502"},
		{"login", reply{status: 302}, "302", "302"},
		{"login", reply{err: errTest}, "*errors.errorString", ""},
		{"login", reply{err: errors.New(`malformed HTTP response "x"`)}, "*errors.errorString", ""},
	} {
		bubble(t, fmt.Sprintf("%s %d %v", c.op, c.reply.status, c.reply.err), func(t *testing.T) {
			rec := newRecording()
			_, err := try(leaving(t, time.Minute), rec.transport(new(partner).on(c.op, c.reply)), "/")
			synctest.Wait()
			failed, metric, text := "GET", "http.client.request.duration s {", ""
			if c.op == "login" { // whose error is ours
				failed, metric, text = "partnerauth.token.fetch", "partnerauth.token.fetch.duration s {", err.Error()
			}
			for _, name := range []string{"nowpost call", failed} {
				s := rec.byName(name)[0]
				got, status := attributeOf(s, "error.type"), s.Status()
				errorIf(t, got != c.want, "span %q has error.type %q, want %q", name, got, c.want)
				errorIf(t, (status.Code == codes.Error) != (c.want != ""), "span %q has status %v", name, status.Code)
				errorIf(t, status.Description != text, "span %q has the status description %q, want %q", name, status.Description, text)
			}
			points, want := rec.points(t), c.want != ""
			errorIf(t, strings.Contains(points, metric+"error="+c.want+" ") != want || strings.Contains(points, "error=") != want,
				"want error.type %q in the metrics:\n%s", c.want, points)
			got := attributeOf(rec.byName("nowpost call")[0], "partnerauth.token.status_code")
			errorIf(t, got != c.status, "status_code %q, want %q", got, c.status)
		})
	}
}

// Every instrument and every point of a life with all that can happen in it.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.lifetime = time.Hour
		ctx := partnerauth.WithURLTemplate(context.Background(), "/orders/{id}")
		s.on("login", got(401), reply{after: time.Second}).on("refresh", reply{after: 2 * time.Second})
		s.on("call", got(401), got(200), got(200), reply{after: 100 * time.Millisecond, err: errTest}, slowDown(), got(200))

		got := s.points(t)
		errorIf(t, got != "", "metrics before the first call:\n%s", got)
		s.fail(ctx, "/orders/1", partnerauth.ErrCredentials)
		time.Sleep(10 * time.Minute)
		s.call(ctx, "/orders/1", 200) // login, 401, login, 200
		time.Sleep(52 * time.Minute)
		s.call(ctx, "/orders/2", 200) // refresh
		time.Sleep(time.Minute)
		s.fail(ctx, "/orders/3", errTest)
		s.call(ctx, "/orders/4", 200) // 429, pause, 200
		synctest.Wait()

		duration := "http.client.request.duration s {"
		where := "provider=nowpost server.address=api.example server.port=443} "
		tokens := "provider=nowpost server.address=api.example server.port=443 template=/api/v1/auth/"
		sameLines(t, "metrics", s.points(t), `
			`+duration+`error=*errors.errorString method=GET `+where+`count=1 sum=0.1
			`+duration+`error=401 method=GET status=401 protocol=1.1 `+where+`count=1 sum=0.1
			`+duration+`error=401 method=POST status=401 protocol=1.1 `+tokens+`login} count=1 sum=0.1
			`+duration+`error=429 method=GET status=429 protocol=1.1 `+where+`count=1 sum=0.1
			`+duration+`method=GET status=200 protocol=1.1 `+where+`count=3 sum=0.3
			`+duration+`method=POST status=200 protocol=1.1 `+tokens+`login} count=2 sum=2
			`+duration+`method=POST status=200 protocol=1.1 `+tokens+`refresh} count=1 sum=2
			partnerauth.call.duration s {error=*errors.errorString provider=nowpost template=/orders/{id}} count=1 sum=0.1
			partnerauth.call.duration s {error=credentials_refused provider=nowpost template=/orders/{id}} count=1 sum=0.1
			partnerauth.call.duration s {provider=nowpost template=/orders/{id}} count=3 sum=8.5
		partnerauth.rate_limit.burst {request} {provider=nowpost} below 100
		partnerauth.rate_limit.pace 1 {provider=nowpost} below 1
		partnerauth.rate_limit.queued_requests {request} {provider=nowpost} sum=0
		partnerauth.rate_limit.wait_time s {provider=nowpost limit.result=acquired} count=10 sum=6
			partnerauth.resends {request} {provider=nowpost resend.reason=rate_limited} sum=1
			partnerauth.resends {request} {provider=nowpost resend.reason=unauthorized} sum=1
		partnerauth.token.fetch.duration s {error=credentials_refused provider=nowpost`+
			` token.operation=login token.trigger=missing} count=1 sum=0.1
		partnerauth.token.fetch.duration s {provider=nowpost token.operation=login token.trigger=missing} count=1 sum=1
		partnerauth.token.fetch.duration s {provider=nowpost token.operation=login token.trigger=unauthorized} count=1 sum=1
		partnerauth.token.fetch.duration s {provider=nowpost token.operation=refresh token.trigger=expiring} count=1 sum=2`)

		time.Sleep(24 * time.Hour)
		s.call(ctx, "/orders/5", 200)
		errorIf(t, !strings.Contains(s.points(t), "pace 1 {provider=nowpost} 1\n"), "the pace is not back a day later:\n%s", s.points(t))

		// The types and, for semantic conventions' own instrument, the buckets.
		semconvBuckets := []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
		for _, m := range s.collect(t) {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				bounds := data.DataPoints[0].Bounds
				errorIf(t, m.Name == "http.client.request.duration" && !slices.Equal(bounds, semconvBuckets),
					"%s has buckets %v, want %v", m.Name, bounds, semconvBuckets)
				wide := len(bounds) > 0 && bounds[0] == 0 && bounds[len(bounds)-1] >= 60
				errorIf(t, m.Name == "partnerauth.rate_limit.wait_time" && !wide,
					"%s has buckets %v, want one for no wait and some for more than a minute", m.Name, bounds)
			case metricdata.Sum[int64]:
				up := m.Name == "partnerauth.resends"
				errorIf(t, data.IsMonotonic != up, "%s is monotonic: %v, want %v", m.Name, data.IsMonotonic, up)
			}
			errorIf(t, m.Description == "" && !strings.HasPrefix(m.Name, "http."), "%s has no description", m.Name)
		}
	})
}

// The library has a name, the version that the program was built with, and a schema,
// for traces and metrics alike. A source of the user's own has no name to tell, and a
// pace that was never lowered is no metric.
func TestScopeAndCustomSource(t *testing.T) {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("no build information")
	}
	version := strings.TrimPrefix(strings.Trim(build.Main.Version, "()"), "v")
	rec := newRecording()
	get(t, rec.plain(&partner{open: true}), "/")
	var rm metricdata.ResourceMetrics
	must(t, rec.reader.Collect(context.Background(), &rm))
	scopes := []instrumentation.Scope{rm.ScopeMetrics[0].Scope}
	for _, s := range rec.ended() {
		scopes = append(scopes, s.InstrumentationScope())
	}
	for _, s := range scopes {
		errorIf(t, s.Name != "github.com/partnerauth/partnerauth" || !strings.HasPrefix(s.SchemaURL, "https://opentelemetry.io/schemas/1."),
			"got scope %q, schema %q", s.Name, s.SchemaURL)
		errorIf(t, s.Version != version, "got version %q, want %q", s.Version, version)
	}
	sameLines(t, "metrics", regexp.MustCompile(`(count=\d+) sum=.*`).ReplaceAllString(rec.points(t), "$1"), `
		http.client.request.duration s {method=GET status=200 protocol=1.1 server.address=api.example server.port=443} count=1
		partnerauth.call.duration s {} count=1
		partnerauth.rate_limit.burst {request} {} 100
		partnerauth.rate_limit.pace 1 {} 1
		partnerauth.rate_limit.wait_time s {limit.result=acquired} count=1`)
	n := len(rec.byName("partnerauth call"))
	errorIf(t, n != 1, "got %d spans named partnerauth call, want 1", n)
}

// What waits is counted, however the wait ends, and each wait is a point.
func TestQueuedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := newRecording()
		rt := rec.plain(&partner{open: true})
		rt.Limiter = &partnerauth.Quota{Requests: 1}
		waits := func(want string) {
			t.Helper()
			synctest.Wait()
			got := regexp.MustCompile(`(?m)^partnerauth.rate_limit.(queued|wait).*\n`).FindAllString(rec.points(t), -1)
			sameLines(t, "waits", strings.Join(got, ""), want)
		}
		get(t, rt, "/")
		wg := atOnce(1, func(int) { get(t, rt, "/") })
		synctest.Wait()
		gone := atOnce(3, func(int) { try(leaving(t, time.Second), rt, "/") })
		waits(`
		partnerauth.rate_limit.queued_requests {request} {} sum=4
		partnerauth.rate_limit.wait_time s {limit.result=acquired} count=1 sum=0`)
		gone.Wait()
		waits(`
		partnerauth.rate_limit.queued_requests {request} {} sum=1
		partnerauth.rate_limit.wait_time s {limit.result=acquired} count=1 sum=0
		partnerauth.rate_limit.wait_time s {limit.result=canceled} count=3 sum=3`)
		wg.Wait()
		try(deadline(t, time.Second), rt, "/") // refused
		waits(`
		partnerauth.rate_limit.queued_requests {request} {} sum=0
		partnerauth.rate_limit.wait_time s {limit.result=acquired} count=2 sum=61
		partnerauth.rate_limit.wait_time s {limit.result=canceled} count=3 sum=3
		partnerauth.rate_limit.wait_time s {limit.result=deadline_exceeded} count=1 sum=0`)
	})
}

// Each attempt, token requests included, carries its own span's context and the
// caller's baggage. The caller's header map stays as it is.
func TestPropagation(t *testing.T) {
	rec, p := newRecording(), new(partner).on("call", reply{status: 401}, reply{})
	rt := rec.transport(p)
	rt.Propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}, oddPropagator{})
	member, _ := baggage.NewMember("shop", "7")
	bag, _ := baggage.New(member)
	req := newRequest(t, "GET", apiURL+"/orders", "").WithContext(baggage.ContextWithBaggage(context.Background(), bag))
	req.Header = http.Header{"X-Mine": {"1"}, "Traceparent": {"of the caller"}}
	before := req.Header.Clone()
	status(t, rt, req)
	errorIf(t, !maps.EqualFunc(req.Header, before, slices.Equal), "the caller's header is %v, want %v", req.Header, before)

	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range rec.clients() {
		spans[traceparent(s)] = s
	}
	errorIf(t, len(spans) != 4 || len(p.seen()) != 4,
		"got %d spans and %d requests, want login, 401, login and 200", len(spans), len(p.seen()))
	for _, a := range p.seen() {
		span := spans[a.header.Get("Traceparent")]
		errorIf(t, span == nil || len(a.header["Traceparent"]) != 1 || attributeOf(span, "url.full") != a.url || attributeOf(span,
			"http.request.method") != a.method,
			"%s carried the traceparent %q, want that of its span", a.path, a.header["Traceparent"])
		errorIf(t, a.op == "call" && a.header.Get("Baggage") != "shop=7", "%s: baggage is %q, want shop=7", a.path, a.header["Baggage"])
		odd := a.header.Get("X-Odd-Name")
		errorIf(t, odd != "set, then read: "+a.header.Get("Baggage"), "%s: X-Odd-Name is %q", a.path, odd)
	}
}

func traceparent(s sdktrace.ReadOnlySpan) string {
	return fmt.Sprintf("00-%s-%s-01", s.SpanContext().TraceID(), s.SpanContext().SpanID())
}

// An oddPropagator uses all of a carrier.
type oddPropagator struct{}

func (oddPropagator) Inject(_ context.Context, c propagation.TextMapCarrier) {
	value := "set, then read: " + c.Get("baggage")
	if !slices.Contains(c.Keys(), "X-Mine") && !slices.Contains(c.Keys(), "Accept") {
		value = fmt.Sprint(c.Keys())
	}
	c.Set("x-oDD-name", value)
}

func (oddPropagator) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}

func (oddPropagator) Fields() []string { return []string{"x-oDD-name"} }

// A sampler sees what it may decide by. Metrics do not depend on sampling, and
// what is not sampled propagates so.
func TestNeverSampled(t *testing.T) {
	asked := &sampler{Sampler: sdktrace.NeverSample()}
	rec, p := newRecording(sdktrace.WithSampler(asked)), new(partner)
	get(t, rec.transport(p), "/")
	errorIf(t, len(rec.ended()) != 0 || len(asked.clients) != 2,
		"got %d spans, and %d client spans that the sampler was asked about, want none and 2", len(rec.ended()), len(asked.clients))
	for _, set := range asked.clients {
		errorIf(t, !set.HasValue("http.request.method") || !set.HasValue("server.address") || !set.HasValue("server.port"),
			"the sampler sees only %v", set.ToSlice())
	}
	for _, a := range p.seen() {
		got := a.header.Get("Traceparent")
		errorIf(t, !strings.HasSuffix(got, "-00"), "traceparent is %q, want one that is not sampled", got)
	}
	got := rec.points(t)
	errorIf(t, !strings.Contains(got, "http.client.request.duration"), "metrics:\n%s", got)
}

type sampler struct {
	sdktrace.Sampler
	clients []attribute.Set
}

func (s *sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if p.Kind == trace.SpanKindClient {
		s.clients = append(s.clients, attribute.NewSet(p.Attributes...))
	}
	return s.Sampler.ShouldSample(p)
}

// OpenTelemetry's globals serve where a field is nil, and those alone.
func TestGlobals(t *testing.T) {
	tracer, meter, propagator := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator()
	global, own := newRecording(), newRecording()
	otel.SetTracerProvider(global.tracer)
	otel.SetMeterProvider(global.meter)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	defer func() {
		otel.SetTracerProvider(tracer)
		otel.SetMeterProvider(meter)
		otel.SetTextMapPropagator(propagator)
		// otel's first globals pass on to those set later for good: make that nothing
		global.tracer.Shutdown(context.Background())
		global.meter.Shutdown(context.Background())
	}()

	p := &partner{open: true}
	rt := own.plain(p)
	rt.Propagator = oddPropagator{}
	get(t, rt, "/")
	h := p.seen()[0].header
	errorIf(t, len(own.clients()) != 1, "with fields set: got spans %v", own.clients())
	errorIf(t, len(global.spans.Started()) != 0, "with fields set: got global spans %v", global.spans.Started())
	errorIf(t, global.points(t) != "", "with fields set: got global metrics\n%s", global.points(t))
	errorIf(t, h.Get("Traceparent") != "" || h.Get("X-Odd-Name") == "", "with fields set: sent %v", h)
	rt = own.plain(p)
	rt.TracerProvider, rt.MeterProvider, rt.Propagator = nil, nil, nil
	get(t, rt, "/")
	h = p.seen()[1].header
	errorIf(t, len(global.clients()) != 1 || !strings.Contains(global.points(t),
		"http.client.request.duration") || h.Get("Traceparent") == "",
		"with fields nil: got global spans %v, sent %v, and these metrics:\n%s", global.clients(), h, global.points(t))
}

// All is recorded when the headers are in: a body that nobody reads or closes
// loses nothing, and is the one that the Base returned.
func TestBodyNeverClosed(t *testing.T) {
	rec, body := newRecording(), watched("unread")
	resp, err := rec.plain(&partner{script: always(reply{stream: body})}).RoundTrip(newRequest(t, "GET", apiURL, ""))
	must(t, err)
	started, ended := len(rec.spans.Started()), len(rec.ended())
	errorIf(t, started != 2 || ended != 2, "%d spans started and %d ended, want 2 and 2", started, ended)
	got := rec.points(t)
	errorIf(t, !strings.Contains(got, "http.client.request.duration") || !strings.Contains(got, "wait_time"), "metrics:\n%s", got)
	errorIf(t, resp.Body != io.ReadCloser(body) || body.read.Load() > 0 || body.closed.Load() > 0,
		"the body is a %T, %d bytes of it read, closed %d times; want that of the Base, untouched", resp.Body, body.read.Load(),
		body.closed.Load())
}

// On real connections the answer tells the protocol, for token requests too.
func TestProtocolOnTheWire(t *testing.T) {
	for version, useTLS := range map[string]bool{"1.1": false, "2": true} {
		server, plain := onSockets(t, partnertest.Options{TLS: useTLS})
		rec := newRecording()
		rt := rec.transport(plain.Base)
		rt.Source = plain.Source
		status(t, rt, newRequest(t, "GET", server.URL+"/api/v1/orders", ""))
		spans := rec.clients()
		for _, s := range spans {
			where := attributeOf(s, "server.address") + ":" + attributeOf(s, "server.port")
			if got := attributeOf(s, "network.protocol.version"); got != version || !strings.HasSuffix(server.URL, "//"+where) {
				t.Errorf("HTTP/%s: span %q has network.protocol.version %q and went to %s, want %s", version, s.Name(), got, where,
					server.URL)
			}
		}
		errorIf(t, len(spans) != 2 || strings.Count(rec.points(t), "protocol="+version+" ") != 2,
			"HTTP/%s: got %d spans and these metrics:\n%s", version, len(spans), rec.points(t))
	}
}

// What one call exports never mixes with another's, however many there are at
// once.
func TestManyAtOnce(t *testing.T) {
	rec := newRecording()
	p := &partner{script: func(a asked) (r reply) {
		fmt.Sscanf(a.path, "/%d", &r.status)
		return r
	}}
	rt := rec.plain(p)
	rt.Limiter = abundance()
	atOnce(8, func(worker int) {
		for i := range 25 {
			path := fmt.Sprint("/", 600+worker*25+i)
			try(partnerauth.WithURLTemplate(context.Background(), path), rt, path+"?q="+path)
		}
	}).Wait()
	calls := map[trace.SpanID]string{} // status
	for _, s := range rec.byName("partnerauth call") {
		calls[s.SpanContext().SpanID()] = attributeOf(s, "http.response.status_code")
	}
	sent := map[string]string{} // path by traceparent
	for _, a := range p.seen() {
		sent[a.header.Get("Traceparent")] = a.path
	}
	spans := rec.clients()
	errorIf(t, len(spans) != 200 || len(calls) != 200 || len(sent) != 200,
		"got %d client spans, %d call spans and %d traceparents, want 200", len(spans), len(calls), len(sent))
	for _, s := range spans {
		path := attributeOf(s, "url.template")
		got := fmt.Sprint(attributeOf(s, "http.response.status_code"), " ", attributeOf(s, "error.type"), " ", calls[s.Parent().SpanID()],
			" ", attributeOf(s, "url.full"),
			" ", s.Name(), " ", sent[traceparent(s)])
		want := fmt.Sprintf("%[1]s %[1]s %[1]s %[2]s/%[1]s?q=REDACTED GET /%[1]s /%[1]s", path[1:], apiURL)
		errorIf(t, got != want, "got %s\nwant %s", got, want)
	}
}

// What is remembered for speed stays small whatever comes: of the texts of 4000
// calls that have nothing in common, hardly any is still referred to.
func TestBoundedCaches(t *testing.T) {
	rt := (&partner{}).custom(static("static"), abundance())
	rt.Base = roundTripFunc(func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil })
	rt.TracerProvider, rt.MeterProvider = tracenoop.NewTracerProvider(), metricnoop.NewMeterProvider()
	var texts []weak.Pointer[byte]
	for n := range 4000 {
		method, template := fmt.Sprintf("METHOD-%020d", n), fmt.Sprintf("/template/%020d", n)
		texts = append(texts, weak.Make(unsafe.StringData(method)), weak.Make(unsafe.StringData(template)))
		status(t, rt, newRequest(t, method, apiURL, "").WithContext(partnerauth.WithURLTemplate(context.Background(), template)))
	}
	runtime.GC()
	texts = slices.DeleteFunc(texts, func(text weak.Pointer[byte]) bool { return text.Value() == nil })
	errorIf(t, len(texts) > 400, "%d of 8000 texts are kept, want few", len(texts))
	runtime.KeepAlive(rt)
}

// Whatever the bytes, there is an answer or an error, no panic, and no name or
// series made of what somebody else wrote.
func FuzzTelemetry(f *testing.F) {
	f.Add("GET", "api.example", "/p", "a=1&b", "me", 200, 1, 1)
	f.Add("", "API.example:443", "", "", "", 0, 0, 0)
	f.Add("G\x00T\xff", "api.example", "\x7f", "&&=&", "\n", 401, 2, 0)
	f.Add("PURGE /x HTTP/1.1\r\n", "[::1]:80", "%zz", "%", ":", 599, 3, 0)
	f.Add("HTTP", "[::1", "//", ";", "@", 1000, 9, 9)
	f.Add("QUERY", "api.example:99999", "/p", "a=b=c", "", math.MaxInt, math.MinInt, math.MaxInt)
	known := []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE", "_OTHER"}
	f.Fuzz(func(t *testing.T, method, host, path, query, user string, status, major, minor int) {
		rec := newRecording()
		rt := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, ProtoMajor: major, ProtoMinor: minor}, nil
		}), apiURL, "https://"+host)
		if _, err := url.Parse("https://" + host); err != nil {
			rt.Origins = rt.Origins[:1]
		}
		u := &url.URL{Scheme: "https", Host: host, Path: path, RawPath: path, RawQuery: query}
		if user != "" {
			u.User = url.UserPassword("planted-user", "planted-password")
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if status == http.StatusTooManyRequests {
			cancel() // what would pause does not
		}
		rt.RoundTrip((&http.Request{Method: method, URL: u}).WithContext(ctx))
		for _, s := range rec.spans.Started() {
			full := attributeOf(s, "url.full")
			errorIf(t, s.EndTime().IsZero() || strings.Contains(full, "planted"),
				"span %q with url.full %q, ended at %v", s.Name(), full, s.EndTime())
			if s.SpanKind() != trace.SpanKindClient {
				continue
			}
			m := attributeOf(s, "http.request.method")
			if name := strings.Replace(m, "_OTHER", "HTTP",
				1); !slices.Contains(known, m) || s.Name() != name || m == "_OTHER" && attributeOf(s,
				"http.request.method_original") != method {
				t.Errorf("method %q: got span %q with %v", method, s.Name(), s.Attributes())
			}
		}
		rec.points(t)
	})
}
