package partnerauth_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pauseCase is an answer of status 429 that came in 2026 by the server's clock,
// and how long the next request has to wait for it.
type pauseCase struct {
	name        string
	header      http.Header
	least, most time.Duration
}

func pauseCases() []pauseCase {
	in := func(d time.Duration) string { return in2026.Add(d).Format(http.TimeFormat) }
	epoch := func(d time.Duration) string { return fmt.Sprint(in2026.Add(d).Unix()) }
	const s, m = time.Second, time.Minute
	// a date and the Date beside it may each have lost most of a second
	const lost = 900 * time.Millisecond
	none := func(name string, lines ...string) pauseCase {
		return pauseCase{name, fields(lines...), unnamed, unnamed}
	}
	return []pauseCase{
		// express-rate-limit 8.7.4, word for word but for the time
		{"legacy", fields("X-RateLimit-Limit: 2", "X-RateLimit-Remaining: 0", "X-RateLimit-Reset: "+epoch(50*s)), 50 * s, 51 * s},
		{"draft-6", fields("RateLimit-Policy: 2;w=60", "RateLimit-Limit: 2", "RateLimit-Remaining: 0", "RateLimit-Reset: 50"), 50 * s,
			50 * s},
		{"draft-7", fields("RateLimit-Policy: 2;w=60", "RateLimit: limit=2, remaining=0, reset=50"), 50 * s, 50 * s},
		{"draft-8", fields(`RateLimit-Policy: "2-in-1min"; q=2; w=60; pk=:ZDY5ZjM0:`, `RateLimit: "2-in-1min"; r=0; t=50`), 50 * s, 50 * s},

		// Retry-After
		{"seconds", fields("Retry-After: 7"), 7 * s, 7 * s},
		{"zero", fields("Retry-After: 0"), 0, s},
		{"spaces", fields("Retry-After:   7 "), 7 * s, 7 * s},
		{"a float", fields("Retry-After: 7.25"), 7250 * time.Millisecond, 8 * s},
		{"a date", fields("Retry-After: " + in(30*s)), 30*s + lost, 31 * s},
		{"a date in the RFC 850 form", fields("Retry-After: " + in2026.Add(30*s).Format("Monday, 02-Jan-06 15:04:05 GMT")), 30*s + lost,
			31 * s},
		{"a date in the form of asctime", fields("Retry-After: " + in2026.Add(30*s).Format(time.ANSIC)), 30*s + lost, 31 * s},
		{"a quarter of an hour", fields("Retry-After: 900"), 15 * m, 15 * m},
		{"a day", fields("Retry-After: 86400"), 15 * m, 15 * m},
		{"absurd beyond float64", fields("Retry-After: " + strings.Repeat("9", 400)), 15 * m, 15 * m},
		{"an absurd date", fields("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"), 15 * m, 15 * m},
		none("negative", "Retry-After: -5"),
		none("empty", "Retry-After: "),
		none("a dot", "Retry-After: ."),
		none("an exponent", "Retry-After: 1e3"),
		none("infinity", "Retry-After: Inf"),
		none("digits beyond ASCII", "Retry-After: ５"),
		none("nothing"),
		none("a date long past", "Retry-After: Mon, 01 Jan 2001 00:00:00 GMT"),
		none("only a limit", "X-RateLimit-Limit: 100", "RateLimit-Policy: 100;w=60", "RateLimit-Limit: 100"),

		// epochs, deltas, milliseconds
		{"epoch in milliseconds", fields("X-RateLimit-Reset: " + epoch(50*s) + "000"), 50 * s, 51 * s},
		{"epoch with a fraction", fields("X-RateLimit-Reset: " + epoch(50*s) + ".5"), 50500 * time.Millisecond, 52 * s},
		{"epoch under the name of draft-6", fields("RateLimit-Reset: " + epoch(50*s)), 50 * s, 51 * s},
		{"delta under the legacy name", fields("X-RateLimit-Reset: 50"), 50 * s, 50 * s},
		{"epoch of this very second", fields("X-RateLimit-Reset: " + epoch(0)), 0, s},

		// several that disagree: Retry-After is the first to count
		{"Retry-After is longer", fields("Retry-After: 120", "RateLimit: limit=2, remaining=0, reset=5"), 120 * s, 120 * s},
		{"the other is absurd", fields("Retry-After: 5", "X-RateLimit-Reset: 99999999"), 5 * s, 5 * s},
		{"the legacy one is longer", fields("Retry-After: 17", "X-RateLimit-Reset: "+epoch(120*s)), 17 * s, 17 * s},
		{"the first of two", fields("Retry-After: 9", "Retry-After: 5"), 9 * s, 9 * s},
		{"the draft before the legacy one", fields(`RateLimit: "x"; r=0; t=17`, "X-RateLimit-Reset: 41"), 17 * s, 17 * s},

		// a reset counts where nothing remains
		none("legacy with some left", "X-RateLimit-Remaining: 1", "X-RateLimit-Reset: 41"),
		none("draft-7 with one left", "RateLimit: limit=2, remaining=1, reset=50"),
		none("none is spent", `RateLimit: "burst"; r=1; t=2, "hourly"; r=1; t=300`),

		// a malformed RateLimit says nothing
		none("a fraction", `RateLimit: "x"; r=0; t=5.5`),
		none("a trailing comma", `RateLimit: "x"; r=0; t=5,`),
		none("more than 4 KiB", "RateLimit: "+strings.Repeat(`"x"; r=0; t=5, `, 400)+`"x"; r=0; t=5`),

		// several policies
		{"the short one is spent", fields(`RateLimit: "burst"; r=0; t=2, "daily"; r=500; t=600`), 2 * s, 2 * s},
		{"the long one is spent", fields(`RateLimit: "burst"; r=5; t=2, "daily"; r=0; t=600`), 10 * m, 10 * m},
		{"both are spent", fields(`RateLimit: "burst"; r=0; t=2, "hourly"; r=0; t=300`), 5 * m, 5 * m},
		{"names that are tokens", fields(`RateLimit: burst;r=0;t=2, daily;r=500;t=600`), 2 * s, 2 * s},
		{"parameters of no concern", fields(`RateLimit: "burst"; r=0; t=2; pk=:dD05MDA=:; x="t=900, y; t=900"`), 2 * s, 2 * s},
		{"on two lines", fields(`RateLimit: "burst"; r=0; t=2`, `RateLimit: "daily"; r=500; t=600`), 2 * s, 2 * s},
		{"separators in quotes", fields(`RateLimit: "a,b;t=900;r=0"; r=0; t=5`), 5 * s, 5 * s},
		{"an escaped quote", fields(`RateLimit: "a\";t=900"; r=0; t=5`), 5 * s, 5 * s},
		{"a quote that is not closed", fields(`RateLimit: "a;r=0;t=900`), unnamed, unnamed},
		{"no time", fields(`RateLimit: "a"; r=0`), unnamed, unnamed},
		{"absurd time", fields(`RateLimit: "a"; r=0; t=99999999`), 15 * m, 15 * m},
		{"separators alone", fields(`RateLimit: ;,;=,"",;`), unnamed, unnamed},
	}
}

