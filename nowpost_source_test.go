package partnerauth_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A desk is the token endpoint of either partner in memory: an
// http.RoundTripper whose script says what each request meets.
type desk struct {
	script func(n int, ask asked) told // n counts from 0

	mu    sync.Mutex
	asked []asked
}

// asked is one request that a desk was sent.
type asked struct {
	at     time.Time
	op     string // the last part of the path: login, refresh, auth, or that of an API
	bearer string // the token it carried
	url    string
}

// told is what a desk answers.
type told struct {
	status int // 0: 200
	header http.Header
	body   string
	stream io.ReadCloser // in place of body
	cut    bool          // the body breaks off after what there is of it
	err    error         // in place of an answer
	after  time.Duration // how long it takes; forever: until the client leaves
}

const forever = time.Duration(math.MaxInt64)

func (d *desk) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	n := len(d.asked)
	bearer, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		bearer = ""
	}
	a := asked{time.Now(), req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:], bearer, req.URL.String()}
	d.asked = append(d.asked, a)
	d.mu.Unlock()

	says := d.script(n, a)
	if says.after > 0 {
		select {
		case <-time.After(says.after):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if says.err != nil {
		return nil, says.err
	}
	if says.status == 0 {
		says.status = 200
	}
	resp := answer(req, says.status, says.body)
	if says.header != nil {
		resp.Header = says.header.Clone()
	}
	switch {
	case says.stream != nil:
		resp.Body, resp.ContentLength = says.stream, -1
	case says.cut:
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(says.body), &failingReader{io.ErrUnexpectedEOF}))
	}
	return resp, nil
}

func (d *desk) log() []asked {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

func (d *desk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked)
}

func (d *desk) ops() string {
	var ops []string
	for _, a := range d.log() {
		ops = append(ops, a.op)
	}
	return strings.Join(ops, " ")
}

func (d *desk) nowPost() *partnerauth.Source {
	return partnerauth.NowPost{Email: "shop@example.com", Password: "Planted-Secret", BaseURL: "https://api.example", Base: d}.TokenSource()
}

func (d *desk) ndovu() *partnerauth.Source {
	return partnerauth.Ndovu{ClientID: "shop", ClientSecret: "Planted-Secret", BaseURL: "https://api.example", Base: d}.TokenSource()
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// jwt is an unsigned token with the given claims.
func jwt(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + part([]byte(claims)) + "." + part([]byte("signature"))
}

func dated(at time.Time) http.Header {
	return http.Header{"Date": {at.UTC().Format(http.TimeFormat)}, "Content-Type": {"application/json"}}
}

// Both partners' hosts for tests on sockets, which keep what they were sent.
type wireServer struct {
	*httptest.Server
	base http.RoundTripper
	tee  *teeListener

	mu   sync.Mutex
	seen []wireRequest
}

// wireRequest is a request as the server saw it.
type wireRequest struct {
	proto, method, target, host string
	header                      http.Header
	body                        string
	length                      int64
	encoding                    []string
}

func startWire(t *testing.T, proto string, handler func(n int, w http.ResponseWriter, r *http.Request)) *wireServer {
	s := new(wireServer)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		n := len(s.seen)
		s.seen = append(s.seen, wireRequest{r.Proto, r.Method, r.RequestURI, r.Host, r.Header.Clone(), string(body), r.ContentLength, r.TransferEncoding})
		s.mu.Unlock()
		handler(n, w, r)
	}))
	if proto == "HTTP/2.0" {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.tee = &teeListener{Listener: s.Listener}
		s.Listener = s.tee
		s.Start()
	}
	s.base = s.Client().Transport
	t.Cleanup(s.Close)
	return s
}

func (s *wireServer) requests() []wireRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// teeListener keeps the bytes that its connections read.
type teeListener struct {
	net.Listener
	mu   sync.Mutex
	read bytes.Buffer
}

func (l *teeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &teeConn{c, l}, err
}

func (l *teeListener) bytes() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read.String()
}

type teeConn struct {
	net.Conn
	to *teeListener
}

func (c *teeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.to.mu.Lock()
	defer c.to.mu.Unlock()
	c.to.read.Write(p[:n])
	return n, err
}

// headerNames are those in the bytes of an HTTP/1.1 request.
func headerNames(raw string) []string {
	head, _, _ := strings.Cut(raw, "\r\n\r\n")
	var names []string
	for _, line := range strings.Split(head, "\r\n")[1:] {
		name, _, _ := strings.Cut(line, ":")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// basePaths are ways to write a BaseURL, and the prefix that they mean.
var basePaths = []struct{ suffix, prefix string }{
	{"", ""},
	{"/", ""},
	{"//", ""},
	{"/gateway", "/gateway"},
	{"/gateway/v2/", "/gateway/v2"},
	{"/with%2Fslash", "/with%2Fslash"},
}

func TestNowPostLoginOnTheWire(t *testing.T) {
	t.Parallel()
	passwords := []string{
		"plain", `quote " backslash \ slash /`, "<b>&amp;</b>", "p@ss:w+rd % = ?#", " leading and trailing ",
		"pässwörd 密码 🔑", "line\nbreak\ttab\x00nul\x7fdel", "\u2028\u2029", "\ufffd",
	}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			for i, password := range passwords {
				path := basePaths[i%len(basePaths)]
				s := startWire(t, proto, func(_ int, w http.ResponseWriter, _ *http.Request) {
					io.WriteString(w, `{"success":true,"data":{"token":"abc"}}`)
				})
				email := "ümlaut+" + password + "@example.com"
				token, err := partnerauth.NowPost{Email: email, Password: password, BaseURL: s.URL + path.suffix, Base: s.base}.TokenSource().Token()
				if err != nil || token.AccessToken != "abc" || token.TokenType != "Bearer" {
					t.Fatalf("%q: got %v, %v", password, token, err)
				}
				seen := s.requests()
				if len(seen) != 1 {
					t.Fatalf("%q: got %d requests, want 1", password, len(seen))
				}
				r := seen[0]
				if r.proto != proto || r.method != "POST" || r.target != path.prefix+"/api/v1/auth/login" || r.host != s.Listener.Addr().String() {
					t.Errorf("%q: got %s %s %s to %s", path.suffix, r.proto, r.method, r.target, r.host)
				}
				want := http.Header{
					"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Content-Type": {"application/json"},
					"Content-Length": {fmt.Sprint(len(r.body))}, "User-Agent": r.header["User-Agent"],
				}
				if !maps.EqualFunc(r.header, want, slices.Equal) {
					t.Errorf("got headers %v, want %v", r.header, want)
				}
				if r.length != int64(len(r.body)) || len(r.encoding) > 0 {
					t.Errorf("got length %d and encoding %v for a body of %d", r.length, r.encoding, len(r.body))
				}
				var pairs map[string]string
				if err := json.Unmarshal([]byte(r.body), &pairs); err != nil {
					t.Fatalf("%q: %v", r.body, err)
				}
				if !maps.Equal(pairs, map[string]string{"email": email, "password": password}) {
					t.Errorf("got %q, want the e-mail and the password %q and nothing else", pairs, password)
				}
				if s.tee != nil {
					raw := s.tee.bytes()
					names := []string{"Accept", "Accept-Encoding", "Content-Length", "Content-Type", "Host", "User-Agent"}
					if got := headerNames(raw); !slices.Equal(got, names) || !strings.HasSuffix(raw, "\r\n\r\n"+r.body) {
						t.Errorf("got the headers %v in %q, want %v", got, raw, names)
					}
				}
			}
		})
	}
}

