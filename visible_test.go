package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// values returns the points of a metric by their attributes, as "key=value,key=value": the count of a histogram, and
// the value of anything else.
func (r *recording) values(t testing.TB, name string) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	add := func(set attribute.Set, value float64) { got[set.Encoded(attribute.DefaultEncoder())] = value }
	for _, m := range r.collect(t) {
		if m.Name != name {
			continue
		}
		switch data := m.Data.(type) {
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				add(p.Attributes, float64(p.Count))
			}
		case metricdata.Gauge[float64]:
			for _, p := range data.DataPoints {
				add(p.Attributes, p.Value)
			}
		case metricdata.Gauge[int64]:
			for _, p := range data.DataPoints {
				add(p.Attributes, float64(p.Value))
			}
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				add(p.Attributes, float64(p.Value))
			}
		}
	}
	return got
}

// wantValues checks all points of a metric.
func (r *recording) wantValues(t testing.TB, name string, want map[string]float64) {
	t.Helper()
	got := r.values(t, name)
	errorIf(t, fmt.Sprint(got) != fmt.Sprint(want), "%s:\n got %v\nwant %v", name, got, want)
}

// Five callers with a wrong password are five calls, and one login.
func TestRefusedCredentialsAreCountedByCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.on("login", got(401))
		atOnce(5, func(int) { s.fail(t.Context(), "/", partnerauth.ErrCredentials) }).Wait()
		synctest.Wait()
		const refused = "error.type=credentials_refused,partnerauth.provider=nowpost"
		s.wantValues(t, "partnerauth.call.duration", map[string]float64{refused: 5})
		s.wantValues(t, "partnerauth.token.fetch.duration", map[string]float64{
			refused + ",partnerauth.token.operation=login,partnerauth.token.trigger=missing": 1,
		})
	})
}

// A call that never became a request is counted as well, by its error and its template.
func TestCallsThatWereNotSentAreCounted(t *testing.T) {
	const sent = "partnerauth.provider=nowpost"
	for _, c := range []struct {
		name string
		call func(s *scene) error // after one that used the Quota up
		want string
	}{
		{"no turn before the deadline", func(s *scene) error {
			_, err := try(deadline(s, time.Second), s.transport, "/")
			return err
		}, "error.type=rate_limited," + sent},
		{"the context has ended", func(s *scene) error {
			_, err := try(deadline(s, 0), s.transport, "/")
			return err
		}, "error.type=context.deadlineExceededError," + sent},
		{"the caller leaves the queue", func(s *scene) error {
			_, err := try(leaving(s, time.Second), s.transport, "/")
			return err
		}, sent},
		{"plain http", func(s *scene) error {
			ctx := partnerauth.WithURLTemplate(s.Context(), "/orders/{id}")
			req, _ := http.NewRequestWithContext(ctx, "GET", strings.Replace(apiURL, "https", "http", 1), nil)
			_, err := s.transport.RoundTrip(req)
			return err
		}, "error.type=insecure_url," + sent + ",url.template=/orders/{id}"},
		{"another Host", func(s *scene) error {
			req := newRequest(s, "GET", apiURL, "")
			req.Host = "elsewhere.example"
			_, err := s.transport.RoundTrip(req)
			return err
		}, "error.type=*errors.errorString," + sent},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := newScene(t)
			s.transport.Limiter = &partnerauth.Quota{Requests: 2}
			s.call(t.Context(), "/", 200)
			if err := c.call(s); err == nil {
				t.Error("got no error")
			}
			want := map[string]float64{sent: 1}
			want[c.want]++
			s.wantValues(t, "partnerauth.call.duration", want)
			calls := s.byName("nowpost call")
			errorIf(t, len(calls) != 2, "got %d call spans, want 2", len(calls))
			last := calls[len(calls)-1]
			_, kind, _ := strings.Cut(strings.Split(c.want, ",")[0], "error.type=")
			errorIf(t, attributeOf(last, "error.type") != kind, "the span has error.type %q, want %q", attributeOf(last, "error.type"), kind)
			var sentTo int
			for _, n := range s.values(t, "http.client.request.duration") {
				sentTo += int(n)
			}
			errorIf(t, sentTo != 2, "%d requests, want those of the first call", sentTo)
		})
	}
}

