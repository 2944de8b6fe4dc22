package faults

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"github.com/partnerauth/partnerauth/partnerredis"
)

// Four processes share a quota on a Redis, the way to which stands still for two seconds when the second burst is due.
// Nothing on it is lost.
func TestStalledRedis(t *testing.T) {
	t.Parallel()
	const (
		processes = 4
		callers   = 20
		limit     = 100
		window    = 3 * time.Second
		stall     = 2 * time.Second
		during    = 4 * window
	)
	for _, kind := range []struct {
		name     string
		replicas int
		patience time.Duration // of callers
		used     float64
	}{
		{"Replicas 0, no caller is overdue", 0, time.Second, 0},
		{"Replicas 0, callers wait", 0, during, 0.5},
		{"Replicas 4 go on", processes, during, 0.6},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			partner := partnertest.StartNowPost(partnertest.Options{Limit: limit, Window: window, Headers: "none"})
			t.Cleanup(partner.Close)
			dir, address := t.TempDir(), freeAddress(t)
			_, port, _ := net.SplitHostPort(address)
			start(t, dir, address, binary(t, "redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "")
			road, _ := newRoad(t, "redis://"+address)

			end := time.Now().Add(during)
			var mu sync.Mutex
			var overdue time.Duration
			var all sync.WaitGroup
			for range processes {
				server := redis.NewClient(&redis.Options{Addr: road.Listen, DisableIdentity: true})
				t.Cleanup(func() { server.Close() })
				base := partner.Transport()
				t.Cleanup(base.CloseIdleConnections)
				shop := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
				client := &http.Client{Transport: &partnerauth.Transport{
					Source: shop.TokenSource(),
					Base:   base,
					Limiter: &partnerredis.Quota{
						Client: server, Name: "nowpost", Requests: limit, Window: window, Replicas: kind.replicas,
					},
				}}
				for range callers {
					all.Go(func() {
						for time.Now().Before(end) {
							late := call(client, partner.URL+"/api/v1/orders", min(kind.patience, time.Until(end)))
							mu.Lock()
							overdue = max(overdue, late)
							mu.Unlock()
						}
					})
				}
			}
			<-time.After(window - stall/4)
			road.add("latency", `{"latency":3600000}`, "upstream", "downstream")
			<-time.After(stall)
			road.clear() // what was held goes on at once
			all.Wait()

			used := float64(partner.Status(200)) / (limit * float64(during/window))
			t.Logf("%.0f %% used, %d in the fullest window, %d answers of 429, overdue by %v at most",
				100*used, partner.Peak(), partner.Status(429), overdue.Round(time.Millisecond))
			if partner.Peak() > limit || partner.Status(429) > 0 {
				t.Errorf("got %d in the fullest window and %d answers of 429, want %d at most and none", partner.Peak(), partner.Status(429), limit)
			}
			if used < kind.used || overdue > time.Second {
				t.Errorf("got %.0f %% used, %v overdue, want %.0f %% and 1 s at most", 100*used, overdue, 100*kind.used)
			}
		})
	}
}

// call makes one call, and tells how long after its deadline its caller was told.
func call(client *http.Client, url string, patience time.Duration) (late time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return 0
	}
	deadline, _ := ctx.Deadline()
	late = time.Since(deadline)
	select { // who was refused comes again a little later
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	return late
}