// The body of a login is compared byte by byte with what the page's sample
// sends.
func TestNowPostLoginBody(t *testing.T) {
	t.Parallel()
	s := startWire(t, "HTTP/1.1", func(_ int, w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"token":"abc"}`) })
	source := partnerauth.NowPost{Email: "your-email@example.com", Password: "your-password", BaseURL: s.URL, Base: s.base}.TokenSource()
	if _, err := source.Token(); err != nil {
		t.Fatal(err)
	}
	const want = `{"email":"your-email@example.com","password":"your-password"}`
	if got := s.requests()[0].body; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNowPostRefreshOnTheWire(t *testing.T) {
	t.Parallel()
	for i, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			refreshed := make(chan wireRequest, 1)
			var s *wireServer
			var current atomic.Value
			s = startWire(t, proto, func(n int, w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/auth/refresh") {
					select {
					case refreshed <- s.requests()[n]:
					default:
					}
					io.WriteString(w, `{"token":"new"}`)
					return
				}
				token := jwt(fmt.Sprintf(`{"iat":0,"exp":0.4,"n":%d}`, n)) // to be renewed in 0.3 s
				current.Store(token)
				w.Header()["Date"] = nil
				fmt.Fprintf(w, `{"success":true,"data":{"token":%q}}`, token)
			})
			path := basePaths[3+i]
			source := partnerauth.NowPost{Email: "e@example.com", Password: "p", BaseURL: s.URL + path.suffix, Base: s.base}.TokenSource()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				if _, err := source.Token(); err != nil {
					t.Fatal(err)
				}
				select {
				case <-tick.C:
					continue
				case r := <-refreshed:
					want := http.Header{
						"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Content-Length": {"0"},
						"Authorization": {"Bearer " + current.Load().(string)}, "User-Agent": r.header["User-Agent"],
					}
					if r.proto != proto || r.method != "POST" || r.target != path.prefix+"/api/v1/auth/refresh" {
						t.Errorf("got %s %s %s", r.proto, r.method, r.target)
					}
					if !maps.EqualFunc(r.header, want, slices.Equal) {
						t.Errorf("got headers %v, want %v", r.header, want)
					}
					if r.body != "" || r.length != 0 || len(r.encoding) > 0 {
						t.Errorf("got body %q, length %d, encoding %v, want none", r.body, r.length, r.encoding)
					}
					if s.tee != nil {
						_, raw, _ := strings.Cut(s.tee.bytes(), "POST "+r.target)
						names := []string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Host", "User-Agent"}
						if got := headerNames(raw); !slices.Equal(got, names) || !strings.HasSuffix(raw, "\r\n\r\n") {
							t.Errorf("got the headers %v in %q, want %v", got, raw, names)
						}
					}
					land(t, source)
					return
				}
			}
		})
	}
}

// A life is what can be seen of a token from outside, in times since the
// request for it was sent.
type life struct {
	renewed time.Duration
	op      string // of its renewal
	ends    time.Duration
}

// lifeOf watches the token that first brings, which takes a second. Whatever
// the desk is asked after that hangs. It belongs in a bubble.
func lifeOf(t *testing.T, d *desk, source *partnerauth.Source, first told, about time.Duration) life {
	t.Helper()
	first.after = time.Second
	d.script = func(n int, _ asked) told {
		if n == 0 {
			return first
		}
		return told{after: forever}
	}
	began := time.Now()
	token, err := source.Token()
	if err != nil {
		t.Fatal(err)
	}
	defer time.Sleep(time.Hour) // until what hangs has given up
	got := life{ends: token.Expiry.Sub(began)}
	served := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Microsecond)
		defer cancel()
		now, err := source.TokenContext(ctx)
		return err == nil && now == token
	}
	for step := about / 1000; d.count() < 2; time.Sleep(step) {
		if time.Since(began) > 2*about {
			t.Fatalf("no renewal in %v", time.Since(began))
		}
		if served() {
			synctest.Wait()
		}
	}
	got.renewed, got.op = d.log()[1].at.Sub(began), d.log()[1].op
	time.Sleep(time.Until(token.Expiry) - time.Millisecond)
	if !served() {
		t.Errorf("the token is not served %v after it was asked for, a millisecond before its end", time.Since(began))
	}
	time.Sleep(time.Millisecond)
	if served() {
		t.Errorf("the token is served %v after it was asked for, when it has ended", time.Since(began))
	}
	return got
}

// checkLife compares got with a lifetime counted from the send.
func checkLife(t *testing.T, got life, want time.Duration, op string) {
	t.Helper()
	if got.ends != want {
		t.Errorf("the token ends after %v, want %v", got.ends, want)
	}
	if got.renewed < want*75/100 || got.renewed > want*85/100+want/500 {
		t.Errorf("the token is renewed after %v of %v, want 75 %% to 85 %%", got.renewed, want)
	}
	if got.op != op {
		t.Errorf("got a renewal by %s, want %s", got.op, op)
	}
}

// in2026 is when a partner answers whose client believes in 2000, where a bubble
// begins.
var in2026 = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// at is a time of the partner's in 2026, as NowPost writes it.
func at(d time.Duration) string { return in2026.Add(d).Format(time.RFC3339) }

func TestNowPostLifetimes(t *testing.T) {
	t.Parallel()
	hours2 := jwt(`{"iat":1700000000,"exp":1700007200}`)
	local := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // a bubble's first moment
	for _, c := range []struct {
		name   string
		header http.Header
		body   string
		want   time.Duration
	}{
		{"envelope", dated(in2026), `{"success":true,"data":{"token":"t","expiresAt":"` + at(24*time.Hour) + `","user":{"id":"user_123","email":"e"}}}`, 24 * time.Hour},
		{"flat", dated(in2026), `{"token":"t","expiresAt":"` + at(24*time.Hour) + `"}`, 24 * time.Hour},
		{"both, the envelope counts", dated(in2026), `{"success":true,"token":"flat","expiresAt":"` + at(time.Minute) + `","data":{"token":"t","expiresAt":"` + at(time.Hour) + `"}}`, time.Hour},
		{"flat beside data without a token", dated(in2026), `{"success":true,"token":"t","expiresAt":"` + at(time.Hour) + `","data":{"user":{"id":"1"}}}`, time.Hour},
		{"data null", dated(in2026), `{"data":null,"token":"t","expiresAt":"` + at(time.Hour) + `"}`, time.Hour},
		{"data a list", dated(in2026), `{"data":[{"token":"x"}],"token":"t","expiresAt":"` + at(time.Hour) + `"}`, time.Hour},
		{"data a text", dated(in2026), `{"data":"signed in","token":"t","expiresAt":"` + at(time.Hour) + `"}`, time.Hour},
		{"spaces and newlines", dated(in2026), " {\n\t\"data\" : \n {\"token\" : \"t\" ,\r\n\"expiresAt\":\"" + at(time.Hour) + "\"} }\n", time.Hour},
		{"another zone", dated(in2026), `{"token":"t","expiresAt":"2026-03-14T19:09:26+03:00"}`, time.Hour},
		{"fractions of seconds", dated(in2026), `{"token":"t","expiresAt":"2026-03-14T16:09:26.900Z"}`, time.Hour}, // Date has lost its own
		{"Date beats the JWT", dated(in2026), `{"token":"` + hours2 + `","expiresAt":"` + at(time.Hour) + `"}`, time.Hour},
		{"our clock is three hours ahead", dated(local.Add(-3 * time.Hour)), `{"token":"t","expiresAt":"` + local.Add(-2*time.Hour).Format(time.RFC3339) + `"}`, time.Hour},
		{"our clock is three hours behind", dated(local.Add(3 * time.Hour)), `{"token":"t","expiresAt":"` + local.Add(4*time.Hour).Format(time.RFC3339) + `"}`, time.Hour},
		{"ten seconds", dated(in2026), `{"token":"t","expiresAt":"` + at(10*time.Second) + `"}`, 10 * time.Second},
		{"two seconds", dated(in2026), `{"token":"t","expiresAt":"` + at(2*time.Second) + `"}`, 2 * time.Second},
		{"a year", dated(in2026), `{"token":"t","expiresAt":"` + at(365*24*time.Hour) + `"}`, 365 * 24 * time.Hour},

		{"JWT without Date", nil, `{"token":"` + hours2 + `","expiresAt":"` + at(time.Hour) + `"}`, 2 * time.Hour},
		{"JWT with a Date that cannot be read", http.Header{"Date": {"yesterday"}}, `{"token":"` + hours2 + `","expiresAt":"` + at(time.Hour) + `"}`, 2 * time.Hour},
		{"JWT without expiresAt", dated(in2026), `{"token":"` + hours2 + `"}`, 2 * time.Hour},
		{"JWT with garbage in expiresAt", dated(in2026), `{"token":"` + hours2 + `","expiresAt":"tomorrow"}`, 2 * time.Hour},
		{"JWT with fractions", dated(in2026), `{"token":"` + jwt(`{"iat":1.5,"exp":101.5}`) + `"}`, 100 * time.Second},
		{"expiresAt without Date or JWT", nil, `{"token":"t","expiresAt":"` + local.Add(time.Hour).Format(time.RFC3339) + `"}`, time.Hour - time.Second}, // the second it took to answer
		{"JWT without iat, expiresAt without Date", nil, `{"token":"` + jwt(`{"exp":1700007200}`) + `","expiresAt":"` + local.Add(time.Hour).Format(time.RFC3339) + `"}`, time.Hour - time.Second},

		{"nothing", nil, `{"token":"t"}`, 24 * time.Hour},
		{"Date alone", dated(in2026), `{"token":"t"}`, 24 * time.Hour},
		{"JWT without iat", dated(in2026), `{"token":"` + jwt(`{"exp":1700007200}`) + `"}`, 24 * time.Hour},
		{"JWT without exp", dated(in2026), `{"token":"` + jwt(`{"iat":1700007200}`) + `"}`, 24 * time.Hour},
		{"JWT with texts", dated(in2026), `{"token":"` + jwt(`{"iat":"1","exp":"61"}`) + `"}`, 24 * time.Hour},
		{"JWT that is a list", dated(in2026), `{"token":"` + jwt(`[1]`) + `"}`, 24 * time.Hour},
		{"JWT of two parts", dated(in2026), `{"token":"` + strings.Join(strings.Split(hours2, ".")[:2], ".") + `"}`, 24 * time.Hour},
		{"JWT with a payload that is not base64url", dated(in2026), `{"token":"a.***.c"}`, 24 * time.Hour},
		{"expiresAt empty", dated(in2026), `{"token":"t","expiresAt":""}`, 24 * time.Hour},
		{"expiresAt null", dated(in2026), `{"token":"t","expiresAt":null}`, 24 * time.Hour},
		{"expiresAt a number", dated(in2026), `{"token":"t","expiresAt":1773504566}`, 24 * time.Hour},
		{"expiresAt an object", dated(in2026), `{"token":"t","expiresAt":{"at":"` + at(time.Hour) + `"}}`, 24 * time.Hour},
		{"expiresAt without a zone", dated(in2026), `{"token":"t","expiresAt":"2026-03-14 16:09:26"}`, 24 * time.Hour},
		{"duplicate keys", dated(in2026), `{"token":"x","token":"t"}`, 24 * time.Hour},
		{"success null", dated(in2026), `{"success":null,"token":"t"}`, 24 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := new(desk)
				checkLife(t, lifeOf(t, d, d.nowPost(), told{header: c.header, body: c.body}, c.want), c.want, "refresh")
			})
		})
	}
}

// Many processes do not renew at once.
func TestRenewalsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen []time.Duration
		for range 12 {
			d := new(desk)
			seen = append(seen, lifeOf(t, d, d.nowPost(), told{body: `{"token":"t"}`}, 24*time.Hour).renewed)
		}
		slices.Sort(seen)
		if spread := seen[len(seen)-1] - seen[0]; len(slices.Compact(slices.Clone(seen))) < 6 || spread < 24*time.Hour*2/100 {
			t.Errorf("got renewals after %v, want them spread", seen)
		}
	})
}

func TestNowPostTokens(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"201", 201, `{"success":true,"data":{"token":"t"}}`, "t"},
		{"202", 202, `{"token":"t"}`, "t"},
		{"both", 200, `{"token":"flat","data":{"token":"enveloped"}}`, "enveloped"},
		{"duplicate keys", 200, `{"token":"first","token":"last"}`, "last"},
		{"escapes", 200, `{"token":"\u0061\/b"}`, "a/b"},
		{"every character that may be in it", 200, `{"token":"!#$%&'()*+-./:;<=>?@[]^_{|}~"}`, "!#$%&'()*+-./:;<=>?@[]^_{|}~"},
		{"a long token", 200, `{"token":"` + big + `"}`, big},
		{"exactly 1 MiB", 200, `{"token":"t"` + strings.Repeat(" ", 1<<20-13) + `}`, "t"},
		{"a token that looks like another's field", 200, `{"access_token":"x","token":"t"}`, "t"},
		{"deep nesting beside it", 200, `{"user":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `,"token":"t"}`, "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &desk{script: func(int, asked) told { return told{status: c.status, body: c.body} }}
			token, err := d.nowPost().Token()
			if err != nil {
				t.Fatal(err)
			}
			if token.AccessToken != c.want || token.TokenType != "Bearer" || token.RefreshToken != "" || !token.Valid() {
				t.Errorf("got %.60v, want %.60s", token.AccessToken, c.want)
			}
			if d.ops() != "login" {
				t.Errorf("got %s, want one login", d.ops())
			}
		})
	}
}

