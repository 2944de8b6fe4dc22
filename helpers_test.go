package partnerauth_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	apiURL    = "https://api.example" // of every partner in memory
	loginPath = "/api/v1/auth/login"  // NowPost's
	renewPath = "/api/v1/auth/refresh"
	authPath  = "/api/v3/partners/auth" // Ndovu's
)

// credentials are what an account signs in with, and where.
type credentials struct {
	id, secret string
	ask        func(context.Context) (string, error) // in place of secret, if set
	baseURL    string                                // "" is apiURL
	base       http.RoundTripper
	store      partnerauth.Store
}

// good are credentials that every partner in memory accepts.
func good(base http.RoundTripper) credentials {
	return credentials{id: "shop@example.com", secret: "Planted-Secret", base: base}
}

// A config is what a user fills in for a partner.
type config interface {
	TokenSource() *partnerauth.Source
	Client() *http.Client
}

// A provider is a row of providers.
type provider struct {
	name   string                   // in errors, spans and metrics
	config func(credentials) config // with good defaults
	renews string                   // how a token is renewed: refresh or login

	// The names of the fields, as errors have them; "" if it has no such fields.
	idField, secretField string
}

// providers are all that a Source can sign in to. A test of what holds for every
// partner ranges over them, so that a new partner is a new row here. The last one
// is a Provider of the user's own.
var providers = []provider{
	{
		name: "nowpost", renews: "refresh", idField: "Email", secretField: "Password",
		config: func(c credentials) config {
			return partnerauth.NowPost{
				Email: c.id, Password: c.secret, PasswordFunc: c.ask,
				BaseURL: cmp.Or(c.baseURL, apiURL), Base: c.base, Store: c.store,
			}
		},
	},
	{
		name: "ndovu", renews: "login", idField: "ClientID", secretField: "ClientSecret",
		config: func(c credentials) config {
			return partnerauth.Ndovu{
				ClientID: c.id, ClientSecret: c.secret, ClientSecretFunc: c.ask,
				BaseURL: cmp.Or(c.baseURL, apiURL), Base: c.base, Store: c.store,
			}
		},
	},
	{name: "acme", renews: "refresh", config: func(c credentials) config { return acme(c) }},
}

const (
	acmeLogin = "/session"
	acmeRenew = "/session/refresh"
)

// acme is a partner that is neither NowPost nor Ndovu: a login in JSON, an answer with
// names of its own, a refresh token, and a header of its own for the token.
func acme(c credentials) partnerauth.Provider {
	baseURL := cmp.Or(c.baseURL, apiURL)
	post := func(ctx context.Context, path string, fields map[string]string) (*http.Request, error) {
		ctx = partnerauth.WithURLTemplate(ctx, path)
		return http.NewRequestWithContext(ctx, "POST", strings.TrimRight(baseURL, "/")+path, strings.NewReader(jsonOf(fields)))
	}
	return partnerauth.Provider{
		Name: "acme", Account: c.id, BaseURL: baseURL, Base: c.base, Store: c.store,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			secret, err := c.secret, error(nil)
			if c.ask != nil {
				secret, err = c.ask(ctx)
			}
			if err != nil {
				return nil, err
			}
			return post(ctx, acmeLogin, map[string]string{"user": c.id, "secret": secret})
		},
		Refresh: func(ctx context.Context, current *oauth2.Token) (*http.Request, error) {
			return post(ctx, acmeRenew, map[string]string{"refresh": current.RefreshToken})
		},
		ReadToken: func(_ http.Header, body []byte) (*oauth2.Token, error) {
			var answer struct {
				Key, Refresh string
				TTL          float64
			}
			if json.Unmarshal(body, &answer) != nil {
				return nil, errors.New("the answer is not acme's JSON")
			}
			return &oauth2.Token{AccessToken: answer.Key, RefreshToken: answer.Refresh, ExpiresIn: int64(answer.TTL)}, nil
		},
		Authorize: func(req *http.Request, token *oauth2.Token) error {
			req.Header.Set("X-Api-Key", token.AccessToken)
			return nil
		},
		Hints: map[int]string{401: "no such user"},
	}
}

// Every type that has a TokenSource must be in the table.
func TestProvidersAreInTheTable(t *testing.T) {
	var table []string
	for _, pr := range providers {
		table = append(table, reflect.TypeOf(pr.config(good(nil))).Name())
	}
	files, err := filepath.Glob("*.go")
	must(t, err)
	found := 0
	for _, name := range files {
		code, err := os.ReadFile(name)
		must(t, err)
		makers := regexp.MustCompile(`(?m)^func \((?:\w+ )?\*?([A-Z]\w*)\) TokenSource\(`)
		for _, m := range makers.FindAllStringSubmatch(string(code), -1) {
			found++
			errorIf(t, !slices.Contains(table, m[1]), "%s is not in the table of providers", m[1])
		}
	}
	errorIf(t, found < 3, "found %d types with a TokenSource, want 3 at least", found)
}

