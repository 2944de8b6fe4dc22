package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

// TestMain makes a default run short; -rapid.checks asks for more.
func TestMain(m *testing.M) {
	flag.Parse()
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": "40", "rapid.nofailfile": "true", "rapid.shrinktime": "10s"} {
		if !given[name] {
			flag.Set(name, value)
		}
	}
	os.Exit(m.Run())
}

// play runs f in a bubble of virtual time, which starts at 0 for each, and leaves
// an hour to what is under way at its end.
func play(t *testing.T, rt *rapid.T, f func()) {
	synctest.Test(t, func(*testing.T) {
		defer func() {
			if r := recover(); r != nil {
				rt.Errorf("panic: %v", r)
			}
		}()
		f()
		time.Sleep(time.Hour)
	})
}

// began is when a bubble begins.
var began = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func clock() time.Duration { return time.Since(began) }

func sleepUntil(at time.Duration) { time.Sleep(at - clock()) }

const (
	origin      = "https://shop.example"
	loginPath   = "/api/v1/auth/login"
	refreshPath = "/api/v1/auth/refresh"
)

var (
	errNetwork = errors.New("connection reset")
	errDial    = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("refused")}
)

// A reply is what the partner does with one request. The zero value is the right
// answer at once.
type reply struct {
	Status int // 0: what is right
	Header map[string]string
	Out    time.Duration // until it is there
	Back   time.Duration // from then until the answer is here
	Err    error         // instead of an answer
	Do     func()        // in place of all that
}

// An attempt is one request as the partner saw it.
type attempt struct {
	path, token         string
	call                int // 0: none, it is a token request or of Quota.Wait
	sent, arrived, back time.Duration
	status              int  // 0: none
	left                bool // for the partner
	again               bool // the call had been sent before
	dead                bool // its context had ended before
	scope               bool // answered that the token is good, but not for this
	ctx                 context.Context
}

// A partner is NowPost in memory: a Base that issues the tokens t1, t2 and so on
// and keeps a record of all that it saw.
type partner struct {
	rt       *rapid.T
	answer   func(n int, a *attempt) reply // to the n-th request, from 0, of this path; nil: zero replies
	lifetime time.Duration                 // 0: a day
	skew     time.Duration                 // of its clock
	well     atomic.Bool                   // a history is over

	mu       sync.Mutex
	seen     []*attempt
	counts   map[string]int
	ends     map[string]time.Duration // of tokens issued, counted from the request for them
	valid    map[string]bool
	rejected map[string]time.Duration // since when the client knows

}

func (p *partner) init() {
	if p.counts == nil {
		p.counts, p.ends, p.valid = map[string]int{}, map[string]time.Duration{}, map[string]bool{}
		p.rejected = map[string]time.Duration{}
	}
}

// reject notes that the client knows that a token is rejected.
func (p *partner) reject(token string, at time.Duration) {
	if since, ok := p.rejected[token]; token != "" && (!ok || at < since) {
		p.rejected[token] = at
	}
}

// issue makes a token that somebody else has issued a valid one.
func (p *partner) issue(token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	p.valid[token] = true
}

// apiPath stands for all paths that are not of token requests.
const apiPath = "api"

func kind(path string) string {
	if path == loginPath || path == refreshPath {
		return path
	}
	return apiPath
}

func (p *partner) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	_, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	id, _ := strconv.Atoi(req.Header.Get("X-Id"))
	a := &attempt{path: kind(req.URL.Path), token: token, call: id, sent: clock(), ctx: req.Context()}
	p.mu.Lock()
	p.init()
	n := p.counts[a.path]
	a.again = slices.ContainsFunc(p.seen, func(b *attempt) bool { return id > 0 && b.call == id })
	p.counts[a.path]++
	p.mu.Unlock()
	var r reply
	if p.answer != nil {
		r = p.answer(n, a)
	}
	a.dead = req.Context().Err() != nil
	a.scope = strings.Contains(r.Header["WWW-Authenticate"], "insufficient_scope")
	a.arrived, a.left = a.sent+r.Out, !errors.Is(r.Err, errDial)
	p.mu.Lock()
	p.seen = append(p.seen, a)
	p.mu.Unlock()
	if r.Do != nil {
		r.Do()
	}
	resp, err := p.serve(req, a, r)
	p.mu.Lock()
	defer p.mu.Unlock()
	a.back = clock()
	if err == nil {
		a.status = resp.StatusCode
	}
	return resp, err
}

