package partnertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
	"golang.org/x/oauth2"
)

const order = `{"partner_order_id":"SHOP-1","pudo_point_id":"pudo_12345","customer":{"name":"Jane Doe"},` +
	`"items":[{"name":"Kettle","qty":1,"price":8200,"weight_kg":1.4}]}`

// The code under test gets an http.Client and a URL, as it does with the real
// account. Here it sends one order twice, which the stand-in reveals.
func ExampleNowPostInMemory() {
	partner := partnertest.NowPostInMemory(partnertest.Options{})
	client := partner.Account().Client()

	for range 2 {
		resp, err := client.Post(partner.URL+"/api/v1/orders", "application/json", strings.NewReader(order))
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println(resp.Status)
		partner.RevokeAll()
	}
	fmt.Println("created:", partner.Created("SHOP-1"))
	fmt.Println(partner.Logins(), "logins,", partner.Status(401), "401")
	// Output:
	// 201 Created
	// 201 Created
	// created: 2
	// 2 logins, 1 401
}

// With a Transport of your own, make the stand-in its Base.
func ExampleNdovuInMemory() {
	partner := partnertest.NdovuInMemory(partnertest.Options{ShortName: "acme"})
	client := &http.Client{Transport: &partnerauth.Transport{
		Source: partner.Account().TokenSource(),
		Base:   partner,
	}}
	resp, err := client.Get(partner.URL + "/api/v3/partners/acme/plans?currency=KES")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// The answer to an order breaks off, although the order was created.
func ExampleStandIn_Inject() {
	partner := partnertest.NowPostInMemory(partnertest.Options{})
	client := partner.Account().Client()

	partner.Inject(partnertest.Fault{Method: "POST", Path: "/api/v1/orders", Times: 1, Cut: true})
	resp, err := client.Post(partner.URL+"/api/v1/orders", "application/json", strings.NewReader(order))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	fmt.Println(resp.Status, err)
	fmt.Println("created:", partner.Created("SHOP-1"))
	// Output:
	// 201 Created unexpected EOF
	// created: 1
}

// A partner of one's own: its stand-in gets the path and the check of the
// sign-in, its answer, the header of the token, and the API behind it. The code
// under test gets the same Provider as in production, with another URL and Base.
func ExampleProviderInMemory() {
	api := http.NewServeMux()
	api.HandleFunc("GET /parcels/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "parcel %s is on its way", r.PathValue("id"))
	})
	partner := partnertest.ProviderInMemory(partnertest.Options{
		SignInPath: "/session",
		Accepts: func(r *http.Request) bool {
			return r.Method == "POST" && r.FormValue("user") == "shop" && r.FormValue("key") == "k3y"
		},
		Answer: func(w http.ResponseWriter, g partnertest.Grant) {
			fmt.Fprintf(w, `{"session":%q}`, g.Token)
		},
		TokenHeader: "X-Acme-Token",
		Handler:     api,
	})
	client := acme(partner.URL, partner).Client()

	for range 2 {
		resp, err := client.Get(partner.URL + "/parcels/7")
		if err != nil {
			log.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(resp.StatusCode, string(body))
		partner.RevokeAll()
	}
	fmt.Println(partner.Logins(), "logins")
	// Output:
	// 200 parcel 7 is on its way
	// 200 parcel 7 is on its way
	// 2 logins
}

// acme is what production has, with its own URL and a Base of nil.
func acme(baseURL string, base http.RoundTripper) partnerauth.Provider {
	return partnerauth.Provider{
		Name:    "acme",
		BaseURL: baseURL,
		Base:    base,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			form := strings.NewReader("user=shop&key=k3y")
			req, err := http.NewRequestWithContext(ctx, "POST", baseURL+"/session", form)
			if err == nil {
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			return req, err
		},
		ReadToken: func(_ http.Header, body []byte) (*oauth2.Token, error) {
			var answer struct{ Session string }
			if json.Unmarshal(body, &answer) != nil {
				return nil, errors.New("the answer is not JSON")
			}
			return &oauth2.Token{AccessToken: answer.Session}, nil
		},
		Authorize: func(req *http.Request, token *oauth2.Token) error {
			req.Header.Set("X-Acme-Token", token.AccessToken)
			return nil
		},
	}
}
