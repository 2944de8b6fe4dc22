package partnertest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	loginPath   = "/api/v1/auth/login"
	refreshPath = "/api/v1/auth/refresh"
	ordersPath  = "/api/v1/orders"
	authPath    = "/api/v3/partners/auth"
	plansPath   = "/api/v3/partners/acme/plans"
)

// caller speaks to one server by hand.
type caller struct {
	t      *testing.T
	base   string
	client *http.Client
}

type reply struct {
	*http.Response
	body []byte
}

func startNowPost(t *testing.T, o partnertest.Options) (*partnertest.NowPost, caller) {
	n := partnertest.StartNowPost(o)
	return n, newCaller(t, n.Server)
}

func startNdovu(t *testing.T, o partnertest.Options) (*partnertest.Ndovu, caller) {
	n := partnertest.StartNdovu(o)
	return n, newCaller(t, n.Server)
}

func newCaller(t *testing.T, s *partnertest.Server) caller {
	tr := s.Transport()
	t.Cleanup(func() { tr.CloseIdleConnections(); s.Close() })
	return caller{t, s.URL, &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (c caller) try(ctx context.Context, method, path string, header http.Header, body string) (reply, error) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	resp, err := c.client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return reply{resp, got}, err
}

func (c caller) do(method, path string, header http.Header, body string, want int) reply {
	c.t.Helper()
	got, err := c.try(c.t.Context(), method, path, header, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if got.StatusCode != want {
		c.t.Fatalf("%s %s: got %d %s, want %d", method, path, got.StatusCode, got.body, want)
	}
	return got
}

var asJSON = http.Header{"Content-Type": {"application/json"}}

func bearer(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
}

func basic(id, secret string) http.Header {
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))}}
}

// at walks down decoded JSON; nil when there is nothing.
func (r reply) at(path ...any) any {
	var v any
	if json.Unmarshal(r.body, &v) != nil {
		return nil
	}
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

func (r reply) text(path ...any) string { s, _ := r.at(path...).(string); return s }

const goodLogin = `{"email":"` + partnertest.Email + `","password":"` + partnertest.Password + `"}`

func (c caller) logIn() string {
	c.t.Helper()
	got := c.do("POST", loginPath, asJSON, goodLogin, 200)
	return got.text("data", "token") + got.text("token") // one of the two
}

func (c caller) refresh(token string, want int) string {
	c.t.Helper()
	got := c.do("POST", refreshPath, bearer(token), "", want)
	return got.text("data", "token") + got.text("token")
}

func (c caller) use(token string, want int) {
	c.t.Helper()
	c.do("GET", ordersPath, bearer(token), "", want)
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) pass(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestNowPostLogin(t *testing.T) {
	clock := newClock()
	n, c := startNowPost(t, partnertest.Options{Now: clock.Now})
	got := c.do("POST", loginPath, asJSON, goodLogin, 200)
	equal(t, "success", got.at("success"), any(true))
	equal(t, "expiresAt", got.text("data", "expiresAt"), "2030-01-03T03:04:05Z")
	equal(t, "user id", got.text("data", "user", "id"), "user_123")
	equal(t, "user email", got.text("data", "user", "email"), partnertest.Email)
	equal(t, "Date", got.Header.Get("Date"), "Wed, 02 Jan 2030 03:04:05 GMT")
	c.use(got.text("data", "token"), 200)

	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   int
	}{
		"wrong password":    {asJSON, `{"email":"shop@example.com","password":"hunter2"}`, 401},
		"wrong email":       {asJSON, `{"email":"other@example.com","password":"correct horse battery staple"}`, 401},
		"charset":           {http.Header{"Content-Type": {"application/json; charset=utf-8"}}, goodLogin, 200},
		"no type":           {nil, goodLogin, 400},
		"form":              {http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "email=a&password=b", 400},
		"no body":           {asJSON, "", 400},
		"not JSON":          {asJSON, "{", 400},
		"trailing":          {asJSON, goodLogin + "{}", 400},
		"field missing":     {asJSON, `{"email":"shop@example.com"}`, 400},
		"field too many":    {asJSON, `{"email":"shop@example.com","password":"correct horse battery staple","remember":"me"}`, 400},
		"other letter case": {asJSON, `{"Email":"shop@example.com","Password":"correct horse battery staple"}`, 400},
		"number":            {asJSON, `{"email":"shop@example.com","password":1}`, 400},
	} {
		t.Run(name, func(t *testing.T) {
			c := caller{t, c.base, c.client}
			got := c.do("POST", loginPath, tt.header, tt.body, tt.want)
			if tt.want != 200 {
				equal(t, "success", got.at("success"), any(false))
			}
			for _, secret := range []string{"hunter2", "other@", "horse", "shop@"} {
				if tt.want != 200 && bytes.Contains(got.body, []byte(secret)) {
					t.Errorf("the answer says %q: %s", secret, got.body)
				}
			}
		})
	}
	equal(t, "logins", n.Logins(), 2)
	equal(t, "login requests", n.LoginRequests(), 13)
	equal(t, "answers 400", n.Status(400), 9)
}

func TestNowPostShapes(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{Flat: true, Email: "a@b", Password: "p"})
	got := c.do("POST", loginPath, asJSON, `{"email":"a@b","password":"p"}`, 200)
	equal(t, "flat token only", len(got.at().(map[string]any)), 1)
	c.use(got.text("token"), 200)
	got = c.do("POST", refreshPath, bearer(got.text("token")), "", 200)
	equal(t, "flat refresh only", len(got.at().(map[string]any)), 1)
	c.use(got.text("token"), 200)
	equal(t, "refreshes", n.Refreshes(), 1)

	_, c = startNowPost(t, partnertest.Options{Envelope: true, ExpiresAt: "2024-01-15T12:00:00Z"})
	got = c.do("POST", refreshPath, bearer(c.logIn()), "", 200)
	equal(t, "enveloped expiresAt", got.text("data", "expiresAt"), "2024-01-15T12:00:00Z")
	c.use(got.text("data", "token"), 200)
}