// everyProvider runs a subtest in virtual time for each provider.
func everyProvider(t *testing.T, f func(*testing.T, provider)) {
	t.Helper()
	for _, pr := range providers {
		bubble(t, pr.name, func(t *testing.T) { f(t, pr) })
	}
}

// A partner is NowPost and Ndovu in memory: an http.RoundTripper, to be a Base.
// The zero value is in good health. It issues the tokens token-1, token-2 and so
// on, refuses all others with 401, answers calls with 200, and takes no time for
// it. It keeps a log of what it was asked.
//
// What it answers otherwise is said by script where that depends on the request,
// or else by on. It never waits but in virtual time, so it belongs in a bubble
// of testing/synctest where a reply has a delay; without one it goes anywhere.
type partner struct {
	script   func(asked) reply // the zero reply: what on says
	lifetime time.Duration     // of its tokens; 0: a day
	open     bool              // its API takes any token

	mu     sync.Mutex
	turns  map[string][]reply
	log    []asked
	began  time.Time // the first request
	issued int
	tokens map[string]time.Time // that are good, and when they end
}

// A reply is what a partner answers. One that has neither status, body nor err
// is what the partner answers in good health.
type reply struct {
	status int // 0: 200
	header http.Header
	body   string
	cut    bool          // the body breaks off after what there is of it
	stream io.ReadCloser // in place of body
	err    error         // in place of an answer
	after  time.Duration // how long it takes; forever: until the client leaves
}

// rounded is what is added to a Retry-After in whole seconds: some servers round down.
const rounded = 999 * time.Millisecond

const forever = time.Duration(math.MaxInt64)

func (r reply) usual() bool { return r.status == 0 && r.body == "" && r.stream == nil && r.err == nil }

// asked is one request as a partner got it.
type asked struct {
	n      int           // requests that came before
	nth    int           // of its op, from 1
	op     string        // login, refresh or call
	at     time.Duration // since the first request
	method string
	url    string
	to     *url.URL // which url need not parse to
	path   string
	header http.Header
	token  string // that it carried, if any
	body   string
	status int // answered; 0: none yet, or no answer
}

// secret is the one that a login carries, wherever its partner wants it.
func (a asked) secret() string {
	if _, secret, ok := (&http.Request{Header: a.header}).BasicAuth(); ok {
		return secret
	}
	var login struct{ Password, Secret string }
	json.Unmarshal([]byte(a.body), &login)
	return login.Password + login.Secret
}

// on makes the partner answer an op or a path with replies in turn, of which the
// last one stays.
func (p *partner) on(what string, replies ...reply) *partner {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.turns == nil {
		p.turns = map[string][]reply{}
	}
	p.turns[what] = replies
	return p
}

// always is a script that has one reply to everything.
func always(r reply) func(asked) reply { return func(asked) reply { return r } }

// busy is a 429.
func busy(retryAfter string) reply {
	return reply{status: 429, header: headers("Retry-After: " + retryAfter)}
}

func (p *partner) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	a := p.enter(req, string(body))
	r := p.replyTo(a)
	if r.after > 0 {
		if err := sleep(req.Context(), r.after); err != nil {
			return nil, err
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	resp := answer(req, cmp.Or(r.status, 200), r.body)
	if r.header != nil {
		resp.Header = r.header.Clone()
	}
	switch {
	case r.stream != nil:
		resp.Body, resp.ContentLength = r.stream, -1
	case r.cut:
		rest := readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF })
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(r.body), rest))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log[a.n].status = resp.StatusCode
	return resp, nil
}

// enter puts a request into the log.
func (p *partner) enter(req *http.Request, body string) asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	a := asked{
		n: len(p.log), nth: 1, op: "call", at: time.Since(p.began),
		method: req.Method, url: req.URL.String(), to: req.URL, path: req.URL.Path, header: req.Header.Clone(), body: body,
	}
	switch {
	case strings.HasSuffix(a.path, loginPath), strings.HasSuffix(a.path, authPath), strings.HasSuffix(a.path, acmeLogin):
		a.op = "login"
	case strings.HasSuffix(a.path, renewPath), strings.HasSuffix(a.path, acmeRenew):
		a.op = "refresh"
	}
	a.token = a.header.Get("X-Api-Key")
	if token, ok := strings.CutPrefix(a.header.Get("Authorization"), "Bearer "); ok {
		a.token = token
	}
	for i := len(p.log) - 1; i >= 0; i-- {
		if p.log[i].op == a.op {
			a.nth = p.log[i].nth + 1
			break
		}
	}
	p.log = append(p.log, a)
	return a
}

