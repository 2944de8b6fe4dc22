package partnerauth_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/partnerauth/partnerauth"
)

// An inMemory partner is a Base that answers by a handler.
type inMemory struct{ http.Handler }

func (m inMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, req)
	return w.Result(), nil
}

// A fake Base tests your own program without a server. Module partnertest has
// stand-ins for both partners that fail on demand.
func ExampleTransport_fakeBase() {
	partner := http.NewServeMux()
	partner.HandleFunc("POST /api/v1/auth/login", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"fake"}`)
	})
	partner.HandleFunc("GET /api/v1/orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s, asked for with %s", r.PathValue("id"), r.Header.Get("Authorization"))
	})

	client := partnerauth.NowPost{Email: "test@example.com", Password: "test", Base: inMemory{partner}}.Client()
	resp, err := client.Get(partnerauth.NowPostBaseURL + "/api/v1/orders/17")
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(os.Stdout, resp.Body)
	// Output: 17, asked for with Bearer fake
}