// A failure is an answer that is no token, and what becomes of it.
type failure struct {
	name   string
	says   told
	text   string // how the error's text goes on after provider and op
	status int
	tries  int // requests that the first caller costs
}

// statusFailures are the answers whose status tells enough. What a partner
// writes into them is not the same twice, and never in an error's text.
func statusFailures() []failure {
	const html = `<!DOCTYPE html><html><body><pre>Echo Planted-Secret</pre></body></html>`
	const page = `{"success":false,"message":"Echo Planted-Secret"}`
	moved := http.Header{"Location": {"https://api.example/elsewhere"}}
	return []failure{
		{"300", told{status: 300}, "300 Multiple Choices: a redirect", 300, 1},
		{"301", told{status: 301, header: moved}, "301 Moved Permanently: a redirect", 301, 1},
		{"302 with a token in it", told{status: 302, header: moved, body: `{"token":"t","access_token":"t"}`}, "302 Found: a redirect", 302, 1},
		{"303", told{status: 303, header: moved}, "303 See Other: a redirect", 303, 1},
		{"304", told{status: 304}, "304 Not Modified", 304, 1},
		{"307", told{status: 307, header: moved}, "307 Temporary Redirect: a redirect", 307, 1},
		{"308", told{status: 308, header: moved}, "308 Permanent Redirect: a redirect", 308, 1},
		{"400", told{status: 400, body: page}, "400 Bad Request", 400, 1},
		{"400 with a token in it", told{status: 400, body: `{"token":"t","access_token":"t"}`}, "400 Bad Request", 400, 1},
		{"401", told{status: 401, body: page}, "401 Unauthorized", 401, 1},
		{"401 larger than 1 MiB", told{status: 401, body: strings.Repeat("x", 2<<20)}, "401 Unauthorized", 401, 1},
		{"403", told{status: 403, body: page}, "403 Forbidden", 403, 1},
		{"404 in HTML", told{status: 404, body: html}, "404 Not Found", 404, 1},
		{"405", told{status: 405}, "405 Method Not Allowed", 405, 1},
		{"409", told{status: 409, body: page}, "409 Conflict", 409, 1},
		{"418", told{status: 418}, "418 I'm a teapot", 418, 1},
		{"422", told{status: 422, body: page}, "422 Unprocessable Entity", 422, 1},
		{"499, which has no text", told{status: 499}, "499", 499, 1},
		{"500", told{status: 500, body: page}, "500 Internal Server Error", 500, 3},
		{"501", told{status: 501}, "501 Not Implemented", 501, 3},
		{"502 in HTML", told{status: 502, body: html}, "502 Bad Gateway", 502, 3},
		{"503", told{status: 503}, "503 Service Unavailable", 503, 3},
		{"503 with Retry-After", told{status: 503, header: http.Header{"Retry-After": {"5"}}}, "503 Service Unavailable", 503, 3},
		{"504", told{status: 504}, "504 Gateway Timeout", 504, 3},
		{"599", told{status: 599}, "599", 599, 3},

		{"204", told{status: 204}, "204 No Content: the answer is not the JSON", 204, 1},
		{"nothing in it", told{}, "200 OK: the answer is not the JSON", 200, 1},
		{"HTML with 200", told{body: html}, "200 OK: the answer is not the JSON", 200, 1},
		{"a list", told{body: `[{"token":"t","access_token":"t"}]`}, "200 OK: the answer is not the JSON", 200, 1},
		{"a text", told{body: `"token"`}, "200 OK: the answer is not the JSON", 200, 1},
		{"half an object", told{body: `{"token":"t","access_token":"t"`}, "200 OK: the answer is not the JSON", 200, 1},
		{"an object and more", told{body: `{"token":"t","access_token":"t"} trailing`}, "200 OK: the answer is not the JSON", 200, 1},
		{"deep nesting", told{body: strings.Repeat(`{"data":`, 100_000)}, "200 OK: the answer is not the JSON", 200, 1},
		{"null", told{body: `null`}, "200 OK: no ", 200, 1},
		{"an empty object", told{body: `{}`}, "200 OK: no ", 200, 1},
		{"larger than 1 MiB", told{body: `{"token":"t","access_token":"t"` + strings.Repeat(" ", 1<<20) + `}`}, "200 OK: the answer is larger than 1 MiB", 200, 1},

		{"no connection", told{err: errors.New("connection refused by the test")}, "connection refused by the test", 0, 3},
		{"a body that breaks off", told{body: `{"token":"t","access_to`, cut: true}, "unexpected EOF", 0, 3},
	}
}

