// Package retryable_test shows partnerauth inside hashicorp/go-retryablehttp.
package retryable_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// newClient retries what partnerauth leaves to its caller: 5xx and broken connections, where the request only reads.
// partnerauth is the inner one, so that each try has a fresh token and its own place in the quota, and a 401 or a 429 is
// settled before it counts as a try.
func newClient(account partnerauth.NowPost) *http.Client {
	inner := account.Client()
	outer := retryablehttp.NewClient()
	outer.HTTPClient = inner
	outer.Logger = nil // the default one prints the URLs
	outer.RetryMax = 3
	outer.RetryWaitMin = time.Millisecond // for the example; half a second in earnest
	outer.CheckRetry = worthATry
	outer.ErrorHandler = retryablehttp.PassthroughErrorHandler // when all tries are used up, the last answer itself
	return &http.Client{Transport: reads{retrying: &retryablehttp.RoundTripper{Client: outer}, once: inner.Transport}}
}

// worthATry leaves alone what partnerauth has settled for good.
func worthATry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if _, ok := errors.AsType[*partnerauth.AuthError](err); ok {
		return false, nil // tried enough where trying helps, and backing off
	}
	if errors.Is(err, partnerauth.ErrRateLimited) || errors.Is(err, partnerauth.ErrInsecureURL) {
		return false, nil
	}
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		return false, nil // tried again already, or the pause is too long to wait for
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}

// reads sends what changes something once: a 502 may hide an order that was created.
type reads struct{ retrying, once http.RoundTripper }

func (r reads) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		return r.retrying.RoundTrip(req)
	}
	return r.once.RoundTrip(req)
}

func Example() {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	client := newClient(partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL})
	partner.Inject(partnertest.Fault{Path: "/api/v1/orders", Status: http.StatusBadGateway, Times: 2})

	resp, err := client.Get(partner.URL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	fmt.Println(partner.Count("GET", "/api/v1/orders"), "tries with", partner.Logins(), "login")
	// Output:
	// 200 OK
	// 3 tries with 1 login
}

func TestTries(t *testing.T) {
	const orders = "/api/v1/orders"
	for _, tc := range []struct {
		name, method, password string
		fault                  partnertest.Fault
		status, tries, logins  int
	}{
		{name: "an outage that lasts", method: "GET", fault: partnertest.Fault{Status: 502}, status: 502, tries: 4, logins: 1},
		{name: "a reset", method: "GET", fault: partnertest.Fault{Reset: true, Times: 1}, status: 200, tries: 2, logins: 1},
		{name: "a creation", method: "POST", fault: partnertest.Fault{Status: 502}, status: 502, tries: 1, logins: 1},
		{name: "a refusal", method: "GET", fault: partnertest.Fault{Status: 403}, status: 403, tries: 1, logins: 1},
		{name: "a wrong password", method: "GET", password: "wrong", tries: 0, logins: 0},
		{name: "too many requests for long", method: "GET", fault: partnertest.Fault{Status: 429, Header: http.Header{"Retry-After": {"600"}}}, status: 429, tries: 1, logins: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			partner := partnertest.StartNowPost(partnertest.Options{})
			t.Cleanup(partner.Close)
			if tc.password == "" {
				tc.password = partnertest.Password
			}
			client := newClient(partnerauth.NowPost{Email: partnertest.Email, Password: tc.password, BaseURL: partner.URL})
			tc.fault.Path = orders
			if tc.fault.Status != 0 || tc.fault.Reset {
				partner.Inject(tc.fault)
			}
			req, err := http.NewRequestWithContext(t.Context(), tc.method, partner.URL+orders, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if tc.status == 0 {
				if !errors.Is(err, partnerauth.ErrCredentials) {
					t.Errorf("got %v, want ErrCredentials", err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != tc.status {
					t.Errorf("got %s, reading it %v; want %d", resp.Status, err, tc.status)
				}
				resp.Body.Close()
			}
			if n := partner.Count(tc.method, orders); n != tc.tries {
				t.Errorf("got %d tries, want %d", n, tc.tries)
			}
			if n := partner.Logins(); n != tc.logins {
				t.Errorf("got %d logins, want %d", n, tc.logins)
			}
		})
	}
}
