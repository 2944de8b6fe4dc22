package partnerauth_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// What hostile end-users and partners, and careless code beside the package,
// have tried.

// account is a Source that signs in by the Base of its Transport.
func account() *partnerauth.Source {
	return partnerauth.NowPost{Email: "shop@example.com", Password: "Planted-Secret", BaseURL: apiURL}.TokenSource()
}

type foreignKey struct{}

// outsider is a context whose trace, baggage and values somebody outside chose,
// and the traceparent that belongs to it.
func outsider(t *testing.T, flags trace.TraceFlags) (context.Context, string) {
	state, err := trace.ParseTraceState("evil=" + strings.Repeat("x", 200))
	must(t, err)
	place := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags,
		TraceState: state, Remote: true})
	member, err := baggage.NewMember("evil", strings.Repeat("x", 4000))
	must(t, err)
	bag, err := baggage.New(member)
	must(t, err)
	ctx := trace.ContextWithRemoteSpanContext(baggage.ContextWithBaggage(context.Background(), bag), place)
	return context.WithValue(ctx, foreignKey{}, "evil"), fmt.Sprintf("00-%s-%s-%s", place.TraceID(), place.SpanID(), flags)
}

// Of its caller a fetch has trace id, span id and flags. A partner gets baggage
// only where the user has said so.
func TestWhatOutsidersMakeTravel(t *testing.T) {
	both := propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	before := otel.GetTextMapPropagator()
	defer otel.SetTextMapPropagator(before)
	otel.SetTextMapPropagator(both)
	for _, own := range []propagation.TextMapPropagator{nil, both} {
		for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
			p, values := new(partner), map[string]any{}
			base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
				values[req.URL.Path] = req.Context().Value(foreignKey{})
				return p.RoundTrip(req)
			})
			ctx, place := outsider(t, flags)
			_, err := try(ctx, &partnerauth.Transport{Source: account(), Base: base, Propagator: own}, "/")
			must(t, err)
			login, call := p.seen()[0].header, p.seen()[1].header
			errorIf(t, login.Get("Traceparent") != place || call.Get("Traceparent") != place,
				"got traceparents %v, %v, want %v", login, call, place)
			errorIf(t, login["Baggage"] != nil, "the login carries baggage: %v", login)
			errorIf(t, login["Tracestate"] != nil, "the login carries a tracestate: %v", login)
			errorIf(t, values[loginPath] != nil, "the login's context has the value %v", values[loginPath])
			errorIf(t, (call["Baggage"] != nil) != (own != nil), "a Propagator of its own %t: the call carries %v", own != nil, call)
			errorIf(t, values["/"] != "evil", "the call's context has the value %v, want the caller's", values["/"])
		}
	}
}

// Proxies and firewalls answer 400 and 403 as well: that is nothing to remember.
func TestWhoRefusesCredentials(t *testing.T) { synctest.Test(t, testWhoRefusesCredentials) }

func testWhoRefusesCredentials(t *testing.T) {
	const page, envelope = "<html>blocked</html>", `{"success":false,"message":"no"}`
	for _, c := range []struct {
		status     int
		kind, body string
		refused    bool
	}{
		{401, "text/html", page, false},
		{401, "", page, false},
		{401, "", "", true},
		{401, "text/plain", "who are you?", true},
		{422, "application/problem+json", envelope, true},
		{422, "", "no", false},
		{403, "application/json; charset=utf-8", envelope, true},
		{403, "", envelope, true},
		{400, "text/html", page, false},
		{403, "text/html; charset=utf-8", page, false},
		{403, "", "Forbidden", false},
		{407, "application/json", envelope, false},
	} {
		p := new(partner).on("login", reply{status: c.status, body: c.body, header: headers("Content-Type: " + c.kind)})
		for _, pr := range providers {
			_, err := p.source(pr).Token()
			is := errors.Is(err, partnerauth.ErrCredentials)
			errorIf(t, is != c.refused, "%s, %d %q: ErrCredentials %t: %v", pr.name, c.status, c.kind, is, err)
			says := strings.Contains(err.Error(), "check the e-mail and password") || strings.Contains(err.Error(), "no such")
			errorIf(t, says != (c.status == 401 && c.refused), "%s, %d %q: %v", pr.name, c.status, c.kind, err)
		}
	}
}

// A trap is code of the user's that panics or ends its goroutine once.
type trap struct {
	http.RoundTripper
	set atomic.Bool
	do  func()
}

