package partnerauth

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

// FuzzPause feeds headers to the reader of pauses: what it returns is always
// between nothing and a quarter of an hour.
func FuzzPause(f *testing.F) {
	const date = "Sat, 14 Mar 2026 15:09:26 GMT"
	f.Add(429, date, "60", "", "", "1773501066")
	f.Add(429, date, "60", `"2-in-1min"; r=0; t=60`, "", "")
	f.Add(429, "", "Sat, 14 Mar 2026 15:10:26 GMT", `"a,b;t=900";r=0;t=5, "b";r=9;t=600`, "-5", "1773501066000")
	f.Add(429, "never", "9999999999999999999999", `"a\";t=900"; r=0; t=5`, "1.2.3", strings.Repeat("9", 400))
	f.Add(503, date, "7.25", "limit=2", "Inf", "NaN")
	f.Add(503, date, "Fri, 31 Dec 9999 23:59:59 GMT", `;,;=,"",;`, ".", "0x10")
	f.Add(200, "Mon, 01 Jan 0001 00:00:00 GMT", "0", `"`, "1e9", "+5")
	now := time.Date(2026, 3, 14, 15, 9, 26, 535, time.UTC)
	f.Fuzz(func(t *testing.T, status int, date, retryAfter, rateLimit, reset, legacy string) {
		own := http.Header{"Date": {date}, "Retry-After": {retryAfter}}
		all := own.Clone()
		all["Ratelimit"], all["Ratelimit-Reset"], all["X-Ratelimit-Reset"] = []string{rateLimit}, []string{reset}, []string{legacy}
		before := all.Clone()
		wait, ok := pauseOf(status, all, now)
		if wait < 0 || wait > 15*time.Minute || !ok && wait != 0 {
			t.Fatalf("got %v, %t", wait, ok)
		}
		for key := range before {
			if strings.Join(all[key], "\n") != strings.Join(before[key], "\n") {
				t.Fatalf("the header was changed from %v to %v", before, all)
			}
		}
		if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			return
		}
		if own, ok := pauseOf(status, own, now); ok && own != wait {
			t.Errorf("got %v with more headers, want the %v of Retry-After", wait, own)
		}
		if n, err := strconv.ParseUint(retryAfter, 10, 32); err == nil && n <= 900 && (!ok || wait < time.Duration(n)*time.Second) {
			t.Errorf("got %v, %t, want at least %d s", wait, ok, n)
		}
		if at, err := http.ParseTime(retryAfter); err == nil && date == "" {
			if left := at.Sub(now); left > 0 && left < 15*time.Minute && (!ok || wait < left) {
				t.Errorf("got %v, %t, want at least %v", wait, ok, left)
			}
		}
	})
}

// FuzzLease feeds what can be a token to the reader of its claims, and makes a
// lease of the result.
func FuzzLease(f *testing.F) {
	f.Add("a.eyJleHAiOjE3MDAwMDcyMDAsImlhdCI6MTcwMDAwMDAwMH0.c", int64(time.Second))
	f.Add("a.eyJleHAiOjFlMzA4LCJpYXQiOi0xZTMwOH0.c", int64(0))
	f.Add("a.eyJleHAiOjAsImlhdCI6MX0.c", int64(time.Hour))
	f.Add("..", int64(1))
	f.Add("a.***.c", int64(30*time.Second))
	f.Fuzz(func(t *testing.T, token string, took int64) {
		if took < 0 || time.Duration(took) > time.Hour {
			return
		}
		lifetime, ok := jwtLifetime(token, time.Time{})
		if !ok {
			if lifetime != 0 {
				t.Fatalf("got %v of no JWT", lifetime)
			}
			return
		}
		if lifetime > maxLifetime || lifetime < -maxLifetime {
			t.Fatalf("got a lifetime of %v", lifetime)
		}
		received := time.Now()
		sent := received.Add(-time.Duration(took))
		l := newLease(&oauth2.Token{AccessToken: token}, lifetime, sent, received)
		if !l.ends.After(received) || l.renew.After(l.ends) || l.renew.Before(sent) || !l.token.Expiry.Equal(l.ends) {
			t.Errorf("got a lease of %v to be renewed after %v", l.ends.Sub(sent), l.renew.Sub(sent))
		}
		if l.expiredOnArrival == (sent.Add(lifetime).After(received)) {
			t.Errorf("got spent %t for %v after %v", l.expiredOnArrival, lifetime, time.Duration(took))
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
