package partnerauth_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
)

// How long the next request waits after an answer that came in 2026 by its own Date, at a
// client that believes in 2000 and whose Limiter is not a Quota.
func TestPauses(t *testing.T) {
	t.Parallel()
	const s, m, ms = time.Second, time.Minute, time.Millisecond
	is := func(status int, want time.Duration, lines ...string) {
		t.Helper()
		bubble(t, fmt.Sprintf("%d %.80q", status, lines), func(t *testing.T) {
			header := headers(lines...)
			if header["Date"] != nil { // which cannot be read
				time.Sleep(time.Until(in2026))
			} else {
				header = fields(lines...)
			}
			time.Sleep(700 * ms) // our clock is never at a whole second
			p := (&partner{open: true}).on("call", reply{status: status, header: header}, reply{})
			rt := p.custom(static("t"), limiterFunc(func(context.Context) error { return nil }))
			get(t, rt, "/")
			get(t, rt, "/") // if the first was not sent again
			got := p.gaps()[0]
			errorIf(t, got != want, "the next request came after %v, want %v", got, want)
		})
	}
	date := func(d time.Duration) string { return in2026.Add(d).Format(http.TimeFormat) }
	epoch := func(d time.Duration) string { return fmt.Sprint(in2026.Add(d).Unix()) }
	const lost = s // by a date and the Date together

	// express-rate-limit 8.7.4, word for word but for the time
	is(429, 50*s+lost, "X-RateLimit-Limit: 2", "X-RateLimit-Remaining: 0", "X-RateLimit-Reset: "+epoch(50*s))
	is(429, 50*s, "RateLimit-Policy: 2;w=60", "RateLimit-Limit: 2", "RateLimit-Remaining: 0", "RateLimit-Reset: 50")
	is(429, 50*s, "RateLimit-Policy: 2;w=60", "RateLimit: limit=2, remaining=0, reset=50")
	is(429, 50*s, `RateLimit-Policy: "2-in-1min"; q=2; w=60; pk=:ZDY5ZjM0:`, `RateLimit: "2-in-1min"; r=0; t=50`)

	// Retry-After
	is(429, 7*s+rounded, "Retry-After: 7")
	is(429, 7*s+rounded, "Retry-After:   7 ")
	is(429, 7250*ms, "Retry-After: 7.25")
	is(429, 0, "Retry-After: 0")
	is(429, 0, "Retry-After: 0.0")
	is(429, 30*s+lost, "Retry-After: "+date(30*s))
	is(429, 30*s+lost, "Retry-After: "+in2026.Add(30*s).Format("Monday, 02-Jan-06 15:04:05 GMT")) // of RFC 850
	is(429, 30*s+lost, "Retry-After: "+at(30*s))
	is(429, 899*s+rounded, "Retry-After: 899")
	is(429, 15*m, "Retry-After: 900")
	is(429, 15*m, "Retry-After: "+strings.Repeat("9", 400)) // more than a float64
	is(429, 15*m, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT")
	is(429, 20*s+rounded, "Retry-After: 20, 20")
	is(429, 20*s+rounded, "Retry-After: 20,20,20")
	is(429, 9*s+rounded, "Retry-After: 9", "Retry-After: 5")
	for _, v := range []string{"-5", "", ".", "1e3", "Inf", "20, 30", "20,", date(-s)} {
		is(429, unnamed, "Retry-After: "+v)
	}
	is(429, unnamed)
	is(429, unnamed, "X-RateLimit-Limit: 100", "RateLimit-Policy: 100;w=60", "RateLimit-Limit: 100")

	// without a Date, times are by our own clock
	for _, none := range []string{"Date: ", "Date: today"} {
		is(429, 30*s+lost, none, "Retry-After: "+date(30*s))
		is(429, 30*s+lost, none, "X-RateLimit-Reset: "+epoch(30*s))
	}

	// the other fields
	is(429, 50*s+lost, "X-RateLimit-Reset: "+epoch(50*s)+"000") // milliseconds
	is(429, 50*s+500*ms+lost, "X-RateLimit-Reset: "+epoch(50*s)+".5")
	is(429, 50*s+lost, "RateLimit-Reset: "+epoch(50*s))
	is(429, lost, "X-RateLimit-Reset: "+epoch(0))
	is(429, 50*s, "X-RateLimit-Reset: 50")
	is(429, 50*s, "X-RateLimit-Reset: 50, 50")
	is(429, 50*s+lost, "X-RateLimit-Reset: "+in2026.Add(50*s).In(time.FixedZone("", -7*3600)).Format(time.RFC3339))
	is(429, 50*s+lost, "X-RateLimit-Reset: "+in2026.Add(50*s+300*ms).Format(time.RFC3339Nano))
	is(429, unnamed, "X-RateLimit-Reset: "+at(-2*s))
	is(429, 50*s, "X-Rate-Limit-Remaining: 0", "X-Rate-Limit-Reset: 50")
	is(429, 50*s+lost, "X-Rate-Limit-Reset: "+epoch(50*s))

	// of several the first that makes sense counts
	is(429, 5*s+rounded, "Retry-After: 5", "RateLimit: limit=2, remaining=0, reset=120", "X-RateLimit-Reset: 99999999")
	is(429, 120*s+rounded, "Retry-After: 120", "RateLimit: limit=2, remaining=0, reset=5")
	is(429, 17*s, `RateLimit: "x"; r=0; t=17`, "RateLimit-Reset: 41")
	is(429, 17*s, "RateLimit-Reset: 17", "X-RateLimit-Reset: 41")
	is(429, 17*s, "X-RateLimit-Reset: 17", "X-Rate-Limit-Reset: 41")

	// a reset counts where nothing remains
	is(429, unnamed, "X-RateLimit-Remaining: 1", "X-RateLimit-Reset: 41")
	is(429, unnamed, "X-Rate-Limit-Remaining: 1", "X-Rate-Limit-Reset: 41")
	is(429, unnamed, "RateLimit: limit=2, remaining=1, reset=50")
	is(429, unnamed, `RateLimit: "burst"; r=1; t=2, "hourly"; r=1; t=300`)

	// several policies
	is(429, 2*s, `RateLimit: "burst"; r=0; t=2, "daily"; r=500; t=600`)
	is(429, 10*m, `RateLimit: "burst"; r=5; t=2, "daily"; r=0; t=600`)
	is(429, 5*m, `RateLimit: "burst"; r=0; t=2, "hourly"; r=0; t=300`)
	is(429, 2*s, `RateLimit: burst;r=0;t=2, daily;r=500;t=600`)
	is(429, 2*s, `RateLimit: "burst"; r=0; t=2; pk=:dD05MDA=:; x="t=900, y; t=900"`)
	is(429, 2*s, `RateLimit: "burst"; r=0; t=2`, `RateLimit: "daily"; r=500; t=600`)
	is(429, 5*s, `RateLimit: "a,b;t=900;r=0"; r=0; t=5`)
	is(429, 5*s, `RateLimit: "a\";t=900"; r=0; t=5`)
	is(429, 15*m, `RateLimit: "a"; r=0; t=99999999`)

	// a malformed RateLimit says nothing
	for _, v := range []string{
		`"x"; r=0; t=5.5`, `"x"; r=+0; t=5`, `"x"; r=0; t=5,`, `"a;r=0;t=900`, `"a"; r=0`, `;,;=,"",;`,
		strings.Repeat(`"x"; r=0; t=5, `, 400) + `"x"; r=0; t=5`,
	} {
		is(429, unnamed, "RateLimit: "+v)
	}

	// a 503 says how long it takes in Retry-After or not at all
	is(503, 30*s+rounded, "Retry-After: 30")
	is(503, 25*s+lost, "Retry-After: "+date(25*s))
	is(503, 3*s+rounded, "Retry-After: 3", "RateLimit: limit=2, remaining=0, reset=50", "RateLimit-Reset: 50", "X-RateLimit-Reset: 50")
	is(503, 0, `RateLimit: "a"; r=0; t=50`, "RateLimit-Reset: 50", "X-RateLimit-Reset: 50")
	is(503, 0, "Retry-After: soon")
	is(503, 0)

	// Any answer that says that nothing remains, and when that ends, pauses all, for a window
	// at most: the server counts what other programs send, too.
	is(200, 17*s, `RateLimit: "x"; r=0; t=17`)
	is(404, 17*s, `RateLimit: limit=2, remaining=0, reset=17`)
	is(200, 30*s, "X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 30")
	is(200, 30*s, "RateLimit-Remaining: 0", "RateLimit-Reset: 30")
	is(200, m, `RateLimit: "x"; r=0; t=300`)
	is(200, 0, `RateLimit: "x"; r=1; t=17`)
	is(200, 0, `RateLimit: "x"; r=0`)
	is(200, 0, "X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 30")
	is(200, 0, "X-RateLimit-Reset: 30")
	is(200, 0, "Retry-After: 30")
}

// "Nothing remains" on every answer that is served is not believed for long, but
// where it is true it is, and a 429 makes it so again.
func TestNothingRemainsAgainAndAgain(t *testing.T) {
	spent := fields("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 60")
	for _, c := range []struct {
		name    string
		script  func(asked) reply
		callers int
		served  int // calls in ten minutes, at least
		most429 int
	}{
		{name: "always", script: always(reply{status: 200, header: spent}), callers: 1, served: 400},
		{name: "always, from many at once", script: always(reply{status: 200, header: spent}), callers: 20, served: 400},
		{name: "every other answer", script: func(a asked) reply {
			if a.nth%2 == 0 {
				return reply{status: 200}
			}
			return reply{status: 200, header: spent}
		}, callers: 1, served: 200},
		{name: "where it is true", script: fixedWindow(10), callers: 1, served: 90, most429: 1},
		{name: "one a minute", script: fixedWindow(1), callers: 1, served: 9, most429: 4},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{script: c.script}
			rt := p.custom(static("t"), &partnerauth.Quota{FixedRate: true})
			began := time.Now()
			atOnce(c.callers, func(int) {
				for time.Since(began) < 10*time.Minute {
					try(t.Context(), rt, "/")
					time.Sleep(time.Second)
				}
			}).Wait()
			served, refused := p.count("call 200"), p.count("call 429")
			errorIf(t, served < c.served, "%d calls were served in ten minutes, want at least %d", served, c.served)
			errorIf(t, refused > c.most429, "%d calls were refused, want %d at most", refused, c.most429)
		})
	}
}

// fixedWindow is a server that serves n calls a minute, and says so.
func fixedWindow(n int) func(asked) reply {
	served, minute := 0, int64(0)
	return func(asked) reply {
		now := time.Now()
		if m := now.Unix() / 60; m != minute {
			served, minute = 0, m
		}
		left := headers(fmt.Sprint("X-RateLimit-Remaining: ", max(0, n-served-1)),
			fmt.Sprint("X-RateLimit-Reset: ", (minute+1)*60-now.Unix()))
		if served++; served > n {
			return reply{status: 429, header: left}
		}
		return reply{status: 200, header: left}
	}
}
