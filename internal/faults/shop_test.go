package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// A wire is the Base of a program. It counts the connections that are open, notes what was answered, and can make the
// way longer.
type wire struct {
	*http.Transport
	jitter time.Duration // each way takes up to so much more

	open atomic.Int64 // connections

	mu      sync.Mutex
	answers []mark
}

// A mark is something that happened at a time: an answer of that status.
type mark struct {
	at     time.Time
	status int
}

func newWire(t *http.Transport) *wire {
	w := &wire{Transport: t}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	t.MaxIdleConnsPerHost = 256
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		w.open.Add(1)
		return &countedConn{Conn: c, open: &w.open}, nil
	}
	return w
}

type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	w.travel(req.Context())
	resp, err := w.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	w.travel(req.Context())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, mark{time.Now(), resp.StatusCode})
	return resp, nil
}

func (w *wire) travel(ctx context.Context) {
	if w.jitter > 0 {
		rest(ctx, rand.N(w.jitter))
	}
}

// noted is what was answered so far, token requests included.
func (w *wire) noted() []mark {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.answers)
}

// A program is what somebody builds with the package: a client, behind whatever stands before the partner.
type program struct {
	client *http.Client
	url    string // of the partner, as the program knows it
}

// newProgram makes one that has to leave no connection when the test ends.
func newProgram(t *testing.T, url string, quota *partnerauth.Quota, base *wire) *program {
	t.Helper()
	shop := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: url}
	p := &program{url: url, client: &http.Client{
		Transport: &partnerauth.Transport{Source: shop.TokenSource(), Base: base, Limiter: quota},
	}}
	t.Cleanup(func() {
		closed := func() bool { // HTTP/2 ends a stream a little after its caller has gone
			p.client.CloseIdleConnections()
			return base.open.Load() == 0
		}
		if !eventually(5*time.Second, closed) {
			t.Errorf("%d connections are left", base.open.Load())
		}
	})
	return p
}

// An outcome is what the caller of one order saw.
type outcome struct {
	id      string
	status  int
	err     error
	at      time.Time
	overdue time.Duration // past its deadline
}

const orderJSON = `{"partner_order_id":%q,"pudo_point_id":"p-1",` +
	`"customer":{"name":"Asha","email":"asha@example.com","phone":"+254700000000"},` +
	`"items":[{"name":"Tea","qty":2,"price":4.5,"weight_kg":0.25}]}`

// order creates one, and reads the answer to its end: an answer that breaks off is no success.
func (p *program) order(ctx context.Context, id string, patience time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body := strings.NewReader(fmt.Sprintf(orderJSON, id))
	req, err := http.NewRequestWithContext(ctx, "POST", p.url+"/api/v1/orders", body)
	if err != nil {
		return outcome{id: id, err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	o := outcome{id: id}
	resp, err := p.client.Do(req)
	if err == nil {
		o.status = resp.StatusCode
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	deadline, _ := ctx.Deadline()
	o.err, o.at = err, time.Now()
	o.overdue = o.at.Sub(deadline)
	return o
}

// A shift is how callers work: each creates an order after the other until ctx ends, and pauses after a failure.
type shift struct {
	callers  int
	patience time.Duration // for one order
	pause    time.Duration // after a failure
}

// most bounds what one caller asks for, whatever goes wrong.
const most = 20_000

// run works until ctx ends; orders begun by then are finished.
func (s shift) run(ctx context.Context, p *program, prefix string) []outcome {
	outcomes := make([][]outcome, s.callers)
	var wg sync.WaitGroup
	for i := range s.callers {
		wg.Go(func() {
			for n := 0; n < most && ctx.Err() == nil; n++ {
				o := p.order(context.WithoutCancel(ctx), fmt.Sprintf("%s-%d-%d", prefix, i, n), s.patience)
				outcomes[i] = append(outcomes[i], o)
				if o.status != http.StatusCreated || o.err != nil {
					rest(ctx, s.pause)
				}
			}
		})
	}
	wg.Wait()
	var all []outcome
	for _, some := range outcomes {
		all = append(all, some...)
	}
	return all
}

// rest lets time pass, where the time is what matters: a caller's pace, how long a fault lasts.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// audit compares what callers saw with what the partner did, and returns how many orders succeeded: each of those
// exists once, none twice, nobody was kept past a deadline, and at no time had the partner counted more requests in a
// window than the quota allows.
func audit(t *testing.T, partner *partnertest.NowPost, outcomes []outcome, quota *partnerauth.Quota) int {
	t.Helper()
	created := map[string]int{}
	for _, o := range partner.Orders() {
		created[o.PartnerOrderID]++
	}
	succeeded := 0
	var latest time.Duration
	for _, o := range outcomes {
		n := created[o.id]
		ok := o.err == nil && o.status == http.StatusCreated
		switch {
		case ok && n != 1:
			t.Errorf("order %s: the caller saw success, it exists %d times", o.id, n)
		case n > 1:
			t.Errorf("order %s exists %d times; the caller saw %d, %v", o.id, n, o.status, o.err)
		case o.err == nil && !ok && o.status != http.StatusUnauthorized && o.status != http.StatusTooManyRequests:
			// a 401 remains where the token was revoked twice during one call, a 429 where others use the account
			t.Errorf("order %s: got %d", o.id, o.status)
		}
		if ok {
			succeeded++
		}
		latest = max(latest, o.overdue)
	}
	if latest > time.Second {
		t.Errorf("somebody was kept %v past the deadline, want a second at most", latest)
	}
	if got := densest(partner.Requests(), quota.Window); got > quota.Requests {
		t.Errorf("the partner counted %d requests in %v, want %d at most", got, quota.Window, quota.Requests)
	}
	return succeeded
}

// densest is the most requests in any window: a strict sliding log.
func densest(requests []partnertest.Request, window time.Duration) int {
	peak, first := 0, 0
	for i, r := range requests {
		for r.Time.Sub(requests[first].Time) >= window {
			first++
		}
		peak = max(peak, i-first+1)
	}
	return peak
}

// failures tells what callers saw beside success, for a message.
func failures(outcomes []outcome) string {
	kinds := map[string]int{}
	for _, o := range outcomes {
		switch {
		case errors.Is(o.err, partnerauth.ErrRateLimited):
			kinds[partnerauth.ErrRateLimited.Error()]++
		case o.err != nil:
			err := o.err
			for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
				err = next
			}
			kinds[err.Error()]++
		case o.status != http.StatusCreated:
			kinds[http.StatusText(o.status)]++
		}
	}
	return fmt.Sprint(kinds)
}
