package partnerauth_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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

// Of the context of its caller, which an outsider may have filled, a fetch has trace id,
// span id and flags. A partner gets baggage only where the user has said so.
func TestWhatOutsidersMakeTravel(t *testing.T) {
	both := propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	before := otel.GetTextMapPropagator()
	defer otel.SetTextMapPropagator(before)
	otel.SetTextMapPropagator(both)
	state, err := trace.ParseTraceState("evil=x")
	must(t, err)
	bag, err := baggage.Parse("evil=x")
	must(t, err)
	for _, own := range []propagation.TextMapPropagator{nil, both} {
		for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
			p, values := new(partner), map[string]any{}
			base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
				values[req.URL.Path] = req.Context().Value(foreignKey{})
				return p.RoundTrip(req)
			})
			place := trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags, TraceState: state}
			ctx := trace.ContextWithRemoteSpanContext(baggage.ContextWithBaggage(t.Context(), bag), trace.NewSpanContext(place))
			ctx = context.WithValue(ctx, foreignKey{}, "evil")
			_, err := try(ctx, &partnerauth.Transport{Source: account(), Base: base, Propagator: own}, "/")
			must(t, err)
			login, call := p.seen()[0].header, p.seen()[1].header
			want := fmt.Sprintf("00-%s-%s-%s", place.TraceID, place.SpanID, flags)
			errorIf(t, login.Get("Traceparent") != want, "the login carries %v, want the traceparent %s", login, want)
			errorIf(t, call.Get("Traceparent") != want, "the call carries %v, want the traceparent %s", call, want)
			errorIf(t, login["Baggage"] != nil, "the login carries baggage: %v", login)
			errorIf(t, login["Tracestate"] != nil, "the login carries a tracestate: %v", login)
			errorIf(t, values[loginPath] != nil, "the login's context has the value %v", values[loginPath])
			errorIf(t, (call["Baggage"] != nil) != (own != nil), "a Propagator of its own %t: the call carries %v", own != nil, call)
			errorIf(t, values["/"] != "evil", "the call's context has the value %v, want the caller's", values["/"])
		}
	}
}

// Which answers are the partner's own refusal depends on the type and the body as well, for
// proxies and firewalls answer 400 and 403, too.
func TestWhoRefusesCredentials(t *testing.T) {
	const envelope = `{"success":false,"message":"no"}`
	for _, c := range []struct {
		status     int
		kind, body string
		refused    bool
	}{
		{401, "text/plain", "who are you?", true},
		{401, "", "<html>blocked</html>", false},
		{403, "application/json; charset=utf-8", envelope, true},
		{403, "", envelope, true},
		{422, "", "no", false},
		{407, "application/json", envelope, false},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			p := new(partner).on("login", reply{status: c.status, body: c.body, header: headers("Content-Type: " + c.kind)})
			_, err := p.source(pr).Token()
			is := errors.Is(err, partnerauth.ErrCredentials)
			errorIf(t, err == nil || is != c.refused, "%d %q: got %v, want ErrCredentials %t", c.status, c.kind, err, c.refused)
		})
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

var errPanicked, errExited = errors.New("panicked"), errors.New("exited")

// ending is how f ends in a goroutine of its own: its error, or one of the two above.
func ending(f func() error) error {
	err, done := errExited, make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if recover() != nil {
				err = errPanicked
			}
		}()
		err = f()
	}()
	<-done
	return err
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
// error for those who wait, with the type and the stack of a panic and without its value;
// in a caller's own it is that caller's. The others and the next go on.
func TestTraps(t *testing.T) {
	type secretive struct{ text string }
	for how, do := range map[string]func(){ // by what an error says of it
		"runtime.Goexit":                  runtime.Goexit,
		"type partnerauth_test.secretive": func() { panic(secretive{"Planted-Secret"}) },
		"type string":                     func() { panic("Planted-Secret") },
		"type *errors.errorString":        func() { panic(errors.New("Planted-Secret")) },
		"type *runtime.PanicNilError":     func() { panic(nil) },
	} {
		for name, c := range userCode {
			bubble(t, name+" "+how, func(t *testing.T) {
				p := &partner{open: true}
				r, rt := &trap{do: do, RoundTripper: p}, p.transport(nil)
				c.set(rt, r)
				call := func() error {
					return ending(func() error { _, err := try(deadline(t, time.Minute), rt, "/"); return err })
				}
				if c.warm {
					must(t, call())
				}
				r.set.Store(true)
				errs := make([]error, 5)
				took := elapsed(func() { atOnce(5, func(i int) { errs[i] = call() }).Wait() })
				errorIf(t, r.set.Load(), "the code was not called")
				errorIf(t, took > 10*time.Second, "five calls took %v, want seconds", took)
				errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
				passedOver := name == "Store"
				errorIf(t, (len(errs) == 0) != passedOver, "got the errors %v, want none: %t", errs, passedOver)
				errorIf(t, c.own && len(errs) != 1, "got the errors %v, want that of one caller", errs)
				for _, err := range errs {
					if c.own {
						errorIf(t, err != errPanicked && err != errExited, "got %v, want its caller's goroutine to end", err)
						continue
					}
					text := fmt.Sprintf("%v %+v", err, err)
					errorIf(t, !strings.Contains(text, how), "got %v, want %s in it", err, how)
					errorIf(t, how != "runtime.Goexit" && !strings.Contains(text, ".TestTraps."), "got %v, want the stack", err)
					errorIf(t, strings.Contains(text, "Planted"), "got %v, which has the value", err)
				}
				time.Sleep(time.Minute)
				must(t, call())
			})
		}
	}
}