func (r *trap) ask(context.Context) error { r.spring(); return nil }

func (r *trap) RoundTrip(req *http.Request) (*http.Response, error) {
	r.spring()
	return r.RoundTripper.RoundTrip(req)
}

func (r *trap) spring() {
	if r.set.CompareAndSwap(true, false) {
		r.do()
	}
}

type trappedPropagator struct {
	propagation.TraceContext
	*trap
}

func (r trappedPropagator) Inject(context.Context, propagation.TextMapCarrier) { r.spring() }

// ending tells how f ends in a goroutine of its own.
func ending(f func() error) string {
	how, done := "exited", make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if recover() != nil {
				how = "panicked"
			}
		}()
		if err := f(); err != nil {
			how = "error"
		} else {
			how = "ok"
		}
	}()
	<-done
	return how
}

// userCode is the code of the user's that a Transport runs.
var userCode = map[string]struct {
	own  bool // in the goroutine of a caller
	warm bool // not in the first call
	set  func(rt *partnerauth.Transport, r *trap)
}{
	"Base, login":       {false, false, func(rt *partnerauth.Transport, r *trap) { rt.Source, rt.Base = account(), r }},
	"Base, call":        {true, true, func(rt *partnerauth.Transport, r *trap) { rt.Base = r }},
	"Limiter, login":    {false, false, func(rt *partnerauth.Transport, r *trap) { rt.Limiter = limiterFunc(r.ask) }},
	"Limiter, call":     {false, true, func(rt *partnerauth.Transport, r *trap) { rt.Limiter = limiterFunc(r.ask) }},
	"Permit, call":      {false, true, func(rt *partnerauth.Transport, r *trap) { rt.Limiter = &permits{before: r.ask} }},
	"Propagator, login": {false, false, func(rt *partnerauth.Transport, r *trap) { rt.Propagator = trappedPropagator{trap: r} }},
	"Propagator, call":  {true, true, func(rt *partnerauth.Transport, r *trap) { rt.Propagator = trappedPropagator{trap: r} }},
	"TokenSource": {false, true, func(rt *partnerauth.Transport, r *trap) {
		rt.Source, rt.Origins = tokenFunc(func() (*oauth2.Token, error) { r.spring(); return static("t").Token() }), []string{apiURL}
	}},
	"PasswordFunc": {false, false, func(rt *partnerauth.Transport, r *trap) {
		rt.Source = partnerauth.NowPost{Email: "e", BaseURL: apiURL,
			PasswordFunc: func(ctx context.Context) (string, error) { return "p", r.ask(ctx) }}.TokenSource()
	}},
	"Store": {false, false, func(rt *partnerauth.Transport, r *trap) {
		rt.Source = partnerauth.NowPost{Email: "e", Password: "p", BaseURL: apiURL, Store: &memory{before: r.ask}}.TokenSource()
	}},
	"Estimate": {true, false, func(rt *partnerauth.Transport, r *trap) { rt.Limiter = &permits{estimate: r.spring} }},
}

// Code of the user's that panics or ends its goroutine: in one of ours that is an
// error for those who wait; in a caller's own it is that caller's. The others and
// the next go on.
func TestTraps(t *testing.T) {
	for name, c := range userCode {
		for how, do := range map[string]func(){"panic": func() { panic("by the test") }, "Goexit": runtime.Goexit} {
			bubble(t, name+" "+how, func(t *testing.T) {
				p := &partner{open: true}
				r, rt := &trap{do: do, RoundTripper: p}, p.transport(nil)
				c.set(rt, r)
				call := func() string {
					return ending(func() error { _, err := try(deadline(t, time.Minute), rt, "/"); return err })
				}
				if c.warm {
					errorIf(t, call() != "ok", "the first call failed")
				}
				r.set.Store(true)
				began, got := time.Now(), make([]string, 5)
				atOnce(5, func(i int) { got[i] = call() }).Wait()
				errorIf(t, r.set.Load() || time.Since(began) > 10*time.Second, "sprung %t after %v", !r.set.Load(), time.Since(began))
				slices.Sort(got)
				all := strings.Join(got, " ")
				switch {
				case c.own:
					want := map[string]string{"panic": "ok ok ok ok panicked", "Goexit": "exited ok ok ok ok"}[how]
					errorIf(t, all != want, "got %s, want %s", all, want)
				case name == "Store": // which is passed over
					errorIf(t, all != "ok ok ok ok ok", "got %s, want a token without the Store", all)
				case strings.Contains(all, "panicked") || strings.Contains(all, "exited") || !strings.Contains(all, "error"):
					t.Errorf("in a goroutine of ours: got %s, want errors alone", all)
				}
				time.Sleep(time.Minute)
				how := call()
				errorIf(t, how != "ok", "the next call: %s", how)
			})
		}
	}
}

