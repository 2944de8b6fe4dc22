package main

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// recorder has the spans of those that use OpenTelemetry's globals.
var recorder = sync.OnceValue(func() *tracetest.SpanRecorder {
	r := tracetest.NewSpanRecorder()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r)))
	return r
})

// traces looks for a span that has the token request in it and has ended before
// the call did.
func traces(t *testing.T, pr peer) string {
	recorder()
	took := func(do func(context.Context, client) error) (found bool) {
		synctest.Test(t, func(t *testing.T) {
			recorder().Reset()
			p := newPartner()
			p.login = func(int, *http.Request) int { time.Sleep(time.Second); return http.StatusOK }
			p.api = func(string, *http.Request) answer { time.Sleep(time.Second); return ok }
			begin := time.Now()
			if err := do(t.Context(), start(t, pr, p)); err != nil {
				t.Fatal(err)
			}
			all := p.spans.ended
			for _, s := range recorder().Ended() {
				all = append(all, span{s.StartTime(), s.EndTime()})
			}
			for _, s := range all {
				found = found || s.start.Sub(begin) == 0 && s.end.Sub(begin) == time.Second
			}
			if took := time.Since(begin); took != 2*time.Second {
				t.Errorf("%s: took %v, want a second for the token and one for the call", pr.name, took)
			}
		})
		return found
	}
	if took(func(ctx context.Context, c client) error { _, err := c.call(ctx); return err }) {
		return "yes"
	}
	byItself := false
	synctest.Test(t, func(t *testing.T) { byItself = start(t, pr, newPartner()).login != nil })
	if byItself && took(func(_ context.Context, c client) error { return c.login() }) {
		return "suppressed"
	}
	return "no"
}

// limits counts what a limiter sees of two calls, of which the second's token
// is refused. A peer that has none gets one where calls pass: in its Base.
func limits(t *testing.T, pr peer) (text string) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		c := start(t, pr, p)
		mustCall(t, c)
		time.Sleep(time.Second)
		p.refuse("token-1", nil)
		c.call(t.Context())
		c.call(t.Context())
		logins, calls := 0, len(p.callHits())
		for _, h := range p.loginHits() {
			if h.base {
				logins++
			}
		}
		switch {
		case c.ownLimiter:
			text = yes(p.limiter.n == p.countLogins()+calls && p.countLogins() == 2 && calls == 4)
		case logins > 0 && logins == p.countLogins():
			text = "logins, if it is in the Base"
		default:
			text = "no"
		}
	})
	return text
}
