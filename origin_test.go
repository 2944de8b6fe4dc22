package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth"
)

// badURLs are values that no field for a URL takes. None of the errors repeats
// what may be a password in one.
var badURLs = []struct {
	url      string
	insecure bool
}{
	{"https://user:hunter2@api.example", false},
	{"https://hunter2@api.example", false},
	{"http://user:hunter2@127.0.0.1", false},
	{"https://api.example?password=hunter2", false},
	{"https://api.example/?", false},
	{"https://api.example#hunter2", false},
	{"https://api.example/#hunter2", false},
	{"https://api.example#", false},
	{"https://api.example/gateway/#", false},
	{"https://api.example:hunter2", false},
	{"https://api.example:0", false},
	{"https://api.example:65536", false},
	{"https://api.example:99999999999999999999", false},
	{"https://api.example:-1", false},
	{"https://", false},
	{"https:///path", false},
	{"https://:443", false},
	{"https:api.example", false},
	{"//api.example", false},
	{"api.example", false},
	{"api.example/hunter2", false},
	{"/hunter2", false},
	{"user:hunter2@api.example", false},
	{"localhost:8080", false},
	{"://hunter2", false},
	{"https://api.example/%zz-hunter2", false},
	{"https://[::1", false},
	{"https://api example", false},
	{"https://api.example\n", false},
	{"https://api.example\x00hunter2", false},
	{" https://api.example", false},
	{"ftp://api.example", false},
	{"ws://api.example", false},
	{"httpss://api.example", false},
	{"unix:///var/run/hunter2", false},
	{"mailto:hunter2@api.example", false},
	{"http://api.example", true},
	{"HTTP://api.example:8080/path", true},
	{"http://api.example:443", true},
	{"http://128.0.0.1", true},
	{"http://0.0.0.0", true},
	{"http://[::]", true},
	{"http://[::2]", true},
	{"http://10.0.0.1", true},
	{"http://localhost.example", true},
	{"http://127.0.0.1.example", true},
	{"http://notlocalhost", true},
	{"http://127.1", true},
	{"http://2130706433", true},
	{"http://[::ffff:10.0.0.1]", true},
}

// goodURLs are ways to write a BaseURL, and where the login goes.
var goodURLs = []struct{ base, login string }{
	{"", partnerauth.NowPostBaseURL + "/api/v1/auth/login"},
	{"https://api.example", "https://api.example/api/v1/auth/login"},
	{"HTTPS://API.Example/", "https://API.Example/api/v1/auth/login"},
	{"https://api.example:443/x", "https://api.example:443/x/api/v1/auth/login"},
	{"https://api.example//", "https://api.example/api/v1/auth/login"},
	{"https://api.example/gateway/v2/", "https://api.example/gateway/v2/api/v1/auth/login"},
	{"https://api.example/with%2Fslash", "https://api.example/with%2Fslash/api/v1/auth/login"},
	{"https://api.example:8443", "https://api.example:8443/api/v1/auth/login"},
	{"https://10.0.0.1", "https://10.0.0.1/api/v1/auth/login"},
	{"https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/api/v1/auth/login"},
	{"http://127.0.0.1", "http://127.0.0.1/api/v1/auth/login"},
	{"http://127.0.0.1:8080/gateway/", "http://127.0.0.1:8080/gateway/api/v1/auth/login"},
	{"http://127.8.8.8", "http://127.8.8.8/api/v1/auth/login"},
	{"http://127.255.255.254:1", "http://127.255.255.254:1/api/v1/auth/login"},
	{"http://localhost", "http://localhost/api/v1/auth/login"},
	{"http://LOCALHOST:3000", "http://LOCALHOST:3000/api/v1/auth/login"},
	{"http://[::1]", "http://[::1]/api/v1/auth/login"},
	{"http://[::1]:8080", "http://[::1]:8080/api/v1/auth/login"},
	{"http://[0:0:0:0:0:0:0:1]:8080", "http://[0:0:0:0:0:0:0:1]:8080/api/v1/auth/login"},
	{"http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]/api/v1/auth/login"},
}

func TestBaseURLs(t *testing.T) {
	t.Parallel()
	for _, c := range goodURLs {
		t.Run(c.base, func(t *testing.T) {
			p := new(partner)
			client := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: c.base, Base: p}.Client()
			api := strings.TrimSuffix(c.login, "/auth/login") + "/orders"
			resp, err := client.Get(api)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			log := p.seen()
			if len(log) != 2 || log[0].url != c.login || log[0].token != "" || log[1].url != api || log[1].token != "token-1" {
				t.Errorf("got %v, want a login at %s and a call with its token", log, c.login)
			}
		})
	}
}

