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
	for name, c := range map[string]struct {
		config config
		want   mistake
	}{
		"an e-mail that is no UTF-8": {partnerauth.NowPost{Email: "\xff", Password: "hunter2"},
			mistake{provider: "nowpost", text: "Email"}},
		"a password that is no UTF-8": {partnerauth.NowPost{Email: "e", Password: "hunter2\xff"},
			mistake{provider: "nowpost", text: "Password"}},
		"a client id with a colon": {partnerauth.Ndovu{ClientID: "i:hunter2", ClientSecret: "s", BaseURL: apiURL},
			mistake{provider: "ndovu", text: "ClientID"}},
		"Ndovu without a BaseURL": {partnerauth.Ndovu{ClientID: "i", ClientSecret: "s"},
			mistake{provider: "ndovu", text: "BaseURL is empty"}},
		"a Provider without a Name":   {partnerauth.Provider{BaseURL: apiURL, SignIn: signIn}, mistake{text: "Name"}},
		"a Provider without a SignIn": {partnerauth.Provider{Name: "acme", BaseURL: apiURL}, mistake{provider: "acme", text: "SignIn"}},
		"a Provider without a BaseURL": {partnerauth.Provider{Name: "acme", SignIn: signIn},
			mistake{provider: "acme", text: "BaseURL is empty"}},
	} {
		t.Run(name, func(t *testing.T) { checkSource(t, c.config.TokenSource(), c.want) })
	}
	for _, source := range []*partnerauth.Source{nil, {}} { // whoever asks
		checkSource(t, source, mistake{text: "Source"})
		_ = fmt.Sprintf("%v %+v %#v", source, source, source)
	}
}

// A sign-in request that cannot be sent is a mistake in the configuration.
func TestSignInRequestsThatAreNotSent(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*http.Request) *http.Request
		want   mistake
	}{
		"none":          {func(*http.Request) *http.Request { return nil }, mistake{text: "no request"}},
		"without a URL": {func(req *http.Request) *http.Request { req.URL = nil; return req }, mistake{text: "no request"}},
		"over plain http": {func(req *http.Request) *http.Request { req.URL.Scheme = "http"; return req },
			mistake{text: "not loopback", insecure: true}},
		"to another authority": {func(req *http.Request) *http.Request { req.Host = "evil.example"; return req }, mistake{text: "Host"}},
		"with a newline in a header": {func(req *http.Request) *http.Request {
			req.Header["X-Key"] = []string{"hunter2\n"}
			return req
		}, mistake{text: `header "X-Key"`}},
		"with a body that fails": {func(req *http.Request) *http.Request {
			req.Body = io.NopCloser(readerFunc(func([]byte) (int, error) { return 0, errTest }))
			return req
		}, mistake{text: "reading the body"}},
		"with a body of more than 1 MiB": {func(req *http.Request) *http.Request {
			req.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20+1)))
			return req
		}, mistake{text: "larger than 1 MiB"}},
	} {
		bubble(t, name, func(t *testing.T) {
			p := new(partner)
			pr := acme(good(p))
			signIn := pr.SignIn
			pr.SignIn = func(ctx context.Context) (*http.Request, error) {
				req, err := signIn(ctx)
				must(t, err)
				return c.change(req), nil
			}
			c.want.provider = "acme"
			_, err := pr.TokenSource().Token()
			c.want.check(t, err)
			errorIf(t, len(p.seen()) > 0, "got %v, want nothing sent", p.seen())
		})
	}
	p := new(partner)
	pr := acme(good(p))
	pr.SignIn = func(context.Context) (*http.Request, error) { // with a body of 1 MiB, and no Header
		u, _ := url.Parse(apiURL + acmeLogin)
		return &http.Request{Method: "POST", URL: u, Body: io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20)))}, nil
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
	for name, c := range map[string]struct {
		rt   *partnerauth.Transport
		text string
	}{
		"no Source":                          {&partnerauth.Transport{}, "Source"},
		"custom source without Origins":      {&partnerauth.Transport{Source: static("t")}, "Origins"},
		"custom source with an empty origin": {&partnerauth.Transport{Source: static("t"), Origins: []string{""}}, "Origins[0]"},
	} {
		t.Run(name, func(t *testing.T) { checkTransport(t, c.rt, mistake{text: c.text}) })
	}
	for name, c := range map[string]struct {
		quota *partnerauth.Quota
		field string
	}{
		"negative Requests":      {&partnerauth.Quota{Requests: -1}, "Quota.Requests"},
		"too many Requests":      {&partnerauth.Quota{Requests: 1_000_001}, "Quota.Requests"},
		"negative Window":        {&partnerauth.Quota{Window: -time.Second}, "Quota.Window"},
		"Window of a nanosecond": {&partnerauth.Quota{Window: 1}, "Quota.Window"},
		"Window of a year":       {&partnerauth.Quota{Window: 365 * 24 * time.Hour}, "Quota.Window"},
		"negative Burst":         {&partnerauth.Quota{Burst: -1}, "Quota.Burst"},
		"Burst beyond Requests":  {&partnerauth.Quota{Requests: 10, Burst: 11}, "Quota.Burst"},
	} {
		t.Run(name, func(t *testing.T) {
			checkTransport(t, &partnerauth.Transport{Source: source, Limiter: c.quota}, mistake{text: c.field, noAuthError: true})
			err := c.quota.Wait(t.Context())
			errorIf(t, err == nil || !strings.Contains(err.Error(), c.field), "got %v from Wait, want an error that names %s", err, c.field)
		})
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
