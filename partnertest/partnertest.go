// Package partnertest has stand-ins for partner APIs, so that you can test your
// own code that uses partnerauth. A stand-in signs clients in, keeps a quota of
// 100 requests a minute, revokes tokens and fails on demand, and records every
// request that it receives.
//
// There are three, each in memory and on sockets:
//
//   - [NowPostInMemory] and [NowPost] follow NowPost's documentation and keep
//     orders.
//   - [NdovuInMemory] and [Ndovu] follow Ndovu's documentation and have plans.
//   - [ProviderInMemory] and [Provider] are any other partner: you choose the
//     sign-in, its answer, the header of the token, and the API behind it.
//
// # In memory
//
// Most tests should use a stand-in in memory. It works with virtual time
// (testing/synctest), where an hour of waiting for the quota takes a
// millisecond:
//
//	func TestImport(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			partner := partnertest.NowPostInMemory(partnertest.Options{})
//			t.Cleanup(partner.Drain)
//			shop := NewShop(partner.Account().Client(), partner.URL) // your code
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
// # Drain
//
// Register [StandIn.Drain] in every test that uses virtual time, right after
// making the stand-in. A login runs in a goroutine of its own, because other
// callers may need its token, and goes on when the caller that started it has
// given up. If it is still running when the test returns, synctest panics:
//
//	panic: deadlock: main bubble goroutine has exited but blocked goroutines remain
//
// Drain ends the stand-in and lets virtual time pass until such a login has
// ended. It takes no real time. Call it after the code under test has stopped;
// t.Cleanup does so, since it runs cleanups in reverse order and cancels
// t.Context before the first.
//
// # On sockets
//
// The stand-ins on sockets listen on 127.0.0.1, as servers of net/http/httptest
// do, and close when the test ends. Programs in any language can use the standin
// command, which any module that requires this one can run. Its documentation
// says how to revoke tokens and inject faults over HTTP:
//
//	go run github.com/partnerauth/partnerauth/partnertest/cmd/standin
package partnertest

import (
	"cmp"
	"net/http"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	inner "github.com/partnerauth/partnerauth/internal/partnertest"
)

// The credentials that the stand-ins accept unless Options set others.
// ClientSecret contains characters that a client must not escape.
const (
	Email        = inner.Email
	Password     = inner.Password
	ClientID     = inner.ClientID
	ClientSecret = inner.ClientSecret
)

// Options configure a stand-in. The zero value is a partner that behaves as its
// documentation says. Fields that name a partner apply to that partner only.
type Options struct {
	// Email and Password are NowPost's account; "" means the constants.
	Email, Password string

	// ClientID and ClientSecret are the account of Ndovu, and of a Provider
	// without Accepts; "" means the constants.
	ClientID, ClientSecret string

	// ShortName is the partner's name in Ndovu's paths; "" means "acme".
	ShortName string

	// Lifetime is that of the tokens; 0 means 24 hours for NowPost and one hour
	// for the others.
	Lifetime time.Duration

	// Limit is the number of requests, sign-ins and refused requests included,
	// that the partner allows in a Window; the next ones are answered 429 with a
	// Retry-After. 0 means 100, a negative number means no limit.
	Limit int

	// Window is the period of the quota. It starts with the first request after
	// the end of the last one. 0 means one minute.
	Window time.Duration

	// Latency passes after a request was carried out and before its answer.
	Latency time.Duration

	// TLS makes a stand-in on a socket speak https (HTTP/2 and HTTP/1.1), with a
	// certificate that only its RoundTrip trusts.
	TLS bool

	// URL is the scheme and host of a stand-in in memory; "" means
	// https://nowpost.test, https://ndovu.test or https://provider.test.
	URL string

	// SignInPath is the path at which a Provider signs in; "" means /oauth/token.
	SignInPath string

	// Accepts reports whether a request to a Provider's SignInPath has the right
	// method, headers and credentials; if not, it is answered 401. It may read the
	// body and is called from several goroutines. nil means RFC 6749: POST a form
	// with grant_type=client_credentials, and ClientID and ClientSecret in it or
	// by HTTP Basic authentication.
	Accepts func(*http.Request) bool

	// RefreshPath is the path at which a Provider renews tokens for a request that
	// carries a refresh token in any field of its body, a form or a JSON object,
	// or a token where it is usually sent. It may be SignInPath: there only a
	// request with grant_type=refresh_token is a refresh. "" means nowhere, and
	// there are no refresh tokens.
	RefreshPath string

	// Answer writes the Provider's answer to a sign-in or a refresh. It is called
	// from several goroutines, with Content-Type already set to JSON. nil means
	// RFC 6749: access_token, token_type, expires_in and, with RefreshPath,
	// refresh_token.
	Answer func(http.ResponseWriter, Grant)

	// TokenHeader and TokenType are the header and the scheme with which requests
	// carry the Provider's token. If both are "", they are Authorization and
	// Bearer. If only TokenType is "", the header is the token alone.
	TokenHeader, TokenType string

	// Handler is the Provider's API: it answers requests that carry a good token.
	// All others are answered 401. nil answers 200 and {}.
	Handler http.Handler
}

// A Grant is a token that a Provider has issued and that its Answer hands out.
type Grant struct {
	Token        string
	RefreshToken string // "" without RefreshPath; good for any number of refreshes
	Lifetime     time.Duration
}

