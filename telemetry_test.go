package partnerauth_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
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
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// signIn is how every scene begins that does not say cold.
const signIn = `
	nowpost call INTERNAL Unset @0s+400ms status=200 attempts=1 limit.wait_time=0 token.source=login
	  partnerauth.token.fetch INTERNAL Unset @0s+300ms provider=nowpost token.operation=login token.trigger=missing
	    POST /api/v1/auth/login CLIENT Unset @0s+300ms status=200 url=~template template=/api/v1/auth/login
	  GET CLIENT Unset @300ms+100ms status=200 url=~/first`

const wrongPassword = "INTERNAL Error(partnerauth: nowpost login: 401 Unauthorized: check the e-mail and password"

// The span trees that one look at a trace must tell the story by. The metrics have the
// same to tell, of calls that never became a request as well.
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
		{name: "calls that are not sent", cold: true, play: func(s *scene) {
			template := partnerauth.WithURLTemplate(ctx, "/orders/{id}")
			req := newRequest(s, "GET", strings.Replace(apiURL, "https", "http", 1), "").WithContext(template)
			_, err := s.transport.RoundTrip(req)
			errorIf(s, !errors.Is(err, partnerauth.ErrInsecureURL), "got %v, want %v", err, partnerauth.ErrInsecureURL)
			s.fail(deadline(s, 0), "/", context.DeadlineExceeded)
			calls := regexp.MustCompile("partnerauth.call.*").FindAllString(s.points(s), -1)
			sameLines(s, "calls", strings.Join(calls, "\n")+"\n", `
			partnerauth.call.duration s {error=context.deadlineExceededError provider=nowpost} count=1 sum=0
			partnerauth.call.duration s {error=insecure_url provider=nowpost template=/orders/{id}} count=1 sum=0`)
		}, want: `
		nowpost call INTERNAL Error(partnerauth: insecure URL: plain http to api.example, use https) @0s+0s` +
			` error=insecure_url attempts=0 limit.wait_time=0
		nowpost call INTERNAL Error @0s+0s error=context.deadlineExceededError attempts=0 limit.wait_time=0`},
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
			s.compareMetrics(t)
		})
	}
}

