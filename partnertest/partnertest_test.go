package partnertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
)

// call makes a call from any goroutine of a test.
func call(t *testing.T, client *http.Client, method, url, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
		return 0, ""
	}
	return resp.StatusCode, string(b)
}

// TestVirtualTime sends a batch that takes five minutes and meets, on its way,
// the quota, a token that is revoked, one that ends and a partner that is down.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := partnertest.NowPostInMemory(partnertest.Options{Lifetime: 3 * time.Minute, Latency: 100 * time.Millisecond})
		t.Cleanup(partner.Drain)
		client := partner.Account().Client()
		partner.Inject(partnertest.Fault{Path: "/api/v1/auth/*", Status: 502, Times: 2})
		began := time.Now()
		var all sync.WaitGroup
		for i := range 500 {
			all.Go(func() {
				body := strings.Replace(order, "SHOP-1", fmt.Sprint("SHOP-", i), 1)
				if status, answer := call(t, client, "POST", partner.URL+"/api/v1/orders", body); status != 201 {
					t.Errorf("got %d %s, want 201", status, answer)
				}
			})
		}
		time.Sleep(90 * time.Second)
		partner.RevokeAll()
		all.Wait()
		if got := time.Since(began); got < 4*time.Minute || got > 6*time.Minute {
			t.Errorf("got %v for 500 orders, want about five minutes", got)
		}
		for i := range 500 {
			if got := partner.Created(fmt.Sprint("SHOP-", i)); got != 1 {
				t.Errorf("got order %d created %d times, want once", i, got)
			}
		}
		if partner.Peak() > 100 || partner.Status(429) > 0 {
			t.Errorf("got %d requests in a minute and %d 429s, want 100 at most and none", partner.Peak(), partner.Status(429))
		}
		if partner.Logins()+partner.Refreshes() < 3 || partner.Status(401) < 1 || partner.Status(502) != 2 {
			t.Errorf("got %d logins, %d refreshes, %d 401s and %d 502s, want some of each",
				partner.Logins(), partner.Refreshes(), partner.Status(401), partner.Status(502))
		}
		if got := partner.Count("POST", "/api/v1/orders"); got != 500+partner.Status(401) {
			t.Errorf("got %d requests for orders, want those and the retries", got)
		}
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := partnertest.NowPostInMemory(partnertest.Options{})
		t.Cleanup(partner.Drain)
		client := partner.Account().Client()
		for range 48 {
			call(t, client, "GET", partner.URL+"/api/v1/orders", "")
			time.Sleep(time.Hour)
		}
		if partner.Logins() != 1 || partner.Refreshes() != 2 {
			t.Errorf("got %d logins and %d refreshes in two days, want 1 and 2", partner.Logins(), partner.Refreshes())
		}
	})
}

// TestHang shows that a deadline ends what hangs, where time is virtual.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := partnertest.NdovuInMemory(partnertest.Options{})
		t.Cleanup(partner.Drain)
		client := partner.Account().Client()
		client.Timeout = time.Minute
		partner.Inject(partnertest.Fault{Method: "GET", Hang: true})
		began := time.Now()
		_, err := client.Get(partner.URL + "/api/v3/partners/acme/plans")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("got error %v after %v, want that of a deadline after 1m", err, time.Since(began))
		}
	})
}

func TestSockets(t *testing.T) {
	for _, o := range []partnertest.Options{
		{},
		{TLS: true, Email: "me@example.com", Password: "it's", ClientID: "me", ClientSecret: "%41", ShortName: "mine"},
	} {
		shop, plans := partnertest.NowPost(t, o), partnertest.Ndovu(t, o)
		client := shop.Account().Client()
		if status, answer := call(t, client, "POST", shop.URL+"/api/v1/orders", order); status != 201 {
			t.Errorf("got %d %s, want 201", status, answer)
		}
		if got := shop.Requests(); len(got) != 2 || got[1].Method != "POST" || string(got[1].Body) != order || got[1].Status != 201 {
			t.Errorf("got requests %+v, want a login and an order", got)
		}
		mine := "acme"
		if o.ShortName != "" {
			mine = o.ShortName
		}
		if status, answer := call(t, plans.Account().Client(), "GET", plans.URL+"/api/v3/partners/"+mine+"/plans", ""); status != 200 {
			t.Errorf("got %d %s, want 200", status, answer)
		}

		shop.Inject(partnertest.Fault{Path: "/api/v1/orders", Hang: true})
		done := make(chan struct{})
		go func() {
			defer close(done)
			call(t, client, "GET", shop.URL+"/api/v1/orders", "")
		}()
		if err := shop.Await(t.Context(), func() bool { return shop.Hanging() == 1 }); err != nil {
			t.Fatal(err)
		}
		shop.ClearFaults()
		shop.Release()
		<-done
	}
}

// TestEnv takes the accounts from the environment.
func TestEnv(t *testing.T) {
	shop, plans := partnertest.NowPost(t, partnertest.Options{}), partnertest.Ndovu(t, partnertest.Options{})
	for _, v := range append(shop.Env(), plans.Env()...) {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	nowPost, err := partnerauth.NowPostFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	call(t, nowPost.Client(), "GET", nowPost.BaseURL+"/api/v1/orders", "")
	ndovu, err := partnerauth.NdovuFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	call(t, ndovu.Client(), "GET", ndovu.BaseURL+"/api/v3/partners/acme/plans", "")
	if shop.Logins() != 1 || plans.Logins() != 1 {
		t.Errorf("got %d and %d logins, want one each", shop.Logins(), plans.Logins())
	}
}

// TestForeignHost makes sure that a URL that is not the stand-in's goes nowhere.
func TestForeignHost(t *testing.T) {
	partner := partnertest.NowPostInMemory(partnertest.Options{URL: partnerauth.NowPostBaseURL})
	client := partner.Account().Client()
	if status, _ := call(t, client, "GET", partnerauth.NowPostBaseURL+"/api/v1/orders", ""); status != 200 {
		t.Errorf("got %d, want 200", status)
	}
	if _, err := client.Get("https://elsewhere.test/"); err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("got error %v, want that there is no such host", err)
	}
}