// GetBody and Invalidate are called in the caller's goroutine, between its
// attempts.
func TestTrapsBetweenAttempts(t *testing.T) {
	for how, do := range map[string]func(){"panicked": func() { panic("by the test") }, "exited": runtime.Goexit} {
		bubble(t, how, func(t *testing.T) {
			p := new(partner).on("call", reply{status: 401}, reply{}, reply{status: 401}, reply{})
			p.open = true
			req := newRequest(t, "POST", apiURL+"/", "x")
			req.GetBody = func() (io.ReadCloser, error) { do(); return nil, nil }
			limiter := &partnerauth.Quota{Requests: 4}
			got := ending(func() error { _, err := p.transport(limiter).RoundTrip(req); return err })
			errorIf(t, got != how, "GetBody: got %s, want %s", got, how)
			rt := p.custom(renewable{func() (*oauth2.Token, error) { return static("t").Token() }, func(*oauth2.Token) { do() }}, limiter)
			errorIf(t, get(t, rt, "/") != 200, "a call after it failed")
			got = ending(func() error { _, err := try(t.Context(), rt, "/"); return err })
			errorIf(t, got != how, "Invalidate: got %s, want %s", got, how)
			code, err := try(deadline(t, 2*time.Minute), rt, "/")
			errorIf(t, code != 200, "a call after it: %d, %v", code, err)
		})
	}
}

// A meddler is a context whose every method does something else first.
type meddler struct {
	context.Context
	do func()
}

func (m meddler) Done() <-chan struct{}       { m.do(); return m.Context.Done() }
func (m meddler) Err() error                  { m.do(); return m.Context.Err() }
func (m meddler) Deadline() (time.Time, bool) { m.do(); return m.Context.Deadline() }
func (m meddler) Value(key any) any           { m.do(); return m.Context.Value(key) }

// No lock is held while code of the user's runs: it may use the same client.
func TestUserCodeMayCallTheClient(t *testing.T) {
	outer := func(what string, rt *partnerauth.Transport, ctx context.Context) {
		t.Helper()
		late := time.AfterFunc(time.Minute, func() { panic("a lock is held during " + what) }) // or the test would hang
		defer late.Stop()
		code, err := try(ctx, rt, "/outer")
		errorIf(t, code != 200, "%s: got %d, %v", what, code, err)
	}
	inner := func(what string, rt *partnerauth.Transport, patience time.Duration) func() {
		return func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err := try(ctx, rt, "/inner")
			errorIf(t, err != nil && patience > time.Second, "inside %s: %v", what, err)
		}
	}
	for name, c := range userCode {
		if name == "Estimate" { // which must not call back
			continue
		}
		p := &partner{open: true}
		r, rt := &trap{RoundTripper: p}, p.transport(nil)
		c.set(rt, r)
		if c.warm {
			get(t, rt, "/")
		}
		r.do = inner(name, rt, map[bool]time.Duration{true: time.Minute,
			false: 10 * time.Millisecond}[c.own]) // or what it waits for waits for it
		r.set.Store(true)
		outer(name, rt, deadline(t, time.Minute))
		errorIf(t, r.set.Load(), "%s was not called", name)
	}

	rt := new(partner).transport(nil)
	outer("context without a token", rt, meddler{t.Context(), inner("context", rt, time.Second)})
	outer("context", rt, meddler{t.Context(), inner("context", rt, time.Minute)})

	p, token := new(partner).on("/outer", reply{status: 401}, reply{status: 200}), "first"
	p.open = true
	rt = p.custom(renewable{
		func() (*oauth2.Token, error) { return static(token).Token() },
		func(*oauth2.Token) { token = "second"; inner("Invalidate", rt, time.Minute)() },
	}, nil)
	outer("Invalidate", rt, t.Context())
}

