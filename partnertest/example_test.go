package partnertest_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
)

const order = `{"partner_order_id":"SHOP-1","pudo_point_id":"pudo_12345","customer":{"name":"Jane Doe"},` +
	`"items":[{"name":"Kettle","qty":1,"price":8200,"weight_kg":1.4}]}`

// The code under test gets an http.Client and a URL, as it does from the real
// account. Here it sends one order twice, which a test would find out.
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

// With a Transport of your own the stand-in is its Base.
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

// The answer to the first order is lost on its way; the order was created.
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