func (p *partner) serve(req *http.Request, a *attempt, r reply) (*http.Response, error) {
	if err := rest(req.Context(), r.Out); err != nil {
		return nil, err
	}
	body := ""
	p.mu.Lock()
	status := r.Status
	switch good := p.valid[a.token]; {
	case status != 0 || r.Err != nil:
	case a.path != loginPath && !good:
		status = 401
	default:
		status = 200
	}
	var issue string
	if status == 200 && a.path != apiPath {
		lifetime := p.lifetime
		if lifetime == 0 {
			lifetime = 24 * time.Hour
		}
		issue = fmt.Sprintf("t%d", len(p.ends)+1)
		p.ends[issue], p.valid[issue] = a.sent+lifetime, true
		ends := time.Now().Add(p.skew + lifetime)
		body = fmt.Sprintf(`{"success":true,"data":{"token":%q,"expiresAt":%q}}`, issue, ends.UTC().Format(time.RFC3339Nano))
		time.AfterFunc(lifetime, func() { p.revoke(issue) })
	}
	date := time.Now().Add(p.skew).UTC().Format(http.TimeFormat)
	p.mu.Unlock()
	if err := rest(req.Context(), r.Back); err != nil {
		return nil, err
	}
	if p.mu.Lock(); issue != "" && p.ends[issue]-clock() < 50*time.Millisecond {
		p.ends[issue] = clock() + 10*time.Second // used for a short while: rule 8
	}
	p.mu.Unlock()
	if r.Err != nil {
		return nil, r.Err
	}
	resp := &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Date": {date}, "Content-Type": {"application/json"}},
		Body:   io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
	for k, v := range r.Header {
		resp.Header.Set(k, v)
	}
	return resp, nil
}