// forms are the ways in which a secret comes back. Each leaves hunter2 to find.
func forms(secret string) map[string]string {
	quoted, _ := json.Marshal(secret)
	inJSON := string(quoted[1 : len(quoted)-1])
	ascii, entities := "", ""
	for _, r := range inJSON {
		if r <= '~' {
			ascii += string(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			ascii += fmt.Sprintf(`\u%04x`, unit)
		}
	}
	for _, r := range secret {
		if strings.ContainsRune("hunter2", r) {
			entities += string(r)
		} else {
			entities += fmt.Sprintf("&#%d;", r)
		}
	}
	lower := func(s string) string {
		parts := strings.Split(s, "%")
		for i := range parts[1:] {
			parts[i+1] = strings.ToLower(parts[i+1][:2]) + parts[i+1][2:]
		}
		return strings.Join(parts, "%")
	}
	return map[string]string{
		"raw": secret, "JSON": inJSON, `JSON with \/`: strings.ReplaceAll(inJSON, "/", `\/`), "JSON in ASCII": ascii,
		"path": url.PathEscape(secret), "path, lower case": lower(url.PathEscape(secret)),
		"query": url.QueryEscape(secret), "query, lower case": lower(url.QueryEscape(secret)),
		"Go": fmt.Sprintf("%q", secret), "HTML": html.EscapeString(secret), "entities": entities,
		"raw and entities": secret + " " + entities, "Go in JSON": jsonOf(fmt.Sprintf("%q", secret)),
	}
}

// A flawed error has all that errors can say, and too much text.
type flawed struct{ text string }

func (e flawed) Error() string   { return e.text }
func (e flawed) Unwrap() error   { return errTest }
func (e flawed) Timeout() bool   { return true }
func (e flawed) Temporary() bool { return true }

// Secrets that come back, at a login and at a call, in whatever form and place,
// are in no error, nor in what an AuthError unwraps to.
func TestEchoedSecrets(t *testing.T) { synctest.Test(t, testEchoedSecrets) }

func testEchoedSecrets(t *testing.T) {
	for name, secret := range map[string]string{
		"password": `hunter2/ä"ö<&> 1`, "a password with an emoji": "hunter2 \U0001F600", "a password with escapes": `hunter2\n%41\\+\`,
		"token": `hunter2/"<&>+=~`,
	} {
		for form, echo := range forms(secret) {
			certificate := x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{echo}}, Host: "api.example"}
			for place, r := range map[string]reply{
				"header": {status: 401, header: http.Header{
					"X-Request-Id": {"id-" + echo}, "Content-Type": {echo}, "Date": {echo}, "Retry-After": {echo}, "X-Other": {echo},
				}},
				"body":          {status: 400, body: `{"message":"` + echo + `"}`},
				"network error": {err: flawed{"broken: " + echo}},
				"quoted":        {err: flawed{fmt.Sprintf("malformed HTTP status code %q", echo)}},
				"certificate":   {err: &tls.CertificateVerificationError{Err: certificate}},
			} {
				p := new(partner).on("login", r).on("call", r)
				rts := map[string]*partnerauth.Transport{"a source of one's own": p.custom(static(secret), nil)}
				if name != "token" {
					clear(rts)
					for _, pr := range providers {
						rts[pr.name] = &partnerauth.Transport{Source: pr.config(credentials{id: "e", secret: secret}).TokenSource(),
							Base: p}
					}
				}
				for who, rt := range rts {
					if _, err := try(t.Context(), rt, "/"); err != nil || name != "token" { // else the answer is the caller's
						checkEcho(t, fmt.Sprintf("%s of %s as %s in %s", name, who, form, place), err, r, name == "token")
					}
				}
			}
		}
	}
}

// checkEcho looks for hunter2 in err, which came of r.
func checkEcho(t *testing.T, what string, err error, r reply, ofCall bool) {
	t.Helper()
	shown := fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err))
	if answered, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		shown += fmt.Sprintf("%+v %+v", answered, answered.Response)
		kept := fmt.Sprint(answered.Body, answered.ErrorCode, answered.ErrorDescription, answered.ErrorURI)
		errorIf(t, kept != "[]", "%s: %s was kept of the body", what, kept)
	}
	errorIf(t, strings.Contains(shown, "hunter2"), "%s: %s", what, shown)
	if _, ok := r.err.(flawed); !ok {
		return
	}
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	errorIf(t, !ok || !timeout.Timeout(), "%s: the error is no timeout any more: %v", what, err)
	errorIf(t, !errors.Is(err, errTest), "%s: the error Is not what it was: %v", what, err)
	temporary, ok := err.(interface{ Temporary() bool })
	errorIf(t, ofCall && !(ok && temporary.Temporary()), "%s: not Temporary: %T", what, err)
}