// Every attribute of one attempt, for URLs and methods of all kinds. The metric has
// the same, but for what would be a series per URL.
func TestAttempt(t *testing.T) {
	const api = "https://api.example/p"
	const other = "http.request.method=_OTHER http.request.method_original="
	for _, c := range []struct {
		method, template, url string // "": api
		major, minor          int    // version of HTTP; 0: 1.1
		name, want            string // of what differs from GET https://api.example/p
	}{
		{method: "GET", name: "GET"},
		{method: "", name: "GET"},
		{method: "POST", name: "POST", want: "http.request.method=POST"},
		{method: "get", name: "HTTP", want: other + "get"},
		{method: "HTTP", name: "HTTP", want: other + "HTTP"},
		{method: "G\x00T\n\xff", name: "HTTP", want: other + "G\x00T\n\xff"},
		{method: "BREW", template: "/p/{id}", name: "HTTP /p/{id}", want: other + "BREW url.template=/p/{id}"},

		{name: "GET", url: api + "?a=1&token=s3cret&empty=&b=2&b=3",
			want: "url.full=" + api + "?a=REDACTED&token=REDACTED&empty=REDACTED&b=REDACTED&b=REDACTED"},
		{name: "GET", url: api + "?a=1&s3cret&b=2", want: "url.full=" + api + "?a=REDACTED&REDACTED&b=REDACTED"},
		{name: "GET", url: api + "?a=1;b=s3cret", want: "url.full=" + api + "?a=REDACTED"},
		{name: "GET", url: "https://s3cret@api.example/p?x=1#s3cret", want: "url.full=https://REDACTED:REDACTED@api.example/p?x=REDACTED"},
		{name: "GET", url: "https://api.example/a%2Fb/%3Fc", want: "url.full=https://api.example/a%2Fb/%3Fc"},

		{name: "GET", url: "https://api.example:443/p", want: "url.full=https://api.example:443/p"},
		{name: "GET", url: "https://API.Example:8443/p", want: "server.port=8443 url.full=https://API.Example:8443/p"},
		{name: "GET", url: "http://localhost/p", want: "server.address=localhost server.port=80 url.full=http://localhost/p"},
		{name: "GET", url: "http://[::1]:8080/p", want: "server.address=::1 server.port=8080 url.full=http://[::1]:8080/p"},

		{name: "GET", major: 1, minor: 0, want: "network.protocol.version=1.0"},
		{name: "GET", major: 2, want: "network.protocol.version=2"},
		{name: "GET", major: 3, want: "network.protocol.version=3"},
	} {
		what := fmt.Sprintf("%q %s HTTP/%d", c.method, c.url, c.major)
		rec := newRecording()
		rt := rec.plain(roundTripFunc(func(*http.Request) (*http.Response, error) {
			if c.major == 0 {
				c.major, c.minor = 1, 1
			}
			return &http.Response{StatusCode: 200, ProtoMajor: c.major, ProtoMinor: c.minor}, nil
		}), apiURL, "https://api.example:8443", "http://localhost", "http://[::1]:8080")
		u, _ := url.Parse(cmp.Or(c.url, api))
		req := (&http.Request{Method: c.method, URL: u}).WithContext(partnerauth.WithURLTemplate(t.Context(), c.template))
		_, err := rt.RoundTrip(req)
		spans := rec.clients()
		if err != nil || len(spans) != 1 || spans[0].Name() != c.name {
			t.Errorf("%s: got %v, %v, want a span named %s", what, err, spans, c.name)
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
		errorIf(t, !maps.Equal(got, want), "%s:\n got %v\nwant %v", what, got, want)
		for _, key := range []string{"url.full", "url.template", "http.request.method_original"} {
			delete(want, key)
		}
		for _, p := range rec.measured(t) {
			got := mapped(p.attributes)
			errorIf(t, p.Name == "http.client.request.duration" && !maps.Equal(got, want), "%s: metric:\n got %v\nwant %v", what, got, want)
		}
	}
}

// error.type is the same on the span of what failed, on that of the call, and in the
// metrics. That of a login tells what was wrong with it.
func TestErrorType(t *testing.T) {
	for _, c := range []struct {
		op     string
		reply  reply
		want   string
		status string // of the login
	}{
		{op: "call", reply: reply{status: 399}},
		{op: "call", reply: reply{status: 400}, want: "400"},
		{op: "call", reply: reply{err: &tls.CertificateVerificationError{}}, want: "*tls.CertificateVerificationError"},
		{op: "call", reply: reply{err: errors.New("Forbidden")}, want: "proxy_refused"},
		{op: "call", reply: reply{err: context.DeadlineExceeded}, want: "context.deadlineExceededError"},
		{op: "call", reply: reply{err: context.Canceled}, want: "*errors.errorString"}, // by the Base
		{op: "call", reply: reply{after: forever}},                                     // until the caller cancels
		{op: "login", reply: reply{status: 401}, want: "credentials_refused", status: "401"},
		{op: "login", reply: reply{status: 403, body: "{}"}, want: "credentials_refused", status: "403"},
		{op: "login", reply: reply{status: 403, body: "<html>"}, want: "403", status: "403"},
		{op: "login", reply: reply{status: 502}, want: "502", status: "502"},
		{op: "login", reply: reply{status: 302}, want: "302", status: "302"},
		{op: "login", reply: reply{err: errTest}, want: "*errors.errorString"},
		{op: "login", reply: reply{err: errors.New(`malformed HTTP response "x"`)}, want: "*errors.errorString"},
	} {
		bubble(t, fmt.Sprintf("%s %d %v", c.op, c.reply.status, c.reply.err), func(t *testing.T) {
			rec := newRecording()
			_, err := try(leaving(t, time.Minute), rec.transport(new(partner).on(c.op, c.reply)), "/")
			synctest.Wait()
			failed, text := "GET", ""
			if c.op == "login" { // whose error is ours
				failed, text = "partnerauth.token.fetch", err.Error()
			}
			for _, name := range []string{"nowpost call", failed} {
				s := rec.byName(name)[0]
				equal(t, name+", error.type", attributeOf(s, "error.type"), c.want)
				equal(t, name+" is an Error", s.Status().Code == codes.Error, c.want != "")
				equal(t, name+", description", s.Status().Description, text)
			}
			equal(t, "status_code", attributeOf(rec.byName("nowpost call")[0], "partnerauth.token.status_code"), c.status)
			rec.compareMetrics(t)
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

		// The types, and the buckets where they matter.
		buckets := map[string]string{
			"http.client.request.duration":     "[0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10]", // semconv's
			"partnerauth.rate_limit.wait_time": "[0 0.01 0.1 0.5 1 2.5 5 10 30 60 120 300 900]",                  // no wait, and minutes
		}
		for _, m := range s.collect(t) {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				if want, ok := buckets[m.Name]; ok {
					equal(t, m.Name+", buckets", fmt.Sprint(data.DataPoints[0].Bounds), want)
				}
			case metricdata.Sum[int64]:
				equal(t, m.Name+" is monotonic", data.IsMonotonic, m.Name == "partnerauth.resends")
			}
			errorIf(t, m.Description == "" && !strings.HasPrefix(m.Name, "http."), "%s has no description", m.Name)
		}
	})
}

// The gauges are there before anything was learnt, and follow what is. Why the Quota
// sends less is on the span of the answer that it learnt from, and on no other.
func TestWhatTheQuotaLearns(t *testing.T) {
	const learnt, nothing = "200  200  429 single_refused", "200  200  429 "
	first := reply{after: 50 * time.Millisecond, status: 200}
	for _, c := range []struct {
		name    string
		limiter partnerauth.Limiter
		burst   float64 // at first; 0: there are no gauges
		atOnce  []reply // nil: 200, 429 and 200, one a minute
		want    string  // status and reason of the spans, in order of the answers
		smaller bool    // the burst, afterwards
		slower  bool    // the pace
	}{
		{name: "a single request", burst: 100, want: learnt, slower: true},
		{name: "Burst", limiter: &partnerauth.Quota{Burst: 10}, burst: 10, want: learnt, slower: true},
		{name: "FixedRate", limiter: &partnerauth.Quota{FixedRate: true}, burst: 100, want: nothing},
		{name: "a limiter that learns nothing", limiter: rate.NewLimiter(rate.Inf, 0), want: nothing},
		{name: "part of a burst, 429", burst: 100, atOnce: []reply{first, got(200), slowDown()},
			want: "200  200  429 burst_refused", smaller: true, slower: true},
		{name: "part of a burst, 503", burst: 100, atOnce: []reply{first, got(503), got(503), got(503)},
			want: "200  503  503  503 unavailable", smaller: true},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := newScene(t)
			s.transport.Limiter = c.limiter
			gauges := func() (burst, pace float64) {
				return s.total(t, "partnerauth.rate_limit.burst"), s.total(t, "partnerauth.rate_limit.pace")
			}
			must(t, s.transport.SignIn(t.Context()))
			burst, pace := gauges()
			equal(t, "burst at first", burst, c.burst)
			equal(t, "pace at first", pace, min(c.burst, 1))

			if s.on("call", c.atOnce...); c.atOnce == nil {
				s.on("call", got(200), got(429), got(200))
				for range 2 {
					time.Sleep(time.Minute)
					s.call(t.Context(), "/", 200)
				}
			}
			atOnce(len(c.atOnce), func(int) { try(deadline(t, time.Second), s.transport, "/") }).Wait()
			var got []string
			for _, span := range s.byName("GET") {
				got = append(got, attributeOf(span, "http.response.status_code")+" "+attributeOf(span, "partnerauth.rate_limit.reason"))
			}
			slices.Sort(got)
			equal(t, "answers", strings.Join(got, " "), c.want)
			laterBurst, laterPace := gauges()
			equal(t, "the burst is smaller", laterBurst < burst, c.smaller)
			equal(t, "the pace is slower", laterPace < pace, c.slower)
		})
	}
}

