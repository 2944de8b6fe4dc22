package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	// check uses a Transport twice: the second use fails like the first
	check := func(t *testing.T, rt *partnerauth.Transport, provider, field string, insecure, isAuth bool) {
		t.Helper()
		p := new(partner)
		rt.Base = p
		for range 2 {
			checkMistake(t, p.sentNothing(t, t.Context(), rt), provider, field, insecure, isAuth)
		}
		rt.CloseIdleConnections()
	}
	checkSource := func(t *testing.T, source *partnerauth.Source, provider, field string, insecure bool) {
		t.Helper()
		_, err := source.Token()
		checkMistake(t, err, provider, field, insecure, true)
		source.Invalidate(&oauth2.Token{AccessToken: "t"})
		_, err = source.TokenContext(t.Context())
		checkMistake(t, err, provider, field, insecure, true)
		check(t, &partnerauth.Transport{Source: source}, provider, field, insecure, true)
	}

	unsendable := func(context.Context) (string, error) { return "hunter2\x00", nil }
	for name, c := range map[string]struct {
		config   interface{ TokenSource() *partnerauth.Source }
		provider string
		field    string
	}{
		"NowPost without e-mail":         {partnerauth.NowPost{Password: "hunter2"}, "nowpost", "Email"},
		"NowPost without password":       {partnerauth.NowPost{Email: "e"}, "nowpost", "Password"},
		"an e-mail that is no UTF-8":     {partnerauth.NowPost{Email: "\xff", Password: "hunter2"}, "nowpost", "Email"},
		"a password that is no UTF-8":    {partnerauth.NowPost{Email: "e", Password: "hunter2\xff"}, "nowpost", "Password"},
		"a password and a Func":          {partnerauth.NowPost{Email: "e", Password: "hunter2", PasswordFunc: unsendable}, "nowpost", "PasswordFunc"},
		"a secret and a Func":            {partnerauth.Ndovu{ClientID: "i", ClientSecret: "hunter2", ClientSecretFunc: unsendable, BaseURL: apiURL}, "ndovu", "SecretFunc"},
		"Ndovu without id":               {partnerauth.Ndovu{ClientSecret: "hunter2", BaseURL: apiURL}, "ndovu", "ClientID"},
		"Ndovu without secret":           {partnerauth.Ndovu{ClientID: "i", BaseURL: apiURL}, "ndovu", "ClientSecret"},
		"Ndovu without BaseURL":          {partnerauth.Ndovu{ClientID: "i", ClientSecret: "hunter2"}, "ndovu", "BaseURL"},
		"a client id with a colon in it": {partnerauth.Ndovu{ClientID: "i:hunter2", ClientSecret: "s", BaseURL: apiURL}, "ndovu", "ClientID"},
		"a client id with a tab":         {partnerauth.Ndovu{ClientID: "i\thunter2", ClientSecret: "s", BaseURL: apiURL}, "ndovu", "ClientID has a control character"},
		"a secret with a newline":        {partnerauth.Ndovu{ClientID: "i", ClientSecret: "hunter2\n", BaseURL: apiURL}, "ndovu", "ClientSecret has a control character"},
		"a secret of a Func with a nul":  {partnerauth.Ndovu{ClientID: "i", ClientSecretFunc: unsendable, BaseURL: apiURL}, "ndovu", "returned has a control character"},
	} {
		t.Run(name, func(t *testing.T) { checkSource(t, c.config.TokenSource(), c.provider, c.field, false) })
	}
	for _, source := range []*partnerauth.Source{nil, {}} { // whoever asks
		checkSource(t, source, "", "Source", false)
		_ = fmt.Sprintf("%v %+v %#v", source, source, source)
	}
	good := partnerauth.NowPost{Email: "e", Password: "p"}.TokenSource()
	for i, url := range slices.Concat(malformed, insecure) {
		t.Run(url, func(t *testing.T) {
			isInsecure := i >= len(malformed)
			nowPost, ndovu := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: url}, partnerauth.Ndovu{ClientID: "i", ClientSecret: "s", BaseURL: url}
			checkSource(t, nowPost.TokenSource(), "nowpost", "BaseURL", isInsecure)
			checkSource(t, ndovu.TokenSource(), "ndovu", "BaseURL", isInsecure)
			text := fmt.Sprintf("%v %+v %#v", nowPost, ndovu, ndovu)
			errorIf(t, strings.Contains(text, "hunter2"), "%s has the password in it", text)
			check(t, &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL, url}}, "", "Transport.Origins[1]", isInsecure, true)
			check(t, &partnerauth.Transport{Source: good, Origins: []string{url}}, "", "Transport.Origins[0]", isInsecure, true)
		})
	}
	for name, c := range map[string]struct {
		rt    *partnerauth.Transport
		field string
	}{
		"no Source":                          {&partnerauth.Transport{}, "Source"},
		"custom source without Origins":      {&partnerauth.Transport{Source: static("t")}, "Origins"},
		"custom source with an empty origin": {&partnerauth.Transport{Source: static("t"), Origins: []string{""}}, "Origins[0]"},
	} {
		t.Run(name, func(t *testing.T) { check(t, c.rt, "", c.field, false, true) })
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
			check(t, &partnerauth.Transport{Source: good, Limiter: c.quota}, "", c.field, false, false)
			err := c.quota.Wait(t.Context())
			errorIf(t, err == nil || !strings.Contains(err.Error(), c.field), "got %v from Wait, want an error that names %s", err, c.field)
		})
	}
}

