package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

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

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	unused := func(t *testing.T) http.RoundTripper {
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			t.Errorf("%s was asked for", req.URL)
			return nil, errors.New("not to be asked")
		})
	}
	check := func(t *testing.T, rt http.RoundTripper, provider, field string, insecure, auth bool) {
		t.Helper()
		for range 2 { // the second use fails like the first
			body := &closedBody{Reader: strings.NewReader("{}")}
			req := newRequest(t, "POST", "https://api.example/api/v1/orders", "")
			req.Body, req.ContentLength = body, 2
			_, err := rt.RoundTrip(req)
			checkMistake(t, err, provider, field, insecure, auth)
			if !body.closed.Load() {
				t.Error("the request's body is not closed")
			}
			_, err = (&http.Client{Transport: rt}).Get("https://api.example/")
			checkMistake(t, err, provider, field, insecure, auth)
		}
		rt.(*partnerauth.Transport).CloseIdleConnections()
	}

	for _, c := range []struct {
		name   string
		config interface{ TokenSource() *partnerauth.Source }
		field  string
	}{
		{"NowPost without anything", partnerauth.NowPost{}, "Email"},
		{"NowPost without e-mail", partnerauth.NowPost{Password: "hunter2"}, "Email"},
		{"NowPost without password", partnerauth.NowPost{Email: "e"}, "Password"},
		{"NowPost with an e-mail that is no UTF-8", partnerauth.NowPost{Email: "\xff", Password: "hunter2"}, "Email"},
		{"NowPost with a password that is no UTF-8", partnerauth.NowPost{Email: "e", Password: "hunter2\xff"}, "Password"},
		{"Ndovu without anything", partnerauth.Ndovu{}, "ClientID"},
		{"Ndovu without id", partnerauth.Ndovu{ClientSecret: "hunter2", BaseURL: "https://api.example"}, "ClientID"},
		{"Ndovu without secret", partnerauth.Ndovu{ClientID: "i", BaseURL: "https://api.example"}, "ClientSecret"},
		{"Ndovu without BaseURL", partnerauth.Ndovu{ClientID: "i", ClientSecret: "hunter2"}, "BaseURL"},
		{"Ndovu with a colon", partnerauth.Ndovu{ClientID: "i:hunter2", ClientSecret: "s", BaseURL: "https://api.example"}, "ClientID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			provider := strings.ToLower(strings.Fields(c.name)[0])
			source := c.config.TokenSource()
			_, err := source.Token()
			checkMistake(t, err, provider, c.field, false, true)
			source.Invalidate(&oauth2.Token{AccessToken: "t"})
			_, err = source.TokenContext(t.Context())
			checkMistake(t, err, provider, c.field, false, true)
			check(t, &partnerauth.Transport{Source: source, Base: unused(t)}, provider, c.field, false, true)
		})
	}
	for _, bad := range badURLs {
		t.Run(bad.url, func(t *testing.T) {
			nowPost := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: bad.url, Base: unused(t)}
			ndovu := partnerauth.Ndovu{ClientID: "i", ClientSecret: "s", BaseURL: bad.url, Base: unused(t)}
			_, err := nowPost.TokenSource().Token()
			checkMistake(t, err, "nowpost", "BaseURL", bad.insecure, true)
			_, err = ndovu.TokenSource().Token()
			checkMistake(t, err, "ndovu", "BaseURL", bad.insecure, true)
			check(t, nowPost.Client().Transport, "nowpost", "BaseURL", bad.insecure, true)
			check(t, ndovu.Client().Transport, "ndovu", "BaseURL", bad.insecure, true)
			for _, text := range []string{fmt.Sprint(nowPost), fmt.Sprintf("%#v", ndovu)} {
				if strings.Contains(text, "hunter2") {
					t.Errorf("%s has the password in it", text)
				}
			}
			foreign := &partnerauth.Transport{Base: unused(t), Source: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"}), Origins: []string{"https://api.example", bad.url}}
			check(t, foreign, "", "Transport.Origins[1]", bad.insecure, true)
			ours := &partnerauth.Transport{Base: unused(t), Source: partnerauth.NowPost{Email: "e", Password: "p"}.TokenSource(), Origins: []string{bad.url}}
			check(t, ours, "", "Transport.Origins[0]", bad.insecure, true)
		})
	}

	foreign := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "t"})
	good := partnerauth.NowPost{Email: "e", Password: "p"}.TokenSource()
	for _, c := range []struct {
		name  string
		rt    *partnerauth.Transport
		field string
		auth  bool
	}{
		{"no Source", &partnerauth.Transport{}, "Source", true},
		{"nil *Source", &partnerauth.Transport{Source: (*partnerauth.Source)(nil)}, "Source", true},
		{"zero Source", &partnerauth.Transport{Source: new(partnerauth.Source)}, "Source", true},
		{"foreign source without Origins", &partnerauth.Transport{Source: foreign}, "Origins", true},
		{"foreign source with an empty origin", &partnerauth.Transport{Source: foreign, Origins: []string{""}}, "Origins[0]", true},
		{"negative Requests", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Requests: -1}}, "Quota.Requests", false},
		{"absurd Requests", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Requests: 1 << 40}}, "Quota.Requests", false},
		{"negative Window", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Window: -time.Second}}, "Quota.Window", false},
		{"Window of a nanosecond", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Window: 1}}, "Quota.Window", false},
		{"Window of a year", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Window: 365 * 24 * time.Hour}}, "Quota.Window", false},
		{"negative Burst", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Burst: -1}}, "Quota.Burst", false},
		{"Burst beyond Requests", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Requests: 10, Burst: 11}}, "Quota.Burst", false},
		{"Burst beyond the default", &partnerauth.Transport{Source: good, Limiter: &partnerauth.Quota{Burst: 101}}, "Quota.Burst", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rt.Base = unused(t)
			check(t, c.rt, "", c.field, false, c.auth)
			if q, ok := c.rt.Limiter.(*partnerauth.Quota); ok {
				if err := q.Wait(context.Background()); err == nil || !strings.Contains(err.Error(), c.field) {
					t.Errorf("got %v from Wait, want an error that names %s", err, c.field)
				}
			}
		})
	}
}

