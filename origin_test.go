package partnerauth_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth"
)

// malformed URLs and insecure ones are what no field for a URL takes. None of
// the errors repeats what may be a password in one.
var malformed = []string{
	"https://user:hunter2@api.example", "https://hunter2@api.example", "http://user:hunter2@127.0.0.1",
	"https://api.example?password=hunter2", "https://api.example/?", "https://api.example#hunter2",
	"https://api.example/#hunter2", "https://api.example#", "https://api.example/gateway/#", "https://api.example:hunter2",
	"https://api.example:0", "https://api.example:65536", "https://api.example:99999999999999999999",
	"https://api.example:-1", "https://", "https:///path", "https://:443", "https:api.example", "//api.example",
	"api.example", "api.example/hunter2", "/hunter2", "user:hunter2@api.example", "localhost:8080", "://hunter2",
	"https://api.example/%zz-hunter2", "https://[::1", "https://api example", "https://api.example\n",
	"https://api.example\x00hunter2", " https://api.example", "ftp://api.example", "ws://api.example",
	"httpss://api.example", "unix:///var/run/hunter2", "mailto:hunter2@api.example",
}

var insecure = []string{
	"http://api.example", "HTTP://api.example:8080/path", "http://api.example:443", "http://128.0.0.1", "http://0.0.0.0",
	"http://[::]", "http://[::2]", "http://10.0.0.1", "http://localhost.example", "http://127.0.0.1.example",
	"http://notlocalhost", "http://127.1", "http://2130706433", "http://[::ffff:10.0.0.1]",
}

// alike are hosts that only look like each other, or that Unicode folds into one.
var alike = [][2]string{
	{"https://σ.example", "https://ς.example"},
	{"https://straße.example", "https://straẞe.example"},
	{"https://İ.example", "https://i.example"},
	{apiURL, "https://api.example."},
	{apiURL, "https://api.example.evil.example"},
	{"https://api.example:8443", apiURL},
	{apiURL, "https://evil.example/https://api.example"},
	{apiURL, `https://api.example%2f@evil.example`},
	{"http://127.0.0.1:443", "https://127.0.0.1"},
	{"http://127.0.0.1", "http://127.0.0.2"},
	{"http://[::1]", "http://127.0.0.1"},
	{"https://[fe80::1%25eth0]", "https://[fe80::1%25eth1]"},
}

// baseURLs are ways to write a BaseURL; "" is NowPost's own.
var baseURLs = []string{
	"", "https://api.example", "HTTPS://API.Example/", "https://api.example:443/x", "https://api.example//",
	"https://api.example/gateway/v2/", "https://api.example/with%2Fslash", "https://api.example:8443", "https://10.0.0.1",
	"https://[2001:db8::1]:8443", "http://127.0.0.1", "http://127.0.0.1:8080/gateway/", "http://127.8.8.8",
	"http://127.255.255.254:1", "http://localhost", "http://LOCALHOST:3000", "http://[::1]", "http://[::1]:8080",
	"http://[0:0:0:0:0:0:0:1]:8080", "http://[::ffff:127.0.0.1]",
}

// loginAt is where a login goes.
func loginAt(base string) string {
	return strings.TrimRight(cmp.Or(base, partnerauth.NowPostBaseURL), "/") + loginPath
}

func TestBaseURLs(t *testing.T) {
	t.Parallel()
	for _, base := range baseURLs {
		p := new(partner)
		client := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: base, Base: p}.Client()
		login := loginAt(base)
		api := strings.TrimSuffix(login, "/auth/login") + "/orders"
		status(t, client.Transport, newRequest(t, "GET", api, ""))
		log := p.seen()
		errorIf(t, len(log) != 2 || !strings.EqualFold(log[0].url, login) || log[0].token != "" || !strings.EqualFold(log[1].url,
			api) || log[1].token != "token-1",
			"%s: got %v, want a login at %s and a call with its token", base, log, login)
	}
}

