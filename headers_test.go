package partnerauth_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// There is one Authorization on the wire, and it is ours, however the caller wrote it.
func TestOneAuthorization(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { got = req.Header["Authorization"] }))
	defer server.Close()
	base := new(http.Transport)
	defer base.CloseIdleConnections()
	authorize := func(req *http.Request, token *oauth2.Token) error {
		req.Header.Set("Authorization", "Bearer "+token.AccessToken)
		return nil
	}
	for _, authorize := range []func(*http.Request, *oauth2.Token) error{nil, authorize} {
		account := acme(good(new(partner)))
		account.BaseURL, account.Authorize = server.URL, authorize
		rt := &partnerauth.Transport{Source: account.TokenSource(), Base: base}
		for _, spelling := range []string{"Authorization", "authorization", "aUthorization"} {
			req := newRequest(t, "GET", server.URL, "")
			req.Header = http.Header{spelling: {"mine"}, "Other": {"x"}}
			errorIf(t, status(t, rt, req) != 200, "%s: the call failed", spelling)
			errorIf(t, !slices.Equal(got, []string{"Bearer token-1"}), "%s, Authorize %t: got %q", spelling, authorize != nil, got)
			errorIf(t, len(req.Header) != 2 || req.Header[spelling][0] != "mine",
				"%s: the caller's header was changed: %v", spelling, req.Header)
		}
	}
}

// A body that was announced and is not there is an error to whoever reads it.
func TestBodyThatIsMissing(t *testing.T) {
	missing := func(length int64) http.RoundTripper {
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: length, Request: req}, nil
		})
	}
	for _, c := range []struct {
		method string
		length int64
		want   error
	}{{"GET", 5, io.ErrUnexpectedEOF}, {"HEAD", 5, nil}, {"GET", 0, nil}, {"GET", -1, nil}} {
		rt := &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL}, Base: missing(c.length)}
		resp, err := rt.RoundTrip(newRequest(t, c.method, apiURL, ""))
		must(t, err)
		_, err = io.ReadAll(resp.Body)
		errorIf(t, !errors.Is(err, c.want), "%s of %d B: got %v, want %v", c.method, c.length, err, c.want)
	}
	everyProvider(t, func(t *testing.T, pr provider) {
		_, err := pr.config(good(missing(5))).TokenSource().Token()
		errorIf(t, !errors.Is(err, io.ErrUnexpectedEOF), "a token request got %v, want %v", err, io.ErrUnexpectedEOF)
	})
}

// Requests that follow redirects are resent, too.
func TestRedirectsAreCounted(t *testing.T) {
	rec, p := newRecording(), &partner{open: true}
	p.on("/a", reply{status: 307, header: headers("Location: /b")}).
		on("/b", reply{status: 302, header: headers("Location: /c")}).
		on("/c", reply{status: 401}, reply{})
	rt := rec.plain(p)
	rt.Source = renewing()
	resp, err := (&http.Client{Transport: rt}).Get(apiURL + "/a")
	must(t, err)
	resp.Body.Close()
	var got []string
	for _, s := range rec.clients() {
		got = append(got, attributeOf(s, "http.request.resend_count"))
	}
	errorIf(t, strings.Join(got, ",") != ",1,2,3", "got resend counts %q, want none, 1, 2, 3", got)
}

// renewing is a source that has another token each time.
func renewing() oauth2.TokenSource {
	n := 0
	next := func() (*oauth2.Token, error) { n++; return static(fmt.Sprint("token-", n)).Token() }
	return renewable{next, func(*oauth2.Token) {}}
}
