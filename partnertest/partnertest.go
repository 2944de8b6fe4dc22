// Package partnertest stands in for NowPost and Ndovu, so that you can test your
// own code that uses partnerauth: partners that follow the documented API, keep
// accounts, orders and a quota of 100 requests a minute, revoke tokens and fail
// on demand, and count what they are asked.
//
// In memory they work where time is virtual, and an hour of quota passes in a
// millisecond:
//
//	func TestImport(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			partner := partnertest.NowPostInMemory(partnertest.Options{})
//			shop := NewShop(partner.Account().Client(), partner.URL) // yours
//			partner.Inject(partnertest.Fault{Path: "/api/v1/orders", Status: 503, Times: 1})
//			if err := shop.Import(t.Context(), orders); err != nil {
//				t.Fatal(err)
//			}
//			if got := partner.Created("SHOP-1"); got != 1 {
//				t.Errorf("got %d orders, want 1", got)
//			}
//		})
//	}
//
// [NowPost] and [Ndovu] do the same on real sockets, as net/http/httptest does.
// For programs in any language there is a command, which any module can run that
// requires this one:
//
//	go run github.com/partnerauth/partnerauth/partnertest/cmd/standin
package partnertest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	inner "github.com/partnerauth/partnerauth/internal/partnertest"
)

// What the stand-ins accept unless Options say otherwise. The secret has in it
// what a client must not escape.
const (
	Email        = inner.Email
	Password     = inner.Password
	ClientID     = inner.ClientID
	ClientSecret = inner.ClientSecret
)

// Options shape a stand-in. The zero value is a partner as its documentation
// describes it.
type Options struct {
	Email, Password        string // NowPost: the account; "": the constants
	ClientID, ClientSecret string // Ndovu: the account; "": the constants
	ShortName              string // Ndovu: the partner's in paths; "": "acme"

	Lifetime time.Duration // of tokens; 0: 24 h for NowPost, 1 h for Ndovu
	Limit    int           // requests a Window, refused ones included; 0: 100; negative: no quota
	Window   time.Duration // fixed, from its first request on; 0: one minute
	Latency  time.Duration // of each answer, after the request was carried out

	TLS bool   // on a socket: https, with a certificate that Account's Base trusts
	URL string // in memory: its scheme and host; "": https://nowpost.test or https://ndovu.test
}

func (o Options) inner(url string) inner.Options {
	if o.URL != "" {
		url = o.URL
	}
	return inner.Options{
		Email: o.Email, Password: o.Password, ClientID: o.ClientID, ClientSecret: o.ClientSecret, ShortName: o.ShortName,
		Lifetime: o.Lifetime, Limit: o.Limit, Window: o.Window, Latency: o.Latency, TLS: o.TLS, URL: url,
	}
}

// NowPostStandIn stands in for NowPost: login, refresh, API keys and orders.
type NowPostStandIn struct {
	*StandIn
	partner *inner.NowPost
	account partnerauth.NowPost
}

// NowPost starts a stand-in for NowPost on a port of 127.0.0.1. It is closed
// when the test ends.
func NowPost(t testing.TB, o Options) *NowPostStandIn {
	partner := inner.StartNowPost(o.inner(""))
	return newNowPost(o, partner, onSocket(t, partner.Server))
}

// NowPostInMemory returns a stand-in for NowPost that is no server: requests
// reach it as the Base of an account or a Transport. Make it in the bubble in
// which it is used, where testing/synctest is. There is nothing to close.
func NowPostInMemory(o Options) *NowPostStandIn {
	partner := inner.NewNowPost(o.inner("https://nowpost.test"))
	return newNowPost(o, partner, inMemory(partner.Server))
}

func newNowPost(o Options, partner *inner.NowPost, s *StandIn) *NowPostStandIn {
	n := &NowPostStandIn{s, partner, partnerauth.NowPost{Email: o.Email, Password: o.Password, BaseURL: s.URL, Base: s}}
	if n.account.Email == "" {
		n.account.Email = Email
	}
	if n.account.Password == "" {
		n.account.Password = Password
	}
	return n
}

// Account is the account that the stand-in knows, with the stand-in as its Base.
// A Transport of your own needs the Base as well, since an account's Base
// carries the token requests only:
//
//	&partnerauth.Transport{Source: partner.Account().TokenSource(), Base: partner}
func (n *NowPostStandIn) Account() partnerauth.NowPost { return n.account }

