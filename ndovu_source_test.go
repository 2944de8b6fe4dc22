package partnerauth_test

import (
	"encoding/base64"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestNdovuAuthOnTheWire(t *testing.T) {
	t.Parallel()
	for proto, useTLS := range wires {
		for _, pair := range [][2]string{
			{"client-1", "plain"}, {"client-1", "a:b+c/d%e&f g=h?i#j"}, {"client-1", "::"}, {"client-1", "%2B%2F already escaped +"},
			{"client-1", "sécret 密钥 🔑"}, {"client-1", " leading"}, {"client-1", `quote " backslash \`},
			{"client-1", "bytes \xff\xfe that are no UTF-8"}, {"client-1", strings.Repeat("long", 500)},
			{"id with space + % / & é", "secret"},
		} {
			id, secret := pair[0], pair[1]
			server := partnertest.StartNdovu(partnertest.Options{TLS: useTLS, ClientID: id, ClientSecret: secret})
			defer server.Close()
			base := server.Transport()
			defer base.CloseIdleConnections()
			_, err := partnerauth.Ndovu{ClientID: id, ClientSecret: secret, BaseURL: server.URL, Base: base}.TokenSource().Token()
			seen := server.Requests()
			if err != nil || len(seen) != 1 {
				t.Fatalf("%q: got %v after %d requests, want a token of one", pair, err, len(seen))
			}
			basic := base64.StdEncoding.EncodeToString([]byte(id + ":" + secret))
			checkWire(t, seen[0], proto, authPath, "", "Authorization: Basic "+basic)
		}
	}
}

func TestNdovuLifetimes(t *testing.T) {
	t.Parallel()
	jwt2h := jwt(`{"iat":1700000000,"exp":1700007200}`)
	for _, c := range []struct {
		name string
		body string
		want time.Duration
	}{
		{"the page's sample", `{"access_token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...","expires_in":3600,"token_type":"Bearer"}`,
			time.Hour},
		{"expires_in beats the JWT", `{"access_token":"` + jwt2h + `","expires_in":600,"token_type":"Bearer"}`, 10 * time.Minute},
		{"two seconds", `{"access_token":"t","expires_in":2}`, 2 * time.Second},
		{"a float", `{"access_token":"t","expires_in":59.5}`, 59500 * time.Millisecond},
		{"a text", `{"access_token":"t","expires_in":"3600"}`, time.Hour},
		{"missing, JWT", `{"access_token":"` + jwt2h + `"}`, 2 * time.Hour},
		{"missing", `{"access_token":"t"}`, time.Hour},
		{"an object", `{"access_token":"t","expires_in":{}}`, time.Hour},
	} {
		bubble(t, c.name, func(t *testing.T) {
			// the Date, far from our clock, is of no use here
			checkLife(t, reply{header: fields(), body: c.body}, (*partner).ndovu, c.want, "login")
		})
	}
}

func TestNdovuTokens(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, body, want string }{
		{"token_type missing", `{"access_token":"t","expires_in":3600}`, "t"},
		{"token_type empty", `{"access_token":"t","token_type":""}`, "t"},
		{"token_type in lower case", `{"access_token":"t","token_type":"bearer"}`, "t"},
		{"more than the page shows", `{"access_token":"t","refresh_token":"r","scope":["a"],"token":"x","success":false}`, "t"},
		{"exactly 1 MiB", `{"access_token":"t"` + strings.Repeat(" ", 1<<20-20) + `}`, "t"},
	} {
		checkToken(t, c.name, reply{body: c.body}, (*partner).ndovu, c.want)
	}
}

func TestNdovuFailures(t *testing.T) {
	t.Parallel()
	const none, notJSON, unsendable = "no access_token", "the answer is not the JSON", "the token has characters that a header cannot have"
	for _, f := range []failure{
		// some of what fetch_test.go has for NowPost
		{name: "307", reply: reply{status: 307}, text: "307 Temporary Redirect: a redirect", status: 307, tries: 1},
		{name: "401", reply: reply{status: 401, body: `{"message":"Echo"}`},
			text: "401 Unauthorized: no such client id, or not the raw client secret of the onboarding e-mail", status: 401, tries: 1},
		{name: "400", reply: reply{status: 400, body: `{"message":"Echo"}`},
			text: "400 Bad Request: the Authorization header was not accepted", status: 400, tries: 1},
		{name: "502 in HTML", reply: reply{status: 502, body: "<html>Echo"}, text: "502 Bad Gateway", status: 502, tries: 3},
		{name: "no connection", reply: reply{err: io.EOF}, text: "EOF", tries: 3},
		noToken("half an object", `{"access_token":"t"`, notJSON),

		noToken("no token", `{"expires_in":3600,"token_type":"Bearer"}`, none),
		noToken("token empty", `{"access_token":""}`, none),
		noToken("token a number", `{"access_token":123}`, notJSON),
		noToken("another partner's fields", `{"success":true,"data":{"token":"t"},"token":"t"}`, none),
		noToken("token_type mac", `{"access_token":"t","token_type":"mac"}`, "token_type is not Bearer"),
		noToken("token_type a number", `{"access_token":"t","token_type":1}`, notJSON),
		noToken("token with a newline", `{"access_token":"Echo\nX-Injected: 1"}`, unsendable),
	} {
		bubble(t, f.name, func(t *testing.T) {
			p := new(partner)
			checkFailure(t, p, p.ndovu(), "ndovu", f)
		})
	}
}

// FuzzNdovuAnswer feeds an answer to a Source: an error that names the
// operation, or a token that can be sent.
func FuzzNdovuAnswer(f *testing.F) {
	fuzzFailures(f,
		`{"access_token":"eyJ.eyJ.x","expires_in":3600,"token_type":"Bearer"}`, `{"access_token":"t","expires_in":1e400}`,
		`{"access_token":"t","expires_in":1.7976931348623157e308}`, `{"access_token":"t","expires_in":9223372036854775807}`,
		`{"access_token":"t","expires_in":-1e300}`,
		`{"access_token":"t","expires_in":1e-12}`, `{"access_token":"t","expires_in":"60"}`, `{"access_token":"t","token_type":"mac"}`,
		`{"access_token":"a\nb"}`,
		`{"access_token":"`+jwt(`{"iat":1700000000,"exp":1700007200}`)+`"}`, `{"access_token":"`+jwt(`{"iat":-1e308,"exp":1e308}`)+`"}`,
	)
	f.Fuzz(func(t *testing.T, body []byte, date string, status int) {
		fuzzAnswer(t, body, date, status, "ndovu", (*partner).ndovu)
	})
}
