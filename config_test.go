package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// mistakes are those that a provider's config can have, by the part of the error's
// text that names the field.
func (pr provider) mistakes() map[string]credentials {
	const url = "BaseURL "
	all := map[string]credentials{}
	add := func(text string, change func(*credentials)) {
		c := good(nil)
		c.secret = "hunter2"
		change(&c)
		all[text] = c
	}
	for _, raw := range malformed {
		add(url+raw, func(c *credentials) { c.baseURL = raw })
	}
	for _, raw := range insecure {
		add(url+raw, func(c *credentials) { c.baseURL = raw })
	}
	if pr.secretField == "" {
		return all
	}
	asked := func(value string) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return value, nil }
	}
	add(pr.idField+" is empty", func(c *credentials) { c.id = "" })
	add(pr.secretField+" is empty", func(c *credentials) { c.secret = "" })
	add(pr.idField+" contains a control character", func(c *credentials) { c.id = "i\thunter2" })
	add(pr.secretField+" contains a control character", func(c *credentials) { c.secret = "hunter2\x00hunter2" })
	add(pr.idField+" ends in a space or newline", func(c *credentials) { c.id = "hunter2 " })
	add(pr.secretField+" ends in a space or newline", func(c *credentials) { c.secret = "hunter2\n" })
	add(pr.secretField+" and "+pr.secretField+"Func are both set", func(c *credentials) { c.ask = asked("hunter2") })
	const result = "the result of "
	add(result+pr.secretField+"Func is empty", func(c *credentials) { c.secret, c.ask = "", asked("") })
	add(result+pr.secretField+"Func contains a control", func(c *credentials) { c.secret, c.ask = "", asked("hunter2\x7f2") })
	add(result+pr.secretField+"Func ends in a space", func(c *credentials) { c.secret, c.ask = "", asked("hunter2\u00a0") })
	return all
}

// checkTransport uses a Transport twice: the second use fails like the first.
func checkTransport(t *testing.T, rt *partnerauth.Transport, want mistake) {
	t.Helper()
	p := new(partner)
	rt.Base = p
	for range 2 {
		want.check(t, p.sentNothing(t, t.Context(), rt))
	}
	if !want.noAuthError {
		want.check(t, rt.SignIn(t.Context()))
	}
	rt.CloseIdleConnections()
}

func checkSource(t *testing.T, source *partnerauth.Source, want mistake) {
	t.Helper()
	_, err := source.Token()
	want.check(t, err)
	source.Invalidate(&oauth2.Token{AccessToken: "t"})
	_, err = source.TokenContext(t.Context())
	want.check(t, err)
	checkTransport(t, &partnerauth.Transport{Source: source}, want)
}

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	for _, pr := range providers {
		for text, c := range pr.mistakes() {
			t.Run(pr.name+" "+text, func(t *testing.T) {
				field, url, isURL := strings.Cut(text, "BaseURL ")
				if isURL {
					field = "BaseURL"
				}
				want := mistake{provider: pr.name, text: field, insecure: slices.Contains(insecure, url)}
				checkSource(t, pr.config(c).TokenSource(), want)
				config := pr.config(c)
				shown := fmt.Sprintf("%v %+v %#v", config, config, config)
				errorIf(t, strings.Contains(shown, "hunter2"), "%s has the secret in it", shown)
			})
		}
	}
	signIn := acme(good(nil)).SignIn
	for want, c := range map[mistake]config{
		{provider: "nowpost", text: "Email"}:               partnerauth.NowPost{Email: "\xff", Password: "hunter2"},
		{provider: "nowpost", text: "Password"}:            partnerauth.NowPost{Email: "e", Password: "hunter2\xff"},
		{provider: "ndovu", text: "ClientID contains ':'"}: partnerauth.Ndovu{ClientID: "i:hunter2", ClientSecret: "s", BaseURL: apiURL},
		{provider: "ndovu", text: "BaseURL is empty"}:      partnerauth.Ndovu{ClientID: "i", ClientSecret: "s"},
		{text: "Name"}:                               partnerauth.Provider{BaseURL: apiURL, SignIn: signIn},
		{provider: "acme", text: "SignIn"}:           partnerauth.Provider{Name: "acme", BaseURL: apiURL},
		{provider: "acme", text: "BaseURL is empty"}: partnerauth.Provider{Name: "acme", SignIn: signIn},
	} {
		checkSource(t, c.TokenSource(), want)
	}
	for _, source := range []*partnerauth.Source{nil, {}} { // whoever asks
		checkSource(t, source, mistake{text: "Source"})
		_ = fmt.Sprintf("%v %+v %#v", source, source, source)
	}
}

