package partnertest

import (
	"net/http"
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

	// Status is answered instead of carrying the request out.
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

	// Reset resets the connection before the request is carried out.
	Reset bool

	// Hang holds the request until Release, and answers it then. If its caller
	// leaves first, it is never carried out.
	Hang bool

	// Delay passes before the request is carried out, as Latency does after it.
	Delay time.Duration

	// Huge answers 200 with a JSON body of this many bytes that ends in tokens
	// which nobody issued.
	Huge int
}

// A Request is a request that a stand-in received. Its Header and Body are
// shared and must not be changed.
type Request struct {
	Time         time.Time // of its arrival
	Method, Path string
	RawQuery     string
	Header       http.Header
	Body         []byte
	Status       int // of the answer; 0 if there is none, or none yet
}
