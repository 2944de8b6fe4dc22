package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Where the partner is. Peers whose token request is configured by itself send
// it to loginURL, the others to a path of their own on the API's host.
const (
	apiURL   = "https://partner.example"
	loginURL = "https://login.example/token"
)

// A hit is a request that a partner received.
type hit struct {
	at    time.Time
	url   url.URL
	token string // of ours that was anywhere in its header; "": none
	base  bool   // came by the Base that a peer was given for its calls
}

// A partner is a network with a token endpoint and an API on it. Tokens are
// token-1, token-2 and so on.
type partner struct {
	lifetime time.Duration
	// login is what the n-th token request, from 1, is answered with; nil: 200.
	login func(n int, r *http.Request) (status int)
	// api is what a call is answered with; nil: 200.
	api func(token string, r *http.Request) answer

	limiter counter
	spans   spans

	mu     sync.Mutex
	logins []hit
	calls  []hit
}

type answer struct {
	status int
	header http.Header
}

var ok = answer{status: http.StatusOK}

func newPartner() *partner { return &partner{lifetime: 20 * time.Minute} }

// base is the way of calls, direct that of a peer's token requests where they
// have a client of their own.
func (p *partner) base() http.RoundTripper   { return network{p, true} }
func (p *partner) direct() http.RoundTripper { return network{p, false} }

type network struct {
	*partner
	base bool
}

var tokens = regexp.MustCompile(`token-\d+`)

func (n network) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	h := hit{at: time.Now(), url: *r.URL, base: n.base}
	for _, values := range r.Header {
		h.token = cmp.Or(h.token, tokens.FindString(strings.Join(values, " ")))
	}
	if isLogin(r.URL.Path) {
		n.mu.Lock()
		n.logins = append(n.logins, h)
		count := len(n.logins)
		n.mu.Unlock()
		a := ok
		if n.login != nil {
			a.status = n.login(count, r)
		}
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return respond(r, a, grant(fmt.Sprint("token-", count), n.lifetime)), nil
	}
	n.mu.Lock()
	n.calls = append(n.calls, h)
	n.mu.Unlock()
	a := ok
	if n.api != nil {
		a = n.api(h.token, r)
	}
	return respond(r, a, identity), nil
}

func isLogin(path string) bool {
	return path == "/token" || path == "/api/v3/partners/auth" || strings.HasPrefix(path, "/app/installations/")
}

// identity is what the AWS SDK asks for; nobody else looks at it.
const identity = `<GetCallerIdentityResponse><GetCallerIdentityResult><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`

// grant is a token as OAuth 2.0, Ndovu and GitHub write it.
func grant(token string, lifetime time.Duration) string {
	body, err := json.Marshal(map[string]any{
		"access_token": token, "token_type": "Bearer", "expires_in": int(lifetime.Seconds()),
		"token": token, "expires_at": time.Now().Add(lifetime).UTC().Format(time.RFC3339),
	})
	if err != nil {
		panic(err)
	}
	return string(body)
}

func respond(r *http.Request, a answer, body string) *http.Response {
	header := a.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/json")
	if a.status != http.StatusOK {
		body = "{}"
	}
	return &http.Response{
		StatusCode: a.status, Status: fmt.Sprint(a.status, " ", http.StatusText(a.status)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

// fetch is a token request as users write it for a peer that leaves that to
// them.
func (p *partner) fetch(ctx context.Context) (token string, ends time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, loginURL, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	resp, err := (&http.Client{Transport: p.direct()}).Do(req)
	if err != nil {
		return "", time.Time{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", time.Time{}, fmt.Errorf("login: %s", resp.Status)
	}
	var got struct {
		Token string `json:"token"`
		Lives int    `json:"expires_in"`
	}
	err = json.NewDecoder(resp.Body).Decode(&got)
	return got.Token, time.Now().Add(time.Duration(got.Lives) * time.Second), err
}

func (p *partner) countLogins() int { return len(p.loginHits()) }

func (p *partner) loginHits() []hit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logins[:len(p.logins):len(p.logins)]
}

func (p *partner) callHits() []hit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[:len(p.calls):len(p.calls)]
}

// last is the token of the last call.
func (p *partner) last() string {
	calls := p.callHits()
	return calls[len(calls)-1].token
}

// dialer reaches p's network by connections without a socket, for a peer that
// takes no RoundTripper. What it calls TLS is not encrypted.
func (p *partner) dialer(t *testing.T, scheme string) func(context.Context, string, string) (net.Conn, error) {
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host = scheme, r.Host
		resp, err := p.base().RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case l.conns <- there:
			return here, nil
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

// pipes is a net.Listener.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "pipe"} }

// A counter is a Limiter that never waits.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) Wait(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return nil
}

// spans are those that ended, for peers that have a tracing interface of their
// own.
type spans struct {
	mu    sync.Mutex
	ended []span
}

type span struct{ start, end time.Time }

// begin starts a span and returns what ends it.
func (s *spans) begin() func() {
	start := time.Now()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = append(s.ended, span{start, time.Now()})
	}
}