func TestTokens(t *testing.T) {
	clock := newClock()
	n, c := startNowPost(t, partnertest.Options{Now: clock.Now, Lifetime: 1500 * time.Millisecond})
	got := c.do("POST", loginPath, asJSON, goodLogin, 200)
	equal(t, "expiresAt", got.text("data", "expiresAt"), "2030-01-02T03:04:06.500Z")
	token := got.text("data", "token")
	parts := strings.Split(token, ".")
	equal(t, "parts", len(parts), 3)
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := reply{body: payload}
	equal(t, "exp - iat", claims.at("exp").(float64)-claims.at("iat").(float64), 1.5)
	equal(t, "sub", claims.text("sub"), "user_123")
	if other := c.logIn(); other == token || claims.text("jti") == "" {
		t.Error("two logins in one moment gave one token")
	}

	forged := base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte("user_123"), []byte("user_124"), 1))
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	for _, bad := range []string{"", "x", claims.text("jti"), parts[0] + "." + forged + "." + parts[2], none + "." + parts[1] + ".", token + "x", token + ".x"} {
		c.use(bad, 401)
	}
	c.do("GET", ordersPath, nil, "", 401)
	c.do("GET", ordersPath, http.Header{"Authorization": {token}}, "", 401)
	c.do("GET", ordersPath, http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, "", 401)
	c.do("GET", ordersPath, http.Header{"Authorization": {"bearer " + token}}, "", 200)

	clock.pass(1499 * time.Millisecond)
	c.use(token, 200)
	clock.pass(time.Millisecond)
	c.use(token, 401)
	c.refresh(token, 401)

	token = c.logIn()
	n.RevokeAll()
	c.use(token, 401)
	c.refresh(token, 401)
	c.use(c.logIn(), 200)

	_, other := startNowPost(t, partnertest.Options{})
	other.use(c.logIn(), 401) // another server's signature
}

func TestRotate(t *testing.T) {
	_, c := startNowPost(t, partnertest.Options{})
	old := c.logIn()
	c.use(c.refresh(old, 200), 200)
	c.use(old, 200)

	n, c := startNowPost(t, partnertest.Options{Rotate: true})
	old = c.logIn()
	c.do("POST", refreshPath, bearer(old), "{}", 400)
	c.do("POST", refreshPath, nil, "", 401)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _, _ = c.try(t.Context(), "POST", refreshPath, bearer(old), "") })
	}
	wg.Wait()
	equal(t, "refreshes with one token", n.Refreshes(), 1)
	c.use(old, 401)
}

func order(id, name string) string {
	return fmt.Sprintf(`{"partner_order_id":%q,"pudo_point_id":"pudo_1","customer":{"name":%q,"email":"c@example.com","phone":"+254700000000"},
		"items":[{"name":"Mug","qty":2,"price":9.5,"weight_kg":0.4}],"webhook_url":"https://shop.example.com/hook"}`, id, name)
}