// checkFailure compares what a Source does with what f says.
func checkFailure(t *testing.T, d *desk, source *partnerauth.Source, provider, op string, f failure) {
	t.Helper()
	d.script = func(int, asked) told { return f.says }
	token, err := source.Token()
	if err == nil {
		t.Fatalf("got the token %q, want an error", token.AccessToken)
	}
	if want := "partnerauth: " + provider + " " + op + ": " + f.text; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %q, want %q and more", err, want)
	}
	var auth *partnerauth.AuthError
	if !errors.As(err, &auth) || auth.Provider != provider || auth.Op != op || auth.StatusCode != f.status {
		t.Fatalf("got %#v, want an AuthError of %s %s with status %d", err, provider, op, f.status)
	}
	if auth.RetryAfter <= 0 {
		t.Errorf("got RetryAfter %v, want when the partner is asked again", auth.RetryAfter)
	}
	var answered *oauth2.RetrieveError
	switch is := errors.As(err, &answered); {
	case is != (f.status != 0):
		t.Errorf("got an oauth2.RetrieveError: %t", is)
	case is && (answered.Response == nil || answered.Response.StatusCode != f.status):
		t.Errorf("got an oauth2.RetrieveError of %+v, want status %d", answered.Response, f.status)
	case is && strings.Contains(answered.Error(), "Planted-Secret"):
		t.Errorf("%v has the secret in it", answered)
	}
	if f.says.err != nil && !errors.Is(err, f.says.err) {
		t.Errorf("%v does not unwrap to the network error", err)
	}
	credentials := f.status == 400 || f.status == 401 || f.status == 403
	if errors.Is(err, partnerauth.ErrCredentials) != credentials {
		t.Errorf("got ErrCredentials %t for %d", !credentials, f.status)
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v %#v", err, err)} {
		if strings.Contains(text, "Echo") || strings.Contains(text, "Planted") {
			t.Errorf("%s has the partner's answer or a secret in it", text)
		}
	}
	if got := d.count(); got != f.tries {
		t.Errorf("got %d requests, want %d", got, f.tries)
	}
	// whatever went wrong, the next caller is not a request at once
	if _, again := source.Token(); again != err || d.count() != f.tries {
		t.Errorf("the next caller got %v after %d requests, want the same error and no request", again, d.count())
	}
}

func TestNowPostFailures(t *testing.T) {
	t.Parallel()
	const noToken, notJSON, badToken = "200 OK: no token, neither in data.token nor in token", "200 OK: the answer is not the JSON", "200 OK: the token has characters that a header cannot have"
	ok := func(name, body, text string) failure { return failure{name, told{body: body}, text, 200, 1} }
	for _, f := range append(statusFailures(),
		ok("success is false", `{"success":false,"message":"Echo"}`, "200 OK: success is false"),
		ok("success is false beside a token", `{"success":false,"data":{"token":"t"},"token":"t"}`, "200 OK: success is false"),
		ok("no token", `{"success":true,"data":{"expiresAt":"2024-01-15T12:00:00Z"}}`, noToken),
		ok("token empty", `{"token":""}`, noToken),
		ok("token null", `{"token":null,"data":{"token":null}}`, noToken),
		ok("token a number", `{"token":123}`, notJSON),
		ok("token an object", `{"data":{"token":{"value":"Echo"}}}`, notJSON),
		ok("token a list", `{"data":{"token":["Echo"]}}`, notJSON),
		ok("token true", `{"token":true}`, notJSON),
		ok("another partner's field", `{"access_token":"t"}`, noToken),
		ok("token with a newline", `{"token":"Echo\nX-Injected: 1"}`, badToken),
		ok("token with a carriage return", `{"token":"Echo\r"}`, badToken),
		ok("token with a nul", `{"data":{"token":"Echo\u0000"}}`, badToken),
		ok("token with a space", `{"token":"Echo Echo"}`, badToken),
		ok("token of a space", `{"token":" "}`, badToken),
		ok("token with DEL", `{"token":"Echo\u007f"}`, badToken),
		ok("token beyond ASCII", `{"token":"Echoé"}`, badToken),
		ok("token of invalid UTF-8", "{\"token\":\"Echo\xff\"}", badToken),
	) {
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := new(desk)
				checkFailure(t, d, d.nowPost(), "nowpost", "login", f)
			})
		})
	}
}

// An answer whose status has said no is one, however its body ends.
func TestRefusalWithABrokenBody(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := new(desk)
				checkFailure(t, d, d.nowPost(), "nowpost", "login",
					failure{says: told{status: status, body: `{"succ`, cut: true}, text: fmt.Sprint(status), status: status, tries: 1})
			})
		})
	}
	t.Run("429", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &desk{script: func(n int, _ asked) told {
				if n == 0 {
					return told{status: 429, header: http.Header{"Retry-After": {"7"}}, body: "Too ma", cut: true}
				}
				return told{body: `{"token":"t"}`}
			}}
			_, err := d.nowPost().Token()
			if log := d.log(); err != nil || len(log) != 2 || log[1].at.Sub(log[0].at) < 7*time.Second {
				t.Errorf("got %v and %v, want a second request after 7 s", err, log)
			}
		})
	})
}