func TestTokenStaysAtItsOrigin(t *testing.T) {
	for target, pinned := range map[string]bool{
		"https://api.example:8443/orders": false, // another port of the same host
		"https://evil.example/orders":     false,
		"http://evil.example/orders":      false,
		"https://www.api.example/orders":  false,
		"HTTPS://API.Example:443/orders":  true, // the same, written otherwise
		"/orders":                         true,
	} {
		p := new(partner).on("/go", reply{status: 307, header: headers("Location: " + target)})
		p.open = true
		resp, err := (&http.Client{Transport: p.transport(nil)}).Get(apiURL + "/go")
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		resp.Body.Close()
		log := p.seen()
		last := log[len(log)-1]
		if last.path != "/orders" || (last.header.Get("Authorization") != "") != pinned {
			t.Errorf("%s: %s was sent Authorization %q", target, last.url, last.header.Get("Authorization"))
		}
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

// What goes elsewhere goes to the Base as it is, costs no permit, and leaves no
// trace.
func TestElsewhereIsUntouched(t *testing.T) {
	for _, raw := range []string{"ftp://api.example/f", "https://other.example/", "https://api.example:444/", "odd:opaque"} {
		u, _ := url.Parse(raw)
		req := &http.Request{Method: "GET", URL: u}
		want := &http.Response{StatusCode: 401}
		rec := newRecording()
		rt := rec.plain(roundTripFunc(func(got *http.Request) (*http.Response, error) {
			if got != req || got.Header != nil {
				t.Errorf("%s: the Base got another request: %v", raw, got)
			}
			return want, nil
		}))
		rt.Limiter = limiterFunc(func(context.Context) error { return errTest })
		if resp, err := rt.RoundTrip(req); resp != want || err != nil {
			t.Errorf("%s: got %v, %v, want the Base's own answer", raw, resp, err)
		}
		if n := len(rec.spans.Started()); n != 0 || rec.points(t) != "" {
			t.Errorf("%s: got %d spans and these metrics:\n%s", raw, n, rec.points(t))
		}
	}
}

// Hosts that only look like the pinned one, or that Unicode folds into it, are
// others.
func TestHostsThatFoldAlike(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ base, target string }{
		{"https://σ.example", "https://ς.example"},
		{"https://straße.example", "https://straẞe.example"},
		{"https://straße.example", "https://strasse.example"},
		{"https://İ.example", "https://i.example"},
		{"https://api.example", "https://api.example."},
		{"https://api.example", "https://api.example.evil.example"},
		{"https://api.example", "https://evil-api.example"},
		{"https://api.example", "https://api.example:444"},
		{"https://api.example", "https://api.example:80"},
		{"https://api.example:8443", "https://api.example"},
		{"https://api.example", "https://evil.example/https://api.example"},
		{"https://api.example", "https://api.example@evil.example"},
		{"https://api.example", `https://api.example%2f@evil.example`},
		{"http://127.0.0.1:443", "https://127.0.0.1"},
		{"http://127.0.0.1", "http://127.0.0.2"},
		{"http://127.0.0.1", "http://localhost"},
		{"http://[::1]", "http://127.0.0.1"},
		{"https://127.0.0.1", "http://127.0.0.1:443"},
	} {
		t.Run(c.base+" "+c.target, func(t *testing.T) {
			if dialed(t, c.base) == dialed(t, c.target) {
				t.Fatalf("both are %s", dialed(t, c.base))
			}
			checkPinning(t, c.base, c.target)
		})
	}
}

// dialed is where net/http connects to for a URL, "" if nowhere.
func dialed(t *testing.T, rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	return dialedURL(u)
}

func dialedURL(u *url.URL) string {
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
	if base == "" {
		base = partnerauth.NowPostBaseURL
	}
	rt := &partnerauth.Transport{
		Source: partnerauth.NowPost{Email: "e", Password: "Planted-Secret", BaseURL: base}.TokenSource(),
		Base: &partner{script: func(a asked) reply {
			u, _ := url.Parse(a.url)
			to := dialedURL(u)
			login := strings.Contains(a.body, "Planted-Secret")
			if login && a.op != "login" {
				t.Errorf("the password was sent to %s", a.url)
			}
			if login || strings.Contains(fmt.Sprint(a.header, a.url), "Planted-Token") {
				if want := dialed(t, base); to != want {
					t.Errorf("%s, that is %q, was sent a secret of %s, that is %q", a.url, to, base, want)
				}
				if !confidential(to) {
					t.Errorf("%s was sent a secret in the clear", to)
				}
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
	for _, bad := range badURLs {
		f.Add(bad.url, "https://api.example/x")
		f.Add("https://api.example", bad.url)
	}
	for _, good := range goodURLs {
		f.Add(good.base, good.login)
		f.Add("https://api.example", good.login)
	}
	f.Add("https://σ.example", "https://ς.example")
	f.Add("https://api.example", "https://api.example:443?q#f")
	f.Add("https://api.example", "HTTPS://API.EXAMPLE:0443")
	f.Add("https://[fe80::1%25eth0]", "https://[fe80::1%25eth1]")
	f.Fuzz(func(t *testing.T, base, target string) {
		checkPinning(t, base, target)
	})
}