// The library has a name, the version that the program was built with, and a schema,
// for traces and metrics alike. A source of the user's own has no name to tell, and a
// pace that was never lowered is no metric.
func TestScopeAndCustomSource(t *testing.T) {
	build, ok := debug.ReadBuildInfo()
	errorIf(t, !ok, "no build information")
	rec := newRecording()
	get(t, rec.plain(&partner{open: true}), "/")
	var rm metricdata.ResourceMetrics
	must(t, rec.reader.Collect(context.Background(), &rm))
	scopes := []instrumentation.Scope{rm.ScopeMetrics[0].Scope}
	for _, s := range rec.ended() {
		scopes = append(scopes, s.InstrumentationScope())
	}
	for _, s := range scopes {
		equal(t, "scope", s.Name, "github.com/partnerauth/partnerauth")
		equal(t, "version", s.Version, strings.TrimPrefix(strings.Trim(build.Main.Version, "()"), "v"))
		errorIf(t, !strings.HasPrefix(s.SchemaURL, "https://opentelemetry.io/schemas/1."), "got the schema %q", s.SchemaURL)
	}
	sameLines(t, "metrics", regexp.MustCompile(`(count=\d+) sum=.*`).ReplaceAllString(rec.points(t), "$1"), `
		http.client.request.duration s {method=GET status=200 protocol=1.1 server.address=api.example server.port=443} count=1
		partnerauth.call.duration s {} count=1
		partnerauth.rate_limit.burst {request} {} 100
		partnerauth.rate_limit.pace 1 {} 1
		partnerauth.rate_limit.wait_time s {limit.result=acquired} count=1`)
	equal(t, "spans named partnerauth call", len(rec.byName("partnerauth call")), 1)
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

// OpenTelemetry's globals serve where a field is nil, and those alone. A MeterProvider may
// be set while requests wait: the count of those never falls below zero, and the gauges
// appear. The globals can be set once in a process, so this needs one of its own.
func TestGlobals(t *testing.T) {
	const child = "PARTNERAUTH_TEST_GLOBALS"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGlobals$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		errorIf(t, err != nil, "%v\n%s", err, out)
		return
	}
	synctest.Test(t, func(t *testing.T) {
		p, own, global := &partner{open: true}, newRecording(), newRecording()
		otel.SetTracerProvider(global.tracer)
		otel.SetTextMapPropagator(propagation.TraceContext{})
		rt := own.plain(p)
		rt.TracerProvider, rt.MeterProvider, rt.Propagator = nil, nil, nil
		rt.Limiter = &partnerauth.Quota{Requests: 1}
		get(t, rt, "/")
		equal(t, "global client spans", len(global.clients()), 1)
		errorIf(t, p.seen()[0].header["Traceparent"] == nil, "sent %v", p.seen()[0].header)

		wait, cancel := context.WithCancel(t.Context())
		some := atOnce(3, func(int) { try(wait, rt, "/") })
		last := atOnce(1, func(int) { get(t, rt, "/") })
		synctest.Wait()
		otel.SetMeterProvider(global.meter)
		queued := func(want float64) {
			t.Helper()
			synctest.Wait()
			equal(t, "queued requests", global.total(t, "partnerauth.rate_limit.queued_requests"), want)
		}
		late := atOnce(1, func(int) { try(wait, rt, "/") })
		queued(5)
		cancel()
		some.Wait()
		late.Wait()
		queued(1)
		last.Wait()
		queued(0)
		equal(t, "the burst", global.total(t, "partnerauth.rate_limit.burst"), 1)

		before := global.points(t)
		rt = own.plain(p)
		rt.Propagator = oddPropagator{}
		get(t, rt, "/")
		equal(t, "own client spans", len(own.clients()), 1)
		equal(t, "global client spans", len(global.clients()), 2)
		equal(t, "global metrics", global.points(t), before)
		sent := p.seen()[2].header
		errorIf(t, sent["Traceparent"] != nil || sent["X-Odd-Name"] == nil, "with fields set: sent %v", sent)
	})
}