// Foreign text of any size is searched in bounded time.
func TestLongEcho(t *testing.T) {
	token := strings.Repeat("t", 16<<10)
	p := new(partner).on("call",
		reply{err: errors.New(strings.Repeat(token+"%", 512))},
		reply{err: errors.New(token + strings.Repeat("x", 8<<20))},
		reply{err: errors.New(strings.Repeat("x", 8<<20))},
		reply{status: 200, header: http.Header{"Ratelimit": {strings.Repeat("r=0;t=9,", 1<<20)}}})
	began := time.Now()
	for range 3 {
		_, err := try(t.Context(), p.custom(static(token), nil), "/")
		if err == nil {
			t.Fatal("got no error")
		}
		errorIf(t, len(err.Error()) > 17<<10, "the error has %d bytes", len(err.Error()))
		errorIf(t, strings.Contains(err.Error(), "tttt"), "the error has the token in it")
	}
	get(t, p.custom(static(token), nil), "/")
	errorIf(t, time.Since(began) > 30*time.Second, "took %v, want a fraction of a second", time.Since(began))
}

// No token, nor its type, is sent that a header cannot carry or that is too long,
// whoever the source is.
func TestTokensThatAreNotSent(t *testing.T) {
	const most = 16 << 10
	long := strings.Repeat("t", most)
	for _, c := range []struct {
		name        string
		token, kind string
		want        bool
	}{
		{"16 KiB", long, "", true},
		{"more", long + "t", "", false},
		{"with a line", "a\r\nX-Evil: 1", "", false},
		{"with a space", "a b", "", false},
		{"that is not ASCII", "é", "", false},
		{"that is empty", "", "", false},
		{"a type of its own", "t", "Token", true},
		{"a type with a line", "t", "Bearer\r\nX-Evil: 1", false},
		{"a type with a space", "t", "Bearer evil", false},
		{"a long type", "t", long + "t", false},
		{"a type that is not ASCII", "t", "Bärer", false},
	} {
		p := &partner{open: true}
		p.on("login", reply{body: fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q,"key":%[1]q}`, c.token)})
		rts := map[string]*partnerauth.Transport{
			"token": p.custom(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: c.token, TokenType: c.kind}), nil),
		}
		for _, pr := range providers {
			if c.kind == "" {
				rts[pr.name] = &partnerauth.Transport{Source: p.source(pr), Base: p}
			}
		}
		for who, rt := range rts {
			op := "login"
			if who == "token" {
				op = "token"
			}
			body := watched("{}")
			_, err := rt.RoundTrip(posting(t, body))
			errorIf(t, (err == nil) != c.want, "%s, %s: got %v", who, c.name, err)
			errorIf(t, err != nil && authOf(err).Op != op, "%s, %s: got %v, want Op %s", who, c.name, err, op)
			errorIf(t, body.closed.Load() != 1, "%s, %s: body closed %d times, want once", who, c.name, body.closed.Load())
			errorIf(t, op == "login" && c.name == "more" && !strings.Contains(err.Error(), "16 KiB"),
				"%s: got %v, want the limit in it", who, err)
		}
		calls := map[bool]int{true: len(rts), false: 0}[c.want]
		errorIf(t, p.count("call") != calls, "%s: %d calls, want %d", c.name, p.count("call"), calls)
		for _, a := range p.seen() {
			sent := a.header.Get("X-Api-Key") == c.token || strings.EqualFold(a.header.Get("Authorization"),
				cmp.Or(c.kind, "Bearer")+" "+c.token)
			errorIf(t, a.op == "call" && !sent, "%s: sent otherwise: %.60v", c.name, a.header)
		}
	}
}

// A nil Base is http.DefaultTransport as it is then, as in net/http.
func TestNilBaseIsAskedForEachTime(t *testing.T) {
	before := http.DefaultTransport
	defer func() { http.DefaultTransport = before }()
	rt := &partnerauth.Transport{Source: account()}
	for range 2 {
		p := &partner{open: true}
		http.DefaultTransport = p
		get(t, rt, "/")
		errorIf(t, p.count("call") != 1, "the DefaultTransport of the moment was not used")
	}
}

type closingBase struct {
	*partner
	closed int
}

func (b *closingBase) CloseIdleConnections() { b.closed++ }

func TestCloseIdleConnections(t *testing.T) {
	tokens, calls := &closingBase{partner: new(partner)}, &closingBase{partner: &partner{open: true}}
	source := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: apiURL, Base: tokens}.TokenSource()
	(&http.Client{Transport: &partnerauth.Transport{Source: source, Base: calls}}).CloseIdleConnections()
	errorIf(t, tokens.closed != 1 || calls.closed != 1, "closed %d and %d times, want once each", tokens.closed, calls.closed)
}

// A context that is over before the call: its own error, nothing sent.
func TestContextThatIsOver(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	why, cancelWhy := context.WithCancelCause(t.Context())
	cancelWhy(errTest)
	for _, ctx := range []context.Context{over, late, why} {
		for _, limiter := range []partnerauth.Limiter{nil, limiterFunc(func(context.Context) error { return nil })} {
			p := new(partner)
			rt := p.custom(static("t"), limiter)
			if limiter == nil {
				rt = p.transport(nil) // without a token
			}
			err := p.sentNothing(t, ctx, rt)
			errorIf(t, authOf(err).Op != "", "got %v, which is an AuthError", err)
			errorIf(t, !errors.Is(err, ctx.Err()), "got %v, want %v", err, ctx.Err())
			errorIf(t, errors.Is(err, partnerauth.ErrRateLimited) || strings.Contains(err.Error(), "limit"),
				"got %v, which is of a limit", err)
			errorIf(t, (ctx == why) != errors.Is(err, errTest), "got %v, want the cause where there is one", err)
		}
	}
}

// A Base may read on after an early answer: it alone closes the body.
func TestBodyIsTheBases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("call", reply{status: 401}, reply{})
		p.open = true
		rt := p.transport(nil)
		rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
			body := req.Body
			req.Body = nil
			time.AfterFunc(time.Minute, func() { body.Close() })
			return p.RoundTrip(req)
		})
		req := newRequest(t, "POST", apiURL+"/", "")
		bodies := replayable(req, "an upload")
		code := status(t, rt, req)
		errorIf(t, code != 401 || len(bodies()) != 1, "got %d with %d bodies, want the 401 of one", code, len(bodies()))
		for pass, want := range []int64{0, 1} {
			for i, b := range bodies() {
				errorIf(t, b.closed.Load() != want, "pass %d: body %d closed %d times, want %d", pass, i, b.closed.Load(), want)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// A length without a body is for the Base to judge: net/http refuses it.
func TestLengthWithoutABody(t *testing.T) {
	p := &partner{open: true}
	rt := p.custom(static("t"), nil)
	rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
		errorIf(t, req.Body != nil, "the Base got the body %v, want none", req.Body)
		errorIf(t, req.ContentLength != 5, "the Base got the length %d, want 5", req.ContentLength)
		return p.RoundTrip(req)
	})
	req := newRequest(t, "POST", apiURL, "")
	req.ContentLength = 5
	status(t, rt, req)
}

// A place is given back where telemetry panics before anything is sent.
func TestTelemetryThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, quota := &partner{open: true}, &partnerauth.Quota{Requests: 1, Window: time.Hour}
		bad := p.custom(static("t"), quota)
		filter := func(attribute.KeyValue) bool { panic("by the test") }
		view := sdkmetric.NewView(sdkmetric.Instrument{Name: "*"}, sdkmetric.Stream{AttributeFilter: filter})
		bad.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()), sdkmetric.WithView(view))
		how := ending(func() error { _, err := try(t.Context(), bad, "/"); return err })
		began := time.Now()
		get(t, p.custom(static("t"), quota), "/")
		errorIf(t, how != "panicked" || time.Since(began) > 0,
			"%s, and waited %v for a place that nothing was sent with", how, time.Since(began))
	})
}

// A source that is asked once more because of a rejection is asked for as long as
// its caller waits.
func TestSourceIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partner{script: always(reply{status: 401})}
		n := new(atomic.Int64)
		rt := p.custom(renewable{func() (*oauth2.Token, error) {
			time.Sleep(10 * time.Second)
			return &oauth2.Token{AccessToken: fmt.Sprint("token-", n.Add(1))}, nil
		}, func(*oauth2.Token) {}}, &partnerauth.Quota{Requests: 10_000})
		wg := atOnce(50, func(i int) {
			time.Sleep(time.Duration(i) * 700 * time.Millisecond)
			get(t, rt, "/")
		})
		time.Sleep(12 * time.Second)
		began := time.Now()
		_, err := try(deadline(t, 15*time.Second), rt, "/")
		errorIf(t, time.Since(began) > 20*time.Second,
			"held for %v, with a deadline of 15 s and a source that takes 10: %v", time.Since(began), err)
		wg.Wait()
	})
}
