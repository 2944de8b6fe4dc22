package partnertest

import (
	"net/http"
	"time"
)

// A Fault is something that goes wrong with the requests that it matches. A
// request over the quota gets its 429 before any fault is asked. What stands
// below Rate combines in this order: Delay, Hang, then one of Reset, Huge, the
// given answer, or the normal one.
type Fault struct {
	// What it hits; "": any. Path is exact, or a prefix where it ends in '*'.
	Method, Path string

	Times int // so many requests; 0: all, until ClearFaults

	// This share of the matching requests, evenly spread (0.25: every fourth);
	// 0: every one.
	Rate float64

	// Answered in place of carrying the request out.
	Status int

	// Of that answer; without Status and Body it is added to the normal one.
	Header http.Header

	// Of that answer; without Status the status is 200. Status alone: the HTML
	// page that Express or nginx sends.
	Body string

	// The answer breaks off in the middle of its body; the request was carried
	// out.
	Cut bool

	// The connection is reset before the request was carried out.
	Reset bool

	// Held until Release, then answered; never carried out when its caller leaves.
	Hang bool

	// Passes before the request is carried out, as Latency does after.
	Delay time.Duration

	// A 200 with a JSON body of so many bytes that ends in tokens that nobody
	// issued.
	Huge int
}

// A Request is one that the stand-in received.
type Request struct {
	Time         time.Time // of its arrival
	Method, Path string
	RawQuery     string
	Header       http.Header // read only
	Body         []byte      // read only
	Status       int         // of the answer; 0: none yet, or none at all
}
