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
	// credible is how far away a time can be that is not a mistake, such as
	// milliseconds where seconds belong.
	credible = 24 * time.Hour
	// epochFrom is the first number that is taken for seconds since 1970 and not
	// for a delta, and epochMilliFrom the first for milliseconds.
	epochFrom      = 1_000_000_000
	epochMilliFrom = 1_000_000_000_000
)

// pauseOf reads from an answer of status 429 or 503 that came now how long to
// leave the server alone, at most 15 minutes. The longest credible time wins if
// headers disagree. It reports false if no header names one.
//
// For 429 these are Retry-After (RFC 9110), RateLimit and RateLimit-Reset (IETF
// drafts 6 to 8) and X-RateLimit-Reset; for 503 Retry-After alone counts.
func pauseOf(status int, h http.Header, now time.Time) (time.Duration, bool) {
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date // the server's times are by its own clock
	}
	p := longest{now: now}
	for _, v := range h.Values("Retry-After") {
		p.number(v)
		p.date(v)
	}
	if status == http.StatusTooManyRequests {
		p.policies(strings.Join(h.Values("RateLimit"), ","))
		// draft-6 sends a delta, others an epoch under the same name
		for _, name := range []string{"Ratelimit-Reset", "X-Ratelimit-Reset"} {
			for _, v := range h.Values(name) {
				p.number(v)
				p.date(v)
			}
		}
	}
	return p.result()
}

// longest collects the waits that an answer names.
type longest struct {
	now    time.Time
	found  bool
	wait   time.Duration // the longest credible one
	absurd bool          // one was named that is not
}

func (l *longest) result() (time.Duration, bool) {
	switch {
	case l.found:
		return min(l.wait, maxPause), true
	case l.absurd:
		return maxPause, true
	}
	return 0, false
}

func (l *longest) add(seconds float64) {
	switch {
	case seconds < 0:
	case seconds > credible.Seconds():
		l.absurd = true
	default:
		l.found = true
		l.wait = max(l.wait, time.Duration(math.Ceil(seconds*1000))*time.Millisecond)
	}
}

// number reads seconds or a time since 1970, with or without a fraction.
func (l *longest) number(v string) {
	v = strings.TrimSpace(v)
	if v == "" || strings.Trim(v, "0123456789.") != "" {
		return
	}
	n, err := strconv.ParseFloat(v, 64)
	switch {
	case err != nil:
		l.absurd = l.absurd || math.IsInf(n, 1)
	case n >= epochMilliFrom:
		l.until(n / 1000)
	case n >= epochFrom:
		l.until(n)
	default:
		l.add(n)
	}
}

func (l *longest) date(v string) {
	if at, err := http.ParseTime(strings.TrimSpace(v)); err == nil {
		l.until(float64(at.Unix()))
	}
}

// until adds the wait until a time in whole seconds. What both it and the Date
// have lost to rounding is less than a second.
func (l *longest) until(epoch float64) {
	l.add(epoch - float64(l.now.Unix()) + 1)
}

// policies reads a RateLimit field: draft-7 has limit=2, remaining=0, reset=60;
// draft-8 a list of policies such as "2-in-1min"; r=0; t=60. Where some of them
// have no requests left, the others do not matter.
func (l *longest) policies(v string) {
	spent, open := longest{now: l.now}, longest{now: l.now}
	var left, reset string
	flush := func() {
		if strings.Trim(left, "0") == "" {
			spent.number(reset)
		} else {
			open.number(reset)
		}
		left, reset = "", ""
	}
	for _, param := range strings.FieldsFunc(withoutQuoted(v), func(r rune) bool { return r == ',' || r == ';' }) {
		key, value, found := strings.Cut(strings.TrimSpace(param), "=")
		switch strings.ToLower(key) {
		case "r", "remaining":
			left = value
		case "t", "reset":
			reset = value
		default:
			if !found { // the name of the next policy
				flush()
			}
		}
	}
	flush()
	if _, ok := spent.result(); !ok {
		spent = open
	}
	l.found = l.found || spent.found
	l.absurd = l.absurd || spent.absurd
	l.wait = max(l.wait, spent.wait)
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
