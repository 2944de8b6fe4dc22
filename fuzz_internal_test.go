package partnerauth

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

// FuzzRetryAfter feeds fields to the reader of one value: it is between nothing and a
// quarter of an hour, at most a second longer than without what rounding may have lost,
// and the same if a proxy has joined it with its like.
func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{
		"", "0", "7", "7.25", "900", "1e3", "-5", "20, 20", "20,20,20", "20, 30", "20,", ",", "1773501066", "1773501066000",
		"Sat, 14 Mar 2026 15:10:26 GMT", "2026-03-14T15:10:26Z", "2026-03-14T08:10:26.5-07:00", "9999-12-31T23:59:59Z", "0.0",
	} {
		f.Add(v, "Sat, 14 Mar 2026 15:09:26 GMT")
		f.Add(v, "")
	}
	now := time.Date(2026, 3, 14, 15, 9, 26, 535, time.UTC)
	f.Fuzz(func(t *testing.T, v, date string) {
		h := http.Header{"Date": {date}, "Retry-After": {v}}
		wait, ok := retryAfter(h, now)
		if wait < 0 || wait > maxPause || !ok && wait != 0 {
			t.Fatalf("got %v, %t", wait, ok)
		}
		exact, same := waitOf(h["Retry-After"], h, now, 0)
		if same != ok || wait < exact || wait > exact+time.Second || exact == 0 && wait > 0 {
			t.Errorf("got %v, %t, want %v, %t and up to a second more", wait, ok, exact, same)
		}
		named, isNamed := pauseOf(http.StatusTooManyRequests, http.Header{"Date": {date}, "X-Rate-Limit-Reset": {v}}, now)
		if isNamed != same || named != exact {
			t.Errorf("got %v, %t as X-Rate-Limit-Reset, want %v, %t", named, isNamed, exact, same)
		}
		h.Set("Retry-After", v+", "+v)
		if joined, _ := retryAfter(h, now); ok && !strings.Contains(v, ",") && 2*len(v)+2 <= maxField && joined != wait {
			t.Errorf("got %v for two of them, want %v", joined, wait)
		}
	})
}

// FuzzLifetime feeds what an answer may say of a lifetime: the least counts, and nothing
// said beside it makes it longer.
func FuzzLifetime(f *testing.F) {
	f.Add("a.eyJleHAiOjE3MDAwMDcyMDAsImlhdCI6MTcwMDAwMDAwMH0.c", int64(3600), int64(1700000000), int64(1700003600))
	f.Add("a.eyJleHAiOjE3MDAwMDcyMDB9.c", int64(0), int64(1700000000), int64(0))
	f.Add("a.eyJleHAiOjFlMzA4LCJuYmYiOi0xZTMwOH0.c", int64(-1), int64(0), int64(-1))
	f.Add("opaque", int64(1)<<62, int64(1700000000), int64(1)<<40)
	f.Fuzz(func(t *testing.T, text string, expiresIn, date, expiry int64) {
		var at time.Time
		if date > 0 && date < 1<<36 {
			at = time.Unix(date, 0)
		}
		token := &oauth2.Token{AccessToken: text}
		alone, known := lifetimeOf(token, at, time.Now())
		if alone > maxLifetime || alone < -maxLifetime {
			t.Fatalf("got %v", alone)
		}
		token.ExpiresIn = expiresIn
		if expiry > 0 && expiry < 1<<36 {
			token.Expiry = time.Unix(expiry, 0)
		}
		more, _ := lifetimeOf(token, at, time.Now())
		if more > maxLifetime || known && more > alone {
			t.Errorf("got %v, and %v where more is said", alone, more)
		}
	})
}

// FuzzErrorWord feeds bodies: what comes of them is one of RFC 6749's six words.
func FuzzErrorWord(f *testing.F) {
	for _, body := range []string{
		`{"error":"invalid_client"}`, `{"error":"invalid_grant","error_description":"x"}`,
		`{"error":{"code":1}}`, `{"error":"else"}`, `[]`, `{`, ``,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		word := errorWord(body)
		if _, ok := errorWords[word]; !ok && word != "" {
			t.Errorf("got %q", word)
		}
	})
}
