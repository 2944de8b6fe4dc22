package provider_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/provider"
	"github.com/partnerauth/partnerauth/partnertest"
)

// acme describes Acme to its stand-in.
var acme = partnertest.Options{
	SignInPath: "/session",
	Accepts: func(r *http.Request) bool {
		var got struct{ User, Key string }
		return json.NewDecoder(r.Body).Decode(&got) == nil && got.User == "shop" && got.Key == "k3y"
	},
	Answer: func(w http.ResponseWriter, g partnertest.Grant) {
		fmt.Fprintf(w, `{"session":%q,"ttl":%d}`, g.Token, int(g.Lifetime.Seconds()))
	},
	TokenHeader: "X-Acme-Token",
	Lifetime:    10 * time.Minute,
}

// partners has a row for each partner: everything below holds for both.
var partners = []struct {
	name    string
	options partnertest.Options
	account func(partner *partnertest.StandIn, secret string) partnerauth.Provider
	secret  string
	spans   []string // of a first call, sorted
}{{
	name: "acme", options: acme, secret: "k3y",
	account: func(partner *partnertest.StandIn, secret string) partnerauth.Provider {
		return provider.Acme(partner.URL, "shop", secret)
	},
	spans: []string{"GET", "POST /session", "acme call", "partnerauth.token.fetch"},
}, {
	name: "globex", options: partnertest.Options{Lifetime: 10 * time.Minute}, secret: partnertest.ClientSecret,
	account: func(partner *partnertest.StandIn, secret string) partnerauth.Provider {
		return provider.Globex(partner.URL, partner.URL+"/oauth/token", partnertest.ClientID, secret)
	},
	spans: []string{"GET", "POST", "globex call", "partnerauth.token.fetch"},
}}

// get makes a call and returns its status, 0 if there is none.
func get(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// The client recovers from a revoked token without its caller noticing.
func ExampleAcme() {
	partner := partnertest.ProviderInMemory(acme)
	account := provider.Acme(partner.URL, "shop", "k3y")
	account.Base = partner // a real account has none
	client := account.Client()

	for range 2 {
		status, err := get(context.Background(), client, partner.URL+"/orders")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(status)
		partner.RevokeAll()
	}
	fmt.Println(partner.Logins(), "logins,", partner.Status(401), "answer 401")
	// Output:
	// 200
	// 200
	// 2 logins, 1 answer 401
}

// Twenty callers that need a token at once share one login.
func ExampleGlobex() {
	partner := partnertest.ProviderInMemory(partnertest.Options{})
	account := provider.Globex(partner.URL, partner.URL+"/oauth/token", partnertest.ClientID, partnertest.ClientSecret)
	account.Base = partner // a real account has none
	client := account.Client()

	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if status, err := get(context.Background(), client, partner.URL+"/orders"); status != 200 {
				log.Fatal(status, err)
			}
		})
	}
	all.Wait()
	fmt.Println(partner.Count("GET", "/orders"), "calls,", partner.Logins(), "login")
	// Output: 20 calls, 1 login
}

// inBubble runs a test for each partner, with virtual time.
func inBubble(t *testing.T, test func(t *testing.T, partner *partnertest.StandIn, account partnerauth.Provider)) {
	for _, p := range partners {
		t.Run(p.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := p.options
				o.Latency = 100 * time.Millisecond
				partner := partnertest.ProviderInMemory(o)
				t.Cleanup(partner.Drain)
				account := p.account(partner, p.secret)
				account.Base = partner
				test(t, partner, account)
			})
		})
	}
}

// TestRevoked revokes the token of 20 callers. They share the login before and
// the one after.
func TestRevoked(t *testing.T) {
	inBubble(t, func(t *testing.T, partner *partnertest.StandIn, account partnerauth.Provider) {
		client := account.Client()
		for range 2 {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if status, err := get(t.Context(), client, partner.URL+"/orders"); status != 200 {
						t.Errorf("got %d and error %v, want 200", status, err)
					}
				})
			}
			all.Wait()
			partner.RevokeAll()
		}
		if got := partner.Logins(); got != 2 {
			t.Errorf("got %d logins, want 2", got)
		}
		if got := partner.Status(401); got != 20 {
			t.Errorf("got %d answers 401, want 20", got)
		}
	})
}

// TestDay makes a call a minute. Tokens are renewed before they end, and no call
// waits for a login but the first.
func TestDay(t *testing.T) {
	inBubble(t, func(t *testing.T, partner *partnertest.StandIn, account partnerauth.Provider) {
		client := account.Client()
		for i := range 24 * 60 {
			began := time.Now()
			if status, err := get(t.Context(), client, partner.URL+"/orders"); status != 200 {
				t.Fatalf("after %d minutes: got %d and error %v, want 200", i, status, err)
			}
			if took := time.Since(began); i > 0 && took > 100*time.Millisecond {
				t.Errorf("after %d minutes: the call took %v, want 100ms", i, took)
			}
			time.Sleep(time.Minute)
		}
		if got := partner.Logins(); got < 24*6 || got > 24*8 {
			t.Errorf("got %d logins with tokens of ten minutes, want 144 to 192", got)
		}
		if got := partner.Status(401); got != 0 {
			t.Errorf("got %d answers 401, want none", got)
		}
	})
}

// TestSecret signs in with a wrong secret: one login, an error that says what is
// wrong, and no secret in its text.
func TestSecret(t *testing.T) {
	for _, p := range partners {
		t.Run(p.name, func(t *testing.T) {
			partner := partnertest.ProviderInMemory(p.options)
			account := p.account(partner, "wrong-secret")
			account.Base = partner
			client := account.Client()
			for range 5 {
				_, err := get(t.Context(), client, partner.URL+"/orders")
				if !errors.Is(err, partnerauth.ErrCredentials) || !strings.Contains(err.Error(), p.name+" login") {
					t.Errorf("got error %v, want ErrCredentials that names the partner", err)
				}
				if text := fmt.Sprintf("%v %+v %#v", err, account, account.TokenSource()); strings.Contains(text, "wrong-secret") {
					t.Errorf("the secret is in %s", text)
				}
			}
			if got := partner.Count("", ""); got != 1 {
				t.Errorf("got %d requests, want 1 login", got)
			}
		})
	}
}

// TestSpans looks at the trace of a first call.
func TestSpans(t *testing.T) {
	for _, p := range partners {
		t.Run(p.name, func(t *testing.T) {
			partner := partnertest.Provider(t, p.options)
			account := p.account(partner, p.secret)
			spans := tracetest.NewSpanRecorder()
			client := &http.Client{Transport: &partnerauth.Transport{
				Source: account.TokenSource(), Base: partner,
				TracerProvider: trace.NewTracerProvider(trace.WithSpanProcessor(spans)),
			}}
			if status, err := get(t.Context(), client, partner.URL+"/orders"); status != 200 {
				t.Fatalf("got %d and error %v, want 200", status, err)
			}
			var names []string
			for _, s := range spans.Ended() {
				names = append(names, s.Name())
			}
			slices.Sort(names)
			if !slices.Equal(names, p.spans) {
				t.Errorf("got spans %q, want %q", names, p.spans)
			}
		})
	}
}