func TestPauses(t *testing.T) {
	t.Parallel()
	for _, c := range pauseCases() {
		bubble(t, c.name, func(t *testing.T) {
			checkPause(t, 429, c.header, c.least, c.most)
		})
	}
}

// checkPause lets a token request meet an answer, and measures what it waits
// before the next.
func checkPause(t *testing.T, status int, header http.Header, least, most time.Duration) {
	t.Helper()
	time.Sleep(700 * time.Millisecond) // our clock is never at a whole second
	p := new(partner).on("login", reply{status: status, header: header}, reply{})
	if _, err := p.nowPost().Token(); err != nil {
		t.Fatal(err)
	}
	gaps := p.gaps()
	errorIf(t, len(gaps) != 1 || gaps[0] < least || gaps[0] > most+rounded,
		"got requests after %v, want one after %v to %v", gaps, least, most)
}

// Without a Date, times are by our own clock.
func TestPausesWithoutDate(t *testing.T) {
	t.Parallel()
	later := in2026.Add(30 * time.Second)
	for name, line := range map[string]string{
		"a date":   "Retry-After: " + later.Format(http.TimeFormat),
		"an epoch": fmt.Sprint("X-RateLimit-Reset: ", later.Unix()),
	} {
		for _, date := range [][]string{nil, {"Date: today"}} {
			bubble(t, fmt.Sprint(name, " ", date), func(t *testing.T) {
				time.Sleep(time.Until(in2026))
				checkPause(t, 429, headers(append(date, line)...), 29300*time.Millisecond, 31*time.Second)
			})
		}
	}
}

// A 503 says how long it takes in Retry-After or not at all.
func TestPausesOf503(t *testing.T) {
	t.Parallel()
	for _, c := range []pauseCase{
		{"seconds", fields("Retry-After: 30"), 30 * time.Second, 30 * time.Second},
		{"a date", fields("Retry-After: " + in2026.Add(25*time.Second).Format(http.TimeFormat)), 25 * time.Second, 26 * time.Second},
		{"the others do not count", fields("Retry-After: 3", "RateLimit: limit=2, remaining=0, reset=50", "RateLimit-Reset: 50",
			"X-RateLimit-Reset: 50"), 3 * time.Second, 3 * time.Second},
		{"only the others", fields(`RateLimit: "a"; r=0; t=50`, "RateLimit-Reset: 50", "X-RateLimit-Reset: 50"), 0, 2 * time.Second},
		{"garbage", fields("Retry-After: soon"), 0, 2 * time.Second},
		{"none", nil, 0, 2 * time.Second},
	} {
		bubble(t, c.name, func(t *testing.T) {
			checkPause(t, 503, c.header, c.least, c.most)
		})
	}
}

// Any answer that says that nothing remains, and when that ends, pauses all, for
// a window at most: the server counts what other programs send, too.
func TestNothingRemains(t *testing.T) {
	for _, c := range []struct {
		status int
		header http.Header
		want   time.Duration
	}{
		{200, fields(`RateLimit: "x"; r=0; t=17`), 17 * time.Second},
		{404, fields(`RateLimit: limit=2, remaining=0, reset=17`), 17 * time.Second},
		{200, fields("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 30"), 30 * time.Second},
		{200, fields("RateLimit-Remaining: 0", "RateLimit-Reset: 30"), 30 * time.Second},
		{200, fields(`RateLimit: "x"; r=0; t=300`), time.Minute},
		{200, fields(`RateLimit: "x"; r=1; t=17`), 0},
		{200, fields(`RateLimit: "x"; r=0`), 0},
		{200, fields("X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 30"), 0},
		{200, fields("X-RateLimit-Reset: 30"), 0},
		{200, fields("Retry-After: 30"), 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := new(partner).on("call", reply{status: c.status, header: c.header}, reply{status: 200})
			rt := p.custom(static("t"), nil)
			get(t, rt, "/")
			took := elapsed(func() { get(t, rt, "/") })
			errorIf(t, took != c.want, "%d %v: the next call went after %v, want %v", c.status, c.header, took, c.want)
		})
	}
}
