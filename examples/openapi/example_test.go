package openapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
	"github.com/partnerauth/partnerauth/examples/openapi/urltemplate"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// A generated client takes the http.Client of an account. A typed body is sent again when the token was revoked.
func Example() {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}

	api, err := nowpost.NewClientWithResponses(account.BaseURL, nowpost.WithHTTPClient(account.Client()))
	if err != nil {
		log.Fatal(err)
	}
	order := nowpost.NewOrder{
		PartnerOrderID: "SHOP-1",
		PudoPointID:    "pudo_12345",
		Customer:       nowpost.Customer{Name: "Jane Doe", Email: "jane@example.com", Phone: "+2340000000000"},
		Items:          []nowpost.Item{{Name: "Kettle", Qty: 1, Price: 8200, WeightKg: 1.4}},
	}
	for _, id := range []string{"SHOP-1", "SHOP-2"} {
		order.PartnerOrderID = id
		resp, err := api.CreateOrderWithResponse(context.Background(), order)
		if err != nil {
			log.Fatal(err)
		}
		if resp.JSON2XX == nil { // a refusal is no error: look at the status
			log.Fatal(resp.Status())
		}
		fmt.Println(id, resp.JSON2XX.Data.Status, *resp.JSON2XX.Data.TrackingCode)
		partner.RevokeAll()
	}
	fmt.Println(partner.Logins(), "logins,", partner.Status(http.StatusUnauthorized), "answer 401")
	// Output:
	// SHOP-1 created NP00000001
	// SHOP-2 created NP00000002
	// 2 logins, 1 answer 401
}

// With a reader of its own as the body, a request cannot be sent again: after a revocation the 401 comes back. A request
// editor that sets GetBody is the remedy, wherever the body can be read anew.
func Example_streamingBody() {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	api, err := nowpost.NewClientWithResponses(account.BaseURL, nowpost.WithHTTPClient(account.Client()))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()

	path := filepath.Join(os.TempDir(), fmt.Sprintf("order-%d.json", os.Getpid()))
	body, err := json.Marshal(newOrder("SHOP-1"))
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		log.Fatal(err)
	}
	defer os.Remove(path)
	send := func(editors ...nowpost.RequestEditorFn) {
		file, err := os.Open(path)
		if err != nil {
			log.Fatal(err)
		}
		resp, err := api.CreateOrderWithBodyWithResponse(ctx, "application/json", file, editors...)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Status())
	}

	send()
	partner.RevokeAll()
	send() // the file has been read to its end
	partner.RevokeAll()
	send(func(_ context.Context, req *http.Request) error {
		req.GetBody = func() (io.ReadCloser, error) { return os.Open(path) }
		return nil
	})
	// Output:
	// 201 Created
	// 401 Unauthorized
	// 201 Created
}

// What was read into memory can be read again as it is: net/http sets GetBody for a bytes.Reader.
func Example_bodyInMemory() {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	api, err := nowpost.NewClientWithResponses(account.BaseURL, nowpost.WithHTTPClient(account.Client()))
	if err != nil {
		log.Fatal(err)
	}
	body, err := json.Marshal(newOrder("SHOP-1"))
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		resp, err := api.CreateOrderWithBodyWithResponse(context.Background(), "application/json", bytes.NewReader(body))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Status())
		partner.RevokeAll()
	}
	// Output:
	// 201 Created
	// 201 Created
}

// Spans are named after the document's paths when the document goes around the Transport.
func Example_spanNames() {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	spans := tracetest.NewInMemoryExporter()

	document, err := openapi.NowPost()
	if err != nil {
		log.Fatal(err)
	}
	named, err := urltemplate.New(document, account.BaseURL, &partnerauth.Transport{
		Source:         account.TokenSource(),
		TracerProvider: trace.NewTracerProvider(trace.WithSyncer(spans)),
	})
	if err != nil {
		log.Fatal(err)
	}
	api, err := nowpost.NewClientWithResponses(account.BaseURL, nowpost.WithHTTPClient(&http.Client{Transport: named}))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := api.GetOrderWithResponse(context.Background(), "ord_000017"); err != nil {
		log.Fatal(err)
	}
	for _, s := range spans.GetSpans() {
		fmt.Println(s.SpanKind, s.Name)
	}
	// Output:
	// client POST /api/v1/auth/login
	// internal partnerauth.token.fetch
	// client GET /api/v1/orders/{id}
	// internal nowpost call
}
