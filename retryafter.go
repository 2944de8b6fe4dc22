package partnerauth

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// maxPause caps what a header can ask for.
	maxPause = 15 * time.Minute
	// maxField is how much of a header field is read.
	maxField = 4 << 10
	// epochFrom is the first number that is taken for seconds since 1970 and not
	// for a delta, and epochMilliFrom the first for milliseconds.
	epochFrom      = 1_000_000_000
	epochMilliFrom = 1_000_000_000_000
)

// pauseOf reads from an answer that came now how long to leave the server alone,
// at most 15 minutes. It reports false if no header names a time.
//
// The first field that makes sense counts: for 429 and 503 Retry-After (RFC
// 9110), then, but for 503, RateLimit and RateLimit-Reset (IETF drafts 6 to 10)
// and X-RateLimit-Reset. A reset counts where nothing remains, and an answer of
// another status has to say so.
func pauseOf(status int, h http.Header, now time.Time) (time.Duration, bool) {
	limited := status == http.StatusTooManyRequests
	var pause time.Duration
	found := false
	clock := now
	if len(h) > 0 && (limited || status == http.StatusServiceUnavailable) {
		clock = serverTime(h, now)
		pause, found = waitOf(h.Values("Retry-After"), clock)
	}
	if found || status == http.StatusServiceUnavailable {
		return pause, found
	}
	if v := h["Ratelimit"]; v != nil {
		if pause, found = policies(strings.Join(v, ",")); found {
			return pause, true
		}
	}
	for _, prefix := range []string{"Ratelimit-", "X-Ratelimit-"} {
		left, reset := h[prefix+"Remaining"], h[prefix+"Reset"]
		if reset == nil || left == nil && !limited || left != nil && strings.Trim(left[0], "0") != "" {
			continue
		}
		if pause, found = waitOf(reset, serverTime(h, now)); found {
			return pause, true
		}
	}
	return 0, false
}

// serverTime is the time by the server's own clock, by which its times are.
func serverTime(h http.Header, now time.Time) time.Time {
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		return date
	}
	return now
}

// waitOf reads the first value that makes sense: seconds, a time since 1970, or a
// date, and neither of these has passed.
func waitOf(values []string, now time.Time) (time.Duration, bool) {
	for _, v := range values {
		if v = strings.TrimSpace(v); len(v) > maxField {
			continue
		}
		seconds := math.NaN()
		if at, err := http.ParseTime(v); err == nil {
			seconds = until(float64(at.Unix()), now)
		} else if n, err := strconv.ParseFloat(v, 64); strings.Trim(v, "0123456789.") == "" && (err == nil || n > 0) {
			switch seconds = n; {
			case n >= epochMilliFrom:
				seconds = until(n/1000, now)
			case n >= epochFrom:
				seconds = until(n, now)
			}
		}
		if seconds >= 0 {
			return time.Duration(math.Ceil(min(seconds, maxPause.Seconds())*1000)) * time.Millisecond, true
		}
	}
	return 0, false
}

// until is the wait for a time in whole seconds, negative if that has passed. What
// both it and the Date have lost to rounding is less than a second.
func until(epoch float64, now time.Time) float64 {
	if epoch < float64(now.Unix()) {
		return -1
	}
	return epoch - float64(now.Unix()) + 1
}

// policies reads a RateLimit field: draft 7 has limit=2, remaining=0, reset=60;
// later ones a list such as "2-in-1min"; r=0; t=60. The longest reset of those
// that have nothing left counts. A field that is malformed says nothing.
func policies(field string) (wait time.Duration, found bool) {
	type policy struct{ left, reset int64 }
	if len(field) > maxField {
		return 0, false
	}
	seventh := policy{-1, -1} // the members of draft 7 are one policy
	for member := range strings.SplitSeq(withoutQuoted(field), ",") {
		p := policy{-1, -1}
		into := &p
		for i, param := range strings.Split(member, ";") {
			key, value, pair := strings.Cut(strings.TrimSpace(param), "=")
			if i == 0 && pair {
				into = &seventh
			}
			n, err := strconv.ParseUint(value, 10, 62)
			switch key {
			case "r", "remaining":
				into.left = int64(n)
			case "t", "reset":
				into.reset = int64(n)
			case "":
				return 0, false
			default:
				continue
			}
			if err != nil {
				return 0, false
			}
		}
		if into.left == 0 && into.reset >= 0 {
			wait, found = max(wait, time.Duration(min(into.reset, 1000))*time.Second), true
		}
	}
	return min(wait, maxPause), found
}

// withoutQuoted cuts what stands between quotes.
func withoutQuoted(v string) string {
	var b strings.Builder
	v = strings.NewReplacer(`\\`, "", `\"`, "").Replace(v)
	for i, part := range strings.Split(v, `"`) {
		if i%2 == 0 {
			b.WriteString(part)
		} else {
			b.WriteString(`""`)
		}
	}
	return b.String()
}