// Nothing is sent with a token that a header cannot carry.
func TestUnsendableTokenReachesNoAPI(t *testing.T) {
	t.Parallel()
	for _, token := range []string{`a\nX-Injected: 1`, `a\u0000`, "é", `a b`} {
		d := &desk{script: func(int, asked) told {
			return told{body: fmt.Sprintf(`{"token":"%s","access_token":"%[1]s","token_type":"Bearer"}`, token)}
		}}
		for _, source := range []*partnerauth.Source{d.nowPost(), d.ndovu()} {
			body := &closedBody{Reader: strings.NewReader("{}")}
			req := newRequest(t, "POST", "https://api.example/api/v1/orders", "")
			req.Body = body
			_, err := (&partnerauth.Transport{Source: source, Base: d}).RoundTrip(req)
			var auth *partnerauth.AuthError
			if !errors.As(err, &auth) || !body.closed.Load() {
				t.Errorf("%s: got %v, want an AuthError and the request's body closed", token, err)
			}
		}
		if ops := d.ops(); ops != "login auth" {
			t.Errorf("%s: got %s, want only the token requests", token, ops)
		}
	}
}

type closedBody struct {
	io.Reader
	closed atomic.Bool
}

func (b *closedBody) Close() error { b.closed.Store(true); return nil }

// An endless answer is read no further than needed to see that it is too large.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	endless := &endlessBody{}
	d := &desk{script: func(int, asked) told { return told{stream: endless} }}
	if _, err := d.nowPost().Token(); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("got %v", err)
	}
	if endless.read > 1<<20+1 || !endless.closed {
		t.Errorf("got %d bytes read, closed %t, want little more than 1 MiB", endless.read, endless.closed)
	}
}

type endlessBody struct {
	read   int
	closed bool
}

func (b *endlessBody) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	b.read += len(p)
	return len(p), nil
}

func (b *endlessBody) Close() error { b.closed = true; return nil }

// A gzip bomb is one MiB to us. The test is not parallel, since it measures
// memory.
func TestGzipBomb(t *testing.T) {
	var member bytes.Buffer
	z, _ := gzip.NewWriterLevel(&member, gzip.BestSpeed)
	z.Write(bytes.Repeat([]byte(" "), 1<<20))
	z.Close()
	s := startWire(t, "HTTP/1.1", func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		for range 4096 { // 4 GiB
			if _, err := w.Write(member.Bytes()); err != nil {
				return
			}
		}
	})
	source := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: s.URL, Base: s.base}.TokenSource()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := source.Token()
	runtime.ReadMemStats(&after)
	var auth *partnerauth.AuthError
	if !errors.As(err, &auth) || auth.StatusCode != 200 || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("got %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
		t.Errorf("got %d MiB allocated for an answer of which 1 MiB is wanted", took>>20)
	}
}

// Token requests follow no redirect: credentials go nowhere else, not even to
// another path of the same server.
func TestTokenRequestsFollowNoRedirect(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprint(proto, " ", status), func(t *testing.T) {
				target := startWire(t, proto, func(int, http.ResponseWriter, *http.Request) {})
				s := startWire(t, proto, func(n int, w http.ResponseWriter, r *http.Request) {
					to := target.URL + r.URL.Path
					if n%2 == 1 {
						to = "/elsewhere"
					}
					http.Redirect(w, r, to, status)
				})
				for i, source := range []*partnerauth.Source{
					partnerauth.NowPost{Email: "e", Password: "p", BaseURL: s.URL}.TokenSource(),
					partnerauth.NowPost{Email: "e", Password: "p", BaseURL: s.URL}.TokenSource(),
					partnerauth.Ndovu{ClientID: "i", ClientSecret: "s", BaseURL: s.URL}.TokenSource(),
					partnerauth.Ndovu{ClientID: "i", ClientSecret: "s", BaseURL: s.URL}.TokenSource(),
				} {
					client := &http.Client{Transport: &partnerauth.Transport{Source: source, Base: s.base}}
					_, err := client.Get(s.URL + "/api/v1/orders")
					var auth *partnerauth.AuthError
					if !errors.As(err, &auth) || auth.StatusCode != status || !strings.Contains(err.Error(), "redirect") {
						t.Errorf("got %v, want an AuthError that tells of a %d", err, status)
					}
					if got := len(s.requests()); got != i+1 {
						t.Errorf("got %d requests after %d sources, want one each", got, i+1)
					}
				}
				if got := target.requests(); len(got) != 0 {
					t.Errorf("the target of the redirect was sent %+v", got)
				}
			})
		}
	}
}

// What an error unwraps to, from where users of http.Client stand.
func TestErrorsThroughHTTPClient(t *testing.T) {
	t.Parallel()
	for _, provider := range []string{"nowpost", "ndovu"} {
		t.Run(provider, func(t *testing.T) {
			s := startWire(t, "HTTP/1.1", func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Request-Id", "42")
				w.WriteHeader(401)
				io.WriteString(w, `{"message":"no such account"}`)
			})
			client, op := partnerauth.NowPost{Email: "e", Password: "Planted-Secret", BaseURL: s.URL, Base: s.base}.Client(), "login"
			if provider == "ndovu" {
				client, op = partnerauth.Ndovu{ClientID: "i", ClientSecret: "Planted-Secret", BaseURL: s.URL, Base: s.base}.Client(), "login"
			}
			_, err := client.Get(s.URL + "/api/v1/orders")
			var outer *url.Error
			var auth *partnerauth.AuthError
			var answered *oauth2.RetrieveError
			if !errors.As(err, &outer) || !errors.As(err, &auth) || !errors.As(err, &answered) || !errors.Is(err, partnerauth.ErrCredentials) {
				t.Fatalf("got %v, want a url.Error, AuthError, RetrieveError and ErrCredentials", err)
			}
			if want := "partnerauth: " + provider + " " + op + ": 401 Unauthorized"; !strings.HasPrefix(auth.Error(), want) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want %q in it", err, want)
			}
			if answered.Response == nil || answered.Response.StatusCode != 401 || answered.Response.Header.Get("X-Request-Id") != "42" || !strings.Contains(string(answered.Body), "no such") {
				t.Errorf("got the answer %+v with %q", answered.Response, answered.Body)
			}
			for _, text := range []string{err.Error(), answered.Error(), fmt.Sprintf("%+v", answered), string(answered.Body)} {
				if strings.Contains(text, "Planted-Secret") {
					t.Errorf("%s has the secret in it", text)
				}
			}
			if errors.Is(err, partnerauth.ErrRateLimited) || errors.Is(err, partnerauth.ErrInsecureURL) || auth.Timeout() {
				t.Errorf("%v is more than it should be", err)
			}
			if len(s.requests()) != 1 {
				t.Errorf("got %d requests, want the token request alone", len(s.requests()))
			}
		})
	}
}

const pollEvery = 100 * time.Millisecond

// attempts are the times between the requests that a failing partner gets from
// callers who never stop asking.
func attempts(t *testing.T, d *desk, source *partnerauth.Source, length time.Duration) []time.Duration {
	t.Helper()
	var last error
	for began, n := time.Now(), 0; time.Since(began) < length; time.Sleep(pollEvery) {
		asked := d.count()
		_, err := source.Token()
		if err == nil {
			t.Fatal("got a token")
		}
		if now := d.count(); now == asked && n > 0 && err != last {
			t.Fatalf("got another error, %v, without another request", err)
		}
		last = err
		n++
	}
	log := d.log()
	var gaps []time.Duration
	for i := 1; i < len(log); i++ {
		gaps = append(gaps, log[i].at.Sub(log[i-1].at))
	}
	return gaps
}

