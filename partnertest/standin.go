package partnertest

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	inner "github.com/partnerauth/partnerauth/internal/partnertest"
)

// A StandIn is what all stand-ins have in common. [Provider] and
// [ProviderInMemory] return one; those of the other partners contain one. The
// zero value is not usable. It is safe for concurrent use.
type StandIn struct {
	URL string // scheme, host and port, without a slash at the end; do not change it

	server *inner.Server
	way    http.RoundTripper
}

func inMemory(s *inner.Server) *StandIn { return &StandIn{s.URL, s, s} }

func onSocket(t testing.TB, s *inner.Server) *StandIn {
	way := s.Transport()
	t.Cleanup(func() {
		way.CloseIdleConnections()
		s.Close()
	})
	return &StandIn{s.URL, s, way}
}

// RoundTrip sends a request to the stand-in, which makes it an
// http.RoundTripper. In memory it runs in the caller's goroutine, and a request
// to any other host fails as if there were no such host.
func (s *StandIn) RoundTrip(req *http.Request) (*http.Response, error) { return s.way.RoundTrip(req) }

// longest is longer than anything that a login waits for: the quota may be one a
// day.
const longest = 25 * time.Hour

// Drain ends the stand-in: requests that it holds break off, and later ones fail
// with a refused connection. Its counts and records stay. In a bubble of
// testing/synctest it also lets virtual time pass, 25 hours in all, so that
// logins which outlive their callers end before the bubble does. It takes no
// real time, and may be called more than once.
//
// Most tests with virtual time should start with
//
//	partner := partnertest.NowPostInMemory(partnertest.Options{})
//	t.Cleanup(partner.Drain)
func (s *StandIn) Drain() {
	s.server.Close()
	if inBubble() {
		time.Sleep(longest)
	}
}

// inBubble reports whether the caller runs in a bubble: synctest.Wait panics if
// it does not.
func inBubble() (in bool) {
	defer func() { in = recover() == nil }()
	synctest.Wait()
	return true
}

// RevokeAll makes the partner answer 401 to every token and API key that it has
// issued so far. Refresh tokens of a [Provider] stay good; to refuse them, inject
// a fault for its RefreshPath.
func (s *StandIn) RevokeAll() { s.server.RevokeAll() }

// Inject puts a fault in force, behind those already there. A request meets at
// most one: the first that matches it and is due.
func (s *StandIn) Inject(f Fault) { s.server.Inject(inner.Fault(f)) }

// ClearFaults ends all faults. Requests that one of them holds stay held until
// Release.
func (s *StandIn) ClearFaults() { s.server.ClearFaults() }

// Release lets the requests continue that faults hold.
func (s *StandIn) Release() { s.server.Release() }

// Hanging returns the number of requests that faults hold right now.
func (s *StandIn) Hanging() int { return s.server.Hanging() }

// Await returns nil as soon as what returns true, or ctx's error when ctx ends
// first. It calls what whenever the stand-in has received, held or answered a
// request. Tests with virtual time should call synctest.Wait instead.
func (s *StandIn) Await(ctx context.Context, what func() bool) error {
	return s.server.Await(ctx, what)
}

// Logins returns the number of sign-ins that were granted, without refreshes.
func (s *StandIn) Logins() int { return s.server.Logins() }

// Refreshes returns the number of refreshes that were granted. Ndovu has none.
func (s *StandIn) Refreshes() int { return s.server.Refreshes() }

// Status returns the number of answers with that status, such as 401 or 429.
func (s *StandIn) Status(code int) int { return s.server.Status(code) }

// Count returns the number of requests received with that method and exact path,
// including sign-ins and refused requests; "" means any.
func (s *StandIn) Count(method, path string) int { return s.server.Count(method, path) }

// Peak returns the largest number of requests in any one Window so far,
// including refused ones.
func (s *StandIn) Peak() int { return s.server.Peak() }

// Requests returns all requests received so far, in the order of their arrival.
func (s *StandIn) Requests() []Request {
	var all []Request
	for _, r := range s.server.Requests() {
		all = append(all, Request{r.Time, r.Method, r.Path, r.RawQuery, r.Header, r.Body, r.Status})
	}
	return all
}