func checkMistake(t *testing.T, err error, provider, field string, insecure, isAuth bool) {
	t.Helper()
	text := fmt.Sprint(err)
	errorIf(t, !strings.HasPrefix(text, "partnerauth: ") || !strings.Contains(text, field) || strings.Contains(text, "hunter2"), "got %q, want the name of %s and no password", text, field)
	auth, is := errors.AsType[*partnerauth.AuthError](err)
	errorIf(t, is != isAuth || isAuth && (auth.Provider != provider || auth.Op != "config" || auth.StatusCode != 0 || auth.RetryAfter != 0),
		"got %#v, want an AuthError (%t) of %q about the configuration", auth, isAuth, provider)
	errorIf(t, errors.Is(err, partnerauth.ErrInsecureURL) != insecure || errors.Is(err, partnerauth.ErrCredentials) || errors.Is(err, partnerauth.ErrRateLimited),
		"got %v, ErrInsecureURL %t, want %t", err, !insecure, insecure)
}

func TestProvidersFromEnv(t *testing.T) {
	nowPost := func() (any, error) { return partnerauth.NowPostFromEnv() }
	ndovu := func() (any, error) { return partnerauth.NdovuFromEnv() }
	for _, c := range []struct {
		provider string
		read     func() (any, error)
		env      string // the variables that are set
		want     any
		missing  string
	}{
		{"nowpost", nowPost, "NOWPOST_EMAIL=e|NOWPOST_PASSWORD=p", partnerauth.NowPost{Email: "e", Password: "p", BaseURL: partnerauth.NowPostBaseURL}, ""},
		{"nowpost", nowPost, "NOWPOST_EMAIL=e|NOWPOST_PASSWORD= p |NOWPOST_BASE_URL=https://x.example/", partnerauth.NowPost{Email: "e", Password: " p ", BaseURL: "https://x.example/"}, ""},
		{"nowpost", nowPost, "NOWPOST_PASSWORD=hunter2", partnerauth.NowPost{}, "NOWPOST_EMAIL"},
		{"nowpost", nowPost, "NOWPOST_EMAIL=e", partnerauth.NowPost{}, "NOWPOST_PASSWORD"},
		{"ndovu", ndovu, "NDOVU_CLIENT_ID=i|NDOVU_CLIENT_SECRET=s:+%|NDOVU_BASE_URL=https://n.example", partnerauth.Ndovu{ClientID: "i", ClientSecret: "s:+%", BaseURL: "https://n.example"}, ""},
		{"ndovu", ndovu, "NDOVU_CLIENT_SECRET=hunter2|NDOVU_BASE_URL=https://n.example", partnerauth.Ndovu{}, "NDOVU_CLIENT_ID"},
		{"ndovu", ndovu, "NDOVU_CLIENT_ID=i|NDOVU_BASE_URL=https://n.example", partnerauth.Ndovu{}, "NDOVU_CLIENT_SECRET"},
		{"ndovu", ndovu, "NDOVU_CLIENT_ID=i|NDOVU_CLIENT_SECRET=hunter2", partnerauth.Ndovu{}, "NDOVU_BASE_URL"},
	} {
		t.Run(c.env, func(t *testing.T) {
			for _, name := range []string{"NOWPOST_EMAIL", "NOWPOST_PASSWORD", "NOWPOST_BASE_URL", "NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL"} {
				_, rest, _ := strings.Cut("|"+c.env, "|"+name+"=")
				value, _, _ := strings.Cut(rest, "|")
				t.Setenv(name, value)
			}
			got, err := c.read()
			errorIf(t, !reflect.DeepEqual(got, c.want), "got another provider than %v", c.want)
			if c.missing == "" {
				errorIf(t, err != nil, "got %v", err)
			} else {
				checkMistake(t, err, c.provider, c.missing, false, true)
			}
		})
	}
}
