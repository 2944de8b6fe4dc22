package partnertest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
	"golang.org/x/oauth2"
)

// renewing is a Provider with refresh tokens and its own scheme.
func renewing(partner *partnertest.StandIn) partnerauth.Provider {
	post := func(ctx context.Context, path string, form url.Values) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, "POST", partner.URL+path, strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	return partnerauth.Provider{
		Name: "initech", BaseURL: partner.URL, Base: partner,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			return post(ctx, "/in", url.Values{
				"grant_type": {"client_credentials"}, "client_id": {"me"}, "client_secret": {"it's"},
			})
		},
		Refresh: func(ctx context.Context, current *oauth2.Token) (*http.Request, error) {
			return post(ctx, "/again", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {current.RefreshToken}})
		},
		Authorize: func(req *http.Request, token *oauth2.Token) error {
			req.Header.Set("X-Auth", "Key "+token.AccessToken)
			return nil
		},
		ReadToken: func(_ http.Header, body []byte) (*oauth2.Token, error) {
			token := &oauth2.Token{}
			_, err := fmt.Sscanf(string(body), "%s %s %d", &token.AccessToken, &token.RefreshToken, &token.ExpiresIn)
			return token, err
		},
	}
}

// TestProvider gives a stand-in every option that a Provider has, and makes calls
// for an hour. Tokens are renewed before they end, and replaced when they are
// revoked, by refresh. A refresh that is refused is followed by a sign-in.
func TestProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := partnertest.ProviderInMemory(partnertest.Options{
			URL: "https://api.initech.test", SignInPath: "/in", RefreshPath: "/again", ClientID: "me", ClientSecret: "it's",
			TokenHeader: "X-Auth", TokenType: "Key", Lifetime: 10 * time.Minute, Limit: 30, Window: 20 * time.Second,
			Answer: func(w http.ResponseWriter, g partnertest.Grant) {
				fmt.Fprintln(w, g.Token, g.RefreshToken, g.Lifetime.Seconds())
			},
		})
		t.Cleanup(partner.Drain)
		client := renewing(partner).Client()
		orders := func() {
			t.Helper()
			if status, answer := call(t, client, "GET", partner.URL+"/orders", ""); status != 200 || answer != "{}" {
				t.Errorf("got %d %s, want 200 {}", status, answer)
			}
		}
		for range 60 {
			orders()
			time.Sleep(time.Minute)
		}
		if got := partner.Refreshes(); partner.Logins() != 1 || got < 6 || got > 8 {
			t.Errorf("got %d sign-ins and %d refreshes, want 1 and 6 to 8", partner.Logins(), got)
		}
		before := partner.Refreshes()
		partner.RevokeAll()
		orders()
		if got := partner.Refreshes(); partner.Logins() != 1 || got != before+1 || partner.Status(401) != 1 {
			t.Errorf("got %d sign-ins, %d refreshes and %d answers 401, want 1, %d and 1", partner.Logins(), got, partner.Status(401), before+1)
		}
		partner.Inject(partnertest.Fault{Path: "/again", Status: 400, Body: `{"error":"invalid_grant"}`})
		partner.RevokeAll()
		orders()
		if partner.Logins() != 2 {
			t.Errorf("got %d sign-ins, want another one after a refresh that was refused", partner.Logins())
		}
		for range 40 {
			orders()
		}
		if got := partner.Peak(); got != 30 { // its answers announce what is left
			t.Errorf("got %d requests in 20 s, want 30", got)
		}
	})
}

// TestProviderOnSocket uses the defaults, over https.
func TestProviderOnSocket(t *testing.T) {
	partner := partnertest.Provider(t, partnertest.Options{TLS: true})
	account := partnerauth.Provider{
		Name: "initech", BaseURL: partner.URL, Base: partner,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			req, err := http.NewRequestWithContext(ctx, "POST", partner.URL+"/oauth/token", strings.NewReader("grant_type=client_credentials"))
			if err == nil {
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				req.SetBasicAuth(partnertest.ClientID, partnertest.ClientSecret)
			}
			return req, err
		},
	}
	client := account.Client()
	for range 2 {
		if status, _ := call(t, client, "GET", partner.URL+"/orders", ""); status != 200 {
			t.Errorf("got %d, want 200", status)
		}
	}
	if partner.Logins() != 1 || !strings.HasPrefix(partner.URL, "https://127.0.0.1:") {
		t.Errorf("got %d sign-ins at %s, want 1 at https on loopback", partner.Logins(), partner.URL)
	}
}
