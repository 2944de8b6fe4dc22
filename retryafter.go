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
	// lost is the most that rounding to whole seconds takes away, in seconds.
	lost = 0.999
)

// pauseOf returns how long an answer that has just arrived asks for a pause, at most
// 15 minutes. It reports false if no header names a time.
//
// The first field that makes sense counts: for 429 and 503 Retry-After (RFC
// 9110), then, but for 503, RateLimit and RateLimit-Reset (IETF drafts 6 to 10)
// and X-RateLimit-Reset, also as X-Rate-Limit-Reset. A reset counts where nothing
// remains, and an answer of another status has to say so.
func pauseOf(status int, h http.Header, now time.Time) (time.Duration, bool) {
	limited := status == http.StatusTooManyRequests
	if limited || status == http.StatusServiceUnavailable {
		if wait, ok := retryAfter(h, now); ok || !limited {
			return wait, ok
		}
	}
	if wait, ok := policies(h["Ratelimit"]); ok {
		return wait, true
	}
	for _, name := range [...]struct{ remaining, reset string }{
		{"Ratelimit-Remaining", "Ratelimit-Reset"}, {"X-Ratelimit-Remaining", "X-Ratelimit-Reset"},
		{"X-Rate-Limit-Remaining", "X-Rate-Limit-Reset"},
	} {
		if !nothingLeft(h[name.remaining], limited) {
			continue
		}
		if wait, ok := waitOf(h[name.reset], h, now, 0); ok {
			return wait, true
		}
	}
	return 0, false
}

// nothingLeft reports whether a field says that nothing remains; unless is the answer
// where there is no such field.
func nothingLeft(remaining []string, unless bool) bool {
	if len(remaining) == 0 {
		return unless
	}
	return remaining[0] != "" && strings.Trim(remaining[0], "0") == ""
}

// retryAfter reads the Retry-After of an answer that came now, whatever its status.
// Some servers round its seconds down, and would refuse who comes back on the dot.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	return waitOf(h["Retry-After"], h, now, lost)
}

// waitOf reads the first value that makes sense: seconds, a time since 1970, or a
// date, neither of which may have passed. lost is what the server may have rounded
// off the seconds. The answer's Date is the server's clock.
func waitOf(values []string, h http.Header, now time.Time, lost float64) (time.Duration, bool) {
	for _, v := range values {
		if len(v) > maxField {
			continue
		}
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		if seconds := secondsOf(single(v), now, lost); seconds >= 0 {
			return time.Duration(math.Ceil(min(seconds, maxPause.Seconds())*1000)) * time.Millisecond, true
		}
	}
	return 0, false
}

// single returns the one value of v, which a proxy may have joined of equal fields.
func single(v string) string {
	first, rest, _ := strings.Cut(v, ",")
	first = strings.TrimSpace(first)
	for value := range strings.SplitSeq(rest, ",") {
		if strings.TrimSpace(value) != first {
			return strings.TrimSpace(v)
		}
	}
	return first
}

// secondsOf is the wait that v names, negative if it names none. Whole seconds may
// have lost as much to rounding.
func secondsOf(v string, now time.Time, lost float64) float64 {
	at, err := http.ParseTime(v)
	if err != nil {
		at, err = time.Parse(time.RFC3339, v)
	}
	if err == nil {
		return until(float64(at.Unix()), now)
	}
	n, err := strconv.ParseFloat(v, 64)
	switch {
	case strings.Trim(v, "0123456789.") != "" || err != nil && n == 0:
		return -1
	case n >= epochMilliFrom:
		return until(n/1000, now)
	case n >= epochFrom:
		return until(n, now)
	case n > 0 && n == math.Trunc(n):
		return n + lost
	}
	return n
}

// until returns the wait for a time in whole seconds, negative if that has passed. What
// both it and the Date have lost to rounding is less than a second.
func until(epoch float64, now time.Time) float64 {
	if epoch < float64(now.Unix()) {
		return -1
	}
	return epoch - float64(now.Unix()) + 1
}

// policies reads a RateLimit field: draft 7 has limit=2, remaining=0, reset=60, which are
// one policy; later ones a list such as "2-in-1min"; r=0; t=60. The longest reset of
// those that have nothing left counts. A field that is malformed says nothing.
func policies(fields []string) (wait time.Duration, found bool) {
	field := strings.Join(fields, ",")
	if field == "" || len(field) > maxField {
		return 0, false
	}
	left, reset := -1, -1 // of the policy at hand
	for member := range strings.SplitSeq(withoutQuoted(field), ",") {
		if first, _, _ := strings.Cut(member, ";"); !strings.Contains(first, "=") {
			left, reset = -1, -1
		}
		if !readPolicy(member, &left, &reset) {
			return 0, false
		}
		if left == 0 && reset >= 0 {
			wait, found = max(wait, time.Duration(min(reset, 1000))*time.Second), true
		}
	}
	return min(wait, maxPause), found
}

// readPolicy reads the parameters of a policy, and reports whether they are well formed.
func readPolicy(params string, left, reset *int) bool {
	for param := range strings.SplitSeq(params, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		n, err := strconv.ParseUint(value, 10, 62) // which takes no sign
		switch key {
		case "r", "remaining":
			*left = int(min(n, 1<<30))
		case "t", "reset":
			*reset = int(min(n, 1<<30))
		default:
			err = nil
		}
		if key == "" || err != nil {
			return false
		}
	}
	return true
}