// A sign-in request that cannot be sent is a mistake in the configuration.
func TestSignInRequestsThatAreNotSent(t *testing.T) {
	sized := func(n int) io.ReadCloser { return io.NopCloser(strings.NewReader(strings.Repeat("x", n))) }
	failing := io.NopCloser(readerFunc(func([]byte) (int, error) { return 0, errTest }))
	for want, change := range map[string]func(*http.Request) *http.Request{
		"no request":        func(*http.Request) *http.Request { return nil },
		"no request to":     func(req *http.Request) *http.Request { req.URL = nil; return req },
		"not loopback":      func(req *http.Request) *http.Request { req.URL.Scheme = "http"; return req },
		"Host":              func(req *http.Request) *http.Request { req.Host = "evil.example"; return req },
		`header "X-Key"`:    func(req *http.Request) *http.Request { req.Header["X-Key"] = []string{"hunter2\n"}; return req },
		"reading the body":  func(req *http.Request) *http.Request { req.Body = failing; return req },
		"larger than 1 MiB": func(req *http.Request) *http.Request { req.Body = sized(1<<20 + 1); return req },
	} {
		bubble(t, want, func(t *testing.T) {
			p := new(partner)
			pr := acme(good(p))
			signIn := pr.SignIn
			pr.SignIn = func(ctx context.Context) (*http.Request, error) {
				req, err := signIn(ctx)
				must(t, err)
				return change(req), nil
			}
			_, err := pr.TokenSource().Token()
			mistake{provider: "acme", text: strings.TrimSuffix(want, " to"), insecure: want == "not loopback"}.check(t, err)
			errorIf(t, len(p.seen()) > 0, "got %v, want nothing sent", p.seen())
		})
	}
	p := new(partner)
	pr := acme(good(p))
	pr.SignIn = func(context.Context) (*http.Request, error) { // with a body of 1 MiB, and no Header
		u, _ := url.Parse(apiURL + acmeLogin)
		return &http.Request{Method: "POST", URL: u, Body: sized(1 << 20)}, nil
	}
	_, err := pr.TokenSource().Token()
	must(t, err)
}

func TestTransportMistakes(t *testing.T) {
	source := new(partner).nowPost()
	for i, url := range slices.Concat(malformed, insecure) {
		t.Run(url, func(t *testing.T) {
			want := mistake{text: "Transport.Origins[1]", insecure: i >= len(malformed)}
			checkTransport(t, &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL, url}}, want)
			want.text = "Transport.Origins[0]"
			checkTransport(t, &partnerauth.Transport{Source: source, Origins: []string{url}}, want)
		})
	}
	for text, rt := range map[string]*partnerauth.Transport{
		"Source": {}, "Origins": {Source: static("t")}, "Origins[0]": {Source: static("t"), Origins: []string{""}},
	} {
		checkTransport(t, rt, mistake{text: text})
	}
	for _, c := range []struct {
		field string
		quota *partnerauth.Quota
	}{
		{"Requests", &partnerauth.Quota{Requests: -1}},
		{"Requests", &partnerauth.Quota{Requests: 1_000_001}},
		{"Window", &partnerauth.Quota{Window: -time.Second}},
		{"Window", &partnerauth.Quota{Window: 1}},
		{"Window", &partnerauth.Quota{Window: 365 * 24 * time.Hour}},
		{"Burst", &partnerauth.Quota{Burst: -1}},
		{"Burst", &partnerauth.Quota{Requests: 10, Burst: 11}},
	} {
		want := mistake{text: "Quota." + c.field, noAuthError: true}
		checkTransport(t, &partnerauth.Transport{Source: source, Limiter: c.quota}, want)
		err := c.quota.Wait(t.Context())
		errorIf(t, err == nil || !strings.Contains(err.Error(), want.text), "got %v from Wait, want an error that names %s", err, want.text)
	}
}

// A mistake is what an error of the configuration says.
type mistake struct {
	provider    string
	text        string // part of the error's
	insecure    bool   // it Is ErrInsecureURL
	noAuthError bool
}