func rest(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// revoke ends tokens; none named are all.
func (p *partner) revoke(tokens ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for token := range p.valid {
		if len(tokens) == 0 || slices.Contains(tokens, token) {
			p.valid[token] = false
		}
	}
}

// of are the attempts of a kind as they are now, in the order they were sent.
func (p *partner) of(path string) (of []*attempt) {
	return slices.DeleteFunc(p.all(), func(a *attempt) bool { return a.path != path })
}

func (p *partner) all() (all []*attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.seen {
		now := *a
		all = append(all, &now)
	}
	return all
}

// end is when a token ends, if the partner has issued it.
func (p *partner) end(token string) (end time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, ok = p.ends[token]
	return end, ok
}

// sent is when the call was first sent, -1 if it was not.
func (p *partner) sent(call int) time.Duration {
	for _, a := range p.of(apiPath) {
		if a.call == call {
			return a.sent
		}
	}
	return -1
}

// arrivals are when requests came to the partner, of all kinds.
func (p *partner) arrivals() (at []time.Duration) {
	for _, a := range p.all() {
		if a.left {
			at = append(at, a.arrived)
		}
	}
	return at
}

func (p *partner) tokenRequests() int { return len(p.of(loginPath)) + len(p.of(refreshPath)) }

func (p *partner) source() *partnerauth.Source {
	return partnerauth.NowPost{Email: "e@example.com", Password: "secret", BaseURL: origin, Base: p}.TokenSource()
}

// A caller is one call and what became of it.
type caller struct {
	id         int
	ctx        context.Context
	method     string
	body       io.Reader
	getBody    func() (io.ReadCloser, error) // nil: that of body, if it has one
	start, end time.Duration
	status     int // 0: an error
	err        error
	done       chan struct{}
	over       atomic.Int64 // 1 ns after the context ended; 0: it has not
}

// call makes a call in a goroutine of its own, and returns when that has come to
// rest: so those that follow are later, though it be at the same time.
func call(rt http.RoundTripper, id int, ctx context.Context) *caller {
	c := &caller{id: id, ctx: ctx, method: "GET", done: make(chan struct{})}
	c.run(rt)
	return c
}

func (c *caller) run(rt http.RoundTripper) {
	c.start = clock()
	go func() {
		defer close(c.done)
		defer func() { c.end = clock() }()
		defer func() {
			if r := recover(); r != nil {
				c.err = fmt.Errorf("panic: %v", r)
			}
		}()
		c.err = errors.New("the goroutine was ended")
		req, err := http.NewRequestWithContext(c.ctx, c.method, origin+"/orders", c.body)
		if err != nil {
			c.err = err
			return
		}
		if c.getBody != nil {
			req.GetBody = c.getBody
		}
		req.Header.Set("X-Id", strconv.Itoa(c.id))
		resp, err := rt.RoundTrip(req)
		if c.err = err; err == nil {
			c.status = resp.StatusCode
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	synctest.Wait()
}

// join waits for all, and reports those that do not end.
func join(rt *rapid.T, patience time.Duration, callers ...*caller) bool {
	end := time.After(patience)
	for _, c := range callers {
		select {
		case <-c.done:
		case <-end:
			rt.Errorf("call %d, begun at %v, has not ended at %v", c.id, c.start, clock())
			return false
		}
	}
	synctest.Wait() // so that what they saw can be read
	return true
}

// within is a context that ends at that time; forever for 0.
func within(at time.Duration) context.Context {
	if at == 0 {
		return context.Background()
	}
	ctx, cancel := context.WithDeadline(context.Background(), began.Add(at))
	context.AfterFunc(ctx, cancel)
	return ctx
}

func guardOf(window time.Duration) time.Duration { return min(time.Second, window/20) }

// inWindow reports where more than n arrived in a window.
func inWindow(rt *rapid.T, n int, window time.Duration, arrivals []time.Duration) {
	slices.Sort(arrivals)
	for i := n; i < len(arrivals); i++ {
		if d := arrivals[i] - arrivals[i-n]; d < window {
			rt.Errorf("%d requests in %v (want %v) at %v", n+1, d, window, arrivals[i-n:i+1])
			return
		}
	}
}

// inOrder reports attempts that overtook one of an earlier caller, while that
// waited: since its start, or since the answer that it repeats. In the instant in which
// a token comes, those who waited for it may go in any order.
func inOrder(rt *rapid.T, p *partner, callers ...*caller) {
	type span struct{ caller, from, sent time.Duration }
	var waits []span
	last := map[int]time.Duration{}
	for _, a := range p.of(apiPath) {
		i := slices.IndexFunc(callers, func(c *caller) bool { return c.id == a.call })
		if i < 0 {
			continue
		}
		from, again := last[a.call]
		if !again {
			from = callers[i].start
		}
		last[a.call] = a.back
		waits = append(waits, span{time.Duration(i), from, a.sent})
	}
	tokenCame := map[time.Duration]bool{}
	for _, a := range p.all() {
		if a.path != apiPath {
			tokenCame[a.back] = true
		}
	}
	for _, w := range waits {
		for _, v := range waits {
			if v.caller > w.caller && w.from < v.sent && v.sent < w.sent && !tokenCame[v.sent] {
				rt.Errorf("call %d, sent at %v, has overtaken call %d, which waited from %v to %v",
					callers[v.caller].id, v.sent, callers[w.caller].id, w.from, w.sent)
				return
			}
		}
	}
}

// ms draws a duration in milliseconds.
func ms(rt *rapid.T, from, to int, label string) time.Duration {
	return time.Duration(rapid.IntRange(from, to).Draw(rt, label+" ms")) * time.Millisecond
}

// quotas draws the sizes that properties are tried with.
func quotas(rt *rapid.T) (n int, window time.Duration) {
	return rapid.IntRange(1, 10).Draw(rt, "requests"), ms(rt, 400, 60_000, "window")
}

// signIn gets source its first token beside all quotas. The record begins after
// it, and with it the counts.
func (p *partner) signIn(source *partnerauth.Source) *oauth2.Token {
	answer := p.answer
	p.answer = nil
	token, err := source.Token()
	if err != nil {
		p.rt.Errorf("signing in: %v", err)
	}
	p.answer, p.seen, p.counts = answer, nil, map[string]int{}
	return token
}
