package main

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/contract"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// start sets the environment for a partner and returns it with a way to it that holds both sides to the document.
func start(t *testing.T) (*partnertest.Ndovu, http.RoundTripper) {
	t.Helper()
	partner := partnertest.StartNdovu(partnertest.Options{})
	t.Cleanup(partner.Close)
	t.Setenv("NDOVU_CLIENT_ID", partnertest.ClientID)
	t.Setenv("NDOVU_CLIENT_SECRET", partnertest.ClientSecret)
	t.Setenv("NDOVU_BASE_URL", partner.URL)
	t.Setenv("NDOVU_SHORT_NAME", "acme")
	document, err := openapi.Ndovu()
	if err != nil {
		t.Fatal(err)
	}
	base := partner.Transport()
	t.Cleanup(base.CloseIdleConnections)
	return partner, contract.Check(t, document, base)
}

func TestTwoCurrencies(t *testing.T) {
	partner, base := start(t)
	var out, errOut bytes.Buffer
	if exit := run(t.Context(), nil, &out, &errOut, base); exit != 0 || errOut.Len() > 0 {
		t.Fatalf("got exit %d, errors %q; want 0, none", exit, errOut.String())
	}
	lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	var currencies []string
	at := strings.Index(lines[0], "CURRENCY")
	for _, line := range lines[1:] {
		currencies = append(currencies, line[at:at+3])
	}
	if got, want := strings.Join(currencies, " "), "KES KES KES USD USD"; got != want {
		t.Errorf("got currencies %s, want %s, in:\n%s", got, want, out.String())
	}
	if !strings.Contains(out.String(), "Money Market Fund") {
		t.Errorf("got\n%s\nwant the names of the plans in it", out.String())
	}
	if n := partner.LoginRequests(); n != 1 {
		t.Errorf("got %d logins for two requests at once, want 1", n)
	}
}

func TestOneCurrency(t *testing.T) {
	_, base := start(t)
	var out, errOut bytes.Buffer
	if exit := run(t.Context(), []string{"-currency", "usd"}, &out, &errOut, base); exit != 0 {
		t.Fatalf("got exit %d, errors %q", exit, errOut.String())
	}
	if strings.Contains(out.String(), "KES") || !strings.Contains(out.String(), "USD") {
		t.Errorf("got\n%s\nwant plans in USD alone", out.String())
	}
}

func TestFailures(t *testing.T) {
	for _, tc := range []struct {
		name, env, value string
		args             []string
		want             []string
		logins           int
	}{
		{"wrong secret", "NDOVU_CLIENT_SECRET", "not-the-secret", nil, []string{"plans: partnerauth: ndovu login: 401 Unauthorized", "the raw secret of the onboarding mail"}, 1},
		{"another partner", "", "", []string{"-partner", "globex"}, []string{"403 Forbidden", "Check the short name"}, 1},
		{"no partner", "NDOVU_SHORT_NAME", "", nil, []string{"which partner?"}, 0},
		{"no secret", "NDOVU_CLIENT_SECRET", "", nil, []string{"NDOVU_CLIENT_SECRET"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			partner, base := start(t)
			if tc.env != "" {
				t.Setenv(tc.env, tc.value)
			}
			var out, errOut bytes.Buffer
			if exit := run(t.Context(), tc.args, &out, &errOut, base); exit != 1 || out.Len() > 0 {
				t.Errorf("got exit %d, output %q; want 1, none", exit, out.String())
			}
			for _, want := range tc.want {
				if !strings.Contains(errOut.String(), want) {
					t.Errorf("got %q, want %q in it", errOut.String(), want)
				}
			}
			if n := partner.LoginRequests(); n != tc.logins {
				t.Errorf("got %d logins, want %d", n, tc.logins)
			}
			if strings.Contains(errOut.String(), "not-the-secret") {
				t.Error("the secret is in the output")
			}
		})
	}
}

// Without credentials the program brings a partner along.
func TestStandIn(t *testing.T) {
	for _, name := range []string{"NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL", "NDOVU_SHORT_NAME"} {
		t.Setenv(name, "")
	}
	var out, errOut bytes.Buffer
	if exit := run(t.Context(), nil, &out, &errOut, http.DefaultTransport); exit != 0 || !strings.Contains(out.String(), "USD") {
		t.Errorf("got exit %d, output %q, errors %q; want 0 and a table", exit, out.String(), errOut.String())
	}
}
