package partnerauth_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

const (
	peerURL   = "https://api.example"
	loginPath = "/api/v1/auth/login"
	renewPath = "/api/v1/auth/refresh"
)

// A reply is one answer of a peer.
type reply struct {
	after  time.Duration
	status int // 0: 200
	header http.Header
	body   string
	err    error // in place of an answer
}

// granted is NowPost's answer with a token that lives for lifetime.
func granted(token string, lifetime time.Duration) string {
	return fmt.Sprintf(`{"success":true,"data":{"token":%q,"expiresAt":%q}}`, token, time.Now().Add(lifetime).UTC().Format(time.RFC3339Nano))
}

// A peer is a partner in memory: a Base that answers by a script and keeps what
// it was sent.
type peer struct {
	mu     sync.Mutex
	script map[string][]reply // by "METHOD /path"; the last one stays
	got    []*http.Request
	bodies []string
}

func newPeer() *peer { return &peer{script: map[string][]reply{}} }

func (p *peer) on(request string, replies ...reply) *peer {
	p.script[request] = replies
	return p
}

func (p *peer) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		req.Body.Close()
	}
	p.mu.Lock()
	p.got = append(p.got, req.Clone(context.Background()))
	p.bodies = append(p.bodies, string(body))
	key := cmp.Or(req.Method, "GET") + " " + req.URL.Path
	var r reply
	if replies := p.script[key]; len(replies) > 0 {
		r = replies[0]
		if len(replies) > 1 {
			p.script[key] = replies[1:]
		}
	}
	p.mu.Unlock()
	if r.after > 0 {
		select {
		case <-time.After(r.after):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	header := r.header
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{
		StatusCode: cmp.Or(r.status, 200), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(strings.NewReader(r.body)), Request: req,
	}, nil
}

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
		Source: partnerauth.NowPost{Email: "shop@example.com", Password: "hunter2", BaseURL: peerURL}.TokenSource(),
		Base:   base, TracerProvider: r.tracer, MeterProvider: r.meter, Propagator: propagation.TraceContext{},
	}
}

// plain is a recorded Transport that never has to sign in.
func (r *recording) plain(base http.RoundTripper, origins ...string) *partnerauth.Transport {
	if len(origins) == 0 {
		origins = []string{peerURL}
	}
	tr := r.transport(base)
	tr.Source, tr.Origins = oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "static"}), origins
	return tr
}

func (r *recording) byName(name string) []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(r.ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != name })
}

func (r *recording) clients() []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(r.ended(), func(s sdktrace.ReadOnlySpan) bool { return s.SpanKind() != trace.SpanKindClient })
}

// ended are the spans in the order in which they started.
func (r *recording) ended() []sdktrace.ReadOnlySpan {
	var done []sdktrace.ReadOnlySpan
	for _, s := range r.spans.Started() {
		if !s.EndTime().IsZero() {
			done = append(done, s)
		}
	}
	return done
}

// unexported are types whose names are nobody's business.
var unexported = regexp.MustCompile(`\*partnerauth\.[a-z]\w*`)

