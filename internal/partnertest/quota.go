package partnertest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// A window counts requests as express-rate-limit's memory store does: the first
// request opens it, requests over the limit count as well, and the first one
// after its end opens the next. Server.mu guards it.
type window struct {
	limit  int
	length time.Duration
	resets time.Time
	hits   int
	peak   int
}

// A quota is the state of the window at one request.
type quota struct {
	limit, hits int
	length      time.Duration
	resets      time.Time
	left        time.Duration // until resets
}

func (w *window) hit(now time.Time) quota {
	if !now.Before(w.resets) {
		w.resets, w.hits = now.Add(w.length), 0
	}
	w.hits++
	w.peak = max(w.peak, w.hits)
	return quota{limit: w.limit, hits: w.hits, length: w.length, resets: w.resets, left: w.resets.Sub(now)}
}

func (q quota) exceeded() bool { return q.limit > 0 && q.hits > q.limit }

// announce sets the headers that express-rate-limit 8 sends in a style.
func (q quota) announce(h http.Header, style string) {
	if q.limit < 0 || style == "none" {
		return
	}
	limit, remaining := strconv.Itoa(q.limit), strconv.Itoa(max(0, q.limit-q.hits))
	reset, length := seconds(q.left), seconds(q.length)
	switch style {
	case "legacy":
		h.Set("X-RateLimit-Limit", limit)
		h.Set("X-RateLimit-Remaining", remaining)
		h.Set("X-RateLimit-Reset", strconv.FormatInt(int64(math.Ceil(float64(q.resets.UnixMilli())/1000)), 10))
	case "draft-6":
		h.Set("RateLimit-Policy", limit+";w="+length)
		h.Set("RateLimit-Limit", limit)
		h.Set("RateLimit-Remaining", remaining)
		h.Set("RateLimit-Reset", reset)
	case "draft-7":
		h.Set("RateLimit-Policy", limit+";w="+length)
		h.Set("RateLimit", "limit="+limit+", remaining="+remaining+", reset="+reset)
	case "draft-8":
		h.Set("RateLimit-Policy", fmt.Sprintf("%q; q=%s; w=%s; pk=:%s:", q.name(), limit, length, partition))
		h.Set("RateLimit", fmt.Sprintf("%q; r=%s; t=%s", q.name(), remaining, reset))
	}
	if q.exceeded() {
		h.Set("Retry-After", reset)
	}
}

// name returns the name of the policy, such as 100-in-1min.
func (q quota) name() string {
	unit, size := "sec", time.Second
	switch {
	case q.length >= 24*time.Hour:
		unit, size = "day", 24*time.Hour
	case q.length >= time.Hour:
		unit, size = "hr", time.Hour
	case q.length >= time.Minute:
		unit, size = "min", time.Minute
	}
	n := q.length.Seconds() / size.Seconds()
	if size >= time.Hour && n > 1 {
		unit += "s"
	}
	return strconv.Itoa(q.limit) + "-in-" + strconv.FormatFloat(n, 'g', -1, 64) + unit
}

// partition is the draft-8 key of 127.0.0.1, where all requests come from.
var partition = func() string {
	sum := sha256.Sum256([]byte("127.0.0.1"))
	return base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(sum[:])[:12]))
}()

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

func refuse(w http.ResponseWriter) {
	w.Header().Set("X-Powered-By", "Express")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(http.StatusTooManyRequests)
	_, _ = w.Write([]byte("Too many requests, please try again later."))
}
