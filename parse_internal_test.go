package partnerauth

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

// FuzzPause feeds headers to the reader of pauses. What it returns is between nothing and a
// quarter of an hour. Retry-After comes first, is at most a second longer than its text says,
// for what rounding may have lost, and is the same if a proxy has joined it with its like.
func FuzzPause(f *testing.F) {
	const date = "Sat, 14 Mar 2026 15:09:26 GMT"
	f.Add(429, date, "60", `"2-in-1min"; r=0; t=60`, "", "1773501066")
	f.Add(429, "", "Sat, 14 Mar 2026 15:10:26 GMT", `"a,b;t=900";r=0;t=5, "b";r=9;t=600`, "-5", "1773501066000")
	f.Add(429, "never", "9999999999999999999999", `"a\";t=900"; r=0; t=5`, "1.2.3", strings.Repeat("9", 400))
	f.Add(503, date, "7.25", "limit=2", "Inf", "NaN")
	f.Add(503, date, "Fri, 31 Dec 9999 23:59:59 GMT", `;,;=,"",;`, ".", "0x10")
	f.Add(200, "Mon, 01 Jan 0001 00:00:00 GMT", "0", `"`, "1e9", "+5")
	for _, v := range []string{
		"", "900", "1e3", "20, 20", "20,20,20", "20, 30", "20,", ",", "1773501066000", "0.0",
		"2026-03-14T15:10:26Z", "2026-03-14T08:10:26.5-07:00", "9999-12-31T23:59:59Z",
	} {
		f.Add(429, date, v, "", v, v)
		f.Add(503, "", v, v, "", "")
	}
	now := time.Date(2026, 3, 14, 15, 9, 26, 535, time.UTC)
	f.Fuzz(func(t *testing.T, status int, date, text, rateLimit, reset, legacy string) {
		own := http.Header{"Date": {date}, "Retry-After": {text}}
		all := own.Clone()
		all["Ratelimit"], all["Ratelimit-Reset"], all["X-Ratelimit-Reset"] = []string{rateLimit}, []string{reset}, []string{legacy}
		before := all.Clone()
		wait, ok := pauseOf(status, all, now)
		if wait < 0 || wait > maxPause || !ok && wait != 0 {
			t.Fatalf("got %v, %t", wait, ok)
		}
		if !reflect.DeepEqual(before, all) {
			t.Fatalf("the header was changed from %v to %v", before, all)
		}
		first, ok := retryAfter(own, now)
		if first < 0 || first > maxPause || !ok && first != 0 {
			t.Fatalf("got %v, %t of Retry-After", first, ok)
		}
		if limits := status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable; limits && ok && first != wait {
			t.Errorf("got %v with more headers, want the %v of Retry-After", wait, first)
		}
		exact, same := waitOf(own["Retry-After"], own, now, 0)
		if same != ok || first < exact || first > exact+time.Second || exact == 0 && first > 0 {
			t.Errorf("got %v, %t, want %v, %t and up to a second more", first, ok, exact, same)
		}
		if n, err := strconv.ParseUint(text, 10, 32); err == nil && n <= 900 && (!ok || exact != time.Duration(n)*time.Second) {
			t.Errorf("got %v, %t, want %d s", exact, ok, n)
		}
		named, isNamed := pauseOf(http.StatusTooManyRequests, http.Header{"Date": {date}, "X-Rate-Limit-Reset": {text}}, now)
		if isNamed != same || named != exact {
			t.Errorf("got %v, %t as X-Rate-Limit-Reset, want %v, %t", named, isNamed, exact, same)
		}
		own.Set("Retry-After", text+", "+text)
		if joined, _ := retryAfter(own, now); ok && !strings.Contains(text, ",") && 2*len(text)+2 <= maxField && joined != first {
			t.Errorf("got %v for two of them, want %v", joined, first)
		}
	})
}

// FuzzLease feeds what an answer may say of a lifetime and makes a lease of the result: the
// least counts, and nothing said beside it makes it longer.
func FuzzLease(f *testing.F) {
	f.Add("a.eyJleHAiOjE3MDAwMDcyMDAsImlhdCI6MTcwMDAwMDAwMH0.c", int64(time.Second), int64(3600), int64(1700000000), int64(1700003600))
	f.Add("a.eyJleHAiOjE3MDAwMDcyMDB9.c", int64(0), int64(0), int64(1700000000), int64(0))
	f.Add("a.eyJleHAiOjFlMzA4LCJuYmYiOi0xZTMwOH0.c", int64(30*time.Second), int64(-1), int64(0), int64(-1))
	f.Add("a.eyJleHAiOjAsImlhdCI6MX0.c", int64(time.Hour), int64(0), int64(0), int64(0))
	f.Add("opaque", int64(1), int64(1)<<62, int64(1700000000), int64(1)<<40)
	f.Add("..", int64(1), int64(0), int64(0), int64(0))
	f.Add("ended long ago", int64(0), int64(0), int64(1700000000), int64(71))
	f.Add("a.***.c", int64(1), int64(0), int64(0), int64(0))
	f.Fuzz(func(t *testing.T, text string, took, expiresIn, date, expiry int64) {
		unix := func(s int64) (at time.Time) {
			if s > 0 && s < 1<<36 {
				at = time.Unix(s, 0)
			}
			return at
		}
		received := time.Now()
		sent := received.Add(-min(time.Duration(took).Abs(), time.Hour))
		token := &oauth2.Token{AccessToken: text}
		alone, known := lifetimeOf(token, unix(date), sent)
		token.ExpiresIn, token.Expiry = expiresIn, unix(expiry)
		lifetime, _ := lifetimeOf(token, unix(date), sent)
		if max(alone, lifetime) > maxLifetime || known && lifetime > alone {
			t.Fatalf("got %v, and %v where more is said", alone, lifetime)
		}
		l := newLease(token, lifetime, sent, received)
		if !l.ends.After(received) || l.renew.After(l.ends) || l.renew.Before(sent) || !l.token.Expiry.Equal(l.ends) {
			t.Errorf("got a lease of %v to be renewed after %v", l.ends.Sub(sent), l.renew.Sub(sent))
		}
		if l.expiredOnArrival != (sent.Add(lifetime).Sub(received) < minLifetime) {
			t.Errorf("got expired %t for %v after %v", l.expiredOnArrival, lifetime, received.Sub(sent))
		}
	})
}

// A server that makes up statuses does not make an endpoint remember them all.
func TestSeriesAreBounded(t *testing.T) {
	e := newEndpoint("api.example", 443, nil)
	for status := range 1000 {
		e.series(methodOf(http.MethodGet), "", &http.Response{StatusCode: status}, "")
	}
	if n := len(e.known); n > 64 {
		t.Errorf("%d series are remembered, want 64 at most", n)
	}
}