func TestRefusedCredentialsBackOff(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var others []time.Duration
				for _, ndovu := range []bool{false, true} {
					d := &desk{script: func(int, asked) told { return told{status: status} }}
					source := d.nowPost()
					if ndovu {
						source = d.ndovu()
					}
					gaps := attempts(t, d, source, 15*time.Minute)
					if len(gaps) < 15 || len(gaps) > 30 {
						t.Errorf("got %d requests in 15 minutes, want one a minute or little more", len(gaps))
					}
					for i, gap := range gaps {
						if gap < time.Second || gap > time.Minute+pollEvery || i > 8 && gap < 20*time.Second {
							t.Errorf("got %v before request %d, want 1 s growing to 1 minute", gap, i+2)
						}
					}
					if gaps[0] > 3*time.Second || gaps[4] < gaps[0] {
						t.Errorf("got %v, want a start at 1 s that grows", gaps[:5])
					}
					if len(slices.Compact(slices.Clone(gaps[len(gaps)-8:]))) < 4 || slices.Equal(gaps, others) {
						t.Errorf("got %v, want jitter", gaps)
					}
					others = gaps
				}
			})
		})
	}
}

func TestOtherFailuresBackOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		says  told
		tries int // in one flight
	}{
		{"500", told{status: 500}, 3},
		{"502", told{status: 502}, 3},
		{"network", told{err: errors.New("no route")}, 3},
		{"cut", told{body: "{", cut: true}, 3},
		{"404", told{status: 404}, 1},
		{"301", told{status: 301}, 1},
		{"no token", told{body: "{}"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &desk{script: func(int, asked) told { return c.says }}
				gaps := attempts(t, d, d.nowPost(), 5*time.Minute)
				if most := c.tries * 30; len(gaps) > most || len(gaps) < c.tries*12 {
					t.Errorf("got %d requests in five minutes, want at most %d", len(gaps), most)
				}
				var between []time.Duration
				for i, gap := range gaps {
					switch last := (i + 1) % c.tries; {
					case last == 0:
						between = append(between, gap)
					case gap < 100*time.Millisecond || gap > 2*time.Second:
						t.Errorf("got %v before a try inside a flight", gap)
					}
				}
				for i, gap := range between {
					if gap < 500*time.Millisecond || gap > 30*time.Second+pollEvery || i > 8 && gap < 10*time.Second {
						t.Errorf("got %v before flight %d, want 0.5 s growing to 30 s", gap, i+2)
					}
				}
				if between[0] > 1500*time.Millisecond || len(slices.Compact(slices.Clone(between[len(between)-8:]))) < 4 {
					t.Errorf("got %v, want a start at 0.5 s, and jitter", between)
				}
			})
		})
	}
}

// A failure that the next try or two get over is nothing to the caller.
func TestTriesInsideOneFlight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fails []told
	}{
		{"network", []told{{err: io.ErrUnexpectedEOF}, {err: errors.New("reset")}}},
		{"5xx", []told{{status: 500}, {status: 502, body: "<html>"}}},
		{"cut and 503", []told{{body: `{"token":`, cut: true}, {status: 503}}},
		{"429 does not count as one", []told{{status: 500}, {status: 429, header: http.Header{"Retry-After": {"1"}}}, {status: 429, header: http.Header{"Retry-After": {"1"}}}, {status: 500}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &desk{script: func(n int, _ asked) told {
					if n < len(c.fails) {
						return c.fails[n]
					}
					return told{body: `{"token":"t","access_token":"t"}`}
				}}
				began := time.Now()
				if token, err := d.nowPost().Token(); err != nil || token.AccessToken != "t" {
					t.Errorf("got %v, %v", token, err)
				}
				if took := time.Since(began); d.count() != len(c.fails)+1 || took > 5*time.Second || took == 0 {
					t.Errorf("got %d requests in %v, want %d in seconds", d.count(), took, len(c.fails)+1)
				}
			})
		})
	}
}

// After a success the next failure starts from the least distance again.
func TestBackOffStartsOverAfterSuccess(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 404} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var good atomic.Bool
				d := &desk{script: func(int, asked) told {
					if good.Load() {
						return told{body: `{"token":"t"}`}
					}
					return told{status: status}
				}}
				source := d.nowPost()
				attempts(t, d, source, 10*time.Minute)
				good.Store(true)
				time.Sleep(time.Minute)
				token, err := source.Token()
				if err != nil {
					t.Fatal(err)
				}
				good.Store(false)
				source.Invalidate(token)
				before := d.count()
				gaps := attempts(t, d, source, time.Minute)[before:]
				if gaps[0] > 3*time.Second {
					t.Errorf("got %v, want the first distance short again", gaps)
				}
			})
		})
	}
}

func TestTokenRequestMeets429(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		header http.Header
		least  time.Duration
	}{
		{"seconds", http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		{"a date by the server's clock", http.Header{"Date": dated(in2026)["Date"], "Retry-After": {in2026.Add(30 * time.Second).Format(http.TimeFormat)}}, 30 * time.Second},
		{"none", nil, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &desk{script: func(n int, _ asked) told {
					if n < 2 {
						return told{status: 429, header: c.header}
					}
					return told{body: `{"token":"t"}`}
				}}
				if _, err := d.nowPost().Token(); err != nil {
					t.Fatal(err)
				}
				log := d.log()
				if len(log) != 3 {
					t.Fatalf("got %d requests, want 3", len(log))
				}
				for i := 1; i < 3; i++ {
					if gap := log[i].at.Sub(log[i-1].at); gap < c.least || gap > c.least+2*time.Second {
						t.Errorf("got %v, want %v", gap, c.least)
					}
				}
			})
		})
	}
	t.Run("for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &desk{script: func(int, asked) told { return told{status: 429, header: http.Header{"Retry-After": {"20"}}} }}
			_, err := d.nowPost().Token()
			var auth *partnerauth.AuthError
			if !errors.As(err, &auth) || auth.StatusCode != 429 || auth.RetryAfter < 20*time.Second || errors.Is(err, partnerauth.ErrCredentials) {
				t.Errorf("got %v, want an AuthError with 429 that names the wait", err)
			}
			if n := d.count(); n < 2 || n > 10 {
				t.Errorf("got %d requests before the caller was told, want a few", n)
			}
			for _, gap := range attempts(t, d, d.nowPost(), 10*time.Minute) {
				if gap < 20*time.Second && gap != 0 {
					t.Errorf("got %v between requests, want 20 s", gap)
				}
			}
		})
	})
	t.Run("a caller's deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &desk{script: func(n int, _ asked) told {
				if n == 0 {
					return told{status: 429, header: http.Header{"Retry-After": {"20"}}}
				}
				return told{body: `{"token":"t"}`}
			}}
			source := d.nowPost()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := source.TokenContext(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
				t.Errorf("got %v after %v", err, time.Since(began))
			}
			if _, err := source.Token(); err != nil || d.count() != 2 {
				t.Errorf("got %v after %d requests, want that of the same flight", err, d.count())
			}
		})
	})
}

