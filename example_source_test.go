package partnerauth_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A vault is your own token source. With TokenContext it can use the caller's context,
// and with Invalidate it learns that the partner rejected a token: the call is then
// retried once.
type vault struct {
	mu      sync.Mutex
	version int
}

func (v *vault) Token() (*oauth2.Token, error) { return v.TokenContext(context.Background()) }

func (v *vault) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current(), nil
}

func (v *vault) Invalidate(rejected *oauth2.Token) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if rejected.AccessToken == v.current().AccessToken {
		v.version++
	}
}

func (v *vault) current() *oauth2.Token {
	return &oauth2.Token{AccessToken: fmt.Sprint("key-", v.version)}
}

func ExampleTransport_ownTokenSource() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in
		fmt.Println("the partner gets", r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") == "Bearer key-0" {
			w.WriteHeader(http.StatusUnauthorized) // revoked
		}
	}))
	defer api.Close()

	client := &http.Client{Transport: &partnerauth.Transport{
		Source:  &vault{},
		Origins: []string{api.URL}, // the hosts that may see the token
	}}
	resp, err := client.Get(api.URL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println("the caller gets", resp.Status)
	// Output:
	// the partner gets Bearer key-0
	// the partner gets Bearer key-1
	// the caller gets 200 OK
}
