package faults

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// A road is a TCP proxy on which things go wrong.
type road struct {
	*toxiproxy.Proxy
	t *testing.T
}

// newRoad is one to the server at a URL, and a URL that leads over it.
func newRoad(t *testing.T, to string) (*road, string) {
	t.Helper()
	scheme, host, _ := strings.Cut(to, "://")
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	r := &road{toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", host), t}
	r.open()
	t.Cleanup(r.Stop) // which does nothing when it is stopped already
	return r, scheme + "://" + r.Listen
}

// open lets connections in again, at the same address, and Stop ends all and refuses new ones.
func (r *road) open() {
	r.t.Helper()
	if err := r.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// add puts a toxic in the way there, the way back, or both.
func (r *road) add(toxic, attributes string, streams ...string) {
	r.t.Helper()
	for _, stream := range streams {
		text := fmt.Sprintf(`{"type":%q,"stream":%q,"attributes":%s}`, toxic, stream, attributes)
		if _, err := r.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *road) clear() { r.Toxics.ResetToxics(context.Background()) }

// protocols are what the tests speak to a partner with TLS.
var protocols = map[string]func() *http.Protocols{
	"HTTP1": func() *http.Protocols { p := new(http.Protocols); p.SetHTTP1(true); return p },
	"HTTP2": func() *http.Protocols { p := new(http.Protocols); p.SetHTTP2(true); return p },
}

// Callers create orders over bad roads while the partner revokes all tokens now and then. Roads that are only slow let
// every order through. On those that break, now and then, an order may fail, but none is there twice.
func TestToxics(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		name, toxic, attributes string
		breaks                  bool
	}{
		{name: "latency", toxic: "latency", attributes: `{"latency":100}`},
		{name: "jitter", toxic: "latency", attributes: `{"latency":60,"jitter":50}`},
		{name: "bandwidth", toxic: "bandwidth", attributes: `{"rate":24}`}, // kB a second, on each connection
		{name: "slow close", toxic: "slow_close", attributes: `{"delay":400}`},
		{name: "reset", toxic: "reset_peer", attributes: `{"timeout":0}`, breaks: true},
		{name: "cut", toxic: "limit_data", attributes: `{"bytes":300}`, breaks: true}, // half an answer
		{name: "timeout", toxic: "timeout", attributes: `{"timeout":300}`, breaks: true},
		{name: "away and back", breaks: true},
	} {
		for protocol, set := range protocols {
			t.Run(kind.name+"/"+protocol, func(t *testing.T) {
				t.Parallel()
				partner := partnertest.StartNowPost(partnertest.Options{TLS: true, Limit: -1, Latency: 100 * time.Millisecond})
				t.Cleanup(partner.Close)
				road, url := newRoad(t, partner.URL)
				base := newWire(partner.Transport())
				base.Protocols = set()
				quota := &partnerauth.Quota{Requests: 30, Window: 2 * time.Second}
				shop := newProgram(t, url, quota, base)

				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				worked := make(chan []outcome, 1)
				go func() {
					worked <- shift{callers: 6, patience: 6 * time.Second, pause: 50 * time.Millisecond}.run(ctx, shop, "order")
				}()

				ways := []string{"downstream", "upstream"}
				spoil := func() { road.add(kind.toxic, kind.attributes, ways...) }
				mend := road.clear
				if kind.toxic == "" {
					spoil, mend = road.Stop, road.open
				}
				flow := func() bool {
					created := partner.Status(http.StatusCreated)
					// a login that failed may be 30 s away from the next
					return eventually(45*time.Second, func() bool { return partner.Status(http.StatusCreated) > created+10 })
				}
				// Slow roads stay so. Tokens are revoked less often there than a call and its retry may wait for the quota,
				// or two were revoked during one call, which its caller then sees. Where it goes on for long, it is every
				// other time: logins after 401s are rationed.
				rounds, lasts := 2, 2500*time.Millisecond
				if kind.breaks {
					rounds, lasts = 3, 900*time.Millisecond
				}
				if *long {
					rounds = 20
				}
				for n := 0; n < rounds && flow(); n++ {
					if kind.breaks {
						ways = []string{[]string{"downstream", "upstream"}[n%2]}
						sent := partner.Count("POST", "/api/v1/orders")
						eventually(5*time.Second, func() bool { return partner.Count("POST", "/api/v1/orders") > sent })
					}
					if n == 0 || kind.breaks {
						spoil() // with a request under way, whose answer may not come any more
					}
					rest(ctx, lasts)
					if n%2 == 0 || !*long {
						partner.RevokeAll()
					}
					shop.client.CloseIdleConnections() // new ones have the same to go through
					if kind.breaks {
						mend()
					}
				}
				if !flow() {
					t.Error("no orders come through any more")
				}
				cancel()
				outcomes := <-worked

				succeeded := audit(t, partner, outcomes, quota)
				unseen := len(partner.Orders()) - succeeded // by their callers
				t.Logf("%d of %d orders succeeded, %d more exist, %d logins; failures: %s",
					succeeded, len(outcomes), unseen, partner.Logins(), failures(outcomes))
				if kind.breaks && unseen == 0 {
					t.Error("no answer was lost, so that nobody was tempted to ask twice")
				}
				if want := len(outcomes); !kind.breaks && succeeded != want {
					t.Errorf("%d of %d orders succeeded on a road that is only slow", succeeded, want)
				}
				for _, r := range partner.Requests() {
					if got, want := "HTTP"+r.Proto[len("HTTP/"):][:1], protocol; got != want {
						t.Fatalf("the partner was spoken to in %s, want %s", got, want)
					}
				}
			})
		}
	}
}