// The gauges are there before anything was learnt, and follow what is.
func TestBurstAndPaceFromTheFirstCall(t *testing.T) {
	for _, c := range []struct {
		name    string
		limiter partnerauth.Limiter
		burst   float64
	}{
		{"the default", nil, 100},
		{"Burst", &partnerauth.Quota{Burst: 10}, 10},
		{"FixedRate", &partnerauth.Quota{FixedRate: true}, 100},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := newScene(t)
			s.transport.Limiter = c.limiter
			const provider = "partnerauth.provider=nowpost"
			s.call(t.Context(), "/", 200)
			s.wantValues(t, "partnerauth.rate_limit.burst", map[string]float64{provider: c.burst})
			s.wantValues(t, "partnerauth.rate_limit.pace", map[string]float64{provider: 1})

			s.on("call", got(429), got(200))
			s.call(t.Context(), "/", 200)
			learns := c.name != "FixedRate"
			burst, pace := s.values(t, "partnerauth.rate_limit.burst")[provider], s.values(t, "partnerauth.rate_limit.pace")[provider]
			errorIf(t, (burst < c.burst) != learns, "after a 429: burst %v of %v, want less: %v", burst, c.burst, learns)
			errorIf(t, (pace < 1) != learns, "after a 429: pace %v, want less: %v", pace, learns)
		})
	}
	bubble(t, "a limiter that has neither", func(t *testing.T) {
		s := newScene(t)
		s.transport.Limiter = rate.NewLimiter(rate.Inf, 0)
		s.call(t.Context(), "/", 200)
		s.wantValues(t, "partnerauth.rate_limit.burst", map[string]float64{})
		s.wantValues(t, "partnerauth.rate_limit.pace", map[string]float64{})
	})
}

// Why the Quota sends less is on the span of the answer that it learnt from, and on no other.
func TestReasonOnTheSpan(t *testing.T) {
	first := reply{after: 50 * time.Millisecond, status: 200}
	for _, c := range []struct {
		name    string
		fixed   bool
		atOnce  bool
		replies []reply
		want    map[string]int // spans by status and reason
	}{
		{name: "a single request", replies: []reply{got(200), got(429), got(200)},
			want: map[string]int{"200 ": 2, "429 single_refused": 1}},
		{name: "FixedRate", fixed: true, replies: []reply{got(200), got(429), got(200)},
			want: map[string]int{"200 ": 2, "429 ": 1}},
		{name: "part of a burst, 429", atOnce: true, replies: []reply{first, got(200), slowDown()},
			want: map[string]int{"200 ": 2, "429 burst_refused": 1}},
		{name: "part of a burst, 503", atOnce: true, replies: []reply{first, got(503), got(503), got(503)},
			want: map[string]int{"200 ": 1, "503 ": 2, "503 unavailable": 1}},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := newScene(t)
			s.transport.Limiter = &partnerauth.Quota{FixedRate: c.fixed}
			must(t, s.transport.SignIn(t.Context()))
			s.on("call", c.replies...)
			if c.atOnce {
				atOnce(len(c.replies), func(int) { try(deadline(t, time.Second), s.transport, "/") }).Wait()
			} else {
				for range 2 {
					time.Sleep(time.Minute)
					s.call(t.Context(), "/", 200)
				}
			}
			got := map[string]int{}
			for _, span := range s.byName("GET") {
				got[attributeOf(span, "http.response.status_code")+" "+attributeOf(span, "partnerauth.rate_limit.reason")]++
			}
			errorIf(t, !maps.Equal(got, c.want), "got %v, want %v", got, c.want)
		})
	}
}

