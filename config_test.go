package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	unused := func(t *testing.T) http.RoundTripper {
		return &partner{script: func(a asked) reply { t.Errorf("%s was asked for", a.url); return reply{err: errTest} }}
	}
	check := func(t *testing.T, rt http.RoundTripper, provider, field string, insecure, auth bool) {
		t.Helper()
		for range 2 { // the second use fails like the first
			body := watched("{}")
			_, err := rt.RoundTrip(posting(t, body))
			checkMistake(t, err, provider, field, insecure, auth)
			errorIf(t, body.closed.Load() != 1, "the request's body is not closed")
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
	for i, url := range slices.Concat(malformed, insecure) {
		t.Run(url, func(t *testing.T) {
			isInsecure := i >= len(malformed)
			nowPost := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: url, Base: unused(t)}
			ndovu := partnerauth.Ndovu{ClientID: "i", ClientSecret: "s", BaseURL: url, Base: unused(t)}
			_, err := nowPost.TokenSource().Token()
			checkMistake(t, err, "nowpost", "BaseURL", isInsecure, true)
			_, err = ndovu.TokenSource().Token()
			checkMistake(t, err, "ndovu", "BaseURL", isInsecure, true)
			check(t, nowPost.Client().Transport, "nowpost", "BaseURL", isInsecure, true)
			check(t, ndovu.Client().Transport, "ndovu", "BaseURL", isInsecure, true)
			for _, text := range []string{fmt.Sprint(nowPost), fmt.Sprintf("%#v", ndovu)} {
				errorIf(t, strings.Contains(text, "hunter2"), "%s has the password in it", text)
			}
			custom := &partnerauth.Transport{Base: unused(t), Source: static("t"), Origins: []string{"https://api.example", url}}
			check(t, custom, "", "Transport.Origins[1]", isInsecure, true)
			ours := &partnerauth.Transport{Base: unused(t), Source: partnerauth.NowPost{Email: "e", Password: "p"}.TokenSource(), Origins: []string{url}}
			check(t, ours, "", "Transport.Origins[0]", isInsecure, true)
		})
	}

	custom := static("t")
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
		{"custom source without Origins", &partnerauth.Transport{Source: custom}, "Origins", true},
		{"custom source with an empty origin", &partnerauth.Transport{Source: custom, Origins: []string{""}}, "Origins[0]", true},
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
				err := q.Wait(context.Background())
				errorIf(t, err == nil || !strings.Contains(err.Error(), c.field), "got %v from Wait, want an error that names %s", err, c.field)
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
	errorIf(t, !strings.HasPrefix(text, "partnerauth: ") || !strings.Contains(text, field) || strings.Contains(text, "hunter2"), "got %q, want the name of %s and no password", text, field)
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

func TestProvidersFromEnv(t *testing.T) {
	nowPost := func() (any, error) { return partnerauth.NowPostFromEnv() }
	ndovu := func() (any, error) { return partnerauth.NdovuFromEnv() }
	for _, c := range []struct {
		name    string
		read    func() (any, error)
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
			errorIf(t, got != c.want, "got another provider than %v", c.want)
			if c.missing == "" {
				errorIf(t, err != nil, "got %v", err)
				return
			}
			provider, _, _ := strings.Cut(strings.ToLower(c.name), " ")
			checkMistake(t, err, provider, c.missing, false, true)
		})
	}
}
