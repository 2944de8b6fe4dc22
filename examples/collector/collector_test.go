package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/partnerauth/partnerauth/internal/partnertest"
	tracecollector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// start runs the program in an environment of nothing but vars, which are
// name=value.
func start(t *testing.T, vars ...string) (stdout string, err error) {
	t.Helper()
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "OTEL_") || strings.HasPrefix(name, "NOWPOST_") {
			t.Setenv(name, "")
		}
	}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	var out bytes.Buffer
	err = run(t.Context(), &out)
	return out.String(), err
}

// A collector receives OTLP over http.
type collector struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string][][]byte // by path
}

func newCollector(t *testing.T) *collector {
	c := &collector{bodies: map[string][][]byte{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.bodies[r.URL.Path] = append(c.bodies[r.URL.Path], b)
	}))
	t.Cleanup(c.Close)
	return c
}

// spans are the names of all spans received, with that of their service.
func (c *collector) spans(t *testing.T) (names []string) {
	for _, body := range c.bodies["/v1/traces"] {
		var request tracecollector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &request); err != nil {
			t.Fatal(err)
		}
		for _, resource := range request.ResourceSpans {
			service := ""
			for _, kv := range resource.Resource.Attributes {
				if kv.Key == "service.name" {
					service = kv.Value.GetStringValue()
				}
			}
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					names = append(names, service+": "+span.Name)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

func TestExport(t *testing.T) {
	server := partnertest.StartNowPost(partnertest.Options{})
	defer server.Close()
	account := []string{
		"NOWPOST_EMAIL=" + partnertest.Email, "NOWPOST_PASSWORD=" + partnertest.Password,
		"NOWPOST_BASE_URL=" + server.URL + "/",
	}
	spans := func(service string) []string {
		return []string{
			service + ": GET /api/v1/orders", service + ": POST /api/v1/auth/login", service + ": nowpost call", service + ": partnerauth.token.fetch",
		}
	}
	for _, test := range []struct {
		name    string
		vars    func(url string) []string
		spans   []string
		metrics bool
	}{
		{"endpoint", func(url string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url}
		}, spans("partnerauth-collector"), true},
		{"named", func(url string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_SERVICE_NAME=shop", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}
		}, spans("shop"), true},
		{"traces alone", func(url string) []string {
			return []string{"OTEL_METRICS_EXPORTER=none", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + url + "/v1/traces"}
		}, spans("partnerauth-collector"), false},
		{"metrics alone", func(url string) []string {
			return []string{"OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=" + url}
		}, nil, true},
		{"sampler", func(url string) []string {
			return []string{"OTEL_TRACES_SAMPLER=always_off", "OTEL_EXPORTER_OTLP_ENDPOINT=" + url}
		}, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCollector(t)
			got, err := start(t, append(account[:3:3], test.vars(c.URL)...)...)
			if want := "GET /api/v1/orders 200\nsent to the collector\n"; err != nil || got != want {
				t.Errorf("got %q and error %v, want %q", got, err, want)
			}
			if names := c.spans(t); !slices.Equal(names, test.spans) {
				t.Errorf("got spans %q, want %q", names, test.spans)
			}
			traces, metrics := bytes.Join(c.bodies["/v1/traces"], nil), bytes.Join(c.bodies["/v1/metrics"], nil)
			if got := bytes.Contains(metrics, []byte("http.client.request.duration")); got != test.metrics {
				t.Errorf("got metrics: %t, want %t", got, test.metrics)
			}
			for _, secret := range []string{partnertest.Password, "eyJhbGciOi", "Bearer"} {
				if bytes.Contains(append(traces, metrics...), []byte(secret)) {
					t.Errorf("%q was sent to the collector", secret)
				}
			}
		})
	}
}

func TestStandIn(t *testing.T) {
	c := newCollector(t)
	got, err := start(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL)
	want := "POST /api/v1/orders 201\nGET /api/v1/orders 200\nGET /api/v1/orders/{id} 404\nsent to the collector\n"
	if err != nil || got != want {
		t.Errorf("got %q and error %v, want %q", got, err, want)
	}
	logins := 0
	for _, name := range c.spans(t) {
		if strings.HasSuffix(name, ": partnerauth.token.fetch") {
			logins++
		}
	}
	if logins != 2 {
		t.Errorf("got %d spans of a login, want 2", logins)
	}
}

// TestMistakes checks that what cannot be sent is told, and is a failure.
func TestMistakes(t *testing.T) {
	dead := newCollector(t)
	dead.Close()
	for _, test := range []struct{ name, variable, want string }{
		{"no collector", "OTEL_EXPORTER_OTLP_ENDPOINT=" + dead.URL, "/v1/traces"},
		{"no collector of metrics", "OTEL_EXPORTER_OTLP_ENDPOINT=" + dead.URL, "/v1/metrics"},
		{"protocol", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", `OTEL_EXPORTER_OTLP_PROTOCOL is "grpc"`},
		{"protocol of metrics", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"},
		{"resource", "OTEL_RESOURCE_ATTRIBUTES=x", "OTEL_RESOURCE_ATTRIBUTES"},
		{"account", "NOWPOST_EMAIL=e", "NOWPOST_PASSWORD"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := start(t, test.variable)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(got, "sent") {
				t.Errorf("got %q and error %v, want one with %q", got, err, test.want)
			}
		})
	}
}
