package partnerauth_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// checkWire compares a token request as a server got it.
func checkWire(t *testing.T, r partnertest.Request, proto, path, body string, header ...string) {
	t.Helper()
	errorIf(t, r.Proto != proto || r.Method != "POST" || r.Path != path || r.RawQuery != "",
		"got %s %s %s?%s, want %s POST %s", r.Proto, r.Method, r.Path, r.RawQuery, proto, path)
	want := headers(append(header, "Accept: application/json", "Accept-Encoding: gzip", fmt.Sprint("Content-Length: ", len(body)))...)
	want["User-Agent"] = r.Header["User-Agent"] // Go's own
	errorIf(t, !maps.EqualFunc(r.Header, want, slices.Equal), "got headers %v, want %v", r.Header, want)
	errorIf(t, string(r.Body) != body || r.ContentLength != int64(len(body)) || len(r.TransferEncoding) > 0,
		"got the body %q, length %d, encoding %v, want %q", r.Body, r.ContentLength, r.TransferEncoding, body)
}

// wires are plain HTTP/1.1 and HTTP/2 over TLS.
var wires = map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true}

func TestNowPostLoginOnTheWire(t *testing.T) {
	t.Parallel()
	for proto, useTLS := range wires {
		for _, password := range []string{
			"plain", `quote " backslash \ slash /`, "<b>&amp;</b>", "p@ss:w+rd % = ?#", " leading",
			"pässwörd 密码 🔑", "\u2028\u2029 inside", "\ufffd",
		} {
			email := "ümlaut+" + password + "@example.com"
			server, rt := onSockets(t, partnertest.Options{TLS: useTLS, Email: email, Password: password})
			_, err := rt.Source.Token()
			seen := server.Requests()
			if err != nil || len(seen) != 1 {
				t.Fatalf("%q: got %v after %d requests, want a token of one", password, err, len(seen))
			}
			var pairs map[string]string
			if err := json.Unmarshal(seen[0].Body,
				&pairs); err != nil || !maps.Equal(pairs, map[string]string{"email": email, "password": password}) {
				t.Errorf("got %q, %v, want the e-mail and the password %q and nothing else", pairs, err, password)
			}
			checkWire(t, seen[0], proto, loginPath, string(seen[0].Body), "Content-Type: application/json")
			sample := fmt.Sprintf(`{"email":%q,"password":%q}`, email, password) // as the page has it
			errorIf(t, password == "plain" && string(seen[0].Body) != sample, "got the body %s, want %s", seen[0].Body, sample)
		}
	}
}

// What refresh answers, and what comes of it. The token is good throughout, so
// no caller waits or gets an error.
func TestNowPostRefreshAnswers(t *testing.T) {
	t.Parallel()
	const h = time.Hour
	longer := `{"token":"new","expiresAt":"` + at(h) + `"}`
	const relogin = "login refresh login"
	for _, c := range []struct {
		name   string
		says   []reply // to refresh, the last one for ever
		ops    string
		token  string        // ""; relogin
		lasts  time.Duration // 0: a day
		within time.Duration // of the renewal
	}{
		{name: "flat without expiresAt", says: []reply{{body: `{"token":"new"}`}}, ops: "login refresh", token: "new"},
		{name: "flat with expiresAt", says: []reply{{header: fields(), body: longer}}, ops: "login refresh", token: "new", lasts: h},
		{name: "the same token, longer", says: []reply{{body: `{"token":"old"}`}}, ops: "login refresh", token: "old"},

		{name: "401", says: []reply{{status: 401}}, ops: relogin},
		{name: "404 in HTML", says: []reply{{status: 404, body: "<html>"}}, ops: relogin},
		{name: "307", says: []reply{{status: 307, header: headers("Location: https://evil.example/")}}, ops: relogin},
		{name: "success is false", says: []reply{{body: `{"success":false}`}}, ops: relogin},
		{name: "no token", says: []reply{{body: `{"success":true}`}}, ops: relogin},
		{name: "5xx", says: []reply{{status: 500}, {status: 502}, {status: 503}}, ops: relogin, within: 3 * time.Second},
		{name: "network", says: []reply{{err: io.EOF}, {err: io.EOF}, {body: "{", cut: true}}, ops: relogin, within: 3 * time.Second},
		{name: "429, then a token", says: []reply{busy("5"), {body: `{"token":"new"}`}}, ops: "login refresh refresh", token: "new",
			within: 6 * time.Second},
		{name: "429 until the token is over", says: []reply{busy("30")}, ops: relogin, within: 31 * time.Second},
		{name: "hanging", says: []reply{{after: forever}}, ops: relogin, within: 25 * time.Second},
	} {
		bubble(t, c.name, func(t *testing.T) {
			c.token, c.lasts = cmp.Or(c.token, "relogin"), cmp.Or(c.lasts, 24*h)
			const life = 100 * time.Second
			p := new(partner).on("refresh", c.says...)
			p.on("login", reply{header: fields(), body: `{"token":"old","expiresAt":"` + at(life) + `"}`},
				reply{body: `{"token":"relogin"}`})
			source, began := p.nowPost(), time.Now()
			token, err := source.Token()
			for old := token; token == old; token, err = source.Token() {
				must(t, err)
				time.Sleep(50 * time.Millisecond)
			}
			log := p.seen()
			last := log[len(log)-1]
			errorIf(t, token.AccessToken != c.token || token.Expiry.Sub(began)-last.at != c.lasts,
				"got %q for %v, want %q for %v", token.AccessToken, token.Expiry.Sub(began)-last.at, c.token, c.lasts)
			took := last.at - log[1].at
			errorIf(t, p.ops() != c.ops || took > c.within,
				"got %s, the last %v after the first refresh, want %s within %v", p.ops(), took, c.ops, c.within)
			for _, a := range log {
				asDocumented := a.method == "POST" && a.url == apiURL+renewPath && a.token == "old" && a.body == "" &&
					a.header.Get("Content-Type") == ""
				errorIf(t, a.op == "refresh" && (!asDocumented || a.at >= life),
					"got the refresh %+v, want an empty POST with the token while it is good", a)
			}
			waited := time.Since(began)
			errorIf(t, last.at < life && waited > last.at+time.Second, "the new token came after %v, its answer after %v", waited, last.at)
		})
	}
}

// FuzzNowPostAnswer feeds an answer to a Source: an error that names the
// operation, or a token that can be sent.
func FuzzNowPostAnswer(f *testing.F) {
	fuzzAnswer(f, providers[0],
		`{"success":true,"data":{"token":"eyJ.eyJ.x","expiresAt":"2024-01-15T12:00:00Z","user":{"id":"user_123"}}}`,
		`{"token":"t","expiresAt":"2026-03-14T16:09:26Z"}`, `{"token":"t","expiresAt":"9999-12-31T23:59:59Z"}`,
		`{"token":"t","expiresAt":"0000-01-01T00:00:00Z"}`,
		`{"token":"`+jwt(`{"iat":1700000000,"exp":1700007200}`)+`"}`, `{"token":"`+jwt(`{"iat":-1e308,"exp":1e308}`)+`"}`,
		`{"token":"`+jwt(`{"iat":0,"exp":1e-9}`)+`"}`,
		`{"success":false}`, `{"token":null}`, `{"token":"\n"}`, "{\"token\":\"\xff\"}", `{"data":[],"token":"t"}`,
		`{"data":{"token":"a"},"token":"b"}`, `{"success":"yes","token":"t"}`,
	)
}
