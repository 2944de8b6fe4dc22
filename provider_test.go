package partnerauth_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// What Authorize does to a request, and what becomes of it. The caller's request stays
// as it is.
func TestAuthorize(t *testing.T) {
	set := func(req *http.Request, token *oauth2.Token) { req.Header.Set("X-Api-Key", token.AccessToken) }
	for _, c := range []struct {
		name string
		do   func(*http.Request, *oauth2.Token) error
		want string // in the error; "": the call succeeds
	}{
		{"sets a header", func(req *http.Request, token *oauth2.Token) error { set(req, token); return nil }, ""},
		{"changes the path", func(req *http.Request, token *oauth2.Token) error {
			set(req, token)
			req.URL.Path, req.URL.RawQuery = "/v2"+req.URL.Path, "key=1"
			return nil
		}, ""},
		{"fails, with the token in its error", func(_ *http.Request, token *oauth2.Token) error {
			return fmt.Errorf("no key %s: %w", token.AccessToken, errTest)
		}, "no key REDACTED: the shop is closed"},
		{"goes elsewhere", func(req *http.Request, _ *oauth2.Token) error { req.URL.Host = "evil.example"; return nil }, "another host"},
		{"names another host", func(req *http.Request, _ *oauth2.Token) error { req.Host = "evil.example"; return nil }, "another host"},
		{"goes to plain http", func(req *http.Request, _ *oauth2.Token) error { req.URL.Scheme = "http"; return nil }, "another host"},
		{"has no URL", func(req *http.Request, _ *oauth2.Token) error { req.URL = nil; return nil }, "another host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &partner{open: true}
			account := acme(good(p))
			account.Authorize = c.do
			rt := &partnerauth.Transport{Source: account.TokenSource(), Base: p}
			body := watched("x")
			req := posting(t, body)
			const odd = "x-api-KEY" // in the caller's spelling
			req.Header = http.Header{}
			req.Header[spelt(odd)] = []string{"the caller's"}
			_, err := rt.RoundTrip(req)
			errorIf(t, body.closed.Load() != 1, "the body was closed %d times, want once", body.closed.Load())
			errorIf(t, req.URL.String() != apiURL+"/orders", "the caller's URL is now %s", req.URL)
			errorIf(t, len(req.Header) != 1 || req.Header[spelt(odd)] == nil, "the caller's header is now %v", req.Header)
			if c.want == "" {
				must(t, err)
				sent := p.seen()[1].header
				errorIf(t, len(sent["X-Api-Key"]) != 1 || sent.Get("X-Api-Key") != "token-1", "sent %v, want the token alone", sent)
				errorIf(t, sent[spelt(odd)] != nil, "the caller's key was sent as well: %v", sent)
				return
			}
			errorIf(t, err == nil || !strings.Contains(err.Error(), c.want), "got %v, want %q in it", err, c.want)
			errorIf(t, authOf(err).Op != "authorize", "got Op %q, want authorize", authOf(err).Op)
			errorIf(t, authOf(err).Provider != "acme", "got provider %q, want acme", authOf(err).Provider)
			errorIf(t, strings.Contains(c.want, "closed") != errors.Is(err, errTest), "got %v, want what Authorize returned in it", err)
			errorIf(t, p.count("call") > 0, "%d calls were sent, want none", p.count("call"))
		})
	}
}

// A ReadToken that returns nothing is an error and no panic.
func TestReadTokenThatReturnsNothing(t *testing.T) {
	account := acme(good(new(partner)))
	account.ReadToken = func(http.Header, []byte) (*oauth2.Token, error) { return nil, nil }
	_, err := account.TokenSource().Token()
	errorIf(t, err == nil || !strings.Contains(err.Error(), "no token"), "got %v, want an error that says so", err)
}

// What a server's certificate says is not repeated, and what an error of another
// package says is not either.
func TestCertificateErrors(t *testing.T) {
	for want, err := range map[string]error{
		"it is for another host name": x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"hunter2"}},
			Host: "h"},
		"it is signed by an unknown authority": x509.UnknownAuthorityError{},
		"it has expired or is not yet valid":   x509.CertificateInvalidError{Reason: x509.Expired, Detail: "hunter2"},
		"it is not valid":                      x509.CertificateInvalidError{Reason: x509.TooManyIntermediates},
	} {
		for _, pr := range providers {
			bubble(t, pr.name+" "+want, func(t *testing.T) {
				_, got := new(partner).on("login", reply{err: &tls.CertificateVerificationError{Err: err}}).source(pr).Token()
				errorIf(t, got == nil || !strings.Contains(got.Error(), want), "got %v, want %q in it", got, want)
				errorIf(t, strings.Contains(fmt.Sprint(got), "hunter2"), "got %v", got)
			})
		}
	}
	everyProvider(t, func(t *testing.T, pr provider) {
		for want, err := range map[string]error{
			"error of type *partnerauth_test.foreignError": &foreignError{},
			"EOF": &foreignError{io.EOF},
		} {
			_, got := new(partner).on("login", reply{err: err}).source(pr).Token()
			errorIf(t, got == nil || !strings.HasSuffix(got.Error(), want), "got %v, want %q at its end", got, want)
		}
	})
}

// spelt returns the name of a header as it is: a constant would have to be canonical.
func spelt(name string) string { return name }

// A foreignError has a text of its own.
type foreignError struct{ error }

func (e *foreignError) Error() string { return "hunter2" }
func (e *foreignError) Unwrap() error { return e.error }