func (o Options) inner(url string) inner.Options {
	in := inner.Options{
		Email: o.Email, Password: o.Password, ClientID: o.ClientID, ClientSecret: o.ClientSecret, ShortName: o.ShortName,
		Lifetime: o.Lifetime, Limit: o.Limit, Window: o.Window, Latency: o.Latency, TLS: o.TLS, URL: cmp.Or(o.URL, url),
		SignInPath: o.SignInPath, Accepts: o.Accepts, RefreshPath: o.RefreshPath,
		TokenHeader: o.TokenHeader, TokenType: o.TokenType, Handler: o.Handler,
	}
	if o.Answer != nil {
		in.Answer = func(w http.ResponseWriter, g inner.Grant) { o.Answer(w, Grant(g)) }
	}
	return in
}

// A NowPostStandIn is a stand-in for NowPost: login, refresh, API keys and
// orders. It is safe for concurrent use.
type NowPostStandIn struct {
	*StandIn
	partner *inner.NowPost
	account partnerauth.NowPost
}

// NowPost starts a stand-in for NowPost on a free port of 127.0.0.1. It closes
// when the test ends.
func NowPost(t testing.TB, o Options) *NowPostStandIn {
	partner := inner.StartNowPost(o.inner(""))
	return newNowPost(o, partner, onSocket(t, partner.Server))
}

// NowPostInMemory returns a stand-in for NowPost without a socket. Requests
// reach it only through its RoundTrip, as the Base of an account or a Transport.
// With testing/synctest, call it inside the bubble, and see [StandIn.Drain].
func NowPostInMemory(o Options) *NowPostStandIn {
	partner := inner.NewNowPost(o.inner("https://nowpost.test"))
	return newNowPost(o, partner, inMemory(partner.Server))
}

func newNowPost(o Options, partner *inner.NowPost, s *StandIn) *NowPostStandIn {
	return &NowPostStandIn{s, partner, partnerauth.NowPost{
		Email: cmp.Or(o.Email, Email), Password: cmp.Or(o.Password, Password), BaseURL: s.URL, Base: s,
	}}
}

// Account returns the account that the stand-in knows from the start, with the
// stand-in as its Base. Most tests need only its Client. A Transport of your own
// needs the Base as well, since an account's Base carries token requests only:
//
//	&partnerauth.Transport{Source: partner.Account().TokenSource(), Base: partner}
func (n *NowPostStandIn) Account() partnerauth.NowPost { return n.account }

// Env returns Account as environment variables for [partnerauth.NowPostFromEnv],
// in the form NAME=value.
func (n *NowPostStandIn) Env() []string {
	return []string{"NOWPOST_EMAIL=" + n.account.Email, "NOWPOST_PASSWORD=" + n.account.Password, "NOWPOST_BASE_URL=" + n.URL}
}

// SetPassword changes the password: from now on a login needs the new one.
// Tokens stay good until [StandIn.RevokeAll], and Account keeps the old password.
func (n *NowPostStandIn) SetPassword(password string) { n.partner.SetPassword(password) }

// Created returns how many orders were created with a partner_order_id. If the
// code under test sends an order twice, it returns 2.
func (n *NowPostStandIn) Created(partnerOrderID string) int { return n.partner.Created(partnerOrderID) }

// An NdovuStandIn is a stand-in for Ndovu: tokens and plans. It is safe for
// concurrent use.
type NdovuStandIn struct {
	*StandIn
	partner *inner.Ndovu
	account partnerauth.Ndovu
}

// Ndovu starts a stand-in for Ndovu on a free port of 127.0.0.1. It closes when
// the test ends.
func Ndovu(t testing.TB, o Options) *NdovuStandIn {
	partner := inner.StartNdovu(o.inner(""))
	return newNdovu(o, partner, onSocket(t, partner.Server))
}

// NdovuInMemory returns a stand-in for Ndovu without a socket, as
// [NowPostInMemory] does for NowPost.
func NdovuInMemory(o Options) *NdovuStandIn {
	partner := inner.NewNdovu(o.inner("https://ndovu.test"))
	return newNdovu(o, partner, inMemory(partner.Server))
}

func newNdovu(o Options, partner *inner.Ndovu, s *StandIn) *NdovuStandIn {
	return &NdovuStandIn{s, partner, partnerauth.Ndovu{
		ClientID: cmp.Or(o.ClientID, ClientID), ClientSecret: cmp.Or(o.ClientSecret, ClientSecret), BaseURL: s.URL, Base: s,
	}}
}

// Account returns the account that the stand-in knows from the start, with the
// stand-in as its Base; see [NowPostStandIn.Account].
func (n *NdovuStandIn) Account() partnerauth.Ndovu { return n.account }

// Env returns Account as environment variables for [partnerauth.NdovuFromEnv],
// in the form NAME=value.
func (n *NdovuStandIn) Env() []string {
	return []string{"NDOVU_CLIENT_ID=" + n.account.ClientID, "NDOVU_CLIENT_SECRET=" + n.account.ClientSecret, "NDOVU_BASE_URL=" + n.URL}
}

// SetClientSecret changes the secret: from now on a login needs the new one.
// Tokens stay good until [StandIn.RevokeAll], and Account keeps the old secret.
func (n *NdovuStandIn) SetClientSecret(secret string) { n.partner.SetClientSecret(secret) }

// Provider starts a stand-in for any partner on a free port of 127.0.0.1. It
// closes when the test ends. Use its URL as the BaseURL of your
// partnerauth.Provider and the stand-in as its Base.
func Provider(t testing.TB, o Options) *StandIn {
	return onSocket(t, inner.StartProvider(o.inner("")).Server)
}

// ProviderInMemory returns a stand-in for any partner without a socket. Requests
// reach it only through its RoundTrip: use its URL as the BaseURL of your
// partnerauth.Provider and the stand-in as its Base. With testing/synctest, call
// it inside the bubble, and see [StandIn.Drain].
func ProviderInMemory(o Options) *StandIn {
	return inMemory(inner.NewProvider(o.inner("https://provider.test")).Server)
}
