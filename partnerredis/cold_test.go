package partnerredis

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"github.com/redis/go-redis/v9"
)

// TestColdStart has processes without a token, of which the Store has one. While
// Redis is cut off they are told so; when it is back they are served at once.
func TestColdStart(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	w := newWire(t, s.addr())
	partner := partnertest.StartNowPost(partnertest.Options{})
	t.Cleanup(partner.Close)
	transport := func() (*http.Client, func()) {
		client := redis.NewClient(&redis.Options{Addr: w.addr(), DisableIdentity: true})
		config := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL, Store: mustStore(t, client, key(1))}
		base := &http.Transport{}
		return &http.Client{Transport: &partnerauth.Transport{
			Source:  config.TokenSource(),
			Limiter: &Quota{Client: client, Name: "test", Window: window},
			Base:    base,
		}}, func() { base.CloseIdleConnections(); client.Close() }
	}
	get := func(c *http.Client, within time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", partner.URL+"/api/v1/orders", nil)
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	first, end := transport()
	defer end()
	if err := get(first, 5*time.Second); err != nil {
		t.Fatal(err)
	}

	w.cut()
	var all sync.WaitGroup
	back := make(chan struct{})
	var mu sync.Mutex
	var slowest time.Duration
	for range 3 {
		all.Go(func() {
			c, end := transport()
			defer end()
			told := false
			for {
				select {
				case <-back:
					start := time.Now()
					for get(c, 500*time.Millisecond) != nil {
						if time.Since(start) > 10*time.Second {
							t.Error("not served within 10 s after Redis is back")
							return
						}
						pass(20 * time.Millisecond)
					}
					mu.Lock()
					slowest = max(slowest, time.Since(start))
					mu.Unlock()
					if !told {
						t.Error("it was never told that Redis is away")
					}
					return
				default:
					told = errors.Is(get(c, 500*time.Millisecond), partnerauth.ErrRateLimited) || told
				}
			}
		})
	}
	pass(2*window + window/2)
	w.mend(t)
	close(back)
	all.Wait()
	t.Logf("served %v after Redis is back", slowest)
	if slowest > 3*time.Second { // on a busy machine
		t.Errorf("served %v after Redis is back, want within a second", slowest)
	}
}
