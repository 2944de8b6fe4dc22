// Command bare lists orders with a token that somebody else got: what any Go
// program that uses net/http weighs.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	client := &http.Client{Timeout: time.Minute}
	req, err := http.NewRequest(http.MethodGet, "https://api.nowpost.com/api/v1/orders", nil)
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("NOWPOST_TOKEN"))
	resp, err := client.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
}