// Nobody makes us send a token elsewhere or sign a stranger's wish, whether by a
// redirect, at whatever hop, or by a URL without TLS.
func TestTokenStaysAtItsOrigin(t *testing.T) {
	const away = "https://evil.example/go"
	for _, c := range []struct {
		start, via, target string // via is where start redirects to
		logins             int
		pinned             bool
	}{
		{start: apiURL + "/via", via: apiURL + "/go", target: "https://api.example:8443/orders",
			logins: 1}, // another port of the same host
		{start: apiURL + "/via", via: apiURL + "/go", target: "https://evil.example/orders", logins: 1},
		{start: apiURL + "/via", via: apiURL + "/go", target: "http://evil.example/orders", logins: 1},
		{start: apiURL + "/via", via: apiURL + "/go", target: "https://www.api.example/orders", logins: 1},
		{start: apiURL + "/via", via: apiURL + "/go", target: "HTTPS://API.Example:443/orders", logins: 1,
			pinned: true}, // the same, written otherwise
		{start: apiURL + "/via", via: apiURL + "/go", target: "/orders", logins: 1, pinned: true},
		{start: apiURL + "/via", via: away, target: apiURL + "/orders", logins: 1},
		{start: "https://evil.example/via", via: apiURL + "/go", target: "/orders"}, // two hops ago
		{start: "http://api.example.evil.example/via", via: away, target: apiURL + "/orders"},
	} {
		p := new(partner).on("/via", reply{status: 307, header: headers("Location: " + c.via)})
		p.on("/go", reply{status: 307, header: headers("Location: " + c.target)}).open = true
		resp, err := (&http.Client{Transport: p.transport(nil)}).Get(c.start)
		must(t, err)
		resp.Body.Close()
		last := p.seen()[len(p.seen())-1]
		errorIf(t, last.path != "/orders" || (last.token != "") != c.pinned || p.count("login") != c.logins,
			"%s to %s: %s was sent the token %q after %d logins", c.start, c.target, last.url, last.token, p.count("login"))
	}

	for _, target := range []string{"http://api.example/v1/orders", "http://API.example.:80/"} {
		p, body := new(partner), watched("x")
		rt := p.transport(nil)
		rt.Origins = []string{"https://API.example:443/v1", "https://api.example."}
		req := posting(t, body)
		req.URL, _ = url.Parse(target)
		if _, err := rt.RoundTrip(req); !errors.Is(err, partnerauth.ErrInsecureURL) || body.closed.Load() != 1 || len(p.seen()) > 0 {
			t.Errorf("%s: got %v, body closed %d times, want ErrInsecureURL, once, nothing sent", target, err, body.closed.Load())
		}
	}
}

func TestHostOfAnotherAuthority(t *testing.T) {
	for _, c := range []struct {
		host, opaque string
		want         bool
	}{
		{"", "", true},
		{"api.example", "", true},
		{"API.example:443", "", true},
		{"evil.example", "", false},
		{"api.example:8443", "", false},
		{"api.example.evil.example", "", false},
		{"api.example@evil.example", "", false},
		{"", "//evil.example/orders", false},
		{"", "//api.example/orders", false},
	} {
		p, body := new(partner), watched("x")
		req := posting(t, body)
		req.Host, req.URL.Opaque = c.host, c.opaque
		_, err := p.transport(nil).RoundTrip(req)
		errorIf(t, (err == nil) != c.want || (len(p.seen()) > 0) != c.want || body.closed.Load() != 1,
			"%q %q: got %v, %d sent, body closed %d times", c.host, c.opaque, err, len(p.seen()), body.closed.Load())
		errorIf(t, err != nil && !strings.Contains(err.Error(), "Host"), "%q %q: %v does not tell what is wrong", c.host, c.opaque, err)
	}
}