func TestOrders(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{})
	auth := bearer(c.logIn())
	first := c.do("POST", ordersPath, auth, order("A-1", "Ann"), 201)
	equal(t, "status", first.text("status"), "success")
	equal(t, "order status", first.text("data", "status"), "created")
	if label := first.text("data", "label_url"); !strings.HasPrefix(label, n.URL+"/") {
		t.Errorf("label_url %q is not on the API host", label)
	}
	c.do("POST", ordersPath, auth, order("A-1", "Ann"), 201)
	c.do("POST", ordersPath, auth, order("A-2", "Bob"), 201)
	equal(t, "orders of A-1", n.Created("A-1"), 2)
	equal(t, "orders of A-2", n.Created("A-2"), 1)
	equal(t, "orders of A-3", n.Created("A-3"), 0)
	equal(t, "kept", n.Orders()[0].Items[0], partnertest.Item{Name: "Mug", Qty: 2, Price: 9.5, WeightKg: 0.4})
	equal(t, "kept", n.Orders()[0].Customer, partnertest.Customer{Name: "Ann", Email: "c@example.com", Phone: "+254700000000"})

	id, code := first.text("data", "id"), first.text("data", "tracking_code")
	for _, name := range []string{id, code} {
		got := c.do("GET", ordersPath+"/"+name, auth, "", 200)
		equal(t, "id", got.text("data", "id"), id)
		equal(t, "partner_order_id", got.text("data", "partner_order_id"), "A-1")
	}
	c.do("GET", ordersPath+"/ord_none", auth, "", 404)
	equal(t, "cancelled", c.do("POST", ordersPath+"/"+code+"/cancel", auth, "", 200).text("data", "status"), "cancelled")
	c.do("POST", ordersPath+"/"+id+"/cancel", auth, "", 409)
	c.do("POST", ordersPath+"/ord_none/cancel", auth, "", 404)
	c.do("POST", ordersPath+"/"+id+"/cancel", nil, "", 401)

	for _, bad := range []string{"{}", "[]", `{"partner_order_id":"B"}`, strings.Replace(order("B", "x"), `"qty":2`, `"qty":0`, 1)} {
		c.do("POST", ordersPath, auth, bad, 400)
	}
	c.do("POST", ordersPath, http.Header{"Authorization": auth["Authorization"]}, order("B", "x"), 400)
	equal(t, "orders", len(n.Orders()), 3)
}

func TestListOrders(t *testing.T) {
	clock := newClock()
	_, c := startNowPost(t, partnertest.Options{Now: clock.Now, Limit: -1, Lifetime: 240 * time.Hour})
	auth := bearer(c.logIn())
	for i, name := range []string{"Ann", "Bob", "Cleo", "Dan", "Eve"} {
		c.do("POST", ordersPath, auth, order(fmt.Sprintf("L-%d", 5-i), name), 201)
		clock.pass(12 * time.Hour) // from 03:04:05 on 2 January on
	}
	c.do("POST", ordersPath+"/ord_000002/cancel", auth, "", 200)

	for query, want := range map[string]string{
		"":                                  "Eve Dan Cleo Bob Ann | 1 20 5 1 false false",
		"sortOrder=asc&pageSize=2":          "Ann Bob | 1 2 5 3 true false",
		"sortOrder=asc&pageSize=2&page=2":   "Cleo Dan | 2 2 5 3 true true",
		"sortOrder=asc&pageSize=2&page=3":   "Eve | 3 2 5 3 false true",
		"page=9":                            " | 9 20 5 1 false true",
		"search=cle":                        "Cleo | 1 20 1 1 false false",
		"search=L-5":                        "Ann | 1 20 1 1 false false",
		"search=nobody":                     " | 1 20 0 0 false false",
		"status=cancelled":                  "Bob | 1 20 1 1 false false",
		"status=in_transit":                 " | 1 20 0 0 false false",
		"sortBy=partnerOrderId":             "Ann Bob Cleo Dan Eve | 1 20 5 1 false false",
		"sortBy=status&sortOrder=asc":       "Bob Ann Cleo Dan Eve | 1 20 5 1 false false",
		"sortBy=status":                     "Eve Dan Cleo Ann Bob | 1 20 5 1 false false",
		"sortBy=updatedAt":                  "Bob Eve Dan Cleo Ann | 1 20 5 1 false false",
		"dateFrom=2030-01-03":               "Eve Dan Cleo | 1 20 3 1 false false",
		"dateTo=2030-01-02":                 "Bob Ann | 1 20 2 1 false false",
		"dateTo=2030-01-03T03:04:05Z":       "Cleo Bob Ann | 1 20 3 1 false false",
		"dateFrom=2030-01-02T15:04:05.001Z": "Eve Dan Cleo | 1 20 3 1 false false",
	} {
		got := c.do("GET", ordersPath+"?"+query, auth, "", 200)
		var list struct {
			Data struct {
				Orders     []partnertest.Order
				Pagination struct {
					Page, PageSize, Total, TotalPages int
					HasNext, HasPrevious              bool
				}
			}
		}
		if err := json.Unmarshal(got.body, &list); err != nil || list.Data.Orders == nil {
			t.Fatalf("%s: %v", got.body, err)
		}
		var names []string
		for _, o := range list.Data.Orders {
			names = append(names, o.Customer.Name)
		}
		equal(t, query, strings.Join(names, " ")+" | "+strings.Trim(fmt.Sprint(list.Data.Pagination), "{}"), want)
	}
	for _, bad := range []string{"page=0", "page=x", "pageSize=101", "status=lost", "sortBy=x", "sortOrder=up", "dateFrom=monday"} {
		c.do("GET", ordersPath+"?"+bad, auth, "", 400)
	}
}