// tree draws all spans, one line each, indented below their parents and in the
// order of their start: name, kind, status, when and how long, all attributes,
// links. What every CLIENT span must have is left out where it is as expected
// and shown as -key where it is missing.
func (r *recording) tree(t testing.TB, times bool) string {
	t.Helper()
	spans := r.spans.Started()
	for _, s := range spans {
		if s.EndTime().IsZero() {
			t.Errorf("span %q has not ended", s.Name())
		}
	}
	slices.SortStableFunc(spans, func(a, b sdktrace.ReadWriteSpan) int { return a.StartTime().Compare(b.StartTime()) })
	known := map[trace.SpanID]sdktrace.ReadOnlySpan{}
	for _, s := range spans {
		known[s.SpanContext().SpanID()] = s
	}
	var b strings.Builder
	var draw func(parent trace.SpanID, indent string)
	draw = func(parent trace.SpanID, indent string) {
		for _, s := range spans {
			if s.Parent().SpanID() != parent {
				continue
			}
			if parent.IsValid() && s.SpanContext().TraceID() != known[parent].SpanContext().TraceID() {
				t.Errorf("%q is in another trace than its parent", s.Name())
			}
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
	if lines := strings.Count(b.String(), "\n"); lines != len(spans) {
		t.Errorf("%d of %d spans have a parent that was never started", len(spans)-lines, len(spans))
	}
	return b.String()
}

func attributes(s sdktrace.ReadOnlySpan) []string {
	usual := map[string]string{}
	if s.SpanKind() == trace.SpanKindClient {
		method, _, _ := strings.Cut(s.Name(), " ")
		usual["http.request.method"] = method
		usual["server.address"] = strings.TrimPrefix(peerURL, "https://")
		usual["server.port"] = "443"
		if attributeOf(s, "http.response.status_code") != "" {
			usual["network.protocol.version"] = "1.1"
		}
	}
	var out []string
	for _, kv := range s.Attributes() {
		key, value := string(kv.Key), kv.Value.String()
		if usual[key] == value {
			delete(usual, key)
			continue
		}
		switch key {
		case "url.full":
			value = strings.Replace(value, peerURL, "~", 1)
		case "partnerauth.rate_limit.pace":
			value = pace(kv.Value.AsFloat64())
		case "error.type":
			value = unexported.ReplaceAllString(value, "*partnerauth.…")
		}
		out = append(out, key+"="+value)
	}
	for key := range usual {
		out = append(out, "-"+key)
	}
	slices.Sort(out)
	return out
}

func attributeOf(s sdktrace.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

// collect reads all metrics.
func (r *recording) collect(t testing.TB) []metricdata.Metrics {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := r.reader.Collect(context.Background(), &rm); err != nil {
		t.Fatal(err)
	}
	var all []metricdata.Metrics
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
			kvs = append(kvs, string(kv.Key)+"="+unexported.ReplaceAllString(kv.Value.String(), "*partnerauth.…"))
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

// queued is the present value of partnerauth.rate_limit.queued_requests.
func (r *recording) queued(t testing.TB) int64 {
	t.Helper()
	for _, m := range r.collect(t) {
		if m.Name == "partnerauth.rate_limit.queued_requests" {
			return m.Data.(metricdata.Sum[int64]).DataPoints[0].Value
		}
	}
	return math.MinInt64
}

// sameLines compares two drawings; want may be indented.
func sameLines(t testing.TB, what, got, want string) {
	t.Helper()
	if want := dedent(want); got != want {
		t.Errorf("%s:\n--- got\n%s--- want\n%s", what, got, want)
	}
}

func dedent(s string) string {
	lines := strings.Split(strings.Trim(s, "\n\t"), "\n")
	for i := range lines {
		lines[i] = strings.TrimLeft(lines[i], "\t") + "\n"
	}
	return strings.Join(lines, "")
}

// A scene is a Transport in a bubble, and who calls it.
type scene struct {
	*testing.T
	*recording
	peer      *peer
	transport *partnerauth.Transport
}

// call makes a call that has to succeed with status.
func (s *scene) call(ctx context.Context, path string, status int) {
	s.Helper()
	resp, err := s.try(ctx, path)
	if err != nil {
		s.Errorf("%s: %v", path, err)
	} else if resp.StatusCode != status {
		s.Errorf("%s: got status %d, want %d", path, resp.StatusCode, status)
	}
}

func (s *scene) try(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", peerURL+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	return s.transport.RoundTrip(req)
}

// fail makes a call that has to fail with an error that is all of targets.
func (s *scene) fail(ctx context.Context, path string, targets ...error) error {
	s.Helper()
	_, err := s.try(ctx, path)
	if err == nil {
		s.Errorf("%s: got no error", path)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			s.Errorf("%s: got %v, want %v", path, err, target)
		}
	}
	return err
}

type limiterFunc func(context.Context) error

func (f limiterFunc) Wait(ctx context.Context) error { return f(ctx) }

// after7s is a Limiter that lets its first n at once and then one in 7 s.
func after7s(n int) partnerauth.Limiter {
	return limiterFunc(func(ctx context.Context) error {
		if n--; n >= 0 {
			return nil
		}
		select {
		case <-time.After(7 * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

var errBase = errors.New("wire cut")

// The span trees that one look at a trace must tell the story by.
func TestSpanTree(t *testing.T) {
	ctx := context.Background()
	login := func(token string) reply {
		return reply{after: 300 * time.Millisecond, body: granted(token, 1000*time.Second)}
	}
	get := func(status int) reply { return reply{after: 100 * time.Millisecond, status: status} }
	tests := []struct {
		name    string
		limiter partnerauth.Limiter
		play    func(s *scene)
		random  bool // times are jittered
		want    string
	}{
		{name: "cold call", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders`},

		{name: "cached call", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
			time.Sleep(600 * time.Millisecond)
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders
			nowpost call INTERNAL Unset @1s+100ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache
			  GET CLIENT Unset @1s+100ms http.response.status_code=200 url.full=~/orders`},

		{name: "401, login, 200, under a template", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1"), login("t2")).on("GET /orders/7", get(401), get(200))
			s.call(partnerauth.WithURLTemplate(ctx, "/orders/{id}"), "/orders/7", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+800ms http.response.status_code=200 partnerauth.attempts=2 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET /orders/{id} CLIENT Error @300ms+100ms error.type=401 http.response.status_code=401 url.full=~/orders/7 url.template=/orders/{id}
			  partnerauth.token.fetch INTERNAL Unset @400ms+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=unauthorized
			    POST CLIENT Unset @400ms+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET /orders/{id} CLIENT Unset @700ms+100ms http.request.resend_count=1 http.response.status_code=200 url.full=~/orders/7 url.template=/orders/{id}`},

		{name: "429, pause, 200", limiter: after7s(math.MaxInt), play: func(s *scene) {
			busy := get(429)
			busy.header = http.Header{"Retry-After": {"5"}}
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", busy, get(200))
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+5.5s http.response.status_code=200 partnerauth.attempts=2 partnerauth.rate_limit.wait_time=5 partnerauth.token.source=cache
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+100ms error.type=429 http.response.status_code=429 url.full=~/orders
			  partnerauth.rate_limit.wait INTERNAL Unset @400ms+5s partnerauth.rate_limit.result=acquired
			  GET CLIENT Unset @5.4s+100ms http.request.resend_count=1 http.response.status_code=200 url.full=~/orders`},

		{name: "429 in spite of the quota", play: func(s *scene) {
			busy := get(429)
			busy.header = http.Header{"Retry-After": {"5"}}
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", busy, get(200))
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+5.5s http.response.status_code=200 partnerauth.attempts=2 partnerauth.rate_limit.pace=below 1 partnerauth.rate_limit.wait_time=5 partnerauth.token.source=cache
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+100ms error.type=429 http.response.status_code=429 url.full=~/orders
			  partnerauth.rate_limit.wait INTERNAL Unset @400ms+5s partnerauth.rate_limit.result=acquired
			  GET CLIENT Unset @5.4s+100ms http.request.resend_count=1 http.response.status_code=200 url.full=~/orders`},

		{name: "401 and 429 in one call", limiter: after7s(math.MaxInt), play: func(s *scene) {
			busy := get(429)
			busy.header = http.Header{"Retry-After": {"5"}}
			s.peer.on("POST "+loginPath, login("t1"), login("t2")).on("GET /orders", busy, get(401), get(200))
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+5.9s http.response.status_code=200 partnerauth.attempts=3 partnerauth.rate_limit.wait_time=5 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+100ms error.type=429 http.response.status_code=429 url.full=~/orders
			  partnerauth.rate_limit.wait INTERNAL Unset @400ms+5s partnerauth.rate_limit.result=acquired
			  GET CLIENT Error @5.4s+100ms error.type=401 http.request.resend_count=1 http.response.status_code=401 url.full=~/orders
			  partnerauth.token.fetch INTERNAL Unset @5.5s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=unauthorized
			    POST CLIENT Unset @5.5s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @5.8s+100ms http.request.resend_count=2 http.response.status_code=200 url.full=~/orders`},

		{name: "wait for the quota, of login and call", limiter: after7s(0), play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+14.4s http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=7 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+7.3s partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    partnerauth.rate_limit.wait INTERNAL Unset @0s+7s partnerauth.rate_limit.result=acquired
			    POST CLIENT Unset @7s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  partnerauth.rate_limit.wait INTERNAL Unset @7.3s+7s partnerauth.rate_limit.result=acquired
			  GET CLIENT Unset @14.3s+100ms http.response.status_code=200 url.full=~/orders`},

		{name: "somebody else's fetch", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200)).on("GET /plans", get(200))
			var wg sync.WaitGroup
			wg.Go(func() { s.call(ctx, "/orders", 200) })
			time.Sleep(50 * time.Millisecond)
			wg.Go(func() { s.call(ctx, "/plans", 200) })
			wg.Wait()
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders
			nowpost call INTERNAL Unset @50ms+350ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=shared
			  partnerauth.token.wait INTERNAL Unset @50ms+250ms ->partnerauth.token.fetch@0s
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/plans`},

		{name: "background refresh", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("POST "+renewPath, login("t2")).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
			time.Sleep(900*time.Second - 400*time.Millisecond)
			s.call(ctx, "/orders", 200)
			time.Sleep(time.Second - 100*time.Millisecond)
			s.call(ctx, "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders
			nowpost call INTERNAL Unset @15m0s+100ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache
			  GET CLIENT Unset @15m0s+100ms http.response.status_code=200 url.full=~/orders
			partnerauth.token.fetch INTERNAL Unset @15m0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=refresh partnerauth.token.trigger=expiring ->nowpost call@15m0s
			  POST CLIENT Unset @15m0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/refresh
			nowpost call INTERNAL Unset @15m1s+100ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache
			  GET CLIENT Unset @15m1s+100ms http.response.status_code=200 url.full=~/orders`},

		{name: "refresh refused, login in the same flight", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1"), login("t2")).on("POST "+renewPath, get(401)).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
			time.Sleep(900*time.Second - 400*time.Millisecond)
			s.call(ctx, "/orders", 200)
			time.Sleep(time.Second)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders
			nowpost call INTERNAL Unset @15m0s+100ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache
			  GET CLIENT Unset @15m0s+100ms http.response.status_code=200 url.full=~/orders
			partnerauth.token.fetch INTERNAL Unset @15m0s+400ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=expiring ->nowpost call@15m0s
			  POST CLIENT Error @15m0s+100ms error.type=401 http.response.status_code=401 url.full=~/api/v1/auth/refresh
			  POST CLIENT Unset @15m0.1s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login`},

		{name: "failed login, and a call that is spared another", play: func(s *scene) {
			s.peer.on("POST "+loginPath, get(401))
			s.fail(ctx, "/orders", partnerauth.ErrCredentials)
			s.fail(ctx, "/orders", partnerauth.ErrCredentials)
		}, want: `
			nowpost call INTERNAL Error @0s+100ms error.type=*partnerauth.AuthError partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0
			  partnerauth.token.fetch INTERNAL Error @0s+100ms error.type=*partnerauth.AuthError partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Error @0s+100ms error.type=401 http.response.status_code=401 url.full=~/api/v1/auth/login
			nowpost call INTERNAL Error @100ms+0s error.type=*partnerauth.AuthError partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0`},

		{name: "failed login, for somebody who waits too", play: func(s *scene) {
			s.peer.on("POST "+loginPath, get(401))
			var wg sync.WaitGroup
			wg.Go(func() { s.fail(ctx, "/orders", partnerauth.ErrCredentials) })
			time.Sleep(50 * time.Millisecond)
			wg.Go(func() { s.fail(ctx, "/plans", partnerauth.ErrCredentials) })
			wg.Wait()
		}, want: `
			nowpost call INTERNAL Error @0s+100ms error.type=*partnerauth.AuthError partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0
			  partnerauth.token.fetch INTERNAL Error @0s+100ms error.type=*partnerauth.AuthError partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Error @0s+100ms error.type=401 http.response.status_code=401 url.full=~/api/v1/auth/login
			nowpost call INTERNAL Error @50ms+50ms error.type=*partnerauth.AuthError partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0
			  partnerauth.token.wait INTERNAL Error @50ms+50ms error.type=*partnerauth.AuthError ->partnerauth.token.fetch@0s`},

		{name: "login tried again after 500", random: true, play: func(s *scene) {
			s.peer.on("POST "+loginPath, get(500), login("t1")).on("GET /orders", get(200))
			s.call(partnerauth.WithURLTemplate(ctx, "/orders"), "/orders", 200)
		}, want: `
			nowpost call INTERNAL Unset http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Error error.type=500 http.response.status_code=500 url.full=~/api/v1/auth/login
			    POST CLIENT Unset http.request.resend_count=1 http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET /orders CLIENT Unset http.response.status_code=200 url.full=~/orders url.template=/orders`},

		{name: "refused by the quota at once", limiter: &partnerauth.Quota{Requests: 2}, play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			s.call(ctx, "/orders", 200)
			hasty, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			s.fail(hasty, "/orders", partnerauth.ErrRateLimited, context.DeadlineExceeded)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=200 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=200 url.full=~/orders
			nowpost call INTERNAL Error @400ms+0s error.type=*partnerauth.… partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache`},

		{name: "given up by the limiter at the deadline", limiter: after7s(1), play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			hasty, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			s.fail(hasty, "/orders", partnerauth.ErrRateLimited, context.DeadlineExceeded)
		}, want: `
			nowpost call INTERNAL Error @0s+1s error.type=*partnerauth.… partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0.7 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  partnerauth.rate_limit.wait INTERNAL Error @300ms+700ms error.type=*partnerauth.… partnerauth.rate_limit.result=deadline_exceeded`},

		{name: "canceled in the queue", limiter: after7s(1), play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			gone, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			s.fail(gone, "/orders", context.Canceled)
		}, want: `
			nowpost call INTERNAL Unset @0s+1s partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0.7 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  partnerauth.rate_limit.wait INTERNAL Unset @300ms+700ms partnerauth.rate_limit.result=canceled`},

		{name: "canceled during the login, which goes on", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			gone, cancel := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { s.fail(gone, "/orders", context.Canceled) })
			time.Sleep(50 * time.Millisecond)
			wg.Go(func() { s.fail(gone, "/plans", context.Canceled) })
			time.Sleep(50 * time.Millisecond)
			cancel()
			wg.Wait()
			time.Sleep(time.Second)
		}, want: `
			nowpost call INTERNAL Unset @0s+100ms partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			nowpost call INTERNAL Unset @50ms+50ms partnerauth.attempts=0 partnerauth.rate_limit.wait_time=0
			  partnerauth.token.wait INTERNAL Unset @50ms+50ms ->partnerauth.token.fetch@0s`},

		{name: "canceled on the wire", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			gone, cancel := context.WithCancel(ctx)
			time.AfterFunc(350*time.Millisecond, cancel)
			s.fail(gone, "/orders", context.Canceled)
		}, want: `
			nowpost call INTERNAL Unset @0s+350ms partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+50ms url.full=~/orders`},

		{name: "deadline on the wire", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(200))
			hasty, cancel := context.WithTimeout(ctx, 350*time.Millisecond)
			defer cancel()
			s.fail(hasty, "/orders", context.DeadlineExceeded)
		}, want: `
			nowpost call INTERNAL Error @0s+350ms error.type=context.deadlineExceededError partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+50ms error.type=context.deadlineExceededError url.full=~/orders`},

		{name: "Base fails", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", reply{after: 100 * time.Millisecond, err: errBase})
			s.fail(ctx, "/orders", errBase)
		}, want: `
			nowpost call INTERNAL Error @0s+400ms error.type=*errors.errorString partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+100ms error.type=*errors.errorString url.full=~/orders`},

		{name: "404 and 500", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(404), get(500))
			s.call(ctx, "/orders", 404)
			s.call(ctx, "/orders", 500)
		}, want: `
			nowpost call INTERNAL Error @0s+400ms error.type=404 http.response.status_code=404 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Error @300ms+100ms error.type=404 http.response.status_code=404 url.full=~/orders
			nowpost call INTERNAL Error @400ms+100ms error.type=500 http.response.status_code=500 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=cache
			  GET CLIENT Error @400ms+100ms error.type=500 http.response.status_code=500 url.full=~/orders`},

		{name: "301 is no error", play: func(s *scene) {
			s.peer.on("POST "+loginPath, login("t1")).on("GET /orders", get(301))
			s.call(ctx, "/orders", 301)
		}, want: `
			nowpost call INTERNAL Unset @0s+400ms http.response.status_code=301 partnerauth.attempts=1 partnerauth.rate_limit.wait_time=0 partnerauth.token.source=login
			  partnerauth.token.fetch INTERNAL Unset @0s+300ms partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing
			    POST CLIENT Unset @0s+300ms http.response.status_code=200 url.full=~/api/v1/auth/login
			  GET CLIENT Unset @300ms+100ms http.response.status_code=301 url.full=~/orders`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scene{T: t, recording: newRecording(), peer: newPeer()}
				s.transport = s.recording.transport(s.peer)
				s.transport.Limiter = test.limiter
				test.play(s)
				synctest.Wait()
				sameLines(t, "spans", s.tree(t, !test.random), test.want)
			})
		})
	}
}

// Every attribute of one attempt, for URLs and methods of all kinds.
func TestAttempt(t *testing.T) {
	api := func(rawQuery string) *url.URL {
		return &url.URL{Scheme: "https", Host: "api.example", Path: "/p", RawQuery: rawQuery}
	}
	parse := func(raw string) *url.URL {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	tests := []struct {
		method, template string
		url              *url.URL
		proto            [2]int
		name, want       string // of what differs from GET https://api.example/p over HTTP/1.1
	}{
		{method: "GET", url: api("")},
		{method: "", url: api("")},
		{method: "POST", url: api(""), name: "POST", want: "http.request.method=POST"},
		{method: "PATCH", url: api(""), name: "PATCH", want: "http.request.method=PATCH"},
		{method: "QUERY", url: api(""), name: "QUERY", want: "http.request.method=QUERY"},
		{method: "get", url: api(""), name: "HTTP", want: "http.request.method=_OTHER http.request.method_original=get"},
		{method: "PURGE", url: api(""), name: "HTTP", want: "http.request.method=_OTHER http.request.method_original=PURGE"},
		{method: "HTTP", url: api(""), name: "HTTP", want: "http.request.method=_OTHER http.request.method_original=HTTP"},
		{method: "G\x00T\n\xff", url: api(""), name: "HTTP", want: "http.request.method=_OTHER http.request.method_original=G\x00T\n\xff"},
		{method: "GET", template: "/p/{id}", url: api(""), name: "GET /p/{id}", want: "url.template=/p/{id}"},
		{method: "BREW", template: "/p/{id}", url: api(""), name: "HTTP /p/{id}", want: "http.request.method=_OTHER http.request.method_original=BREW url.template=/p/{id}"},

		{method: "GET", url: api("a=1&token=s3cret&empty=&b=2&b=3"), want: "url.full=https://api.example/p?a=REDACTED&token=REDACTED&empty=REDACTED&b=REDACTED&b=REDACTED"},
		{method: "GET", url: api("s3cret"), want: "url.full=https://api.example/p?REDACTED"},
		{method: "GET", url: api("a=1&s3cret&b=2"), want: "url.full=https://api.example/p?a=REDACTED&REDACTED&b=REDACTED"},
		{method: "GET", url: api("a=b=s3cret"), want: "url.full=https://api.example/p?a=REDACTED"},
		{method: "GET", url: api("a=1;b=s3cret"), want: "url.full=https://api.example/p?a=REDACTED"},
		{method: "GET", url: parse("https://me:s3cret@api.example/p"), want: "url.full=https://REDACTED:REDACTED@api.example/p"},
		{method: "GET", url: parse("https://s3cret@api.example/p?x=1#s3cret"), want: "url.full=https://REDACTED:REDACTED@api.example/p?x=REDACTED"},
		{method: "GET", url: parse("https://api.example/p#s3cret"), want: ""},
		{method: "GET", url: parse("https://api.example/a%2Fb/%3Fc"), want: "url.full=https://api.example/a%2Fb/%3Fc"},
		{method: "GET", url: parse("https://api.example:443/p"), want: "url.full=https://api.example:443/p"},

		{method: "GET", url: parse("https://API.Example:8443/p"), want: "server.port=8443 url.full=https://API.Example:8443/p"},
		{method: "GET", url: parse("http://localhost/p"), want: "server.address=localhost server.port=80 url.full=http://localhost/p"},
		{method: "GET", url: parse("http://[::1]:8080/p"), want: "server.address=::1 server.port=8080 url.full=http://[::1]:8080/p"},

		{method: "GET", url: api(""), proto: [2]int{1, 0}, want: "network.protocol.version=1.0"},
		{method: "GET", url: api(""), proto: [2]int{2, 0}, want: "network.protocol.version=2"},
		{method: "GET", url: api(""), proto: [2]int{3, 0}, want: "network.protocol.version=3"},
	}
	for _, test := range tests {
		rec := newRecording()
		proto := test.proto
		if proto == [2]int{} {
			proto = [2]int{1, 1}
		}
		tr := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ProtoMajor: proto[0], ProtoMinor: proto[1]}, nil
		}), peerURL, "https://api.example:8443", "http://localhost", "http://[::1]:8080")
		req := &http.Request{Method: test.method, URL: test.url}
		if test.template != "" {
			req = req.WithContext(partnerauth.WithURLTemplate(context.Background(), test.template))
		}
		what := fmt.Sprintf("%q %s", test.method, test.url)
		if _, err := tr.RoundTrip(req); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		spans := rec.clients()
		if len(spans) != 1 {
			t.Errorf("%s: got %d client spans, want 1", what, len(spans))
			continue
		}
		if want := cmp.Or(test.name, "GET"); spans[0].Name() != want {
			t.Errorf("%s: got span name %q, want %q", what, spans[0].Name(), want)
		}
		want := map[string]string{
			"http.request.method": "GET", "server.address": "api.example", "server.port": "443", "url.full": "https://api.example/p",
			"http.response.status_code": "200", "network.protocol.version": "1.1",
		}
		for kv := range strings.SplitSeq(test.want, " ") {
			if key, value, ok := strings.Cut(kv, "="); ok {
				want[key] = value
			}
		}
		got := map[string]string{}
		for _, kv := range spans[0].Attributes() {
			got[string(kv.Key)] = kv.Value.String()
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", what, got, want)
		}
		// The same in the metric, but for what would be a series per URL.
		for _, key := range []string{"url.full", "url.template", "http.request.method_original"} {
			delete(want, key)
		}
		maps.DeleteFunc(got, func(string, string) bool { return true })
		for _, m := range rec.collect(t) {
			if m.Name == "http.client.request.duration" {
				for _, kv := range m.Data.(metricdata.Histogram[float64]).DataPoints[0].Attributes.ToSlice() {
					got[string(kv.Key)] = kv.Value.String()
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: metric:\n got %v\nwant %v", what, got, want)
		}
	}
}

// error.type is the same on span and metric, and on the call span where the
// attempt is what failed it.
func TestErrorType(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	tests := []struct {
		name string
		ctx  context.Context
		base roundTripFunc
		want string
	}{
		{"200", context.Background(), func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil }, ""},
		{"399", context.Background(), func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 399}, nil }, ""},
		{"400", context.Background(), func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 400}, nil }, "400"},
		{"401", context.Background(), func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 401}, nil }, "401"},
		{"503", context.Background(), func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 503}, nil }, "503"},
		{"error", context.Background(), func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, "*errors.errorString"},
		{"typed error", context.Background(), func(*http.Request) (*http.Response, error) { return nil, &tls.CertificateVerificationError{} }, "*tls.CertificateVerificationError"},
		{"deadline", context.Background(), func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded }, "context.deadlineExceededError"},
		{"the caller cancels", canceled, func(*http.Request) (*http.Response, error) { cancel(); return nil, context.Canceled }, ""},
		{"Base cancels", context.Background(), func(*http.Request) (*http.Response, error) { return nil, context.Canceled }, "*errors.errorString"},
	}
	for _, test := range tests {
		rec := newRecording()
		req, _ := http.NewRequestWithContext(test.ctx, "GET", peerURL, nil)
		rec.plain(test.base).RoundTrip(req)
		for _, s := range rec.ended() {
			if got := attributeOf(s, "error.type"); got != test.want {
				t.Errorf("%s: error.type of span %q is %q, want %q", test.name, s.Name(), got, test.want)
			}
			if got, want := s.Status().Code.String() == "Error", test.want != ""; got != want || s.Status().Description != "" {
				t.Errorf("%s: status of span %q is %v, want an Error without text: %v", test.name, s.Name(), s.Status(), want)
			}
		}
		if n := len(rec.ended()); n != 2 {
			t.Errorf("%s: got %d spans, want 2", test.name, n)
		}
		want := "error.type=" + test.want + " "
		if got := rec.points(t); test.want == "" && strings.Contains(got, "error.type") || test.want != "" && !strings.Contains(got, want) {
			t.Errorf("%s: metrics do not have error.type %q:\n%s", test.name, test.want, got)
		}
	}
}

// Every instrument and every point of a life with all that can happen in it.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, recording: newRecording(), peer: newPeer()}
		s.transport = s.recording.transport(s.peer)
		ctx := partnerauth.WithURLTemplate(context.Background(), "/orders/{id}")
		get := func(status int) reply { return reply{after: 100 * time.Millisecond, status: status} }
		busy := get(429)
		busy.header = http.Header{"Retry-After": {"5"}}
		s.peer.on("POST "+loginPath, get(401),
			reply{after: time.Second, body: granted("t1", time.Hour)},
			reply{after: time.Second, body: granted("t2", time.Hour)})
		s.peer.on("POST "+renewPath, reply{after: 2 * time.Second, body: granted("t3", 2*time.Hour)})
		s.peer.on("GET /orders/1", get(401), get(200))
		s.peer.on("GET /orders/2", get(200))
		s.peer.on("GET /orders/3", reply{after: 100 * time.Millisecond, err: errBase})
		s.peer.on("GET /orders/4", busy, get(200))

		if got := s.points(t); got != "" {
			t.Errorf("metrics before the first call:\n%s", got)
		}
		s.fail(ctx, "/orders/1", partnerauth.ErrCredentials)
		time.Sleep(10 * time.Minute)
		s.call(ctx, "/orders/1", 200) // login, 401, login, 200
		time.Sleep(45 * time.Minute)
		s.call(ctx, "/orders/2", 200) // refresh
		time.Sleep(time.Minute)
		s.fail(ctx, "/orders/3", errBase)
		s.call(ctx, "/orders/4", 200) // 429, pause, 200
		synctest.Wait()

		duration := "http.client.request.duration s {"
		where := "server.address=api.example server.port=443} "
		sameLines(t, "metrics", s.points(t), `
			`+duration+`error.type=*errors.errorString http.request.method=GET `+where+`count=1 sum=0.1
			`+duration+`error.type=401 http.request.method=GET http.response.status_code=401 network.protocol.version=1.1 `+where+`count=1 sum=0.1
			`+duration+`error.type=401 http.request.method=POST http.response.status_code=401 network.protocol.version=1.1 `+where+`count=1 sum=0.1
			`+duration+`error.type=429 http.request.method=GET http.response.status_code=429 network.protocol.version=1.1 `+where+`count=1 sum=0.1
			`+duration+`http.request.method=GET http.response.status_code=200 network.protocol.version=1.1 `+where+`count=3 sum=0.3
			`+duration+`http.request.method=POST http.response.status_code=200 network.protocol.version=1.1 `+where+`count=3 sum=4
			partnerauth.rate_limit.pace 1 {partnerauth.provider=nowpost} below 1
			partnerauth.rate_limit.queued_requests {request} {partnerauth.provider=nowpost} sum=0
			partnerauth.rate_limit.wait_time s {partnerauth.provider=nowpost partnerauth.rate_limit.result=acquired} count=10 sum=5
			partnerauth.resends {request} {partnerauth.provider=nowpost partnerauth.resend.reason=rate_limited} sum=1
			partnerauth.resends {request} {partnerauth.provider=nowpost partnerauth.resend.reason=unauthorized} sum=1
			partnerauth.token.fetch.duration s {error.type=*partnerauth.AuthError partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing} count=1 sum=0.1
			partnerauth.token.fetch.duration s {partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=missing} count=1 sum=1
			partnerauth.token.fetch.duration s {partnerauth.provider=nowpost partnerauth.token.operation=login partnerauth.token.trigger=unauthorized} count=1 sum=1
			partnerauth.token.fetch.duration s {partnerauth.provider=nowpost partnerauth.token.operation=refresh partnerauth.token.trigger=expiring} count=1 sum=2`)

		// The types and, for semantic conventions' own instrument, the buckets.
		semconvBuckets := []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
		for _, m := range s.collect(t) {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				bounds := data.DataPoints[0].Bounds
				if m.Name == "http.client.request.duration" && !slices.Equal(bounds, semconvBuckets) {
					t.Errorf("%s has buckets %v, want %v", m.Name, bounds, semconvBuckets)
				}
				if m.Name == "partnerauth.rate_limit.wait_time" && (len(bounds) == 0 || bounds[0] != 0 || bounds[len(bounds)-1] < 60) {
					t.Errorf("%s has buckets %v, want one for no wait and some for more than a minute", m.Name, bounds)
				}
			case metricdata.Sum[int64]:
				if up := m.Name == "partnerauth.resends"; data.IsMonotonic != up {
					t.Errorf("%s is monotonic: %v, want %v", m.Name, data.IsMonotonic, up)
				}
			}
			if m.Description == "" && !strings.HasPrefix(m.Name, "http.") {
				t.Errorf("%s has no description", m.Name)
			}
		}
	})
}

// A source of the user's own has no name to tell.
func TestMetricsOfAForeignSource(t *testing.T) {
	rec := newRecording()
	tr := rec.plain(newPeer())
	tr.Limiter = &partnerauth.Quota{}
	for range 3 {
		req, _ := http.NewRequest("GET", peerURL, nil)
		if _, err := tr.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
	}
	sameLines(t, "metrics", regexp.MustCompile(`(count=\d+) sum=.*`).ReplaceAllString(rec.points(t), "$1"), `
		http.client.request.duration s {http.request.method=GET http.response.status_code=200 network.protocol.version=1.1 server.address=api.example server.port=443} count=3
		partnerauth.rate_limit.wait_time s {partnerauth.rate_limit.result=acquired} count=3`)
	if n := len(rec.byName("partnerauth call")); n != 3 {
		t.Errorf("got %d spans named partnerauth call, want 3", n)
	}
}

// What waits is counted, however the wait ends, and each wait is a point.
func TestQueuedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, recording: newRecording(), peer: newPeer()}
		s.transport = s.recording.plain(s.peer)
		s.transport.Limiter = &partnerauth.Quota{Requests: 1}
		s.call(context.Background(), "/", 200)
		gone, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { s.call(context.Background(), "/", 200) })
		synctest.Wait()
		for range 3 {
			wg.Go(func() { s.fail(gone, "/", context.Canceled) })
		}
		synctest.Wait()
		if n := s.queued(t); n != 4 {
			t.Errorf("%d requests are queued, want 4", n)
		}
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		if n := s.queued(t); n != 1 {
			t.Errorf("after 3 have left %d requests are queued, want 1", n)
		}
		wg.Wait()
		if n := s.queued(t); n != 0 {
			t.Errorf("in the end %d requests are queued, want 0", n)
		}
		hasty, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.fail(hasty, "/", partnerauth.ErrRateLimited)
		if n := s.queued(t); n != 0 {
			t.Errorf("after a refusal %d requests are queued, want 0", n)
		}
		var waits []string
		for line := range strings.Lines(s.points(t)) {
			if strings.HasPrefix(line, "partnerauth.rate_limit.wait_time") {
				waits = append(waits, line)
			}
		}
		sameLines(t, "waits", strings.Join(waits, ""), `
			partnerauth.rate_limit.wait_time s {partnerauth.rate_limit.result=acquired} count=2 sum=61
			partnerauth.rate_limit.wait_time s {partnerauth.rate_limit.result=canceled} count=3 sum=3
			partnerauth.rate_limit.wait_time s {partnerauth.rate_limit.result=deadline_exceeded} count=1 sum=0`)
	})
}

// A pace that was never lowered is not worth a metric; one that was is, until
// it is back.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, recording: newRecording(), peer: newPeer()}
		s.transport = s.recording.plain(s.peer)
		pace := func() []float64 {
			for _, m := range s.collect(t) {
				if m.Name == "partnerauth.rate_limit.pace" {
					return []float64{m.Data.(metricdata.Gauge[float64]).DataPoints[0].Value}
				}
			}
			return nil
		}
		s.peer.on("GET /", reply{}, reply{status: 429, header: http.Header{"Retry-After": {"1"}}}, reply{})
		s.call(context.Background(), "/", 200)
		if got := pace(); got != nil {
			t.Errorf("the pace is %v before any 429, want no point", got)
		}
		s.call(context.Background(), "/", 200)
		low := pace()
		if len(low) != 1 || low[0] <= 0 || low[0] >= 1 {
			t.Fatalf("the pace is %v after a 429, want one between 0 and 1", low)
		}
		time.Sleep(24 * time.Hour)
		s.call(context.Background(), "/", 200)
		if got := pace(); len(got) != 1 || got[0] != 1 {
			t.Errorf("the pace is %v a day later, want 1", got)
		}
	})
}

// Each attempt, token requests included, carries its own span's context and the
// caller's baggage. The caller's header map stays as it is.
func TestPropagation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, recording: newRecording(), peer: newPeer()}
		s.transport = s.recording.transport(s.peer)
		s.transport.Propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}, oddPropagator{})
		s.peer.on("POST "+loginPath, reply{body: granted("t1", 1000*time.Second)}, reply{body: granted("t2", 1000*time.Second)})
		s.peer.on("POST "+renewPath, reply{body: granted("t3", time.Hour)})
		s.peer.on("GET /orders", reply{status: 401}, reply{})

		member, _ := baggage.NewMember("shop", "7")
		bag, _ := baggage.New(member)
		ctx := baggage.ContextWithBaggage(context.Background(), bag)
		mine := http.Header{"X-Mine": {"1"}, "Traceparent": {"of the caller"}}
		before := mine.Clone()
		call := func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", peerURL+"/orders", nil)
			req.Header = mine
			resp, err := s.transport.RoundTrip(req)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
		}
		call()
		time.Sleep(900 * time.Second)
		call()
		synctest.Wait()
		if !maps.EqualFunc(mine, before, slices.Equal[[]string]) {
			t.Errorf("the caller's header is %v, want %v", mine, before)
		}

		sent := map[string]bool{}
		for _, req := range s.peer.got {
			h := req.Header
			sent[h.Get("Traceparent")] = true
			if got := h["Traceparent"]; len(got) != 1 {
				t.Errorf("%s: traceparent is %q, want one", req.URL.Path, got)
			}
			if got := h["Baggage"]; !slices.Equal(got, []string{"shop=7"}) {
				t.Errorf("%s: baggage is %q, want shop=7", req.URL.Path, got)
			}
			if got := h["X-Odd-Name"]; !slices.Equal(got, []string{"set, then read: shop=7"}) {
				t.Errorf("%s: X-Odd-Name is %q", req.URL.Path, got)
			}
		}
		spans := s.clients()
		if len(spans) != 6 || len(sent) != 6 {
			t.Errorf("got %d spans and %d traceparents, want login, 401, login, 200, 200 and refresh", len(spans), len(sent))
		}
		for _, span := range spans {
			sc := span.SpanContext()
			want := fmt.Sprintf("00-%s-%s-01", sc.TraceID(), sc.SpanID())
			i := slices.IndexFunc(s.peer.got, func(r *http.Request) bool { return r.Header.Get("Traceparent") == want })
			if i < 0 {
				t.Errorf("no request carried %s of span %q", want, span.Name())
			} else if got := s.peer.got[i]; !strings.HasSuffix(attributeOf(span, "url.full"), got.URL.Path) || attributeOf(span, "http.request.method") != got.Method {
				t.Errorf("%s %s carried the context of the span for %s", got.Method, got.URL.Path, attributeOf(span, "url.full"))
			}
		}
	})
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

// A sampler sees what it may decide by.
func TestSampler(t *testing.T) {
	var seen samplerFunc = func(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
		if p.Kind == trace.SpanKindClient {
			set := attribute.NewSet(p.Attributes...)
			for _, key := range []attribute.Key{"http.request.method", "server.address", "server.port"} {
				if !set.HasValue(key) {
					t.Errorf("the sampler of %q does not see %s", p.Name, key)
				}
			}
		}
		return sdktrace.AlwaysSample().ShouldSample(p)
	}
	rec := newRecording(sdktrace.WithSampler(seen))
	base := newPeer().on("POST "+loginPath, reply{body: granted("t", time.Hour)})
	req, _ := http.NewRequestWithContext(partnerauth.WithURLTemplate(context.Background(), "/{x}"), "GET", peerURL, nil)
	if _, err := rec.transport(base).RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	if n := len(rec.clients()); n != 2 {
		t.Errorf("got %d client spans, want 2", n)
	}
}

type samplerFunc func(sdktrace.SamplingParameters) sdktrace.SamplingResult

func (f samplerFunc) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult { return f(p) }
func (f samplerFunc) Description() string                                                { return "samplerFunc" }

// Metrics do not depend on sampling, and what is not sampled propagates so.
func TestNeverSampled(t *testing.T) {
	rec := newRecording(sdktrace.WithSampler(sdktrace.NeverSample()))
	base := newPeer()
	req, _ := http.NewRequest("GET", peerURL, nil)
	if _, err := rec.plain(base).RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	if n := len(rec.ended()); n != 0 {
		t.Errorf("got %d spans, want none", n)
	}
	if got := base.got[0].Header.Get("Traceparent"); !strings.HasSuffix(got, "-00") {
		t.Errorf("traceparent is %q, want one that is not sampled", got)
	}
	if got := rec.points(t); !strings.Contains(got, "http.client.request.duration") {
		t.Errorf("metrics:\n%s", got)
	}
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

	base := newPeer().on("POST "+loginPath, reply{body: granted("t", time.Hour)})
	call := func(tr *partnerauth.Transport) {
		t.Helper()
		req, _ := http.NewRequest("GET", peerURL, nil)
		if _, err := tr.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
	}
	tr := own.transport(base)
	tr.Propagator = oddPropagator{}
	call(tr)
	if n, m := len(own.clients()), len(global.spans.Started()); n != 2 || m != 0 {
		t.Errorf("with fields set: got %d client spans and %d global ones, want 2 and 0", n, m)
	}
	if got := global.points(t); got != "" {
		t.Errorf("with fields set: global metrics\n%s", got)
	}
	if h := base.got[1].Header; h.Get("Traceparent") != "" || h.Get("X-Odd-Name") == "" {
		t.Errorf("with fields set: sent %v", h)
	}

	tr = own.transport(base)
	tr.TracerProvider, tr.MeterProvider, tr.Propagator = nil, nil, nil
	call(tr)
	if n := len(global.clients()); n != 2 {
		t.Errorf("with fields nil: got %d global client spans, want 2", n)
	}
	if got := global.points(t); !strings.Contains(got, "http.client.request.duration") || !strings.Contains(got, "partnerauth.token.fetch.duration") {
		t.Errorf("with fields nil: global metrics\n%s", got)
	}
	if h := base.got[3].Header; h.Get("Traceparent") == "" {
		t.Errorf("with fields nil: sent %v", h)
	}
}

// The library names itself and its schema, for traces and metrics alike.
func TestScope(t *testing.T) {
	rec := newRecording()
	req, _ := http.NewRequest("GET", peerURL, nil)
	if _, err := rec.plain(newPeer()).RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	const name = "github.com/partnerauth/partnerauth"
	schema := regexp.MustCompile(`^https://opentelemetry\.io/schemas/\d`)
	for _, s := range rec.ended() {
		if scope := s.InstrumentationScope(); scope.Name != name || !schema.MatchString(scope.SchemaURL) {
			t.Errorf("%s: scope %q, schema %q", s.Name(), scope.Name, scope.SchemaURL)
		}
	}
	var rm metricdata.ResourceMetrics
	rec.reader.Collect(context.Background(), &rm)
	for _, m := range rm.ScopeMetrics {
		if m.Scope.Name != name || !schema.MatchString(m.Scope.SchemaURL) {
			t.Errorf("metrics: scope %q, schema %q", m.Scope.Name, m.Scope.SchemaURL)
		}
	}
}

// A body that nobody may touch.
type untouchable struct{ *testing.T }

func (u untouchable) Read([]byte) (int, error) { u.Error("the body was read"); return 0, io.EOF }
func (u untouchable) Close() error             { u.Error("the body was closed"); return nil }

// All is recorded when the headers are in: a body that nobody reads or closes
// loses nothing, and is the one that the Base returned.
func TestBodyNeverClosed(t *testing.T) {
	rec := newRecording()
	body := &untouchable{t}
	tr := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: body}, nil
	}))
	req, _ := http.NewRequest("GET", peerURL, nil)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if started, ended := len(rec.spans.Started()), len(rec.ended()); started != 2 || ended != 2 {
		t.Errorf("%d spans started and %d ended, want 2 and 2", started, ended)
	}
	if got := rec.points(t); !strings.Contains(got, "http.client.request.duration") || !strings.Contains(got, "wait_time") {
		t.Errorf("metrics:\n%s", got)
	}
	if resp.Body != io.ReadCloser(body) {
		t.Errorf("the body is a %T, want that of the Base", resp.Body)
	}
}

// A 101 answer keeps the connection it came on, to write as well as to read.
func TestUpgrade(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, "echo "+line)
	}))
	defer srv.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rec := newRecording()
	req, _ := http.NewRequest("GET", srv.URL, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := rec.plain(base, srv.URL).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != 101 || !ok {
		t.Fatalf("got status %d and a %T, want 101 and an io.ReadWriteCloser", resp.StatusCode, resp.Body)
	}
	io.WriteString(conn, "hello\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "echo hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if s := rec.clients(); len(s) != 1 || attributeOf(s[0], "http.response.status_code") != "101" || s[0].Status().Code.String() != "Unset" {
		t.Errorf("got spans %v", s)
	}
}

// On real connections the answer tells the protocol, for token requests too.
func TestProtocolOnTheWire(t *testing.T) {
	for _, version := range []string{"1.1", "2"} {
		srv := partnertest.StartNowPost(partnertest.Options{TLS: true})
		base := srv.Transport()
		if version == "1.1" {
			base.ForceAttemptHTTP2 = false
			base.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		rec := newRecording()
		tr := rec.transport(base)
		tr.Source = partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: srv.URL}.TokenSource()
		client := &http.Client{Transport: tr}
		resp, err := client.Get(srv.URL + "/api/v1/orders")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		u, _ := url.Parse(srv.URL)
		spans := rec.clients()
		for _, s := range spans {
			if got := attributeOf(s, "network.protocol.version"); got != version {
				t.Errorf("HTTP/%s: span %q has network.protocol.version %q", version, s.Name(), got)
			}
			if host, port := attributeOf(s, "server.address"), attributeOf(s, "server.port"); host != u.Hostname() || port != u.Port() {
				t.Errorf("HTTP/%s: span %q went to %s port %s, want %s", version, s.Name(), host, port, u.Host)
			}
		}
		if len(spans) != 2 || strings.Count(rec.points(t), "network.protocol.version="+version+" ") != 2 {
			t.Errorf("HTTP/%s: got %d spans and these metrics:\n%s", version, len(spans), rec.points(t))
		}
		for i, r := range srv.Requests() {
			if want := spans[i].SpanContext().SpanID().String(); !strings.Contains(r.Header.Get("Traceparent"), want) {
				t.Errorf("HTTP/%s: request %d carried %q, want span %s", version, i, r.Header.Get("Traceparent"), want)
			}
		}
		base.CloseIdleConnections()
		srv.Close()
	}
}

// What one call exports never mixes with another's, however many there are at
// once.
func TestManyAtOnce(t *testing.T) {
	rec := newRecording()
	var mu sync.Mutex
	sent := map[string]string{} // path by traceparent
	tr := rec.plain(roundTripFunc(func(req *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		sent[req.Header.Get("Traceparent")] = req.URL.Path
		var n int
		fmt.Sscanf(req.URL.Path, "/%d", &n)
		return &http.Response{StatusCode: 600 + n}, nil
	}))
	tr.Limiter = abundance()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 25 {
				n := worker*25 + i
				ctx := partnerauth.WithURLTemplate(context.Background(), fmt.Sprint("/", n))
				req, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s/%d?q=%d", peerURL, n, n), nil)
				if _, err := tr.RoundTrip(req); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	calls := map[trace.SpanID]string{} // status
	for _, s := range rec.byName("partnerauth call") {
		calls[s.SpanContext().SpanID()] = attributeOf(s, "http.response.status_code")
	}
	spans := rec.clients()
	if len(spans) != 200 || len(calls) != 200 || len(sent) != 200 {
		t.Errorf("got %d client spans, %d call spans and %d traceparents, want 200", len(spans), len(calls), len(sent))
	}
	for _, s := range spans {
		path := attributeOf(s, "url.template")
		var n int
		fmt.Sscanf(path, "/%d", &n)
		status := fmt.Sprint(600 + n)
		got := attributeOf(s, "http.response.status_code") + " " + attributeOf(s, "error.type") + " " + attributeOf(s, "url.full") + " " +
			s.Name() + " " + calls[s.Parent().SpanID()] + " " + sent[fmt.Sprintf("00-%s-%s-01", s.SpanContext().TraceID(), s.SpanContext().SpanID())]
		want := status + " " + status + " " + peerURL + path + "?q=REDACTED GET " + path + " " + status + " " + path
		if got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}

// Bad input makes a clear error or correct telemetry.
func TestBadInput(t *testing.T) {
	ok := func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil }
	api := &url.URL{Scheme: "https", Host: "api.example", Path: "/"}
	tests := []struct {
		name  string
		req   *http.Request
		base  roundTripFunc
		err   string // in the error's text; "": none
		spans int
	}{
		{"nil header", &http.Request{URL: api}, ok, "", 2},
		{"nil header and a body", &http.Request{Method: "POST", URL: api, Body: io.NopCloser(strings.NewReader("x")), ContentLength: 1}, ok, "", 2},
		{"nil URL", &http.Request{}, ok, "URL", 0},
		{"empty URL", &http.Request{URL: &url.URL{}}, ok, "", 0},
		{"Base returns nothing", &http.Request{URL: api}, func(*http.Request) (*http.Response, error) { return nil, nil }, "Base", 2},
		{"Base returns an answer without anything", &http.Request{URL: api}, func(*http.Request) (*http.Response, error) { return &http.Response{}, nil }, "", 2},
		{"Base returns strange numbers", &http.Request{URL: api}, func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: math.MaxInt, ProtoMajor: 1, ProtoMinor: math.MinInt}, nil
		}, "", 2},
		{"Base returns both", &http.Request{URL: api}, func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(""))}, errBase
		}, errBase.Error(), 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rec := newRecording()
			resp, err := safely(t, func() (*http.Response, error) { return rec.plain(test.base).RoundTrip(test.req) })
			switch {
			case test.err == "" && (err != nil || resp == nil || resp.Body == nil && test.spans > 0):
				t.Errorf("got %v, %v", resp, err)
			case test.err != "" && (err == nil || resp != nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("got %v, %v, want an error about %s", resp, err, test.err)
			}
			if n := len(rec.ended()); n != test.spans {
				t.Errorf("got %d spans, want %d", n, test.spans)
			}
		})
	}
}

// safely makes a panic one failure among others.
func safely(t testing.TB, f func() (*http.Response, error)) (*http.Response, error) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("panic: %v", p)
		}
	}()
	return f()
}