// Env is Account for [partnerauth.NowPostFromEnv], as NAME=value.
func (n *NowPostStandIn) Env() []string {
	return []string{"NOWPOST_EMAIL=" + n.account.Email, "NOWPOST_PASSWORD=" + n.account.Password, "NOWPOST_BASE_URL=" + n.URL}
}

// Created tells how many orders were created with a partner_order_id: a request
// that was sent twice shows as two.
func (n *NowPostStandIn) Created(partnerOrderID string) int { return n.partner.Created(partnerOrderID) }

// NdovuStandIn stands in for Ndovu: tokens and plans.
type NdovuStandIn struct {
	*StandIn
	account partnerauth.Ndovu
}

// Ndovu starts a stand-in for Ndovu on a port of 127.0.0.1. It is closed when
// the test ends.
func Ndovu(t testing.TB, o Options) *NdovuStandIn {
	return newNdovu(o, onSocket(t, inner.StartNdovu(o.inner("")).Server))
}

// NdovuInMemory returns a stand-in for Ndovu as [NowPostInMemory] does for
// NowPost.
func NdovuInMemory(o Options) *NdovuStandIn {
	return newNdovu(o, inMemory(inner.NewNdovu(o.inner("https://ndovu.test")).Server))
}

func newNdovu(o Options, s *StandIn) *NdovuStandIn {
	n := &NdovuStandIn{s, partnerauth.Ndovu{ClientID: o.ClientID, ClientSecret: o.ClientSecret, BaseURL: s.URL, Base: s}}
	if n.account.ClientID == "" {
		n.account.ClientID = ClientID
	}
	if n.account.ClientSecret == "" {
		n.account.ClientSecret = ClientSecret
	}
	return n
}

// Account is the account that the stand-in knows, with the stand-in as its Base;
// see [NowPostStandIn.Account].
func (n *NdovuStandIn) Account() partnerauth.Ndovu { return n.account }

// Env is Account for [partnerauth.NdovuFromEnv], as NAME=value.
func (n *NdovuStandIn) Env() []string {
	return []string{"NDOVU_CLIENT_ID=" + n.account.ClientID, "NDOVU_CLIENT_SECRET=" + n.account.ClientSecret, "NDOVU_BASE_URL=" + n.URL}
}

// A StandIn is what both partners have in common. It is made by [NowPost],
// [NowPostInMemory], [Ndovu] or [NdovuInMemory] and safe for concurrent use.
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

// RoundTrip carries a request to the stand-in. In memory it does so in the
// caller's goroutine, and any host but the stand-in's does not exist.
func (s *StandIn) RoundTrip(req *http.Request) (*http.Response, error) { return s.way.RoundTrip(req) }

// RevokeAll makes the partner answer 401 to every token and API key that it has
// issued so far.
func (s *StandIn) RevokeAll() { s.server.RevokeAll() }

// Inject puts a fault in force, behind those that are. A request meets one at
// most: the first that matches and is due.
func (s *StandIn) Inject(f Fault) { s.server.Inject(inner.Fault(f)) }

// ClearFaults ends all faults; what hangs goes on hanging.
func (s *StandIn) ClearFaults() { s.server.ClearFaults() }

// Release lets the requests go on that a fault holds.
func (s *StandIn) Release() { s.server.Release() }

// Hanging tells how many requests a fault holds right now.
func (s *StandIn) Hanging() int { return s.server.Hanging() }

// Await returns when what is true, or with ctx's error. It asks whenever the
// stand-in has received, held or answered something.
func (s *StandIn) Await(ctx context.Context, what func() bool) error {
	return s.server.Await(ctx, what)
}

// Logins tells how many logins were granted, without refreshes.
func (s *StandIn) Logins() int { return s.server.Logins() }

// Refreshes tells how many refreshes were granted; Ndovu has none.
func (s *StandIn) Refreshes() int { return s.server.Refreshes() }

// Status tells how many answers had a status, such as 401 or 429.
func (s *StandIn) Status(code int) int { return s.server.Status(code) }

// Count tells how many requests were received, token requests and refused ones
// included, for a method and an exact path; "" stands for any.
func (s *StandIn) Count(method, path string) int { return s.server.Count(method, path) }

// Peak is the most requests in any one Window so far, refused ones included.
func (s *StandIn) Peak() int { return s.server.Peak() }

// Requests returns all requests received so far, in the order of their arrival.
func (s *StandIn) Requests() []Request {
	var all []Request
	for _, r := range s.server.Requests() {
		all = append(all, Request{r.Time, r.Method, r.Path, r.RawQuery, r.Header, r.Body, r.Status})
	}
	return all
}
