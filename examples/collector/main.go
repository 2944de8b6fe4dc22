// Command collector sends the spans and metrics of a few calls to an
// OpenTelemetry collector, by OTLP over HTTP:
//
//	OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 go run -C examples ./collector
//
// OpenTelemetry's own variables say where they go and in whose name, such as
// OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER;
// OTEL_TRACES_EXPORTER=none or OTEL_METRICS_EXPORTER=none leaves one of them
// out. The partner is a stand-in in the same process, or NowPost itself where
// NOWPOST_EMAIL and NOWPOST_PASSWORD are set: then one request is made, a GET.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

const (
	ordersPath = "/api/v1/orders"
	orderPath  = "/api/v1/orders/{id}"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	flush, err := export(ctx)
	if err != nil {
		return err
	}
	defer func() {
		sent := flush(ctx)
		if err = errors.Join(err, sent); sent == nil {
			fmt.Fprintln(stdout, "sent to the collector")
		}
	}()

	if os.Getenv("NOWPOST_EMAIL") != "" {
		shop, err := partnerauth.NowPostFromEnv()
		if err != nil {
			return err
		}
		return call(ctx, stdout, shop.Client(), http.MethodGet, shop.BaseURL, ordersPath, ordersPath, "")
	}
	return standIn(ctx, stdout)
}

// standIn makes calls that leave something to look at: a login, a token that
// was revoked between two calls, and an order that is not there.
func standIn(ctx context.Context, stdout io.Writer) error {
	partner := partnertest.StartNowPost(partnertest.Options{Latency: 20 * time.Millisecond})
	defer partner.Close()
	shop := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	client := shop.Client() // takes the providers that export has set

	const order = `{"partner_order_id":"collector-1","pudo_point_id":"PUDO-7",` +
		`"customer":{"name":"Asha"},"items":[{"name":"Kettle","qty":1,"price":24.5,"weight_kg":1.2}]}`
	if err := call(ctx, stdout, client, http.MethodPost, partner.URL, ordersPath, ordersPath, order); err != nil {
		return err
	}
	partner.RevokeAll()
	if err := call(ctx, stdout, client, http.MethodGet, partner.URL, ordersPath, ordersPath, ""); err != nil {
		return err
	}
	return call(ctx, stdout, client, http.MethodGet, partner.URL, ordersPath+"/nobody's", orderPath, "")
}

func call(ctx context.Context, stdout io.Writer, client *http.Client, method, baseURL, path, template, body string) error {
	ctx = partnerauth.WithURLTemplate(ctx, template)
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(baseURL, "/")+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	fmt.Fprintln(stdout, method, template, resp.StatusCode)
	return nil
}
