package urltemplate_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
	ogen "github.com/partnerauth/partnerauth/examples/openapi/ogen/nowpost"
	"github.com/partnerauth/partnerauth/examples/openapi/urltemplate"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

// traced starts a partner below a path, as behind a gateway, and returns its URL, a client that names its requests after
// the document, and what tells the CLIENT spans of API calls so far: their names, and their url.template.
func traced(t *testing.T, prefix string) (baseURL string, client *http.Client, spans func() (names, templates []string)) {
	t.Helper()
	partner := partnertest.StartNowPost(partnertest.Options{})
	t.Cleanup(partner.Close)
	behind, err := url.Parse(partner.URL)
	if err != nil {
		t.Fatal(err)
	}
	gateway := httptest.NewServer(http.StripPrefix(prefix, httputil.NewSingleHostReverseProxy(behind)))
	t.Cleanup(gateway.Close)
	baseURL = gateway.URL + prefix

	document, err := openapi.NowPost()
	if err != nil {
		t.Fatal(err)
	}
	recorder := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(recorder))
	named, err := urltemplate.New(document, baseURL, &partnerauth.Transport{
		Source:         partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: baseURL}.TokenSource(),
		TracerProvider: provider,
	})
	if err != nil {
		t.Fatal(err)
	}
	return baseURL, &http.Client{Transport: named}, func() (names, templates []string) {
		for _, s := range recorder.GetSpans() {
			if s.SpanKind != trace.SpanKindClient || s.Name == "POST /api/v1/auth/login" {
				continue
			}
			names = append(names, s.Name)
			for _, a := range s.Attributes {
				if a.Key == "url.template" {
					templates = append(templates, a.Value.AsString())
				}
			}
		}
		return names, templates
	}
}

func want(t *testing.T, spans func() ([]string, []string), wanted ...string) {
	t.Helper()
	names, templates := spans()
	if !slices.Equal(names, wanted) {
		t.Errorf("got spans %q, want %q", names, wanted)
	}
	for i, name := range wanted {
		_, path, _ := strings.Cut(name, " ")
		if i < len(templates) && templates[i] == path {
			continue
		}
		t.Errorf("got templates %q, want one for each of %q", templates, wanted)
		break
	}
}

func TestSpansOfOapiCodegen(t *testing.T) {
	for _, prefix := range []string{"", "/partners/nowpost"} {
		t.Run("under "+prefix+"/", func(t *testing.T) {
			baseURL, client, spans := traced(t, prefix)
			api, err := nowpost.NewClientWithResponses(baseURL, nowpost.WithHTTPClient(client))
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			for _, call := range []func() error{
				func() error { _, err := api.GetOrderWithResponse(ctx, "ord_000017"); return err },
				func() error { _, err := api.GetOrderWithResponse(ctx, "a/b c"); return err },
				func() error { _, err := api.CancelOrderWithResponse(ctx, "NP00000001"); return err },
				func() error {
					_, err := api.ListOrdersWithResponse(ctx, &nowpost.ListOrdersParams{Search: new("x")})
					return err
				},
				func() error { _, err := api.CreateAPIKeyWithResponse(ctx, nowpost.NewAPIKey{Name: "k"}); return err },
			} {
				if err := call(); err != nil {
					t.Fatal(err)
				}
			}
			want(t, spans,
				"GET "+prefix+"/api/v1/orders/{id}",
				"GET "+prefix+"/api/v1/orders/{id}",
				"POST "+prefix+"/api/v1/orders/{id}/cancel",
				"GET "+prefix+"/api/v1/orders",
				"POST "+prefix+"/partner/api-keys",
			)
		})
	}
}

func TestSpansOfOgen(t *testing.T) {
	baseURL, client, spans := traced(t, "/partners/nowpost")
	api, err := ogen.NewClient(baseURL, bearer{}, ogen.WithClient(client))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.GetOrder(t.Context(), ogen.GetOrderParams{ID: "ord_000017"}); err != nil {
		t.Fatal(err)
	}
	want(t, spans, "GET /partners/nowpost/api/v1/orders/{id}")
}

// bearer leaves the token to partnerauth.
type bearer struct{}

func (bearer) Bearer(context.Context, ogen.OperationName) (ogen.Bearer, error) {
	return ogen.Bearer{}, nil
}

// What the document does not know goes its way without a name, rather than with a wrong one.
func TestUnknownRequests(t *testing.T) {
	baseURL, client, spans := traced(t, "")
	for _, r := range []struct{ method, path string }{
		{"GET", "/labels/ord_000017.pdf"},
		{"DELETE", "/api/v1/orders/ord_000017"},
		{"GET", "/api/v1/orders/"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, baseURL+r.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	names, templates := spans()
	if len(templates) > 0 || !slices.Equal(names, []string{"GET", "DELETE", "GET"}) {
		t.Errorf("got spans %q with templates %q, want methods alone", names, templates)
	}
}

// seen returns the path that a Transport for these paths, below baseURL, finds for a GET.
func seen(t *testing.T, baseURL, rawURL string, paths ...string) (template string, err error) {
	t.Helper()
	doc := &openapi3.T{Paths: openapi3.NewPaths()}
	for _, p := range paths {
		doc.Paths.Set(p, &openapi3.PathItem{Get: &openapi3.Operation{}})
	}
	recorder := tracetest.NewInMemoryExporter()
	named, err := urltemplate.New(doc, baseURL, &partnerauth.Transport{
		Source:         oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "key"}),
		Origins:        []string{"https://api.example.com"},
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(recorder)),
		Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 204, Body: http.NoBody, Request: req}, nil
		}),
	})
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: named}).Get(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, s := range recorder.GetSpans() {
		for _, a := range s.Attributes {
			if a.Key == "url.template" && s.SpanKind == trace.SpanKindClient {
				template = a.Value.AsString()
			}
		}
	}
	return template, nil
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestPaths(t *testing.T) {
	for _, tc := range []struct {
		name, base, url, want string
		paths                 []string
	}{
		{"a parameter that is no Go identifier", "", "/o/17", "/o/{order-id}", []string{"/o/{order-id}"}},
		{"the more special path first", "", "/o/search", "/o/search", []string{"/o/{id}", "/o/search"}},
		{"an escaped slash", "", "/o/a%2Fb", "/o/{id}", []string{"/o/{id}", "/o/{id}/{part}"}},
		{"a slash at the end", "", "/o/", "/o/", []string{"/o/", "/o"}},
		{"a slash at the end is no tree", "", "/o/17", "", []string{"/o/"}},
		{"the root", "", "/", "/", []string{"/"}},
		{"a base URL with a slash at the end", "/gate/", "/gate/o/17", "/gate/o/{id}", []string{"/o/{id}"}},
		{"outside the base URL", "/gate", "/o/17", "", []string{"/o/{id}"}},
		{"a query", "", "/o/17?page=2", "/o/{id}", []string{"/o/{id}"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := seen(t, "https://api.example.com"+tc.base, "https://api.example.com"+tc.url, tc.paths...)
			if err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestDocumentsThatCannotBeRouted(t *testing.T) {
	for name, paths := range map[string][]string{
		"two paths for one URL": {"/{a}/x", "/x/{b}"},
		"part of a segment":     {"/{id}.json"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := seen(t, "https://api.example.com", "https://api.example.com/", paths...); err == nil || !strings.HasPrefix(err.Error(), "urltemplate: GET /") {
				t.Errorf("got error %v, want one that names the path", err)
			}
		})
	}
	if _, err := urltemplate.New(&openapi3.T{}, ":", nil); err == nil {
		t.Error("got no error for a bad base URL")
	}
}
