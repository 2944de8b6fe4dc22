package partnerauth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// One http.Client serves the whole program. It signs in, stays within the quota and
// recovers from a token that is revoked between two calls.
func Example() {
	logins := 0
	api := http.NewServeMux() // a stand-in for NowPost, which revokes each token after one call
	api.HandleFunc("POST /api/v1/auth/login", func(w http.ResponseWriter, r *http.Request) {
		logins++
		fmt.Fprintf(w, `{"token":"token-%d"}`, logins)
	})
	used := ""
	api.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("Authorization"); token != used {
			used = token
			w.WriteHeader(http.StatusCreated)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	server := httptest.NewServer(api)
	defer server.Close()

	account := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: server.URL}
	client := &http.Client{
		Transport: &partnerauth.Transport{Source: account.TokenSource()},
		Timeout:   2 * time.Minute, // waiting for the quota counts
	}

	for _, id := range []string{"SHOP-1", "SHOP-2"} {
		order := fmt.Sprintf(`{"partner_order_id":%q,"pudo_point_id":"pudo_12345"}`, id)
		resp, err := client.Post(server.URL+"/api/v1/orders", "application/json", strings.NewReader(order))
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println(id, resp.Status)
	}
	fmt.Println("logins:", logins)
	// Output:
	// SHOP-1 201 Created
	// SHOP-2 201 Created
	// logins: 2
}

func ExampleNowPost() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"a-token"}`) // a stand-in for NowPost
	}))
	defer api.Close()

	shop := partnerauth.NowPost{
		Email:    "shop@example.com",
		Password: "correct horse battery staple",
		BaseURL:  api.URL, // leave it out for NowPost itself
	}
	resp, err := shop.Client().Get(shop.BaseURL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

func ExampleNdovu() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"access_token":"a-token","expires_in":3600}`) // a stand-in for Ndovu
	}))
	defer api.Close()

	plans := partnerauth.Ndovu{
		ClientID:     "acme",
		ClientSecret: "s3cr3t:+/%& ü", // as the onboarding e-mail has it, escaped in no way
		BaseURL:      api.URL,
	}
	resp, err := plans.Client().Get(plans.BaseURL + "/api/v3/partners/acme/plans?currency=KES")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