// GetBody and Invalidate are called in the caller's goroutine, between its attempts.
func TestTrapsBetweenAttempts(t *testing.T) {
	for want, do := range map[error]func(){errPanicked: func() { panic("by the test") }, errExited: runtime.Goexit} {
		bubble(t, want.Error(), func(t *testing.T) {
			p := (&partner{open: true}).on("call", reply{status: 401}, reply{}, reply{status: 401}, reply{})
			req := newRequest(t, "POST", apiURL+"/", "x")
			req.GetBody = func() (io.ReadCloser, error) { do(); return nil, nil }
			limiter := &partnerauth.Quota{Requests: 4}
			got := ending(func() error { _, err := p.transport(limiter).RoundTrip(req); return err })
			errorIf(t, got != want, "GetBody: got %v, want %v", got, want)
			rt := p.custom(renewable{static("t").Token, func(*oauth2.Token) { do() }}, limiter)
			errorIf(t, get(t, rt, "/") != 200, "a call after it failed")
			got = ending(func() error { _, err := try(t.Context(), rt, "/"); return err })
			errorIf(t, got != want, "Invalidate: got %v, want %v", got, want)
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
			_, err := try(deadline(t, patience), rt, "/inner")
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
		patience := time.Minute
		if !c.own { // what it waits for waits for it
			patience = 10 * time.Millisecond
		}
		r.do = inner(name, rt, patience)
		r.set.Store(true)
		outer(name, rt, t.Context())
		errorIf(t, r.set.Load(), "%s was not called", name)
	}

	rt := new(partner).transport(nil)
	outer("context without a token", rt, meddler{t.Context(), inner("context", rt, time.Second)})
	outer("context", rt, meddler{t.Context(), inner("context", rt, time.Minute)})

	p, token := (&partner{open: true}).on("/outer", reply{status: 401}, reply{}), "first"
	rt = p.custom(renewable{
		func() (*oauth2.Token, error) { return static(token).Token() },
		func(*oauth2.Token) { token = "second"; inner("Invalidate", rt, time.Minute)() },
	}, nil)
	outer("Invalidate", rt, t.Context())
}

// A flawed error has all that errors can say, and too much text.
type flawed struct{ text string }

func (e flawed) Error() string   { return e.text }
func (e flawed) Unwrap() error   { return errTest }
func (e flawed) Timeout() bool   { return true }
func (e flawed) Temporary() bool { return true }

// Secrets that come back, at a login and at a call, in whatever place, are in no error, nor
// in what an AuthError unwraps to.
func TestEchoedSecrets(t *testing.T) {
	const secret = `hunter2/"<&>+=~` // whose letters and digits all encodings leave alone
	for _, echo := range []string{secret, url.QueryEscape(secret), jsonOf(secret)} {
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
			rts := map[string]*partnerauth.Transport{"call": p.custom(static(secret), nil)}
			for _, pr := range providers {
				rts[pr.name] = &partnerauth.Transport{Source: pr.config(credentials{id: "e", secret: secret}).TokenSource(), Base: p}
			}
			for who, rt := range rts {
				bubble(t, fmt.Sprintf("%s, %s in %s", who, echo, place), func(t *testing.T) {
					_, err := try(t.Context(), rt, "/")
					if who == "call" && r.err == nil {
						return // the answer is the caller's
					}
					checkEcho(t, err, r.err, who == "call")
				})
			}
		}
	}
}

// checkEcho looks for hunter2 in err, which came of what a Base returned.
func checkEcho(t *testing.T, err, cause error, ofCall bool) {
	t.Helper()
	shown := fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err))
	if answered, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		shown += fmt.Sprintf("%+v %+v", answered, answered.Response)
		kept := fmt.Sprint(answered.Body, answered.ErrorCode, answered.ErrorDescription, answered.ErrorURI)
		errorIf(t, kept != "[]", "%s was kept of the body", kept)
	}
	errorIf(t, err == nil || strings.Contains(shown, "hunter2"), "got %s", shown)
	if _, ok := cause.(flawed); !ok {
		return
	}
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	errorIf(t, !ok || !timeout.Timeout(), "the error is no timeout any more: %v", err)
	errorIf(t, !errors.Is(err, errTest), "the error Is not what it was: %v", err)
	temporary, ok := err.(interface{ Temporary() bool })
	errorIf(t, ofCall && !(ok && temporary.Temporary()), "not Temporary: %T", err)
}