// What goes elsewhere goes to the Base as it is, and leaves no trace.
func TestElsewhere(t *testing.T) {
	for _, raw := range []string{"ftp://api.example/f", "https://other.example/", "https://api.example:444/", "odd:opaque"} {
		u, _ := url.Parse(raw)
		req := &http.Request{Method: "GET", URL: u}
		want := &http.Response{StatusCode: 200}
		rec := newRecording()
		resp, err := rec.plain(roundTripFunc(func(got *http.Request) (*http.Response, error) {
			if got != req || got.Header != nil {
				t.Errorf("%s: the Base got another request: %v", raw, got)
			}
			return want, nil
		})).RoundTrip(req)
		if resp != want || err != nil {
			t.Errorf("%s: got %v, %v", raw, resp, err)
		}
		if n := len(rec.spans.Started()); n != 0 || rec.points(t) != "" {
			t.Errorf("%s: got %d spans and these metrics:\n%s", raw, n, rec.points(t))
		}
	}
}

// What is remembered for speed stays small whatever comes: methods, statuses,
// protocols, templates.
func TestBoundedCaches(t *testing.T) {
	n := 0
	tr := &partnerauth.Transport{
		Source: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "static"}), Origins: []string{peerURL},
		TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: eagerMeters{}, Limiter: abundance(),
		Base: roundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: n, ProtoMajor: 1 + n%3, ProtoMinor: n % 2, Body: http.NoBody}, nil
		}),
	}
	call := func() {
		n++
		ctx := partnerauth.WithURLTemplate(context.Background(), fmt.Sprint("/template/", n))
		req, _ := http.NewRequestWithContext(ctx, fmt.Sprint("M", n), fmt.Sprint(peerURL, "/", n, "?", n), nil)
		if n == http.StatusTooManyRequests || n == http.StatusServiceUnavailable {
			return // would pause
		}
		if _, err := tr.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		call()
	}
	before := heap()
	for range 4000 {
		call()
	}
	if grown := int64(heap()) - int64(before); grown > 400<<10 {
		t.Errorf("the heap grew by %d bytes for 4000 calls that have nothing in common, want few", grown)
	}
	runtime.KeepAlive(tr)
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// eagerMeters are no-op, but want all values.
type eagerMeters struct{ metricnoop.MeterProvider }