func TestAPIKeys(t *testing.T) {
	clock := newClock()
	n, c := startNowPost(t, partnertest.Options{Now: clock.Now})
	create := func(auth http.Header, body string, want int) reply {
		t.Helper()
		return c.do("POST", "/partner/api-keys", auth, body, want)
	}
	auth := bearer(c.logIn())
	got := create(auth, `{"name":"shop","permissions":["orders:read"],"expiresAt":"2030-01-02T04:00:00Z"}`, 201)
	equal(t, "name", got.text("apiKey", "name"), "shop")
	equal(t, "active", got.at("apiKey", "isActive"), any(true))
	equal(t, "permissions", got.text("apiKey", "permissions", 0), "orders:read")
	equal(t, "createdAt", got.text("apiKey", "createdAt"), "2030-01-02T03:04:05Z")
	equal(t, "expiresAt", got.text("apiKey", "expiresAt"), "2030-01-02T04:00:00Z")
	key := got.text("keyString")
	c.use(key, 200)
	c.do("POST", ordersPath, bearer(key), order("K", "x"), 403)
	create(bearer(key), `{"name":"more"}`, 403)
	c.refresh(key, 401)
	create(nil, `{"name":"more"}`, 401)
	create(auth, `{}`, 400)
	create(auth, `{"name":"x","expiresAt":"2029-01-01T00:00:00Z"}`, 400)

	all := create(auth, `{"name":"all"}`, 201).text("keyString")
	c.do("POST", ordersPath, bearer(all), order("K", "x"), 201)
	clock.pass(time.Hour)
	c.use(key, 401)
	c.use(all, 200)
	n.RevokeAll()
	c.use(all, 401)
}

func TestNdovuLogin(t *testing.T) {
	n, c := startNdovu(t, partnertest.Options{})
	good := basic(partnertest.ClientID, partnertest.ClientSecret)
	got := c.do("POST", authPath, good, "", 200)
	equal(t, "fields", len(got.at().(map[string]any)), 3)
	equal(t, "token_type", got.text("token_type"), "Bearer")
	if !bytes.Contains(got.body, []byte(`"expires_in":3600,`)) {
		t.Errorf("expires_in is not a whole number: %s", got.body)
	}
	c.do("GET", plansPath, bearer(got.text("access_token")), "", 200)

	with := func(key, value string) http.Header {
		h := good.Clone()
		h.Set(key, value)
		return h
	}
	escaped := basic(partnertest.ClientID, url.QueryEscape(partnertest.ClientSecret))
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   int
	}{
		"no header":      {nil, "", 400},
		"bearer":         {bearer("x"), "", 400},
		"not base64":     {http.Header{"Authorization": {"Basic !"}}, "", 400},
		"no colon":       {http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("acme"))}}, "", 400},
		"two of them":    {http.Header{"Authorization": {good.Get("Authorization"), good.Get("Authorization")}}, "", 400},
		"body":           {good, "{}", 400},
		"content type":   {with("Content-Type", "application/json"), "", 400},
		"unknown client": {basic("other", partnertest.ClientSecret), "", 401},
		"wrong secret":   {basic(partnertest.ClientID, "hunter2"), "", 401},
		"escaped secret": {escaped, "", 401},
	} {
		t.Run(name, func(t *testing.T) {
			got := caller{t, c.base, c.client}.do("POST", authPath, tt.header, tt.body, tt.want)
			if got.text("message") == "" || bytes.Contains(got.body, []byte("hunter2")) {
				t.Errorf("got %s", got.body)
			}
		})
	}

	r, _ := http.NewRequest("POST", c.base+authPath, io.LimitReader(strings.NewReader(""), 1))
	r.Header = good
	resp, err := c.client.Do(r) // an empty body, but chunked
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	equal(t, "chunked", resp.StatusCode, 400)
	equal(t, "logins", n.Logins(), 1)
	equal(t, "login requests", n.LoginRequests(), 12)

	_, c = startNdovu(t, partnertest.Options{Lifetime: 250 * time.Millisecond, ClientID: "i", ClientSecret: "s"})
	equal(t, "expires_in", c.do("POST", authPath, basic("i", "s"), "", 200).at("expires_in"), any(0.25))
}

