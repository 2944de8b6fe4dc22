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

// Fault is something that goes wrong with the requests it matches. Requests
// over the quota get their 429 before any fault is asked. A request meets at
// most one fault, the first injected that is due. The fields below Rate combine
// in this order: Delay, Hang, then one of Reset, Huge, the given answer, or the
// normal answer.
type Fault struct {
	// What it hits; "": any. Path is exact, or a prefix when it ends in '*'.
	Method, Path string

	Times int // so many requests; 0: until ClearFaults

	// This share of the matching requests, evenly spread (0.25: every fourth);
	// 0: every one.
	Rate float64

	// Answered in place of carrying the request out; counted in the quota, which
	// the answer does not announce.
	Status int

	// Of that answer; without Status and Body it is added to the normal one.
	Header http.Header

	// Of that answer; without Status the status is 200. Status alone: the HTML
	// page Express or nginx sends.
	Body string

	// The answer breaks off in the middle of its body; the request was carried
	// out.
	Cut bool

	// The connection is reset after the request was read, before it was carried
	// out, other HTTP/2 streams on it included.
	Reset bool

	// Held until Release, then answered; dropped, and never carried out, when the
	// client leaves or the server closes.
	Hang bool

	// Passes before the request is carried out; Options.Latency passes after.
	Delay time.Duration

	// A 200 with a JSON body of so many bytes, at least a few dozen, that ends in
	// tokens nobody issued.
	Huge int
}

type armed struct {
	Fault
	seen, hits int
}

// faults are those in force, oldest first. The server's lock guards them.
type faults []*armed

// strike returns the fault that is due for this request; the zero Fault does
// nothing.
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

// due is how many of the first n requests a rate hits. The bit more absorbs
// what floating point loses: 10 × 0.1 is 1.
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

// replaces reports whether the fault's own answer stands in for the normal one.
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

// hugeBody has the tokens last, so that a reader without a limit would take
// them.
func hugeBody(size int) string {
	const head, tail = `{"padding":"`, `","token":"forged","access_token":"forged"}`
	return head + strings.Repeat("x", max(0, size-len(head)-len(tail))) + tail
}

// Inject puts a fault in force, behind those already there.
func (s *Server) Inject(f Fault) {
	s.note(func() { s.faults = append(s.faults, &armed{Fault: f}) })
}

// ClearFaults ends all faults; what hangs already goes on hanging.
func (s *Server) ClearFaults() {
	s.note(func() { s.faults = nil })
}

// Release lets every request that hangs go on.
func (s *Server) Release() {
	s.note(func() {
		close(s.gate)
		s.gate = make(chan struct{})
	})
}

// hold keeps a request for as long as its fault says.
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