// What refresh answers, and what comes of it. The token is good throughout, so
// no caller waits or gets an error.
func TestNowPostRefreshAnswers(t *testing.T) {
	t.Parallel()
	const minute = 60 * time.Second
	for _, c := range []struct {
		name   string
		says   []told // to refresh
		ops    string
		token  string
		lasts  time.Duration
		within time.Duration // of the renewal
	}{
		{"flat without expiresAt", []told{{body: `{"token":"new"}`}}, "login refresh", "new", 24 * time.Hour, 0},
		{"flat with expiresAt", []told{{header: dated(in2026), body: `{"token":"new","expiresAt":"` + at(time.Hour) + `"}`}}, "login refresh", "new", time.Hour, 0},
		{"envelope", []told{{header: dated(in2026), body: `{"success":true,"data":{"token":"new","expiresAt":"` + at(time.Hour) + `"}}`}}, "login refresh", "new", time.Hour, 0},
		{"envelope without expiresAt", []told{{body: `{"success":true,"data":{"token":"new"}}`}}, "login refresh", "new", 24 * time.Hour, 0},
		{"JWT", []told{{body: `{"token":"` + jwt(`{"iat":0,"exp":60}`) + `"}`}}, "login refresh", jwt(`{"iat":0,"exp":60}`), minute, 0},
		{"the same token, longer", []told{{body: `{"token":"old"}`}}, "login refresh", "old", 24 * time.Hour, 0},
		{"201", []told{{status: 201, body: `{"token":"new"}`}}, "login refresh", "new", 24 * time.Hour, 0},
		{"5xx, which nobody waits for", []told{{status: 503}}, "login refresh login", "relogin", 24 * time.Hour, 0},

		{"400", []told{{status: 400}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"401", []told{{status: 401}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"403", []told{{status: 403}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"404 in HTML", []told{{status: 404, body: "<html>"}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"409", []told{{status: 409}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"422", []told{{status: 422}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"307", []told{{status: 307, header: http.Header{"Location": {"https://evil.example/"}}}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"204", []told{{status: 204}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"success is false", []told{{body: `{"success":false}`}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"no token", []told{{body: `{"success":true}`}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"no JSON", []told{{body: "OK"}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"unsendable", []told{{body: `{"token":"a\nb"}`}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"larger than 1 MiB", []told{{body: strings.Repeat(" ", 1<<20+1)}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"network", []told{{err: io.EOF}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"cut", []told{{body: "{", cut: true}}, "login refresh login", "relogin", 24 * time.Hour, 0},
		{"429, then a token", []told{{status: 429, header: http.Header{"Retry-After": {"5"}}}, {body: `{"token":"new"}`}}, "login refresh refresh", "new", 24 * time.Hour, 6 * time.Second},
		{"429 until the token is over", []told{{status: 429, header: http.Header{"Retry-After": {"30"}}}}, "login refresh login", "relogin", 24 * time.Hour, 31 * time.Second},
		{"hanging", []told{{after: forever}}, "login refresh login", "relogin", 24 * time.Hour, 25 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refreshes := 0
				d := new(desk)
				var began time.Time
				d.script = func(n int, ask asked) told {
					switch {
					case n == 0:
						return told{header: dated(in2026), body: `{"token":"old","expiresAt":"` + at(100*time.Second) + `"}`}
					case ask.op == "login":
						return told{body: `{"token":"relogin"}`}
					}
					if ask.bearer != "old" || time.Since(began) >= 100*time.Second {
						t.Errorf("refresh was sent %q after %v of 100 s", ask.bearer, time.Since(began))
					}
					if refreshes++; refreshes > len(c.says) {
						t.Errorf("got more than %d refreshes", len(c.says))
						return told{status: 500}
					}
					return c.says[refreshes-1]
				}
				source := d.nowPost()
				began = time.Now()
				for {
					asked := time.Now()
					token, err := source.Token()
					if err != nil {
						t.Fatal(err)
					}
					if time.Since(asked) != 0 && time.Since(began) < 100*time.Second {
						t.Errorf("a caller waited %v while the token was good", time.Since(asked))
					}
					if token.AccessToken != "old" || token.Expiry.Sub(began) > 100*time.Second {
						if token.AccessToken != c.token {
							t.Errorf("got %q, want %q", token.AccessToken, c.token)
						}
						log := d.log()
						if lasts := token.Expiry.Sub(log[len(log)-1].at); lasts != c.lasts {
							t.Errorf("got a lifetime of %v, want %v", lasts, c.lasts)
						}
						if took := time.Since(log[1].at); took > c.within+100*time.Millisecond {
							t.Errorf("got the new token after %v, want %v", took, c.within)
						}
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				if d.ops() != c.ops {
					t.Errorf("got %s, want %s", d.ops(), c.ops)
				}
			})
		})
	}
}

// A stand-in that answers the page's sample literally, expiry in the past
// included, works. So does any token that is over by its own answer: it is
// used, renewed by login since an ended token must not be sent to refresh, and
// costs at most ten token requests a minute.
func TestAnswerPastItsOwnExpiry(t *testing.T) {
	t.Parallel()
	const sample = `{"success":true,"data":{"token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...","expiresAt":"2024-01-15T12:00:00Z","user":{"id":"user_123","email":"your-email@example.com"}}}`
	for _, c := range []struct {
		name string
		says told
	}{
		{"the page's sample", told{header: dated(in2026), body: sample}},
		{"over by a second", told{header: dated(in2026), body: `{"token":"t","expiresAt":"` + at(-time.Second) + `"}`}},
		{"over this second", told{header: dated(in2026), body: `{"token":"t","expiresAt":"` + at(0) + `"}`}},
		{"over while it was on its way", told{header: dated(in2026), body: `{"token":"t","expiresAt":"` + at(time.Second) + `"}`, after: 2 * time.Second}},
		{"long before Date", told{header: dated(in2026), body: `{"token":"t","expiresAt":"0001-01-01T00:00:00Z"}`}},
		{"by our clock", told{body: `{"token":"t","expiresAt":"1999-12-31T23:59:59Z"}`}},
		{"JWT", told{body: `{"token":"` + jwt(`{"iat":2,"exp":1}`) + `"}`}},
		{"JWT absurdly", told{body: `{"token":"` + jwt(`{"iat":1e308,"exp":-1e308}`) + `"}`}},
		{"Ndovu's zero", told{body: `{"access_token":"t","expires_in":0}`}},
		{"Ndovu's minus one", told{body: `{"access_token":"t","expires_in":-1}`}},
		{"Ndovu's absurdly less", told{body: `{"access_token":"t","expires_in":-1e300}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &desk{script: func(int, asked) told { return c.says }}
				source := d.nowPost()
				if strings.Contains(c.says.body, "access_token") {
					source = d.ndovu()
				}
				began := time.Now()
				waited := 0
				for ; time.Since(began) < 10*time.Minute; time.Sleep(50 * time.Millisecond) {
					asked := time.Now()
					token, err := source.Token()
					if err != nil {
						t.Fatal(err)
					}
					if !time.Now().Before(token.Expiry) {
						t.Fatalf("got a token that says it is over")
					}
					if time.Since(asked) > 0 {
						waited++
					}
				}
				synctest.Wait()
				if waited > 1 && c.says.after == 0 {
					t.Errorf("got %d callers that waited, want the first alone", waited)
				}
				log := d.log()
				if len(log) < 5 {
					t.Errorf("got %d token requests in ten minutes, want the token asked for again", len(log))
				}
				for i, a := range log {
					if a.op == "refresh" {
						t.Fatalf("got a refresh of a token that is over")
					}
					if i >= 10 && a.at.Sub(log[i-10].at) < time.Minute {
						t.Fatalf("got more than 10 token requests in a minute: %v", a.at.Sub(log[i-10].at))
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// A partner that is honest about its tokens checks that none is sent, to
// refresh neither, that has ended, and that lifetimes are no matter.
func TestTokensOfAnyLifetime(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{5 * time.Second, 10 * time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(lifetime.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, ndovu := range []bool{false, true} {
					ends := map[string]time.Time{}
					var mu sync.Mutex
					d := new(desk)
					d.script = func(n int, ask asked) told {
						mu.Lock()
						defer mu.Unlock()
						if ask.bearer != "" && !time.Now().Before(ends[ask.bearer]) {
							t.Errorf("%s was sent a token %v after its end", ask.op, time.Since(ends[ask.bearer]))
						}
						if ask.op == "orders" {
							return told{body: "ok"}
						}
						token := fmt.Sprint("token-", n)
						ends[token] = time.Now().Add(lifetime)
						return told{after: min(lifetime/20, 5*time.Second), header: dated(in2026), body: fmt.Sprintf(
							`{"token":%q,"expiresAt":%q,"access_token":%[1]q,"expires_in":%[3]v,"token_type":"Bearer"}`, token, at(lifetime), lifetime.Seconds())}
					}
					source := d.nowPost()
					if ndovu {
						source = d.ndovu()
					}
					rt := &partnerauth.Transport{Source: source, Base: d, Limiter: &partnerauth.Quota{Requests: 1_000_000}}
					const lives, calls = 20, 2000
					waited := 0
					for range calls {
						asked := time.Now()
						if got := status(t, rt, newRequest(t, "GET", "https://api.example/orders", "")); got != 200 {
							t.Fatalf("got %d", got)
						}
						if time.Since(asked) > 0 {
							waited++
						}
						time.Sleep(lifetime * lives / calls)
					}
					tokens := 0
					for _, a := range d.log() {
						if a.op != "orders" {
							tokens++
						}
						if ndovu && a.op == "refresh" || !ndovu && a.op == "login" && tokens > 1 {
							t.Fatalf("got a renewal by %s", a.op)
						}
					}
					if tokens < lives || tokens > lives*10/7+2 || waited > 1 {
						t.Errorf("got %d tokens in %d lifetimes and %d callers that waited, want one in 80 %% of each and one", tokens, lives, waited)
					}
					time.Sleep(lifetime)
				}
			})
		})
	}
}

// A token that nobody asked for while it ended is replaced by login, and so is
// one whose refresh waited in the queue until it had.
func TestEndedTokenIsNotRefreshed(t *testing.T) {
	t.Parallel()
	honest := func(t *testing.T, lifetime time.Duration) *desk {
		d := new(desk)
		began := time.Now()
		d.script = func(n int, ask asked) told {
			if ask.bearer != "" {
				var issued time.Duration
				if fmt.Sscan(ask.bearer, &issued); time.Since(began)-issued >= lifetime {
					t.Errorf("%s was sent a token of %v that is %v old", ask.op, lifetime, time.Since(began)-issued)
				}
			}
			return told{header: dated(in2026), body: fmt.Sprintf(`{"token":"%d","expiresAt":%q}`, time.Since(began), at(lifetime))}
		}
		return d
	}
	t.Run("idle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := honest(t, time.Minute)
			source := d.nowPost()
			for _, idle := range []time.Duration{0, time.Minute, time.Minute + time.Nanosecond, 100 * time.Hour} {
				time.Sleep(idle)
				if _, err := source.Token(); err != nil {
					t.Fatal(err)
				}
			}
			if d.ops() != "login login login login" {
				t.Errorf("got %s, want logins", d.ops())
			}
		})
	})
	t.Run("slow limiter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := honest(t, time.Minute)
			rt := &partnerauth.Transport{Source: d.nowPost(), Base: d, Limiter: slowLimiter{}}
			for range 50 {
				status(t, rt, newRequest(t, "GET", "https://api.example/orders", ""))
			}
			time.Sleep(10 * time.Minute)
			if strings.Contains(d.ops(), "refresh") || strings.Count(d.ops(), "login") < 5 {
				t.Errorf("got %s, want logins since the refreshes come too late", d.ops())
			}
		})
	})
}

// A slowLimiter grants a permit after 20 seconds.
type slowLimiter struct{}

func (slowLimiter) Wait(ctx context.Context) error {
	select {
	case <-time.After(20 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// FuzzNowPostAnswer feeds an answer to a Source: an error that names the
// operation, or a token that can be sent.
func FuzzNowPostAnswer(f *testing.F) {
	for _, c := range statusFailures() {
		f.Add([]byte(c.says.body), "", max(c.says.status, 200))
	}
	for _, body := range []string{
		`{"success":true,"data":{"token":"eyJ.eyJ.x","expiresAt":"2024-01-15T12:00:00Z","user":{"id":"user_123"}}}`,
		`{"token":"t","expiresAt":"2026-03-14T16:09:26Z"}`, `{"token":"t","expiresAt":"9999-12-31T23:59:59Z"}`, `{"token":"t","expiresAt":"0000-01-01T00:00:00Z"}`,
		`{"token":"` + jwt(`{"iat":1700000000,"exp":1700007200}`) + `"}`, `{"token":"` + jwt(`{"iat":-1e308,"exp":1e308}`) + `"}`, `{"token":"` + jwt(`{"iat":0,"exp":1e-9}`) + `"}`,
		`{"success":false}`, `{"token":null}`, `{"token":"\n"}`, "{\"token\":\"\xff\"}", `{"data":[],"token":"t"}`, `{"data":{"token":"a"},"token":"b"}`, `{"success":"yes","token":"t"}`,
	} {
		f.Add([]byte(body), in2026.Format(http.TimeFormat), 200)
	}
	f.Fuzz(func(t *testing.T, body []byte, date string, status int) {
		fuzzAnswer(t, body, date, status, "nowpost", (*desk).nowPost)
	})
}

func fuzzAnswer(t *testing.T, body []byte, date string, status int, provider string, of func(*desk) *partnerauth.Source) {
	if status < 100 || status > 999 {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		d := &desk{script: func(_ int, ask asked) told {
			if ask.op == "orders" && !sendable(ask.bearer) {
				t.Errorf("the API was sent %q", ask.bearer)
			}
			return told{status: status, header: http.Header{"Date": {date}}, body: string(body)}
		}}
		source := of(d)
		token, err := source.Token()
		asked := d.count()
		if asked > 6 {
			t.Errorf("got %d requests in one flight", asked)
		}
		if err != nil {
			var auth *partnerauth.AuthError
			if !errors.As(err, &auth) || auth.Provider != provider || auth.StatusCode != status || !strings.HasPrefix(err.Error(), "partnerauth: "+provider+" login: ") {
				t.Errorf("got %v", err)
			}
			var answered *oauth2.RetrieveError
			if !errors.As(err, &answered) || answered.Response == nil || answered.Error() == "" {
				t.Errorf("got %v, want an oauth2.RetrieveError", err)
			}
			if errors.Is(err, partnerauth.ErrCredentials) != (status == 400 || status == 401 || status == 403) {
				t.Errorf("got %v for %d", err, status)
			}
			if _, again := source.Token(); again != err || d.count() != asked {
				t.Errorf("got %v at once after %v", again, err)
			}
			return
		}
		if status < 200 || status > 299 {
			t.Errorf("got a token from a %d", status)
		}
		if !sendable(token.AccessToken) || token.TokenType != "Bearer" || !token.Expiry.After(time.Now()) || token.Expiry.After(time.Now().AddDate(20, 0, 0)) {
			t.Errorf("got %+v", token)
		}
		rt := &partnerauth.Transport{Source: source, Base: d}
		resp, err := rt.RoundTrip(newRequest(t, "GET", "https://api.example/orders", ""))
		if err == nil {
			resp.Body.Close()
		}
		synctest.Wait()
	})
}

// sendable reports whether a token is made of what RFC 9110 lets stand in a
// header, spaces apart.
func sendable(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r < '!' || r > '~' })
}