func TestNdovuPlans(t *testing.T) {
	clock := newClock()
	_, c := startNdovu(t, partnertest.Options{Now: clock.Now})
	auth := http.Header{"Authorization": {"Bearer " + c.do("POST", authPath, basic(partnertest.ClientID, partnertest.ClientSecret), "", 200).text("access_token")}}
	for query, want := range map[string]float64{
		"": 5, "currency=KES": 3, "currency=USD": 2, "fundType=EQUITY": 2, "categoryId=1": 2, "categoryId=3&currency=KES": 1, "fundType=NONE": 0,
	} {
		got := c.do("GET", plansPath+"?"+query, auth, "", 200)
		equal(t, query, got.at("data", "total"), any(want))
		equal(t, query, float64(len(got.at("data", "plans").([]any))), want)
	}
	first := c.do("GET", plansPath, auth, "", 200).at("data", "plans", 0).(map[string]any)
	for _, field := range strings.Fields(`id identifier name coolName about hint imageUrl thumbnail sector fundType profitType
		profitTypeDescription performance1 performance3 performance5 performance10 performanceDate currency minInvestableAmounts
		minTopUpAmounts tenor lockInPeriod partialWithdrawable factSheet prospectus`) {
		if _, ok := first[field]; !ok {
			t.Errorf("a plan has no %s", field)
		}
	}
	c.do("GET", plansPath+"?categoryId=x", auth, "", 400)
	c.do("GET", plansPath+"?currency=EUR", auth, "", 400)
	c.do("GET", "/api/v3/partners/other/plans", auth, "", 403)
	c.do("GET", plansPath, nil, "", 401)
	clock.pass(time.Hour)
	c.do("GET", plansPath, auth, "", 401)
}

func TestNotFound(t *testing.T) {
	_, c := startNowPost(t, partnertest.Options{})
	for _, call := range [][2]string{{"GET", "/nowhere<b>"}, {"PUT", ordersPath}, {"GET", loginPath}} {
		got := c.do(call[0], call[1], nil, "", 404)
		equal(t, "type", got.Header.Get("Content-Type"), "text/html; charset=utf-8")
		if want := "<pre>Cannot " + call[0] + " " + strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(call[1]) + "</pre>"; !bytes.Contains(got.body, []byte(want)) {
			t.Errorf("got %s, want %s", got.body, want)
		}
	}
}

func TestQuota(t *testing.T) {
	clock := newClock()
	n, c := startNowPost(t, partnertest.Options{Now: clock.Now, Limit: 3})
	// The window opens with the first hit, not with the server.
	clock.pass(30 * time.Second)
	token := c.logIn()
	clock.pass(50 * time.Second)
	c.refresh(token, 200)
	c.use("wrong", 401) // counted before it is authenticated
	got := c.do("POST", ordersPath, bearer(token), order("Q", "x"), 429)
	equal(t, "body", string(got.body), "Too many requests, please try again later.")
	equal(t, "type", got.Header.Get("Content-Type"), "text/html; charset=utf-8")
	equal(t, "Retry-After", got.Header.Get("Retry-After"), "10")
	c.do("POST", loginPath, asJSON, goodLogin, 429)
	equal(t, "orders", n.Created("Q"), 0)
	equal(t, "peak", n.Peak(), 5)
	clock.pass(10*time.Second - 1)
	c.use(token, 429)
	clock.pass(1)
	c.use(token, 200)
	equal(t, "peak", n.Peak(), 6)
	equal(t, "429s", n.Status(429), 3)

	n, c = startNowPost(t, partnertest.Options{Limit: -1})
	for range 150 {
		got = c.do("GET", ordersPath, nil, "", 401)
	}
	equal(t, "peak without a quota", n.Peak(), 150)
	equal(t, "RateLimit", got.Header.Get("RateLimit"), "")

	_, c = startNdovu(t, partnertest.Options{})
	for range 100 {
		c.do("GET", plansPath, nil, "", 401)
	}
	c.do("GET", plansPath, nil, "", 429)
}