func (m mistake) check(t *testing.T, err error) {
	t.Helper()
	text := fmt.Sprint(err)
	errorIf(t, !strings.HasPrefix(text, "partnerauth: "), "got %q, want our prefix", text)
	errorIf(t, !strings.Contains(text, m.text), "got %q, want %q in it", text, m.text)
	errorIf(t, strings.Contains(text, "hunter2"), "got %q, which has the secret in it", text)
	errorIf(t, errors.Is(err, partnerauth.ErrInsecureURL) != m.insecure, "got %v, want ErrInsecureURL: %t", err, m.insecure)
	errorIf(t, errors.Is(err, partnerauth.ErrCredentials), "got %v, which is ErrCredentials", err)
	errorIf(t, errors.Is(err, partnerauth.ErrRateLimited), "got %v, which is ErrRateLimited", err)
	auth, is := errors.AsType[*partnerauth.AuthError](err)
	errorIf(t, is == m.noAuthError, "got %#v, want an AuthError: %t", err, !m.noAuthError)
	if is {
		errorIf(t, auth.Provider != m.provider, "got provider %q, want %q", auth.Provider, m.provider)
		errorIf(t, auth.Op != "config", "got Op %q, want config", auth.Op)
		errorIf(t, auth.StatusCode != 0, "got status %d, want none", auth.StatusCode)
	}
}

func TestProvidersFromEnv(t *testing.T) {
	const nowPostIs, ndovuIs = "NOWPOST_EMAIL=e|NOWPOST_PASSWORD=p", "NDOVU_CLIENT_ID=i|NDOVU_CLIENT_SECRET=s:+%"
	const there, plain = "https://x.example", "http://x.example"
	var noNowPost, noNdovu any = partnerauth.NowPost{}, partnerauth.Ndovu{}
	for _, c := range []struct {
		env   string // the variables that are set
		want  any
		wrong string // in the error; "": there is none
	}{
		{nowPostIs, partnerauth.NowPost{Email: "e", Password: "p", BaseURL: partnerauth.NowPostBaseURL}, ""},
		{nowPostIs + "|NOWPOST_BASE_URL=" + there, partnerauth.NowPost{Email: "e", Password: "p", BaseURL: there}, ""},
		{"NOWPOST_PASSWORD=hunter2", noNowPost, "NOWPOST_EMAIL is not set"},
		{"NOWPOST_EMAIL=e", noNowPost, "NOWPOST_PASSWORD is not set"},
		{nowPostIs + "|NOWPOST_BASE_URL=" + plain, noNowPost, "BaseURL: insecure URL"},
		{"NOWPOST_EMAIL=e|NOWPOST_PASSWORD=hunter2 ", noNowPost, "Password ends in a space"},

		{ndovuIs + "|NDOVU_BASE_URL=" + there, partnerauth.Ndovu{ClientID: "i", ClientSecret: "s:+%", BaseURL: there}, ""},
		{"NDOVU_CLIENT_SECRET=hunter2|NDOVU_BASE_URL=" + there, noNdovu, "NDOVU_CLIENT_ID is not set"},
		{"NDOVU_CLIENT_ID=i|NDOVU_BASE_URL=" + there, noNdovu, "NDOVU_CLIENT_SECRET is not set"},
		{ndovuIs, noNdovu, "NDOVU_BASE_URL is not set"},
		{ndovuIs + "|NDOVU_BASE_URL=" + plain, noNdovu, "BaseURL: insecure URL"},
		{"NDOVU_CLIENT_ID=i:hunter2|NDOVU_CLIENT_SECRET=s|NDOVU_BASE_URL=" + there, noNdovu, "ClientID contains ':'"},
	} {
		t.Run(c.env, func(t *testing.T) {
			for _, name := range []string{
				"NOWPOST_EMAIL", "NOWPOST_PASSWORD", "NOWPOST_BASE_URL", "NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL",
			} {
				_, rest, _ := strings.Cut("|"+c.env, "|"+name+"=")
				value, _, _ := strings.Cut(rest, "|")
				t.Setenv(name, value)
			}
			var got any
			var err error
			provider := "nowpost"
			if _, ok := c.want.(partnerauth.NowPost); ok {
				got, err = partnerauth.NowPostFromEnv()
			} else {
				provider = "ndovu"
				got, err = partnerauth.NdovuFromEnv()
			}
			errorIf(t, !reflect.DeepEqual(got, c.want), "got another provider than %v", c.want)
			if c.wrong == "" {
				errorIf(t, err != nil, "got %v", err)
			} else {
				mistake{provider: provider, text: c.wrong, insecure: strings.Contains(c.wrong, "insecure")}.check(t, err)
			}
		})
	}
}