// The account is on each request's duration, token requests included.
func TestProviderOnRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.call(t.Context(), "/", 200)
		got := s.values(t, "http.client.request.duration")
		errorIf(t, len(got) != 2, "got %v, want a login and a call", got)
		for attributes := range got {
			errorIf(t, !strings.Contains(attributes, "partnerauth.provider=nowpost"), "%s has no provider", attributes)
		}
	})
}

// With OpenTelemetry's globals, which may be set while requests wait: none is counted as less than none, and the gauges
// appear. The globals can be set once in a process, so this needs one of its own.
func TestMeterProviderSetLate(t *testing.T) {
	const child = "PARTNERAUTH_TEST_METER_PROVIDER"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMeterProviderSetLate$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		errorIf(t, err != nil, "%v\n%s", err, out)
		return
	}
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.transport.MeterProvider, s.transport.Limiter = nil, &partnerauth.Quota{Requests: 2}
		s.call(t.Context(), "/", 200)
		wait, cancel := context.WithCancel(t.Context())
		some := atOnce(2, func(int) { try(wait, s.transport, "/") })
		others := atOnce(2, func(int) { try(t.Context(), s.transport, "/") })
		synctest.Wait()
		otel.SetMeterProvider(s.meter)

		const provider = "partnerauth.provider=nowpost"
		queued := func(n float64) {
			t.Helper()
			synctest.Wait()
			s.wantValues(t, "partnerauth.rate_limit.queued_requests", map[string]float64{provider: n})
		}
		late := atOnce(1, func(int) { try(wait, s.transport, "/") })
		queued(5)
		cancel()
		some.Wait()
		late.Wait()
		queued(2)
		others.Wait()
		queued(0)
		s.wantValues(t, "partnerauth.rate_limit.burst", map[string]float64{provider: 2})
		s.wantValues(t, "partnerauth.rate_limit.pace", map[string]float64{provider: 1})
	})
}

// RetryAfter counts from now, also in a failure that is returned again later, which says so.
func TestRetryAfterFromNow(t *testing.T) {
	bubble(t, "RateLimitError", func(t *testing.T) {
		s := newScene(t)
		s.transport.Limiter = &partnerauth.Quota{Requests: 2}
		s.call(t.Context(), "/", 200)
		began := time.Now()
		var at [2]time.Time // when each error says that the turn comes
		for i := range at {
			time.Sleep(20 * time.Second)
			_, err := try(deadline(t, time.Second), s.transport, "/")
			limited, ok := errors.AsType[*partnerauth.RateLimitError](err)
			if !ok {
				t.Fatalf("got %v, want a RateLimitError", err)
			}
			at[i] = time.Now().Add(limited.RetryAfter())
		}
		// the slot of the login, whose answer came 100 ms before that of the call
		want := began.Add(time.Minute + time.Second - 100*time.Millisecond)
		errorIf(t, at != [2]time.Time{want, want}, "turns come %v and %v after the call, want %v both times",
			at[0].Sub(began), at[1].Sub(began), want.Sub(began))
		time.Sleep(time.Until(want))
		s.call(deadline(t, time.Second), "/", 200)
	})
	for name, answer := range map[string]reply{"refused": got(401), "failed": {err: errTest}} {
		bubble(t, "AuthError, "+name, func(t *testing.T) {
			s := newScene(t)
			s.on("login", answer)
			_, err := try(t.Context(), s.transport, "/")
			first := authOf(err)
			until := first.At.Add(first.RetryAfter)
			time.Sleep(300 * time.Millisecond)
			_, err = try(t.Context(), s.transport, "/")
			again, logins := authOf(err), s.count("login")
			errorIf(t, time.Now().Add(again.RetryAfter) != until || !again.At.Equal(first.At),
				"later: At %v and RetryAfter %v, want %v and %v", again.At, again.RetryAfter, first.At, time.Until(until))
			errorIf(t, !strings.Contains(err.Error(), " (asked 300ms ago, again in "), "got %q, want it to say that it is of 300 ms ago", err)
			time.Sleep(time.Until(until))
			try(t.Context(), s.transport, "/")
			errorIf(t, s.count("login") <= logins, "no login after RetryAfter")
		})
	}
}
