package faults

import (
	"strings"
	"testing"
	"time"
)

const haproxyTemplate = `
global
	maxconn 500
defaults
	mode http
	timeout connect 5s
	timeout client 2m
	timeout server 2m
frontend limited
	bind {{.Listen}}
	stick-table type ip size 100 expire {{.Expire}}ms store http_req_rate({{.Window}}ms)
	http-request track-sc0 src
	http-request deny deny_status 429 if { sc_http_req_rate(0) gt 100 }
	default_backend partner
backend partner
	server partner {{.Partner}}
`

// haproxy's http_req_rate weighs the window before, as if its requests had been spread evenly over it: a burst counts
// twice, refused requests count as well, and no header says when to come back.
func testHaproxyLimit(t *testing.T) {
	t.Parallel()
	partnerURL, window := newLimited(t)
	path, dir, address := binary(t, "haproxy", "haproxy"), publicDir(t), freeAddress(t)
	file := write(t, dir, "haproxy.cfg", haproxyTemplate, map[string]any{
		"Listen": address, "Partner": strings.TrimPrefix(partnerURL, "http://"),
		"Window": window.Milliseconds(), "Expire": 2 * window.Milliseconds(),
	})
	start(t, dir, address, path, "-db", "-f", file)

	const windows = 8
	got := hunger(t, "http://"+address, window, windows)
	want := 95
	if window < 20*time.Second {
		want = 90 // in a short window the guard alone takes a twentieth
	}
	got.atLeast(t, want, 2)
}
