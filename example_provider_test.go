package partnerauth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// This partner signs in with JSON and expects its token in a header of its own. The
// Provider says how; renewal, retries, quota and telemetry are those of every partner.
func ExampleProvider() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in
		if r.URL.Path == "/sessions" {
			io.WriteString(w, `{"session":"s-1","seconds":600}`)
			return
		}
		fmt.Fprintf(w, "X-Session is %s", r.Header.Get("X-Session"))
	}))
	defer server.Close()

	acme := partnerauth.Provider{
		Name:    "acme",
		Account: "shop@example.com", // distinguishes accounts in one Store
		BaseURL: server.URL,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			body, err := json.Marshal(map[string]string{"user": "shop@example.com", "password": "correct horse"})
			if err != nil {
				return nil, err
			}
			ctx = partnerauth.WithURLTemplate(ctx, "/sessions") // names the span
			return http.NewRequestWithContext(ctx, "POST", server.URL+"/sessions", bytes.NewReader(body))
		},
		ReadToken: func(_ http.Header, body []byte) (*oauth2.Token, error) {
			var answer struct {
				Session string `json:"session"`
				Seconds int64  `json:"seconds"`
			}
			if json.Unmarshal(body, &answer) != nil || answer.Session == "" {
				return nil, errors.New("no session") // must not repeat the answer
			}
			return &oauth2.Token{AccessToken: answer.Session, ExpiresIn: answer.Seconds}, nil
		},
		Authorize: func(req *http.Request, token *oauth2.Token) error {
			req.Header.Set("X-Session", token.AccessToken)
			return nil
		},
	}
	resp, err := acme.Client().Get(server.URL + "/parcels")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(body))
	// Output: X-Session is s-1
}

// OAuth2 client credentials need SignIn only: without ReadToken the answer is that of
// RFC 6749, and without Authorize the token is a Bearer token. Signing in may be on
// another host than the API.
func ExampleProvider_clientCredentials() {
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in
		id, secret, _ := r.BasicAuth()
		if r.FormValue("grant_type") != "client_credentials" || id != "my-client" || secret != "my-secret" {
			http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
			return
		}
		io.WriteString(w, `{"access_token":"a-token","token_type":"Bearer","expires_in":3600}`)
	}))
	defer issuer.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in
		io.WriteString(w, r.Header.Get("Authorization"))
	}))
	defer api.Close()

	globex := partnerauth.Provider{
		Name:    "globex",
		BaseURL: api.URL, // the only host that sees the token
		SignIn: func(ctx context.Context) (*http.Request, error) {
			form := url.Values{"grant_type": {"client_credentials"}}.Encode()
			req, err := http.NewRequestWithContext(ctx, "POST", issuer.URL+"/oauth/token", strings.NewReader(form))
			if err != nil {
				return nil, err
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.SetBasicAuth("my-client", "my-secret")
			return req, nil
		},
	}
	resp, err := globex.Client().Get(api.URL + "/plans")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(body))
	// Output: Bearer a-token
}