func checkMistake(t *testing.T, err error, provider, field string, insecure, isAuth bool) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one that names %s", field)
	}
	var outer *url.Error
	text := err.Error()
	if errors.As(err, &outer) {
		text = outer.Err.Error()
	}
	if !strings.HasPrefix(text, "partnerauth: ") || !strings.Contains(text, field) || strings.Contains(text, "hunter2") {
		t.Errorf("got %q, want the name of %s and no password", text, field)
	}
	var auth *partnerauth.AuthError
	if errors.As(err, &auth) != isAuth || isAuth && (auth.Provider != provider || auth.Op != "config" || auth.StatusCode != 0 || auth.RetryAfter != 0) {
		t.Errorf("got %#v, want an AuthError (%t) of %q about the configuration", auth, isAuth, provider)
	}
	if errors.Is(err, partnerauth.ErrInsecureURL) != insecure || errors.Is(err, partnerauth.ErrCredentials) || errors.Is(err, partnerauth.ErrRateLimited) {
		t.Errorf("got %v, ErrInsecureURL %t, want %t", err, !insecure, insecure)
	}
}

// A nil or zero Source is an error and not a panic, whoever asks it.
func TestSourceOfNobody(t *testing.T) {
	t.Parallel()
	for _, source := range []*partnerauth.Source{nil, {}} {
		_, err := source.Token()
		checkMistake(t, err, "", "Source", false, true)
		_, err = source.TokenContext(t.Context())
		checkMistake(t, err, "", "Source", false, true)
		source.Invalidate(nil)
		source.Invalidate(&oauth2.Token{AccessToken: "t"})
		if text := fmt.Sprintf("%v %+v %#v", source, source, source); text == "" {
			t.Error("got no text")
		}
	}
}

// goodURLs are ways to write a BaseURL, and where the login goes.
var goodURLs = []struct{ base, login string }{
	{"", partnerauth.NowPostBaseURL + "/api/v1/auth/login"},
	{"https://api.example", "https://api.example/api/v1/auth/login"},
	{"HTTPS://API.Example/", "https://API.Example/api/v1/auth/login"},
	{"https://api.example:443/x", "https://api.example:443/x/api/v1/auth/login"},
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
			d := &desk{script: func(int, asked) told { return told{body: `{"token":"t"}`} }}
			client := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: c.base, Base: d}.Client()
			api := strings.TrimSuffix(c.login, "/auth/login") + "/orders"
			resp, err := client.Get(api)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			log := d.log()
			if len(log) != 2 || log[0].url != c.login || log[0].bearer != "" || log[1].url != api || log[1].bearer != "t" {
				t.Errorf("got %v, want a login at %s and a call with its token", log, c.login)
			}
		})
	}
}

