package partnerredis

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sort"
	"sync"
	"testing"
	"time"
)

// A partner counts as the strictest do: every request of the last window, those
// it refuses as well.
type partner struct {
	*httptest.Server
	limit  int
	window time.Duration
	late   float64       // of requests are 0.3 to 0.8 windows on the way, half of it before they are counted
	slow   time.Duration // up to which all answers take
	stop   func(n int) time.Duration

	mu      sync.Mutex
	log     []time.Time
	by      map[string]int
	refused int
	last    time.Time   // refusal
	paused  []time.Time // requests that came in a pause
	pause   time.Time
	leaky   int  // requests of a burst, if it minds the pace instead
	sick    bool // it refuses by 503, as an nginx does
	level   float64
}

func newPartner(t testing.TB, limit int, window time.Duration) *partner {
	p := &partner{limit: limit, window: window, by: map[string]int{}}
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	return p
}

func (p *partner) serve(w http.ResponseWriter, r *http.Request) {
	var before, after time.Duration
	if rand.Float64() < p.late {
		d := time.Duration((0.3 + 0.5*rand.Float64()) * float64(p.window))
		before = time.Duration(rand.Float64() * float64(d))
		after = d - before
	}
	if p.slow > 0 {
		after = time.Duration(rand.Int64N(int64(p.slow)))
	}
	<-time.After(before)
	status := p.count(r.Header.Get("Worker"))
	<-time.After(after)
	if status == 429 {
		w.Header().Set("Pause", fmt.Sprint(p.window))
	}
	w.WriteHeader(status)
}

func (p *partner) count(worker string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.leaky > 0 && len(p.log) > 0 {
		p.level = max(0, p.level-now.Sub(p.log[len(p.log)-1]).Seconds()/p.window.Seconds()*float64(p.limit))
	}
	p.log = append(p.log, now)
	p.by[worker]++
	if p.leaky > 0 {
		if p.level >= float64(p.leaky) {
			p.refused++
			p.last = now
			if p.sick {
				return 503
			}
			return 429
		}
		p.level++
		return 200
	}
	if now.Before(p.pause) {
		p.paused = append(p.paused, now)
	}
	i := sort.Search(len(p.log), func(i int) bool { return now.Sub(p.log[i]) < p.window })
	if len(p.log)-i > p.limit {
		p.refused++
		return 429
	}
	if p.stop != nil {
		if d := p.stop(len(p.log)); d > 0 {
			p.pause = now.Add(d)
			return 429
		}
	}
	return 200
}

func (p *partner) total() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.log)
}

// A count is what the partner saw.
type count struct {
	total, refused, fullest int
	longest                 time.Duration // without a request
	used                    float64       // of what the quota allows
	least                   float64       // served process, of the mean
}

func (p *partner) result(workers int, elapsed time.Duration) (c count) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.total, c.refused = len(p.log), p.refused
	first := 0
	for i, at := range p.log {
		for at.Sub(p.log[first]) >= p.window {
			first++
		}
		c.fullest = max(c.fullest, i-first+1)
		if i > 0 {
			c.longest = max(c.longest, at.Sub(p.log[i-1]))
		}
	}
	c.used = float64(c.total) / (elapsed.Seconds() / p.window.Seconds() * float64(p.limit))
	if workers > 0 {
		least := c.total
		for _, n := range p.by {
			least = min(least, n)
		}
		if len(p.by) < workers {
			least = 0
		}
		c.least = float64(least) * float64(workers) / float64(c.total)
	}
	return c
}

func (c count) String() string {
	return fmt.Sprintf("%d requests, %d refused, %d in the fullest window, longest gap %v, %.1f %% used, least served %.2f of the mean",
		c.total, c.refused, c.fullest, c.longest.Round(time.Millisecond), 100*c.used, c.least)
}
