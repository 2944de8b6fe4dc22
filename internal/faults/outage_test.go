package faults

import (
	"context"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// For five seconds nobody gets through to the partner, while ten workers try again every 200 ms: 250 requests that
// never left. Within a second of its return the first is served, and then as many as the window has places, at once.
func TestOutage(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		name string
		// The first failures of the ten workers may have been on their way, or
		// cannot be told from such: their places stay taken.
		lost  int
		proxy bool // squid stands in the way, and is what cannot reach the partner
		begin func(*road)
		end   func(*road)
	}{
		{"connection refused", 10, false, (*road).Stop, (*road).open},
		{"TLS handshake cut", 10, false, func(r *road) { r.Stop(); r.add("limit_data", `{"bytes":10}`, "downstream"); r.open() }, (*road).clear},
		{"CONNECT refused", 0, true, (*road).Stop, (*road).open},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			partner := partnertest.StartNowPost(partnertest.Options{TLS: true, Limit: -1})
			t.Cleanup(partner.Close)
			road, address := newRoad(t, partner.URL)
			base := newWire(partner.Transport())
			base.Protocols = protocols["HTTP1"]()
			if kind.proxy {
				base.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: startSquid(t, "")})
			}
			quota := &partnerauth.Quota{Requests: 100, Window: time.Minute}
			shop := newProgram(t, address, quota, base)

			first := shop.order(context.Background(), "first", 10*time.Second)
			if first.err != nil || first.status != http.StatusCreated {
				t.Fatalf("before the outage: got %d, %v", first.status, first.err)
			}
			before := partner.Count("", "")

			kind.begin(road)
			shop.client.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			worked := make(chan []outcome, 1)
			go func() {
				worked <- shift{callers: 10, patience: 2 * time.Second, pause: 200 * time.Millisecond}.run(ctx, shop, "order")
			}()
			rest(ctx, 5*time.Second)
			if got := partner.Count("", ""); got != before {
				t.Fatalf("the partner was not unreachable: it counted %d requests", got-before)
			}
			kind.end(road)
			back := time.Now()
			full := eventually(5*time.Second, func() bool { return partner.Count("", "") >= quota.Requests-kind.lost })
			took := time.Since(back)
			cancel()
			outcomes := append(<-worked, first)

			served := audit(t, partner, outcomes, quota)
			t.Logf("%d of %d orders succeeded; %d places used %v after the return; failures: %s",
				served, len(outcomes), partner.Count("", ""), took.Round(time.Millisecond), failures(outcomes))
			again := time.Time{} // when the first order succeeded after the return
			for _, o := range outcomes {
				if o.err == nil && o.status == http.StatusCreated && o.at.After(back) && (again.IsZero() || o.at.Before(again)) {
					again = o.at
				}
			}
			if again.IsZero() {
				t.Error("no order succeeded after the return")
			} else if d := again.Sub(back); d > time.Second {
				t.Errorf("the first success came %v after the return, want a second at most", d)
			}
			if !full {
				t.Errorf("the partner counted %d requests 5 s after its return, want %d places", partner.Count("", ""), quota.Requests-kind.lost)
			}
		})
	}
}