func TestQuotaHeaders(t *testing.T) {
	// Base64 of the first 12 hex digits of sha256("127.0.0.1"), as Node computes it.
	const pk = `pk=:MTJjYTE3YjQ5YWYy:`
	for _, tt := range []struct {
		style  string
		window time.Duration
		want   string // of the second and the third hit
	}{
		{"", 0, `RateLimit="2-in-1min"; r=0; t=60 RateLimit-Policy="2-in-1min"; q=2; w=60; ` + pk + `|RateLimit="2-in-1min"; r=0; t=60 RateLimit-Policy="2-in-1min"; q=2; w=60; ` + pk + ` Retry-After=60`},
		{"draft-8", 1500 * time.Millisecond, `RateLimit="2-in-1.5sec"; r=0; t=2 RateLimit-Policy="2-in-1.5sec"; q=2; w=2; ` + pk + `|RateLimit="2-in-1.5sec"; r=0; t=2 RateLimit-Policy="2-in-1.5sec"; q=2; w=2; ` + pk + ` Retry-After=2`},
		{"draft-7", 2 * time.Hour, `RateLimit=limit=2, remaining=0, reset=7200 RateLimit-Policy=2;w=7200|RateLimit=limit=2, remaining=0, reset=7200 RateLimit-Policy=2;w=7200 Retry-After=7200`},
		{"draft-6", 0, `RateLimit-Limit=2 RateLimit-Policy=2;w=60 RateLimit-Remaining=0 RateLimit-Reset=60|RateLimit-Limit=2 RateLimit-Policy=2;w=60 RateLimit-Remaining=0 RateLimit-Reset=60 Retry-After=60`},
		{"legacy", 0, `X-RateLimit-Limit=2 X-RateLimit-Remaining=0 X-RateLimit-Reset=1893553505|X-RateLimit-Limit=2 X-RateLimit-Remaining=0 X-RateLimit-Reset=1893553505 Retry-After=60`},
		{"none", 0, `|`},
	} {
		t.Run(tt.style, func(t *testing.T) {
			_, c := startNowPost(t, partnertest.Options{Now: newClock().Now, Limit: 2, Window: tt.window, Headers: tt.style})
			c.do("GET", ordersPath, nil, "", 401)
			second := announced(c.do("GET", ordersPath, nil, "", 401))
			third := announced(c.do("GET", ordersPath, nil, "", 429))
			equal(t, "headers", second+"|"+third, tt.want)
		})
	}
}

// announced writes down what an answer says of the quota.
func announced(r reply) string {
	var parts []string
	for _, name := range strings.Fields("RateLimit RateLimit-Limit RateLimit-Policy RateLimit-Remaining RateLimit-Reset X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset Retry-After") {
		if v := r.Header.Get(name); v != "" {
			parts = append(parts, name+"="+v)
		}
	}
	return strings.Join(parts, " ")
}

func TestFaultAnswers(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{Limit: 9})
	auth := bearer(c.logIn())
	post := func(want int) reply { t.Helper(); return c.do("POST", ordersPath, auth, order("F", "x"), want) }
	n.Inject(partnertest.Fault{Status: 500, Times: 1, Method: "POST", Path: "/api/v1/*"})
	n.Inject(partnertest.Fault{Status: 502, Times: 1})
	n.Inject(partnertest.Fault{Status: 429, Times: 1, Header: http.Header{"Retry-After": {"7"}}})
	n.Inject(partnertest.Fault{Status: 307, Times: 1, Header: http.Header{"Location": {"http://example.com/"}}})
	n.Inject(partnertest.Fault{Body: `{"success":true}`, Times: 1})
	n.Inject(partnertest.Fault{Header: http.Header{"X-Odd": {"1"}}, Times: 1})

	got := post(500)
	equal(t, "type", got.Header.Get("Content-Type"), "text/html; charset=utf-8")
	if !bytes.Contains(got.body, []byte("<pre>Internal Server Error</pre>")) {
		t.Errorf("not Express: %s", got.body)
	}
	if got = post(502); !bytes.Contains(got.body, []byte("<center>nginx</center>")) {
		t.Errorf("not nginx: %s", got.body)
	}
	got = post(429)
	equal(t, "headers of a fault's 429", announced(got), "Retry-After=7")
	equal(t, "Location", post(307).Header.Get("Location"), "http://example.com/")
	got = post(200)
	equal(t, "body", string(got.body), `{"success":true}`)
	equal(t, "type", got.Header.Get("Content-Type"), "application/json; charset=utf-8")
	equal(t, "carried out so far", n.Created("F"), 0)
	equal(t, "added header", post(201).Header.Get("X-Odd"), "1")

	n.Inject(partnertest.Fault{Huge: 3 << 20, Path: loginPath})
	got = c.do("POST", loginPath, asJSON, goodLogin, 200)
	equal(t, "huge", len(got.body), 3<<20)
	equal(t, "huge is JSON with a token", got.text("token"), "forged")
	n.ClearFaults()
	c.logIn()
	equal(t, "logins", n.Logins(), 2)
	n.Inject(partnertest.Fault{Status: 500})
	post(429) // the tenth: faults were counted, and the quota comes first
}