// What goes elsewhere goes to the Base as it is, costs no permit, and leaves no
// trace.
func TestElsewhereIsUntouched(t *testing.T) {
	for _, raw := range []string{"ftp://api.example/f", "https://other.example/", "https://api.example:444/", "odd:opaque"} {
		u, _ := url.Parse(raw)
		req := &http.Request{Method: "GET", URL: u}
		want := &http.Response{StatusCode: 401}
		rec := newRecording()
		rt := rec.plain(roundTripFunc(func(got *http.Request) (*http.Response, error) {
			errorIf(t, got != req || got.Header != nil, "%s: the Base got another request: %v", raw, got)
			return want, nil
		}))
		rt.Limiter = limiterFunc(func(context.Context) error { return errTest })
		resp, err := rt.RoundTrip(req)
		errorIf(t, resp != want || err != nil, "%s: got %v, %v, want the Base's own answer", raw, resp, err)
		n := len(rec.spans.Started())
		errorIf(t, n != 0 || rec.points(t) != "", "%s: got %d spans and these metrics:\n%s", raw, n, rec.points(t))
	}
}

// dialed is where net/http connects to for a URL, "" if nowhere.
func dialed(u *url.URL) string {
	var to string
	dial := func(scheme string) func(context.Context, string, string) (net.Conn, error) {
		return func(_ context.Context, _, addr string) (net.Conn, error) {
			to = scheme + "://" + strings.ToLower(addr)
			return nil, errors.New("far enough")
		}
	}
	rt := &http.Transport{DialContext: dial("http"), DialTLSContext: dial("https")}
	if resp, err := rt.RoundTrip(&http.Request{Method: "GET", URL: u, Header: http.Header{}, Host: u.Host}); err == nil {
		resp.Body.Close()
	}
	return to
}

// checkPinning sends a request to target by a Transport for base, and looks at
// what is sent where.
func checkPinning(t *testing.T, base, target string) {
	t.Helper()
	own, _ := url.Parse(cmp.Or(base, partnerauth.NowPostBaseURL))
	rt := &partnerauth.Transport{
		Source: partnerauth.NowPost{Email: "e", Password: "Planted-Secret", BaseURL: base}.TokenSource(),
		Base: &partner{script: func(a asked) reply {
			to := dialed(a.to)
			login := strings.Contains(a.body, "Planted-Secret")
			errorIf(t, login && a.op != "login", "the password was sent to %s", a.url)
			if login || strings.Contains(fmt.Sprint(a.header, a.url), "Planted-Token") {
				want := dialed(own)
				errorIf(t, to != want, "%s, that is %q, was sent a secret of %s, that is %q", a.url, to, base, want)
				errorIf(t, !confidential(to), "%s was sent a secret in the clear", to)
			}
			return reply{body: `{"token":"Planted-Token"}`}
		}},
	}
	req, err := http.NewRequest("GET", target, nil)
	if err != nil {
		return
	}
	resp, err := rt.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	} else if !strings.HasPrefix(err.Error(), "partnerauth: ") {
		t.Errorf("got %v", err)
	}
}

// confidential reports whether what is sent to an address that net/http dials
// stays between the two ends.
func confidential(to string) bool {
	addr, plain := strings.CutPrefix(to, "http://")
	if !plain {
		return strings.HasPrefix(to, "https://")
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// FuzzURLs looks for a BaseURL and a target whose token goes astray.
func FuzzURLs(f *testing.F) {
	for _, url := range slices.Concat(malformed, insecure, baseURLs) {
		f.Add(url, loginAt(url))
		f.Add(apiURL, url)
	}
	for _, urls := range alike {
		f.Add(urls[0], urls[1])
	}
	f.Add(apiURL, "https://api.example:443?q#f")
	f.Add(apiURL, "HTTPS://API.EXAMPLE:0443")
	f.Add("http://[::%25\x8e]", "http://[::%25\x8e]") // cannot be parsed from what it prints as
	f.Fuzz(func(t *testing.T, base, target string) {
		checkPinning(t, base, target)
	})
}
