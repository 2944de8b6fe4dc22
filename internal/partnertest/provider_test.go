package partnertest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

var asForm = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}

func inForm(kv ...string) string {
	form := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		form.Set(kv[i], kv[i+1])
	}
	return form.Encode()
}

// onBoth runs a test against a Provider in memory and one on a socket.
func onBoth(t *testing.T, o partnertest.Options, test func(t *testing.T, p *partnertest.Provider, c caller)) {
	t.Run("memory", func(t *testing.T) {
		o.URL = "https://provider.test"
		p := partnertest.NewProvider(o)
		t.Cleanup(p.Close)
		test(t, p, caller{t, p.URL, &http.Client{Transport: p}})
	})
	t.Run("socket", func(t *testing.T) {
		p := partnertest.StartProvider(o)
		test(t, p, newCaller(t, p.Server))
	})
}

func TestProviderSignIn(t *testing.T) {
	id, secret := partnertest.ClientID, partnertest.ClientSecret
	whole := inForm("grant_type", "client_credentials", "client_id", id, "client_secret", secret)
	grantType := inForm("grant_type", "client_credentials")
	with := func(id, secret string) http.Header {
		h := basic(id, secret)
		h.Set("Content-Type", asForm.Get("Content-Type"))
		return h
	}
	escaped := with(url.QueryEscape(id), url.QueryEscape(secret))
	onBoth(t, partnertest.Options{}, func(t *testing.T, p *partnertest.Provider, c caller) {
		for _, test := range []struct {
			name, method, body string
			header             http.Header
			want               int
		}{
			{name: "in the form", method: "POST", header: asForm, body: whole, want: 200},
			{name: "Basic, escaped", method: "POST", header: escaped, body: grantType, want: 200},
			{name: "Basic, as it is", method: "POST", header: with(id, secret), body: grantType, want: 200},
			{name: "another method", method: "PUT", header: asForm, body: whole, want: 401},
			{name: "wrong secret", method: "POST", header: with(id, "wrong"), body: grantType, want: 401},
			{name: "no grant_type", method: "POST", header: escaped, want: 401},
			{name: "form without a type", method: "POST", body: whole, want: 401},
			{name: "no credentials", method: "POST", header: asForm, body: grantType, want: 401},
			{name: "in the query", method: "GET", want: 401},
		} {
			got := c.do(test.method, partnertest.TokenPath, test.header, test.body, test.want)
			if test.want != 200 {
				equal(t, test.name, string(got.body), `{"error":"invalid_client"}`)
				continue
			}
			equal(t, test.name+": token_type", got.text("token_type"), "Bearer")
			equal(t, test.name+": expires_in", got.at("expires_in"), any(3600.0))
			equal(t, test.name+": refresh_token", got.at("refresh_token"), nil)
			equal(t, test.name+": body", string(c.do("GET", "/orders", bearer(got.text("access_token")), "", 200).body), "{}")
		}
		equal(t, "logins", p.Logins(), 3)
		equal(t, "login requests", p.LoginRequests(), 7)
		refused := c.do("GET", "/orders", bearer("forged"), "", 401)
		equal(t, "refusal", refused.Header.Get("WWW-Authenticate")+" "+string(refused.body), `Bearer error="invalid_token" {"error":"invalid_token"}`)
	})
}