func TestFaultRate(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{Limit: -1})
	n.Inject(partnertest.Fault{Status: 503, Rate: 0.1, Method: "GET"})
	for i := 1; i <= 50; i++ {
		want := 401
		if i%10 == 0 {
			want = 503
		}
		c.do("GET", ordersPath, nil, "", want)
		c.do("POST", ordersPath, nil, "", 401) // not the fault's, so not counted by it
	}
}

func TestCutAndReset(t *testing.T) {
	for _, secure := range []bool{false, true} {
		n, c := startNowPost(t, partnertest.Options{TLS: secure})
		auth := bearer(c.logIn())
		n.Inject(partnertest.Fault{Cut: true, Times: 1})
		got, err := c.try(t.Context(), "POST", ordersPath, auth, order("C", "x"))
		if err == nil || len(got.body) == 0 || got.StatusCode != 201 || int64(len(got.body)) >= got.ContentLength {
			t.Errorf("TLS %v: cut gave %v and %q", secure, err, got.body)
		}
		equal(t, "carried out", n.Created("C"), 1)
		equal(t, "status", n.Status(201), 1)

		n.Inject(partnertest.Fault{Reset: true, Times: 1})
		if _, err = c.try(t.Context(), "POST", ordersPath, auth, order("R", "x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("TLS %v: got %v, want %v", secure, err, syscall.ECONNRESET)
		}
		equal(t, "carried out", n.Created("R"), 0)
		equal(t, "received", len(n.Requests()[2].Body), len(order("R", "x")))
		c.use("", 401) // the server goes on
	}
}

func TestHang(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{})
	auth := bearer(c.logIn())
	n.Inject(partnertest.Fault{Hang: true, Path: ordersPath})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got, err := c.try(t.Context(), "POST", ordersPath, auth, order("H", "x")); err != nil || got.StatusCode != 201 {
				t.Errorf("released: got %v, %v", got.Response, err)
			}
		})
	}
	await(t, n.Server, func() bool { return n.Hanging() == 3 })
	equal(t, "carried out while they hang", n.Created("H"), 0)
	c.logIn() // another path
	n.Release()
	wg.Wait()
	equal(t, "carried out", n.Created("H"), 3)

	ctx, leave := context.WithCancel(t.Context())
	wg.Go(func() { _, _ = c.try(ctx, "POST", ordersPath, auth, order("L", "x")) })
	await(t, n.Server, func() bool { return n.Hanging() == 1 })
	leave()
	wg.Wait()
	await(t, n.Server, func() bool { return n.Hanging() == 0 })
	equal(t, "carried out for one who left", n.Created("L"), 0)
	equal(t, "its status", n.Requests()[5].Status, 0)

	if err := n.Await(ctx, func() bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("Await: got %v, want %v", err, context.Canceled)
	}
}

func await(t *testing.T, s *partnertest.Server, what func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Await(ctx, what); err != nil {
		t.Fatal(err)
	}
}

func TestDelays(t *testing.T) {
	const d = 30 * time.Millisecond
	n, c := startNowPost(t, partnertest.Options{Latency: d})
	n.Inject(partnertest.Fault{Delay: d, Status: 503, Times: 1})
	start := time.Now()
	c.do("POST", loginPath, asJSON, goodLogin, 503)
	if took := time.Since(start); took < 2*d {
		t.Errorf("answered after %v, want %v or more", took, 2*d)
	}

	n, c = startNowPost(t, partnertest.Options{Latency: time.Hour})
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.try(ctx, "POST", loginPath, asJSON, goodLogin) })
	// Carried out before the wait.
	await(t, n.Server, func() bool { return n.Logins() == 1 })
	leave()
	wg.Wait()
	equal(t, "answers", n.Status(200), 0)
}