func (eagerMeters) Meter(string, ...metric.MeterOption) metric.Meter { return eagerMeter{} }

type eagerMeter struct{ metricnoop.Meter }

func (eagerMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return eagerHistogram{}, nil
}

type eagerHistogram struct{ metricnoop.Float64Histogram }

func (eagerHistogram) Enabled(context.Context) bool { return true }

// Whatever the bytes, there is an answer or an error, no panic, and no name or
// series made of foreign bytes.
func FuzzTelemetry(f *testing.F) {
	f.Add("GET", "api.example", "/p", "a=1&b", "me", 200, 1, 1)
	f.Add("", "API.example:443", "", "", "", 0, 0, 0)
	f.Add("G\x00T\xff", "api.example", "\x7f", "&&=&", "\n", 401, 2, 0)
	f.Add("PURGE /x HTTP/1.1\r\n", "[::1]:80", "%zz", "%", ":", 599, 3, 0)
	f.Add("HTTP", "[::1", "//", ";", "@", 1000, 9, 9)
	f.Add("_OTHER", "api.example:", "?", "#", "", -1, 1, -1)
	f.Add("QUERY", "api.example:99999", "/p", "a=b=c", "", math.MaxInt, math.MinInt, math.MaxInt)
	f.Add("get", ":", "/p", "a", "", math.MinInt, 1, math.MinInt)
	known := []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE", "_OTHER"}
	f.Fuzz(func(t *testing.T, method, host, path, query, user string, status, major, minor int) {
		rec := newRecording()
		tr := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, ProtoMajor: major, ProtoMinor: minor}, nil
		}), peerURL, "https://"+host)
		if _, err := url.Parse("https://" + host); err != nil {
			tr.Origins = tr.Origins[:1]
		}
		u := &url.URL{Scheme: "https", Host: host, Path: path, RawPath: path, RawQuery: query}
		if user != "" {
			u.User = url.UserPassword("planted-user", "planted-password")
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // what would pause does not
		if status != http.StatusTooManyRequests {
			ctx = context.Background()
		}
		req := (&http.Request{Method: method, URL: u}).WithContext(ctx)
		tr.RoundTrip(req)
		for _, s := range rec.spans.Started() {
			if s.EndTime().IsZero() {
				t.Errorf("span %q has not ended", s.Name())
			}
			if full := attributeOf(s, "url.full"); strings.Contains(full, "planted") {
				t.Errorf("url.full is %q", full)
			}
			if s.SpanKind() != trace.SpanKindClient {
				continue
			}
			m := attributeOf(s, "http.request.method")
			if name := strings.Replace(m, "_OTHER", "HTTP", 1); !slices.Contains(known, m) || s.Name() != name {
				t.Errorf("method %q: got span %q with http.request.method %q", method, s.Name(), m)
			}
			if original := attributeOf(s, "http.request.method_original"); m == "_OTHER" && original != method {
				t.Errorf("method %q: got http.request.method_original %q", method, original)
			}
		}
		rec.points(t)
	})
}
