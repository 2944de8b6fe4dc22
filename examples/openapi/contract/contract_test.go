package contract_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/contract"
)

// reports collects what a check reports in place of failing the test.
type reports struct {
	testing.TB
	texts []string
}

func (r *reports) Errorf(format string, args ...any) {
	r.texts = append(r.texts, fmt.Sprintf(format, args...))
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestCheck(t *testing.T) {
	const (
		order  = `{"partner_order_id":"A","pudo_point_id":"p","customer":{"name":"J","email":"e","phone":"1"},"items":[{"name":"K","qty":1,"price":1,"weight_kg":1}]}`
		answer = `{"status":"success","data":{"id":"1","status":"created"}}`
	)
	for _, tc := range []struct {
		name, method, url, auth, body string
		status                        int
		answer                        string
		want                          string // in the only report; "": none
	}{
		{"all well", "POST", "/api/v1/orders", "Bearer x", order, 201, answer, ""},
		{"more than is documented", "GET", "/api/v1/orders/1", "Bearer x", "", 200, `{"data":{"id":"1","status":"created","colour":"red"},"x":1}`, ""},
		{"a proxy's page", "GET", "/api/v1/orders/1", "Bearer x", "", 502, "<p>", ""},
		{"unknown path", "GET", "/api/v2/orders", "Bearer x", "", 404, "", "not in the document"},
		{"unknown method", "DELETE", "/api/v1/orders/1", "Bearer x", "", 404, "", "not in the document"},
		{"no token", "GET", "/api/v1/orders/1", "", "", 200, answer, "0 Authorization headers"},
		{"wrong scheme", "GET", "/api/v1/orders/1", "Basic x", "", 200, answer, "not bearer"},
		{"bad parameter", "GET", "/api/v1/orders?page=0", "Bearer x", "", 400, "", "page"},
		{"bad body", "POST", "/api/v1/orders", "Bearer x", strings.Replace(order, `"qty":1`, `"qty":"1"`, 1), 400, "", "qty"},
		{"undocumented status", "GET", "/api/v1/orders/1", "Bearer x", "", 418, "", "answer 418"},
		{"answer without a field", "GET", "/api/v1/orders/1", "Bearer x", "", 200, `{"data":{"status":"created"}}`, `"id" is missing`},
		{"answer of another type", "GET", "/api/v1/orders/1", "Bearer x", "", 200, `{"data":{"id":1,"status":"created"}}`, "must be a string"},
		{"answer with a new status", "GET", "/api/v1/orders/1", "Bearer x", "", 200, `{"data":{"id":"1","status":"lost"}}`, "allowed values"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc, err := openapi.NowPost()
			if err != nil {
				t.Fatal(err)
			}
			got := &reports{TB: t}
			var received string
			check := contract.Check(got, doc, roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if req.Body != nil {
					body, _ := io.ReadAll(req.Body)
					received = string(body)
				}
				return &http.Response{
					StatusCode: tc.status, Request: req,
					Header: http.Header{"Content-Type": {"application/json"}},
					Body:   io.NopCloser(strings.NewReader(tc.answer)),
				}, nil
			}))
			req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://127.0.0.1"+tc.url, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			resp, err := check.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(resp.Body); received != tc.body || string(body) != tc.answer {
				t.Errorf("got %q sent and %q answered, want what went in: %q, %q", received, body, tc.body, tc.answer)
			}
			switch {
			case tc.want == "" && len(got.texts) > 0:
				t.Errorf("got reports %q, want none", got.texts)
			case tc.want != "" && (len(got.texts) != 1 || !strings.Contains(got.texts[0], tc.want)):
				t.Errorf("got reports %q, want one with %q", got.texts, tc.want)
			}
		})
	}
}