// Each attempt, token requests included, carries its own span's context and what else
// the Propagator writes. The caller's header map stays as it is.
func TestPropagation(t *testing.T) {
	rec, p := newRecording(), new(partner).on("call", reply{status: 401}, reply{})
	rt := rec.transport(p)
	rt.Propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, oddPropagator{})
	req := newRequest(t, "GET", apiURL+"/orders", "")
	req.Header = http.Header{"X-Mine": {"1"}, "Traceparent": {"of the caller"}}
	before := req.Header.Clone()
	status(t, rt, req)
	errorIf(t, !maps.EqualFunc(req.Header, before, slices.Equal), "the caller's header is %v, want %v", req.Header, before)
	equal(t, "requests: login, 401, login and 200", len(p.seen()), 4)
	spans := map[string]string{}
	for _, s := range rec.clients() {
		spans[traceparent(s)] = attributeOf(s, "http.request.method") + " " + attributeOf(s, "url.full")
	}
	for _, a := range p.seen() {
		sent := strings.Join(a.header["Traceparent"], " and ")
		equal(t, "request of the span in "+sent, spans[sent], a.method+" "+a.url)
		equal(t, "X-Odd-Name, which was written after it", a.header.Get("X-Odd-Name"), sent)
	}
}

func traceparent(s sdktrace.ReadOnlySpan) string {
	return fmt.Sprintf("00-%s-%s-01", s.SpanContext().TraceID(), s.SpanContext().SpanID())
}