func TestProvidersFromEnv(t *testing.T) {
	nowPost := func() (interface{ TokenSource() *partnerauth.Source }, error) { return partnerauth.NowPostFromEnv() }
	ndovu := func() (interface{ TokenSource() *partnerauth.Source }, error) { return partnerauth.NdovuFromEnv() }
	for _, c := range []struct {
		name    string
		read    func() (interface{ TokenSource() *partnerauth.Source }, error)
		env     map[string]string
		want    any
		missing string
	}{
		{"NowPost", nowPost, map[string]string{"NOWPOST_EMAIL": "e", "NOWPOST_PASSWORD": "p"},
			partnerauth.NowPost{Email: "e", Password: "p", BaseURL: partnerauth.NowPostBaseURL}, ""},
		{"NowPost elsewhere", nowPost, map[string]string{"NOWPOST_EMAIL": "e", "NOWPOST_PASSWORD": " p ", "NOWPOST_BASE_URL": "https://staging.example/"},
			partnerauth.NowPost{Email: "e", Password: " p ", BaseURL: "https://staging.example/"}, ""},
		{"NowPost without e-mail", nowPost, map[string]string{"NOWPOST_PASSWORD": "hunter2"}, partnerauth.NowPost{}, "NOWPOST_EMAIL"},
		{"NowPost without password", nowPost, map[string]string{"NOWPOST_EMAIL": "e"}, partnerauth.NowPost{}, "NOWPOST_PASSWORD"},
		{"NowPost without anything", nowPost, nil, partnerauth.NowPost{}, "NOWPOST_EMAIL"},
		{"Ndovu", ndovu, map[string]string{"NDOVU_CLIENT_ID": "i", "NDOVU_CLIENT_SECRET": "s:+%", "NDOVU_BASE_URL": "https://ndovu.example"},
			partnerauth.Ndovu{ClientID: "i", ClientSecret: "s:+%", BaseURL: "https://ndovu.example"}, ""},
		{"Ndovu without id", ndovu, map[string]string{"NDOVU_CLIENT_SECRET": "hunter2", "NDOVU_BASE_URL": "https://ndovu.example"}, partnerauth.Ndovu{}, "NDOVU_CLIENT_ID"},
		{"Ndovu without secret", ndovu, map[string]string{"NDOVU_CLIENT_ID": "i", "NDOVU_BASE_URL": "https://ndovu.example"}, partnerauth.Ndovu{}, "NDOVU_CLIENT_SECRET"},
		{"Ndovu without base", ndovu, map[string]string{"NDOVU_CLIENT_ID": "i", "NDOVU_CLIENT_SECRET": "hunter2"}, partnerauth.Ndovu{}, "NDOVU_BASE_URL"},
		{"Ndovu without anything", ndovu, nil, partnerauth.Ndovu{}, "NDOVU_CLIENT_ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{"NOWPOST_EMAIL", "NOWPOST_PASSWORD", "NOWPOST_BASE_URL", "NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL"} {
				t.Setenv(name, c.env[name])
			}
			got, err := c.read()
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got another provider than %v", c.want)
			}
			if c.missing == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			provider, _, _ := strings.Cut(strings.ToLower(c.name), " ")
			checkMistake(t, err, provider, c.missing, false, true)
		})
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
		Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
			var body []byte
			if req.Body != nil {
				body, _ = io.ReadAll(req.Body)
				req.Body.Close()
			}
			to := dialedURL(req.URL)
			login := strings.Contains(string(body), "Planted-Secret")
			if login && !strings.HasSuffix(req.URL.EscapedPath(), "/api/v1/auth/login") {
				t.Errorf("the password was sent to the path %q", req.URL.EscapedPath())
			}
			if login || strings.Contains(fmt.Sprint(req.Header, req.URL), "Planted-Token") {
				if want := dialed(t, base); to != want {
					t.Errorf("%s, that is %q, was sent a secret of %s, that is %q", req.URL, to, base, want)
				}
				if !confidential(to) {
					t.Errorf("%s was sent a secret in the clear", to)
				}
			}
			return answer(req, 200, `{"token":"Planted-Token"}`), nil
		}),
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
