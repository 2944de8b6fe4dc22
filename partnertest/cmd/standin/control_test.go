package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// ask makes one request of the control endpoint.
func ask(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestControlRefuses(t *testing.T) {
	shop := partnertest.NewNowPost(partnertest.Options{URL: "https://nowpost.test"})
	defer shop.Close()
	h := control(map[string]*partnertest.Server{"nowpost": shop.Server})
	for _, test := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{name: "partner", method: "POST", path: "/nobody/revoke", status: 404, says: "no POST /nobody/revoke"},
		{name: "control path", method: "POST", path: "/nowpost/fault", body: `{}`, status: 404, says: "/nowpost/faults"},
		{name: "control method", method: "GET", path: "/nowpost/faults", status: 404, says: "POST   /nowpost/faults"},
		{name: "root", method: "GET", path: "/", status: 404, says: "/nowpost/counts"},
		{name: "path", method: "POST", path: "/nowpost/faults", body: `{"path":"/api/v1/order","status":503}`, status: 404, says: "/api/v1/orders\n"},
		{name: "prefix", method: "POST", path: "/nowpost/faults", body: `{"path":"/api/v2/*","status":503}`, status: 404, says: "/api/v1/auth/login"},
		{name: "field", method: "POST", path: "/nowpost/faults", body: `{"stat":503}`, status: 400, says: `"stat"`},
		{name: "nothing", method: "POST", path: "/nowpost/faults", status: 400, says: "not a fault"},
		{name: "number as delay", method: "POST", path: "/nowpost/faults", body: `{"delay":2000000000}`, status: 400, says: `such as "2s"`},
		{name: "delay without unit", method: "POST", path: "/nowpost/faults", body: `{"delay":"2"}`, status: 400, says: `such as "2s"`},
		{name: "negative delay", method: "POST", path: "/nowpost/faults", body: `{"delay":"-2s"}`, status: 400, says: "negative"},
		{name: "status 199", method: "POST", path: "/nowpost/faults", body: `{"status":199}`, status: 400, says: "200 to 599"},
		{name: "status 600", method: "POST", path: "/nowpost/faults", body: `{"status":600}`, status: 400, says: "200 to 599"},
		{name: "rate", method: "POST", path: "/nowpost/faults", body: `{"rate":1.1}`, status: 400, says: "0 to 1"},
		{name: "huge", method: "POST", path: "/nowpost/faults", body: `{"huge":1073741825}`, status: 400, says: "1 GiB"},
	} {
		w := ask(h, test.method, test.path, test.body)
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.says) {
			t.Errorf("%s: got %d %s, want %d and %q", test.name, w.Code, w.Body, test.status, test.says)
		}
	}
	if resp := fetch(t, shop.Server); resp.StatusCode != 401 {
		t.Errorf("got %s, want none of the faults to be in force", resp.Status)
	}
}

// fetch asks for orders without a token.
func fetch(t *testing.T, s *partnertest.Server) *http.Response {
	t.Helper()
	resp, err := s.RoundTrip(httptest.NewRequest("GET", s.URL+"/api/v1/orders", nil))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// TestControlInjects reads every kind of value, and lets a delay pass.
func TestControlInjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shop := partnertest.NewNowPost(partnertest.Options{URL: "https://nowpost.test"})
		defer shop.Close()
		h := control(map[string]*partnertest.Server{"nowpost": shop.Server})
		for _, body := range []string{
			`{"method":"get","path":"/api/v1/*","times":1,"status":503,"delay":"2s","header":{"retry-after":"7"}}`,
			`{"Path":"/api/v1/orders","Times":1,"Status":502,"Header":{"X-Many":["a","b"]}}`,
		} {
			if w := ask(h, "POST", "/nowpost/faults", body); w.Code != 200 {
				t.Fatalf("%s: got %d %s, want 200", body, w.Code, w.Body)
			}
		}
		began := time.Now()
		first, second := fetch(t, shop.Server), fetch(t, shop.Server)
		if first.StatusCode != 503 || first.Header.Get("Retry-After") != "7" || time.Since(began) != 2*time.Second {
			t.Errorf("got %s, Retry-After %q after %v, want 503 and 7 after 2s", first.Status, first.Header.Get("Retry-After"), time.Since(began))
		}
		if many := second.Header["X-Many"]; second.StatusCode != 502 || len(many) != 2 {
			t.Errorf("got %s and %q, want 502 and two values", second.Status, many)
		}
	})
}