// TestProviderOfOnesOwn has another path, other credentials, another answer and
// another header.
func TestProviderOfOnesOwn(t *testing.T) {
	clock := newClock()
	api := http.NewServeMux()
	api.HandleFunc("GET /parcels/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "parcel %s for %s", r.PathValue("id"), r.URL.Query().Get("who"))
	})
	onBoth(t, partnertest.Options{
		SignInPath: "/session", TokenHeader: "x-acme-token", Lifetime: 5 * time.Minute, Now: clock.Now, Limit: 7,
		Accepts: func(r *http.Request) bool {
			var got struct{ User, Key string }
			return json.NewDecoder(r.Body).Decode(&got) == nil && got.User == "shop" && got.Key == "k"
		},
		Answer: func(w http.ResponseWriter, g partnertest.Grant) {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"session":%q,"ttl":%d}`, g.Token, int(g.Lifetime.Seconds()))
		},
		Handler: api,
	}, func(t *testing.T, p *partnertest.Provider, c caller) {
		clock.pass(time.Hour)
		c.do("POST", "/session", asJSON, `{"user":"shop","key":"wrong"}`, 401)
		got := c.do("POST", "/session", asJSON, `{"user":"shop","key":"k"}`, 201)
		equal(t, "ttl", got.at("ttl"), any(300.0))
		equal(t, "type", got.Header.Get("Content-Type"), "application/json; charset=utf-8")
		token := got.text("session")
		parcel := c.do("GET", "/parcels/7?who=me", http.Header{"X-Acme-Token": {token}}, "", 200)
		equal(t, "body", string(parcel.body), "parcel 7 for me")
		c.do("GET", "/parcels/7", bearer(token), "", 401)
		c.do("GET", "/parcels/7", http.Header{"X-Acme-Token": {"forged"}}, "", 401)
		clock.pass(5 * time.Minute)
		c.do("GET", "/parcels/7", http.Header{"X-Acme-Token": {token}}, "", 401)
		token = c.do("POST", "/session", asJSON, `{"user":"shop","key":"k"}`, 201).text("session")
		p.RevokeAll()
		c.do("GET", "/parcels/7", http.Header{"X-Acme-Token": {token}}, "", 401)
		for range 4 {
			c.do("GET", "/parcels/7", nil, "", 401)
		}
		equal(t, "Retry-After", c.do("GET", "/parcels/7", nil, "", 429).Header.Get("Retry-After"), "60")
	})
}

func TestProviderRefresh(t *testing.T) {
	const path = partnertest.TokenPath
	onBoth(t, partnertest.Options{RefreshPath: path, TokenType: "Token"}, func(t *testing.T, p *partnertest.Provider, c caller) {
		got := c.do("POST", path, asForm,
			inForm("grant_type", "client_credentials", "client_id", partnertest.ClientID, "client_secret", partnertest.ClientSecret), 200)
		equal(t, "token_type", got.text("token_type"), "Token")
		token, again := got.text("access_token"), got.text("refresh_token")
		p.RevokeAll()
		c.do("GET", "/", http.Header{"Authorization": {"Token " + token}}, "", 401)
		for range 2 {
			got = c.do("POST", path, asForm, inForm("grant_type", "refresh_token", "refresh_token", again), 200)
			c.do("GET", "/", http.Header{"Authorization": {"Token " + got.text("access_token")}}, "", 200)
		}
		c.do("GET", "/", bearer(got.text("access_token")), "", 401)
		for _, forged := range []string{"forged", token, ""} {
			refused := c.do("POST", path, asForm, inForm("grant_type", "refresh_token", "refresh_token", forged), 400)
			equal(t, "refusal", string(refused.body), `{"error":"invalid_grant"}`)
		}
		equal(t, "logins", p.Logins(), 1)
		equal(t, "refreshes", p.Refreshes(), 2)
	})
	onBoth(t, partnertest.Options{RefreshPath: "/renew"}, func(t *testing.T, p *partnertest.Provider, c caller) {
		got := c.do("POST", path, asForm,
			inForm("grant_type", "client_credentials", "client_id", partnertest.ClientID, "client_secret", partnertest.ClientSecret), 200)
		c.do("POST", "/renew", http.Header{"Authorization": {"Bearer " + got.text("access_token")}}, "", 200)
		c.do("POST", "/renew", asJSON, `{"refresh":"`+got.text("refresh_token")+`"}`, 200)
		c.do("POST", "/renew", nil, "", 400)
		equal(t, "refreshes", p.Refreshes(), 2)
	})
}

func TestChangedSecrets(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{})
	token := c.logIn()
	n.SetPassword("new")
	c.use(token, 200)
	c.do("POST", loginPath, asJSON, `{"email":"shop@example.com","password":"correct horse battery staple"}`, 401)
	c.do("POST", loginPath, asJSON, `{"email":"shop@example.com","password":"new"}`, 200)

	d, c := startNdovu(t, partnertest.Options{})
	d.SetClientSecret("new")
	c.do("POST", authPath, basic(partnertest.ClientID, partnertest.ClientSecret), "", 401)
	c.do("POST", authPath, basic(partnertest.ClientID, "new"), "", 200)
}

func TestReaches(t *testing.T) {
	n := partnertest.NewNowPost(partnertest.Options{})
	defer n.Close()
	for path, want := range map[string]bool{
		"": true, "*": true, "/api/v1/*": true, "/api/v1/orders": true, "/api/v1/orders/": false, "/api/v1/orders/ord_1": true,
		"/api/v1/orders/ord_1/cancel": true, "/api/v1/orders/ord_1/lose": false, "/api/v1/orders/ord_*": true,
		"/api/v1/order": false, "/api/v1/order*": true, "/api/v2/*": false, "orders": false, "/": false,
	} {
		equal(t, path, n.Reaches(path), want)
	}
	equal(t, "paths", strings.Join(n.Paths(), " "), "/api/v1/auth/login /api/v1/auth/refresh /api/v1/orders "+
		"/api/v1/orders/{id} /api/v1/orders/{id}/cancel /partner/api-keys")
}