// replyTo returns what is said by the script or else by on, completed by what the partner
// answers in good health.
func (p *partner) replyTo(a asked) (r reply) {
	if p.script != nil {
		r = p.script(a)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.usual() && r.after == 0 {
		what := a.path
		if p.turns[what] == nil {
			what = a.op
		}
		if replies := p.turns[what]; len(replies) > 0 {
			r, p.turns[what] = replies[0], replies[min(1, len(replies)-1):]
		}
	}
	if !r.usual() {
		return r
	}
	now := time.Now()
	good := p.open && a.op == "call" || now.Before(p.tokens[a.token])
	for token := range p.tokens {
		good = good || a.op == "refresh" && strings.Contains(a.body, refreshTokenOf(token)) // which has no end
	}
	switch {
	case a.op != "login" && !good:
		r.status, r.body = 401, "who are you?"
	case a.op == "call":
		r.status = 200
	default:
		if p.tokens == nil {
			p.tokens = map[string]time.Time{}
		}
		p.issued++
		token := fmt.Sprintf("token-%d", p.issued)
		lifetime := cmp.Or(p.lifetime, 24*time.Hour)
		p.tokens[token] = now.Add(lifetime)
		r.status, r.header, r.body = 200, dated(now), granted(token, lifetime)
	}
	return r
}

// granted is the answer of any partner with a token that was made now.
func granted(token string, lifetime time.Duration) string {
	return fmt.Sprintf(`{"success":true,"data":{"token":%q,"expiresAt":%q},"access_token":%[1]q,"expires_in":%[3]v,"token_type":"Bearer",`+
		`"key":%[1]q,"ttl":%[3]v,"refresh":%[4]q}`,
		token, time.Now().Add(lifetime).UTC().Format(time.RFC3339Nano), lifetime.Seconds(), refreshTokenOf(token))
}

func refreshTokenOf(token string) string { return "(renews " + token + ")" }

func (p *partner) revokeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.tokens)
}

// seen is the log.
func (p *partner) seen() []asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// count is how many requests there were for an op, a path, or an op that was
// answered with a status, as in "call 401".
func (p *partner) count(what string) (n int) {
	for _, a := range p.seen() {
		if a.op == what || a.path == what || fmt.Sprint(a.op, " ", a.status) == what {
			n++
		}
	}
	return n
}

// ops names the requests that were not calls.
func (p *partner) ops() string {
	var ops []string
	for _, a := range p.seen() {
		if a.op != "call" {
			ops = append(ops, a.op)
		}
	}
	return strings.Join(ops, " ")
}

// gaps are the times between the requests.
func (p *partner) gaps() (gaps []time.Duration) {
	log := p.seen()
	for i := 1; i < len(log); i++ {
		gaps = append(gaps, log[i].at-log[i-1].at)
	}
	return gaps
}

// source is a Source of a provider that signs in to p by a Base of its own.
func (p *partner) source(pr provider) *partnerauth.Source { return pr.config(good(p)).TokenSource() }

func (p *partner) nowPost() *partnerauth.Source { return p.source(providers[0]) }

// transport is a Transport for p as NowPost; nil is a limiter that nothing here reaches.
func (p *partner) transport(limiter partnerauth.Limiter) *partnerauth.Transport {
	return p.transportOf(providers[0], limiter)
}

func (p *partner) transportOf(pr provider, limiter partnerauth.Limiter) *partnerauth.Transport {
	if limiter == nil {
		limiter = &partnerauth.Quota{Requests: 1_000_000}
	}
	return &partnerauth.Transport{Source: p.source(pr), Base: p, Limiter: limiter}
}

// custom is a Transport for p with a token source of the user's own.
func (p *partner) custom(source oauth2.TokenSource, limiter partnerauth.Limiter) *partnerauth.Transport {
	return &partnerauth.Transport{Source: source, Origins: []string{apiURL}, Base: p, Limiter: limiter}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a response as net/http makes them.
func answer(req *http.Request, status int, body string) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

// headers makes a header of lines such as "Retry-After: 5".
func headers(lines ...string) http.Header {
	h := http.Header{}
	for _, line := range lines {
		key, value, _ := strings.Cut(line, ": ")
		h.Add(key, value)
	}
	return h
}

func dated(at time.Time) http.Header {
	return headers("Date: "+at.UTC().Format(http.TimeFormat), "Content-Type: application/json")
}

// A limiterFunc is a Limiter.
type limiterFunc func(context.Context) error

func (f limiterFunc) Wait(ctx context.Context) error { return f(ctx) }

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A tokenFunc is a token source of the user's own. As part of a renewable it has
// Invalidate as well, and embedding a *partnerauth.Source in a struct gives one
// that has all methods.
type tokenFunc func() (*oauth2.Token, error)

func (f tokenFunc) Token() (*oauth2.Token, error) { return f() }

type renewable struct {
	tokenFunc
	invalidate func(*oauth2.Token)
}

func (r renewable) Invalidate(token *oauth2.Token) { r.invalidate(token) }

// static is a source that is one token.
func static(token string) oauth2.TokenSource {
	return oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token})
}

