package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var footnote string // that a cell refers to

func failingLogins(t *testing.T, pr peer) string {
	count := func(code int) int {
		p := newPartner()
		p.login = func(n int, _ *http.Request) int {
			if n == 1 {
				time.Sleep(150 * time.Millisecond) // meanwhile all have come
			}
			time.Sleep(2 * time.Millisecond)
			return code
		}
		c := start(t, pr, p)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if code, err := c.call(t.Context()); err == nil {
					t.Errorf("%s: got status %d without a token, want an error", pr.name, code)
				}
			})
		}
		wg.Wait()
		return p.countLogins()
	}
	refused, down := count(http.StatusUnauthorized), count(http.StatusServiceUnavailable)
	if down != refused {
		footnote = fmt.Sprintf("¹ One fetch for all, tried %d times after a 5xx.", down)
		return fmt.Sprintf("%d ¹", refused)
	}
	return fmt.Sprint(refused)
}

func leavingWaiter(t *testing.T, pr peer) string {
	p, release := newPartner(), make(chan struct{})
	arrived := make(chan struct{}, 100)
	p.login = func(_ int, r *http.Request) int { arrived <- struct{}{}; return held(r, release) }
	c := start(t, pr, p)
	var wg sync.WaitGroup
	wg.Go(func() { c.call(t.Context()) })
	<-arrived
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	left := make(chan struct{})
	wg.Go(func() { c.call(ctx); close(left) })
	leaves := false
	select {
	case <-left:
		leaves = true
	case <-time.After(400 * time.Millisecond):
	}
	close(release)
	wg.Wait()
	return yes(leaves)
}

func cancelledLeader(t *testing.T, pr peer) string {
	p, release := newPartner(), make(chan struct{})
	arrived := make(chan struct{}, 100)
	p.login = func(n int, r *http.Request) int {
		arrived <- struct{}{}
		if n > 1 {
			return http.StatusOK
		}
		return held(r, release)
	}
	c := start(t, pr, p)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.call(ctx) })
	<-arrived
	var code int
	wg.Go(func() { code, _ = c.call(t.Context()) })
	time.Sleep(50 * time.Millisecond) // the second waits
	cancel()
	time.Sleep(50 * time.Millisecond)
	close(release)
	wg.Wait()
	switch logins := p.countLogins(); {
	case code != http.StatusOK:
		return "no"
	case logins > 1:
		return "costs another login"
	case !survivesBuilder(t, pr):
		return "yes, unless its context built the source"
	case !limitsFetch(t, pr):
		return "yes, without a time limit"
	}
	return "yes"
}

// survivesBuilder reports whether a client renews its token when the context is
// over that it was built under: that of the first caller, where programs build
// it on first use.
func survivesBuilder(t *testing.T, pr peer) (survives bool) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		ctx, cancel := context.WithCancel(t.Context())
		c := pr.new(t, setup{partner: p, url: apiURL, built: ctx})
		mustCall(t, c)
		cancel()
		time.Sleep(2 * p.lifetime)
		_, err := c.call(t.Context())
		survives = err == nil
	})
	return survives
}

// limitsFetch reports whether a token request that is never answered ends, when
// its caller has left.
func limitsFetch(t *testing.T, pr peer) (limited bool) {
	synctest.Test(t, func(t *testing.T) {
		p, release := newPartner(), make(chan struct{})
		var ended atomic.Bool
		p.login = func(_ int, r *http.Request) int {
			held(r, release)
			ended.Store(true)
			return http.StatusOK
		}
		c := start(t, pr, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go c.call(ctx)
		time.Sleep(time.Hour)
		limited = ended.Load()
		close(release)
		synctest.Wait()
	})
	return limited
}
