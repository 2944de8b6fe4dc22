package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// SignIn at start-up finds wrong credentials before the first call does. As a readiness
// probe it costs nothing while there is a token.
func ExampleTransport_SignIn() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in for NowPost
		body, _ := io.ReadAll(r.Body)
		if string(body) != `{"email":"shop@example.com","password":"correct horse"}` {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, `{"token":"a-token"}`)
	}))
	defer api.Close()

	for _, password := range []string{"wrong", "correct horse"} {
		shop := partnerauth.NowPost{Email: "shop@example.com", Password: password, BaseURL: api.URL}
		transport := &partnerauth.Transport{Source: shop.TokenSource()}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := transport.SignIn(ctx); err != nil {
			fmt.Println("not ready:", err)
			continue
		}
		fmt.Println("ready")
	}
	// Output:
	// not ready: partnerauth: nowpost login: 401 Unauthorized: check the e-mail and password
	// ready
}

// Calls of low priority leave a tenth of the quota to others. Here one place of ten is
// left: a batch has to wait for the next minute, an interactive call does not.
func ExampleWithLowPriority() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in for NowPost
		io.WriteString(w, `{"token":"a-token"}`)
	}))
	defer api.Close()
	shop := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL}
	client := &http.Client{Transport: &partnerauth.Transport{
		Source:  shop.TokenSource(),
		Limiter: &partnerauth.Quota{Requests: 10},
	}}
	get := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", api.URL+"/api/v1/orders", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}

	for range 8 { // nine requests with the login
		if err := get(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
	err := get(partnerauth.WithLowPriority(context.Background()))
	fmt.Println("batch refused:", errors.Is(err, partnerauth.ErrRateLimited))
	err = get(context.Background())
	fmt.Println("interactive:", err)
	// Output:
	// batch refused: true
	// interactive: <nil>
}

// A call whose turn would come after its deadline is refused at once, and says how long
// it would have waited.
func ExampleRateLimitError() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in for NowPost
		io.WriteString(w, `{"token":"a-token"}`)
	}))
	defer api.Close()
	shop := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL}
	client := &http.Client{
		Transport: &partnerauth.Transport{
			Source:  shop.TokenSource(),
			Limiter: &partnerauth.Quota{Requests: 2}, // one of which is the login
		},
		Timeout: 10 * time.Second,
	}

	for range 2 {
		resp, err := client.Get(api.URL + "/api/v1/orders")
		var limited *partnerauth.RateLimitError
		switch {
		case errors.As(err, &limited):
			fmt.Println("retry in about", limited.RetryAfter().Round(time.Minute))
		case err != nil:
			log.Fatal(err)
		default:
			resp.Body.Close()
			fmt.Println(resp.Status)
		}
	}
	// Output:
	// 200 OK
	// retry in about 1m0s
}