func ExampleNowPostFromEnv() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"a-token"}`) // a stand-in for NowPost
	}))
	defer api.Close()
	os.Setenv("NOWPOST_EMAIL", "shop@example.com")
	os.Setenv("NOWPOST_PASSWORD", "correct horse")
	os.Setenv("NOWPOST_BASE_URL", api.URL) // only for another host than NowPost's

	shop, err := partnerauth.NowPostFromEnv()
	if err != nil {
		log.Fatal(err)
	}
	resp, err := shop.Client().Get(shop.BaseURL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)

	os.Unsetenv("NOWPOST_PASSWORD")
	_, err = partnerauth.NowPostFromEnv()
	fmt.Println(err)

	os.Unsetenv("NOWPOST_EMAIL")
	os.Unsetenv("NOWPOST_BASE_URL")
	// Output:
	// 200 OK
	// partnerauth: nowpost config: NOWPOST_PASSWORD is not set in the environment
}

// Any oauth2.TokenSource will do, here an API key. Origins then say who may see
// it: nobody else does, and is neither counted nor traced.
func ExampleTransport() {
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Authorization: %s\n", r.Header.Get("Authorization"))
	})
	partner, elsewhere := httptest.NewServer(show), httptest.NewServer(show)
	defer partner.Close()
	defer elsewhere.Close()

	client := &http.Client{Transport: &partnerauth.Transport{
		Source:  oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "my-api-key"}),
		Origins: []string{partner.URL},
	}}
	for _, url := range []string{partner.URL, elsewhere.URL} {
		resp, err := client.Get(url)
		if err != nil {
			log.Fatal(err)
		}
		io.Copy(os.Stdout, resp.Body)
		resp.Body.Close()
	}
	// Output:
	// Authorization: Bearer my-api-key
	// Authorization:
}

// A custom CA and a proxy belong in Base. They serve the login as well.
func ExampleTransport_proxyAndCA() {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"a-token"}`) // a stand-in for NowPost
	}))
	defer api.Close()

	ca := x509.NewCertPool() // yours has what AppendCertsFromPEM reads from a file
	ca.AddCert(api.Certificate())
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = &tls.Config{RootCAs: ca}
	base.Proxy = func(req *http.Request) (*url.URL, error) { // or http.ProxyURL(…); the default is http.ProxyFromEnvironment
		fmt.Println("a proxy for", req.URL.Path)
		return nil, nil // none
	}

	shop := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL}
	client := &http.Client{Transport: &partnerauth.Transport{Source: shop.TokenSource(), Base: base}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(api.URL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output:
	// a proxy for /api/v1/auth/login
	// a proxy for /api/v1/orders
	// 200 OK
}

// Two clients of one account share its Source, and with it the token, and its
// Quota. A caller whose turn would come too late is told so at once.
func ExampleQuota() {
	counted := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		counted++
		io.WriteString(w, `{"token":"a-token"}`) // a stand-in for NowPost
	}))
	defer api.Close()
	account := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL}

	source := account.TokenSource()
	quota := &partnerauth.Quota{Requests: 3} // in any minute, the login included
	shop := &http.Client{Transport: &partnerauth.Transport{Source: source, Limiter: quota}}
	export := &http.Client{Transport: &partnerauth.Transport{
		Source: source, Limiter: quota,
		TracerProvider: noop.NewTracerProvider(), // thousands of calls, of which nobody wants a trace
	}}

	for _, client := range []*http.Client{shop, export, shop} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", api.URL+"/api/v1/orders", nil)
		if err != nil {
			log.Fatal(err)
		}
		resp, err := client.Do(req)
		switch {
		case errors.Is(err, partnerauth.ErrRateLimited):
			fmt.Println("not within 10 seconds")
		case err != nil:
			log.Fatal(err)
		default:
			resp.Body.Close()
			fmt.Println(resp.Status)
		}
	}
	fmt.Println("the partner counted", counted, "requests")
	// Output:
	// 200 OK
	// 200 OK
	// not within 10 seconds
	// the partner counted 3 requests
}

// What went wrong, and what to do about it.
func ExampleAuthError() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized) // a stand-in for NowPost
	}))
	defer api.Close()
	account := partnerauth.NowPost{Email: "shop@example.com", Password: "wrong", BaseURL: api.URL}

	_, err := account.Client().Get(api.URL + "/api/v1/orders")

	var auth *partnerauth.AuthError
	switch {
	case errors.Is(err, partnerauth.ErrCredentials):
		errors.As(err, &auth)
		fmt.Printf("wrong credentials: %s %s was answered %d\n", auth.Provider, auth.Op, auth.StatusCode)
		fmt.Println(auth)
	case errors.As(err, &auth):
		fmt.Println("no token now, ask again after", auth.RetryAfter)
	case errors.Is(err, partnerauth.ErrRateLimited):
		fmt.Println("the quota is used up until after the deadline")
	case err != nil:
		fmt.Println("network:", err)
	}

	var answer *oauth2.RetrieveError // with the status and a few headers of the answer, never its body
	fmt.Println(errors.As(err, &answer))
	// Output:
	// wrong credentials: nowpost login was answered 401
	// partnerauth: nowpost login: 401 Unauthorized: check the e-mail and password
	// true
}

// Spans are named after the template and not after the order.
func ExampleWithURLTemplate() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"a-token"}`) // a stand-in for NowPost
	}))
	defer api.Close()
	account := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL}
	spans := tracetest.NewInMemoryExporter()
	client := &http.Client{Transport: &partnerauth.Transport{
		Source:         account.TokenSource(),
		TracerProvider: trace.NewTracerProvider(trace.WithSyncer(spans)),
	}}

	ctx := partnerauth.WithURLTemplate(context.Background(), "/api/v1/orders/{id}")
	req, err := http.NewRequestWithContext(ctx, "GET", api.URL+"/api/v1/orders/17", nil)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()

	for _, span := range spans.GetSpans() { // in the order in which they ended
		if span.SpanKind.String() == "client" {
			fmt.Println(span.Name)
		}
	}
	// Output:
	// POST /api/v1/auth/login
	// GET /api/v1/orders/{id}
}