func TestCloseWhileBusy(t *testing.T) {
	for _, o := range []partnertest.Options{{}, {TLS: true}, {Latency: time.Hour}, {TLS: true, Latency: time.Hour}} {
		n := partnertest.StartNowPost(o)
		tr := n.Transport()
		c := caller{t, n.URL, &http.Client{Transport: tr}}
		if o.Latency == 0 {
			n.Inject(partnertest.Fault{Hang: true})
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := c.try(t.Context(), "POST", loginPath, asJSON, goodLogin); err == nil {
					t.Error("got an answer from a closed server")
				}
			})
		}
		unfinished, body := io.Pipe() // and one whose body never ends
		wg.Go(func() {
			r, _ := http.NewRequestWithContext(t.Context(), "POST", n.URL+loginPath, unfinished)
			if resp, err := tr.RoundTrip(r); err == nil {
				resp.Body.Close()
			}
		})
		await(t, n.Server, func() bool { return len(n.Requests()) == 6 })
		n.Close()
		n.Close()
		body.Close()
		wg.Wait()
		tr.CloseIdleConnections()
		if err := goleak.Find(); err != nil {
			t.Error(err)
		}
	}
}

func TestTLS(t *testing.T) {
	n, c := startNowPost(t, partnertest.Options{TLS: true})
	if !strings.HasPrefix(n.URL, "https://") || n.CertPool() == nil {
		t.Fatalf("got %s, want https", n.URL)
	}
	c.logIn()
	one := n.Transport()
	defer one.CloseIdleConnections()
	one.Protocols = new(http.Protocols)
	one.Protocols.SetHTTP1(true)
	caller{t, n.URL, &http.Client{Transport: one}}.logIn()
	got := n.Requests()
	equal(t, "protocol", got[0].Proto, "HTTP/2.0")
	equal(t, "protocol", got[1].Proto, "HTTP/1.1")

	other, foreign := startNowPost(t, partnertest.Options{TLS: true})
	if _, err := (caller{t, n.URL, foreign.client}).try(t.Context(), "GET", ordersPath, nil, ""); err == nil {
		t.Error("one server's pool trusts the other server")
	}
	equal(t, "requests", other.Count("", ""), 0)

	plain, c := startNdovu(t, partnertest.Options{})
	if plain.CertPool() != nil || !strings.HasPrefix(plain.URL, "http://") {
		t.Errorf("got %s and a pool, want plain http", plain.URL)
	}
	c.do("GET", plansPath, nil, "", 401)
	equal(t, "protocol", plain.Requests()[0].Proto, "HTTP/1.1")
}

func TestRequests(t *testing.T) {
	clock := newClock()
	n, c := startNowPost(t, partnertest.Options{Now: clock.Now})
	c.do("POST", loginPath+"?a=b", http.Header{"Content-Type": {"application/json"}, "X-Mark": {"1"}}, goodLogin, 200)
	c.do("GET", ordersPath, nil, "", 401)
	all := n.Requests()
	equal(t, "requests", len(all), 2)
	r := all[0]
	equal(t, "request", fmt.Sprint(r.Time.Equal(clock.Now()), " ", r.Method, " ", r.Path, " ", r.RawQuery, " ", r.Header.Get("X-Mark"), " ", r.ContentLength, " ", r.Status),
		fmt.Sprint("true POST ", loginPath, " a=b 1 ", len(goodLogin), " 200"))
	equal(t, "body", string(r.Body), goodLogin)
	equal(t, "host", "http://"+r.Host, n.URL)
	equal(t, "connection", r.RemoteAddr, all[1].RemoteAddr)
	equal(t, "count", fmt.Sprint(n.Count("", ""), n.Count("GET", ""), n.Count("", loginPath), n.Count("GET", loginPath)), "2 1 1 0")

	n, c = startNowPost(t, partnertest.Options{Forget: true})
	c.logIn()
	equal(t, "kept and counted", fmt.Sprint(len(n.Requests()), n.Count("", ""), n.LoginRequests()), "0 1 1")
}

func TestUnknownHeaders(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a misspelt style was accepted")
		}
	}()
	partnertest.StartNowPost(partnertest.Options{Headers: "draft-9"}).Close()
}

func TestManyAtOnce(t *testing.T) {
	for _, secure := range []bool{false, true} {
		n, c := startNowPost(t, partnertest.Options{TLS: secure, Limit: 300})
		auth := bearer(c.logIn())
		n.Inject(partnertest.Fault{Status: 500, Rate: 0.5, Path: ordersPath})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 20 {
					if _, err := c.try(t.Context(), "POST", ordersPath, auth, order("M", "x")); err != nil {
						t.Error(err)
					}
					n.Requests()
					n.Orders()
				}
			})
		}
		wg.Wait()
		equal(t, "peak", n.Peak(), 401)
		equal(t, "429", n.Status(429), 101)
		equal(t, "500", n.Status(500), 149)
		equal(t, "created", n.Created("M"), 150)
	}
}