// A watchedBody notices its closing and what is read of it.
type watchedBody struct {
	io.Reader
	read, closed atomic.Int64
}

func watched(text string) *watchedBody { return &watchedBody{Reader: strings.NewReader(text)} }

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read.Add(int64(n))
	return n, err
}

func (b *watchedBody) Close() error { b.closed.Add(1); return nil }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func newRequest(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	must(t, err)
	return req
}

// posting is a POST of body, which cannot be had again.
func posting(t testing.TB, body io.ReadCloser) *http.Request {
	req := newRequest(t, "POST", apiURL+"/orders", "")
	req.Body, req.ContentLength = body, -1
	return req
}

// status sends req, reads the answer and returns its status, 0 for an error.
func status(t testing.TB, rt http.RoundTripper, req *http.Request) int {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// get sends a GET for a path of the API, which has to be answered.
func get(t testing.TB, rt http.RoundTripper, path string) int {
	t.Helper()
	return status(t, rt, newRequest(t, "GET", apiURL+path, ""))
}

// try is get under ctx that may fail.
func try(ctx context.Context, rt http.RoundTripper, path string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", apiURL+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// atOnce calls f from n goroutines, which the WaitGroup waits for.
func atOnce(n int, f func(i int)) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	return &wg
}

// elapsed is how long f takes.
func elapsed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// refused makes a call under ctx, which has to be refused after exactly that long
// because its turn would come too late.
func refused(t testing.TB, ctx context.Context, rt http.RoundTripper, after time.Duration) {
	t.Helper()
	var err error
	took := elapsed(func() { _, err = try(ctx, rt, "/") })
	errorIf(t, !errors.Is(err, partnerauth.ErrRateLimited), "got %v, want ErrRateLimited", err)
	errorIf(t, took != after, "refused after %v, want %v", took, after)
}

// sentNothing makes a POST under ctx of which nothing may be sent to p, and whose
// body must be closed once. It returns the error.
func (p *partner) sentNothing(t testing.TB, ctx context.Context, rt http.RoundTripper) error {
	t.Helper()
	before, body := len(p.seen()), watched("x")
	_, err := rt.RoundTrip(posting(t, body).WithContext(ctx))
	sent := len(p.seen()) - before
	errorIf(t, err == nil, "got no error")
	errorIf(t, sent != 0, "%d requests were sent, want none", sent)
	errorIf(t, body.closed.Load() != 1, "the body was closed %d times, want once", body.closed.Load())
	return err
}

// authOf is the AuthError in err, the zero one if there is none.
func authOf(err error) *partnerauth.AuthError {
	if auth, ok := errors.AsType[*partnerauth.AuthError](err); ok {
		return auth
	}
	return new(partnerauth.AuthError)
}

// reject makes the next caller sign in again.
func reject(rt *partnerauth.Transport) *partnerauth.Source {
	source := rt.Source.(*partnerauth.Source)
	token, _ := source.Token()
	source.Invalidate(token)
	return source
}

// deadline is a context that has one.
func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// leaving is the context of a caller that gives up after a while.
func leaving(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(d, cancel)
	return ctx
}

// onSockets is a NowPost on real sockets, and a Transport for it.
func onSockets(t *testing.T, o partnertest.Options) (*partnertest.NowPost, *partnerauth.Transport) {
	server := partnertest.StartNowPost(o)
	base := server.Transport()
	t.Cleanup(func() {
		base.CloseIdleConnections()
		server.Close()
	})
	source := providers[0].config(credentials{
		id: cmp.Or(o.Email, partnertest.Email), secret: cmp.Or(o.Password, partnertest.Password), baseURL: server.URL, base: base,
	}).TokenSource()
	return server, &partnerauth.Transport{Source: source, Base: base, Limiter: &partnerauth.Quota{Requests: 10_000}}
}

// must ends the test if there is an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// equal compares what was got with what was wanted.
func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	errorIf(t, got != want, "%s: got %v, want %v", what, got, want)
}

// errorIf reports what is wrong if something is.
func errorIf(t testing.TB, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Errorf(format, args...)
	}
}

// bubble is a subtest in virtual time.
func bubble(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// dialError is what net and net/http make of a connection that was not made.
func dialError(op string) error { return &net.OpError{Op: op, Net: "tcp", Err: errTest} }
