// Command partnerauth lists orders with package partnerauth.
package main

import (
	"fmt"
	"log"
	"time"

	"github.com/partnerauth/partnerauth"
)

func main() {
	shop, err := partnerauth.NowPostFromEnv()
	if err != nil {
		log.Fatal(err)
	}
	client := shop.Client()
	client.Timeout = time.Minute
	resp, err := client.Get(shop.BaseURL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
}