// An oddPropagator writes a name in odd letters, and reads its carrier.
type oddPropagator struct{ propagation.TraceContext }

func (oddPropagator) Inject(_ context.Context, c propagation.TextMapCarrier) {
	value := "no keys"
	if slices.Contains(c.Keys(), "Traceparent") {
		value = c.Get("traceparent")
	}
	c.Set("x-oDD-name", value)
}

// A sampler sees what it may decide by. Metrics do not depend on sampling, and
// what is not sampled propagates so.
func TestNeverSampled(t *testing.T) {
	asked := &sampler{Sampler: sdktrace.NeverSample()}
	rec, p := newRecording(sdktrace.WithSampler(asked)), new(partner)
	get(t, rec.transport(p), "/")
	equal(t, "spans", len(rec.ended()), 0)
	equal(t, "client spans that the sampler was asked about", len(asked.clients), 2)
	for _, set := range asked.clients {
		errorIf(t, !set.HasValue("http.request.method") || !set.HasValue("server.address") || !set.HasValue("server.port"),
			"the sampler sees only %v", set.ToSlice())
	}
	for _, a := range p.seen() {
		got := a.header.Get("Traceparent")
		errorIf(t, !strings.HasSuffix(got, "-00"), "traceparent is %q, want one that is not sampled", got)
	}
	equal(t, "requests in the metrics", rec.total(t, "http.client.request.duration"), 2)
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

// All is recorded when the headers are in: a body that nobody reads or closes
// loses nothing, and is the one that the Base returned.
func TestBodyNeverClosed(t *testing.T) {
	rec, body := newRecording(), watched("unread")
	resp, err := rec.plain(&partner{script: always(reply{stream: body})}).RoundTrip(newRequest(t, "GET", apiURL, ""))
	must(t, err)
	equal(t, "spans started", len(rec.spans.Started()), 2)
	equal(t, "spans ended", len(rec.ended()), 2)
	equal(t, "requests in the metrics", rec.total(t, "http.client.request.duration"), 1)
	equal(t, "waits in the metrics", rec.total(t, "partnerauth.rate_limit.wait_time"), 1)
	errorIf(t, resp.Body != io.ReadCloser(body), "the body is a %T, want that of the Base", resp.Body)
	equal(t, "bytes read of the body", body.read.Load(), 0)
	equal(t, "closings of the body", body.closed.Load(), 0)
}

// What one call exports never mixes with another's, however many there are at once.
func TestManyAtOnce(t *testing.T) {
	rec := newRecording()
	p := &partner{script: func(a asked) (r reply) {
		fmt.Sscanf(a.path, "/%d", &r.status)
		return r
	}}
	rt := rec.plain(p)
	rt.Limiter = abundance()
	atOnce(200, func(i int) {
		path := fmt.Sprint("/", 600+i)
		try(partnerauth.WithURLTemplate(context.Background(), path), rt, path+"?q="+path)
	}).Wait()
	calls, sent := map[trace.SpanID]string{}, map[string]string{} // the call's status, and the path by traceparent
	for _, s := range rec.byName("partnerauth call") {
		calls[s.SpanContext().SpanID()] = attributeOf(s, "http.response.status_code")
	}
	for _, a := range p.seen() {
		sent[a.header.Get("Traceparent")] = a.path
	}
	equal(t, "calls", len(calls), 200)
	equal(t, "attempts", len(rec.clients()), 200)
	for _, s := range rec.clients() {
		path := attributeOf(s, "url.template")
		got := strings.Join([]string{attributeOf(s, "http.response.status_code"), attributeOf(s, "error.type"),
			calls[s.Parent().SpanID()], attributeOf(s, "url.full"), s.Name(), sent[traceparent(s)]}, " ")
		equal(t, "attempt", got, fmt.Sprintf("%[1]s %[1]s %[1]s %[2]s/%[1]s?q=REDACTED GET /%[1]s /%[1]s", path[1:], apiURL))
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
			errorIf(t, !slices.Contains(known, m), "method %q: got %q", method, m)
			equal(t, "name", s.Name(), strings.Replace(m, "_OTHER", "HTTP", 1))
			if m == "_OTHER" {
				equal(t, "method_original", attributeOf(s, "http.request.method_original"), method)
			}
		}
		rec.points(t)
	})
}
