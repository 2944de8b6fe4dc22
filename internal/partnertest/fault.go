package partnertest

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"math"
	"net/http"
	"strings"
	"time"
)

// A Fault is something that goes wrong with the requests that it matches. The
// zero value matches every request and changes nothing. A request over the quota
// is answered 429 before any fault is considered.
//
// The fields from Status on combine in this order: Delay, then Hang, then one of
// Reset, Huge, the given answer or the normal one, then Cut.
type Fault struct {
	// Method and Path select requests; "" matches any. Path is exact, or a prefix
	// if it ends in '*'.
	Method, Path string

	// Times is how many requests the fault hits; 0 means all, until ClearFaults.
	Times int

	// Rate is the share of the matching requests that the fault hits, evenly
	// spread: 0.25 is every fourth. 0 means all.
	Rate float64

	// Status is answered instead of carrying the request out. The quota counts the
	// request, but the answer does not announce it.
	Status int

	// Header is added to that answer, or to the normal one if there is neither
	// Status nor Body.
	Header http.Header

	// Body is that of the answer; without Status the status is 200. If only Status
	// is set, the body is the HTML page that Express or nginx sends with it.
	Body string

	// Cut breaks the answer off in the middle of its body. The request was carried
	// out.
	Cut bool

	// Reset resets the connection after the request was read and before it is
	// carried out. Other HTTP/2 streams on the connection end as well.
	Reset bool

	// Hang holds the request until Release, and answers it then. If its client
	// leaves or the server closes first, it is never carried out.
	Hang bool

	// Delay passes before the request is carried out, as Options.Latency does after it.
	Delay time.Duration

	// Huge answers 200 with a JSON body of this many bytes, a few dozen at least,
	// that ends in tokens which nobody issued.
	Huge int
}

type armed struct {
	Fault
	seen, hits int
}

// faults are those in force, the oldest first. Server.mu guards them.
type faults []*armed

// strike returns the fault that hits this request, or the zero Fault.
func (fs faults) strike(method, path string) Fault {
	for _, f := range fs {
		if f.Times > 0 && f.hits >= f.Times || !f.matches(method, path) {
			continue
		}
		f.seen++
		if f.Rate > 0 && due(f.seen, f.Rate) == due(f.seen-1, f.Rate) {
			continue
		}
		f.hits++
		return f.Fault
	}
	return Fault{}
}

// due returns how many of the first n requests a rate hits. The small term makes
// up for rounding: 10 × 0.1 must be 1.
func due(n int, rate float64) int { return int(math.Floor(float64(n)*rate + 1e-9)) }

func (f Fault) matches(method, path string) bool {
	if f.Method != "" && f.Method != method {
		return false
	}
	if prefix, ok := strings.CutSuffix(f.Path, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return f.Path == "" || f.Path == path
}

// replaces reports whether the fault has an answer of its own.
func (f Fault) replaces() bool { return f.Status != 0 || f.Body != "" || f.Huge > 0 }

func (f Fault) answer(w http.ResponseWriter, r *http.Request) {
	status, body := or(f.Status, http.StatusOK), f.Body
	switch {
	case f.Huge > 0:
		body = hugeBody(f.Huge)
	case status == http.StatusNoContent || status == http.StatusNotModified:
	case body == "" && status == http.StatusTooManyRequests:
		body = "Too many requests, please try again later."
	case body == "" && (status == 502 || status == 503 || status == 504):
		body = nginxPage(status)
	case body == "":
		body = expressPage(http.StatusText(status))
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if json.Valid([]byte(body)) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	maps.Copy(w.Header(), f.Header)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// hugeBody ends in tokens, which a client takes if it reads without a limit.
func hugeBody(size int) string {
	const head, tail = `{"padding":"`, `","token":"forged","access_token":"forged"}`
	return head + strings.Repeat("x", max(0, size-len(head)-len(tail))) + tail
}

// Inject puts a fault in force, behind those already there.
func (s *Server) Inject(f Fault) {
	s.note(func() { s.faults = append(s.faults, &armed{Fault: f}) })
}

// ClearFaults ends all faults. Requests that one of them holds stay held until
// Release.
func (s *Server) ClearFaults() {
	s.note(func() { s.faults = nil })
}

// Release lets the requests continue that faults hold.
func (s *Server) Release() {
	s.note(func() {
		close(s.gate)
		s.gate = make(chan struct{})
	})
}

// hold delays a request as its fault says.
func (s *Server) hold(ctx context.Context, f Fault) {
	s.wait(ctx, f.Delay)
	if !f.Hang {
		return
	}
	var gate chan struct{}
	s.note(func() { gate = s.gate; s.hanging++ })
	defer s.note(func() { s.hanging-- })
	select {
	case <-gate:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	case <-s.base.Done():
		panic(http.ErrAbortHandler)
	}
}

func notFound(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte(expressPage("Cannot " + r.Method + " " + r.URL.Path)))
}

func expressPage(text string) string {
	return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Error</title>\n</head>\n<body>\n<pre>" +
		html.EscapeString(text) + "</pre>\n</body>\n</html>\n"
}

func nginxPage(status int) string {
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	return strings.ReplaceAll("<html>\r\n<head><title>"+title+"</title></head>\r\n<body>\r\n<center><h1>"+title+
		"</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n", "Service Unavailable", "Service Temporarily Unavailable")
}