// Foreign text of any size is searched in bounded time.
func TestLongEcho(t *testing.T) {
	token := strings.Repeat("t", 16<<10)
	p := new(partner)
	rt, began := p.custom(static(token), nil), time.Now()
	for _, text := range []string{strings.Repeat(token+"%", 512), token + strings.Repeat("x", 8<<20), strings.Repeat("x", 8<<20)} {
		p.on("call", reply{err: errors.New(text)})
		_, err := try(t.Context(), rt, "/")
		if err == nil {
			t.Fatal("got no error")
		}
		errorIf(t, len(err.Error()) > 17<<10, "the error has %d bytes", len(err.Error()))
		errorIf(t, strings.Contains(err.Error(), "tttt"), "the error has the token in it")
	}
	p.on("call", reply{status: 200, header: http.Header{"Ratelimit": {strings.Repeat("r=0;t=9,", 1<<20)}}})
	get(t, rt, "/")
	errorIf(t, time.Since(began) > 30*time.Second, "took %v, want a fraction of a second", time.Since(began))
}

// No token, nor its type, is sent that a header cannot carry or that is too long, whoever
// the source is. TestFailures has what else partners may call a token.
func TestTokensThatAreNotSent(t *testing.T) {
	long := strings.Repeat("t", 16<<10)
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
		p := (&partner{open: true}).on("login", reply{body: fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q,"key":%[1]q}`, c.token)})
		token := &oauth2.Token{AccessToken: c.token, TokenType: c.kind}
		rts := map[string]*partnerauth.Transport{"token": p.custom(oauth2.StaticTokenSource(token), nil)}
		if c.kind == "" {
			for _, pr := range providers {
				rts[pr.name] = p.transportOf(pr, nil)
			}
		}
		for who, rt := range rts {
			_, err := try(t.Context(), rt, "/")
			op := map[bool]string{true: "token", false: "login"}[who == "token"]
			errorIf(t, (err == nil) != c.want, "%s, %s: got %v", who, c.name, err)
			errorIf(t, err != nil && authOf(err).Op != op, "%s, %s: got %v, want Op %s", who, c.name, err, op)
			sized := c.name == "more" && who != "token"
			errorIf(t, sized && !strings.Contains(err.Error(), "16 KiB"), "%s: got %v, want the limit in it", who, err)
		}
		calls := 0
		for _, a := range p.seen() {
			if a.op == "call" {
				calls++
				sent := a.header.Get("Authorization") == cmp.Or(c.kind, "Bearer")+" "+c.token || a.header.Get("X-Api-Key") == c.token
				errorIf(t, !sent, "%s: sent otherwise: %.60v", c.name, a.header)
			}
		}
		want := map[bool]int{true: len(rts)}[c.want]
		errorIf(t, calls != want, "%s: %d calls, want %d", c.name, calls, want)
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
	why, cancelWhy := context.WithCancelCause(t.Context())
	cancelWhy(errTest)
	for _, ctx := range []context.Context{over, deadline(t, -time.Second), why} {
		p := new(partner)
		for _, rt := range []*partnerauth.Transport{p.custom(static("t"), nil), p.transport(nil)} { // with a token and without
			err := p.sentNothing(t, ctx, rt)
			errorIf(t, authOf(err).Op != "", "got %v, which is an AuthError", err)
			errorIf(t, !errors.Is(err, ctx.Err()), "got %v, want %v", err, ctx.Err())
			errorIf(t, errors.Is(err, partnerauth.ErrRateLimited), "got %v, which is of a limit", err)
			errorIf(t, (ctx == why) != errors.Is(err, errTest), "got %v, want the cause where there is one", err)
		}
	}
}

// A Base may read on after an early answer: it alone closes the body.
func TestBodyIsTheBases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&partner{open: true}).on("call", reply{status: 401}, reply{})
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
		for _, want := range []int64{0, 1} {
			got := bodies()[0].closed.Load()
			errorIf(t, got != want, "the body was closed %d times, want %d", got, want)
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
		err := ending(func() error { _, err := try(t.Context(), bad, "/"); return err })
		errorIf(t, err != errPanicked, "got %v, want a panic", err)
		took := elapsed(func() { get(t, p.custom(static("t"), quota), "/") })
		errorIf(t, took > 0, "waited %v for a place that nothing was sent with", took)
	})
}
