package partnerauth_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

func TestNdovuAuthOnTheWire(t *testing.T) {
	t.Parallel()
	pairs := []struct{ id, secret string }{
		{"client-1", "plain"},
		{"client-1", "a:b+c/d%e&f g=h?i#j"},
		{"client-1", "::"},
		{"client-1", "%2B%2F already escaped +"},
		{"client-1", "sécret 密钥 🔑"},
		{"client-1", " leading and trailing "},
		{"client-1", `quote " backslash \`},
		{"client-1", "bytes \xff\xfe that are no UTF-8"},
		{"client-1", strings.Repeat("long", 500)},
		{"id with space + % / & é", "secret"},
	}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			for i, pair := range pairs {
				path := basePaths[i%len(basePaths)]
				s := startWire(t, proto, func(_ int, w http.ResponseWriter, r *http.Request) {
					if id, secret, ok := r.BasicAuth(); !ok || id != pair.id || secret != pair.secret {
						w.WriteHeader(401)
					}
					io.WriteString(w, `{"access_token":"abc","expires_in":3600,"token_type":"Bearer"}`)
				})
				token, err := partnerauth.Ndovu{ClientID: pair.id, ClientSecret: pair.secret, BaseURL: s.URL + path.suffix, Base: s.base}.TokenSource().Token()
				if err != nil || token.AccessToken != "abc" || token.TokenType != "Bearer" {
					t.Fatalf("%q: got %v, %v", pair, token, err)
				}
				seen := s.requests()
				if len(seen) != 1 {
					t.Fatalf("%q: got %d requests, want 1", pair, len(seen))
				}
				r := seen[0]
				if r.proto != proto || r.method != "POST" || r.target != path.prefix+"/api/v3/partners/auth" || r.host != s.Listener.Addr().String() {
					t.Errorf("%q: got %s %s %s to %s", path.suffix, r.proto, r.method, r.target, r.host)
				}
				basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(pair.id+":"+pair.secret))
				want := http.Header{
					"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Content-Length": {"0"},
					"Authorization": {basic}, "User-Agent": r.header["User-Agent"],
				}
				if !maps.EqualFunc(r.header, want, slices.Equal) {
					t.Errorf("got headers %v, want %v", r.header, want)
				}
				if r.body != "" || r.length != 0 || len(r.encoding) > 0 {
					t.Errorf("got body %q, length %d, encoding %v, want none", r.body, r.length, r.encoding)
				}
				if s.tee != nil {
					raw := s.tee.bytes()
					names := []string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Host", "User-Agent"}
					if got := headerNames(raw); !slices.Equal(got, names) || !strings.HasSuffix(raw, "\r\n\r\n") || !strings.Contains(raw, "\r\nAuthorization: "+basic+"\r\n") {
						t.Errorf("got the headers %v in %q, want %v", got, raw, names)
					}
				}
			}
		})
	}
}

func TestNdovuLifetimes(t *testing.T) {
	t.Parallel()
	hours2 := jwt(`{"iat":1700000000,"exp":1700007200}`)
	for _, c := range []struct {
		name string
		body string
		want time.Duration
	}{
		{"the page's sample", `{"access_token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...","expires_in":3600,"token_type":"Bearer"}`, time.Hour},
		{"expires_in beats the JWT", `{"access_token":"` + hours2 + `","expires_in":600,"token_type":"Bearer"}`, 10 * time.Minute},
		{"ten seconds", `{"access_token":"t","expires_in":10}`, 10 * time.Second},
		{"two seconds", `{"access_token":"t","expires_in":2}`, 2 * time.Second},
		{"a float", `{"access_token":"t","expires_in":59.5}`, 59500 * time.Millisecond},
		{"an exponent", `{"access_token":"t","expires_in":6e2}`, 10 * time.Minute},
		{"a day", `{"access_token":"t","expires_in":86400}`, 24 * time.Hour},
		{"a text", `{"access_token":"t","expires_in":"3600"}`, time.Hour},
		{"a text beside a JWT", `{"access_token":"` + hours2 + `","expires_in":"7200"}`, 2 * time.Hour},
		{"missing, JWT", `{"access_token":"` + hours2 + `"}`, 2 * time.Hour},
		{"null, JWT", `{"access_token":"` + hours2 + `","expires_in":null}`, 2 * time.Hour},
		{"missing", `{"access_token":"t"}`, time.Hour},
		{"null", `{"access_token":"t","expires_in":null}`, time.Hour},
		{"true", `{"access_token":"t","expires_in":true}`, time.Hour},
		{"an object", `{"access_token":"t","expires_in":{}}`, time.Hour},
		{"JWT without iat", `{"access_token":"` + jwt(`{"exp":1700007200}`) + `"}`, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := new(desk)
				// the Date, far from our clock, is of no use here
				checkLife(t, lifeOf(t, d, d.ndovu(), told{header: dated(in2026), body: c.body}, c.want), c.want, "auth")
			})
		})
	}
}

// A lifetime beyond all measure is a long one.
func TestNdovuHugeLifetimes(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"1e10", "9223372036854775807", "1e300", "1.7976931348623157e308"} {
		synctest.Test(t, func(t *testing.T) {
			d := &desk{script: func(int, asked) told { return told{body: `{"access_token":"t","expires_in":` + n + `}`} }}
			source := d.ndovu()
			for range 100 {
				if token, err := source.Token(); err != nil || time.Until(token.Expiry) < 24*time.Hour {
					t.Fatalf("%s: got %v, %v", n, token, err)
				}
				time.Sleep(24 * time.Hour)
			}
			if d.ops() != "auth" {
				t.Errorf("%s: got %s in a hundred days, want one", n, d.ops())
			}
		})
	}
}

func TestNdovuTokens(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"201", 201, `{"access_token":"t","expires_in":3600,"token_type":"Bearer"}`, "t"},
		{"token_type missing", 200, `{"access_token":"t","expires_in":3600}`, "t"},
		{"token_type null", 200, `{"access_token":"t","token_type":null}`, "t"},
		{"token_type empty", 200, `{"access_token":"t","token_type":""}`, "t"},
		{"token_type in lower case", 200, `{"access_token":"t","token_type":"bearer"}`, "t"},
		{"token_type in upper case", 200, `{"access_token":"t","token_type":"BEARER"}`, "t"},
		{"duplicate keys", 200, `{"access_token":"first","access_token":"last"}`, "last"},
		{"more than the page shows", 200, `{"access_token":"t","refresh_token":"r","scope":["a"],"token":"x","success":false}`, "t"},
		{"exactly 1 MiB", 200, `{"access_token":"t"` + strings.Repeat(" ", 1<<20-20) + `}`, "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &desk{script: func(int, asked) told { return told{status: c.status, body: c.body} }}
			token, err := d.ndovu().Token()
			if err != nil {
				t.Fatal(err)
			}
			if token.AccessToken != c.want || token.Type() != "Bearer" || token.RefreshToken != "" || !token.Valid() || d.ops() != "auth" {
				t.Errorf("got %v after %s, want %s", token, d.ops(), c.want)
			}
		})
	}
}

func TestNdovuFailures(t *testing.T) {
	t.Parallel()
	const noToken, notJSON, badToken = "200 OK: no access_token", "200 OK: the answer is not the JSON", "200 OK: the token has characters that a header cannot have"
	ok := func(name, body, text string) failure { return failure{name, told{body: body}, text, 200, 1} }
	for _, f := range append(statusFailures(),
		ok("no token", `{"expires_in":3600,"token_type":"Bearer"}`, noToken),
		ok("token empty", `{"access_token":""}`, noToken),
		ok("token null", `{"access_token":null}`, noToken),
		ok("token a number", `{"access_token":123}`, notJSON),
		ok("token an object", `{"access_token":{"value":"Echo"}}`, notJSON),
		ok("another partner's fields", `{"success":true,"data":{"token":"t"},"token":"t"}`, noToken),
		ok("an envelope", `{"data":{"access_token":"t"}}`, noToken),
		ok("an OAuth error with 200", `{"error":"invalid_client","error_description":"Echo"}`, noToken),
		ok("token_type mac", `{"access_token":"t","token_type":"mac"}`, "200 OK: token_type is not Bearer"),
		ok("token_type DPoP", `{"access_token":"t","token_type":"DPoP"}`, "200 OK: token_type is not Bearer"),
		ok("token_type a number", `{"access_token":"t","token_type":1}`, notJSON),
		ok("token with a newline", `{"access_token":"Echo\nX-Injected: 1"}`, badToken),
		ok("token with a nul", `{"access_token":"Echo\u0000"}`, badToken),
		ok("token with a space", `{"access_token":"Echo Echo"}`, badToken),
		ok("token beyond ASCII", `{"access_token":"Echoé"}`, badToken),
		ok("token of invalid UTF-8", "{\"access_token\":\"Echo\xff\"}", badToken),
	) {
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := new(desk)
				checkFailure(t, d, d.ndovu(), "ndovu", "login", f)
			})
		})
	}
}

// The error tells what the partner's page says about a status.
func TestStatusesAreExplained(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		of     func(*desk) *partnerauth.Source
		status int
		want   string
	}{
		{(*desk).nowPost, 401, "partnerauth: nowpost login: 401 Unauthorized: check the e-mail and password"},
		{(*desk).nowPost, 403, "partnerauth: nowpost login: 403 Forbidden: the account may not use this endpoint"},
		{(*desk).nowPost, 404, "partnerauth: nowpost login: 404 Not Found"},
		{(*desk).ndovu, 400, "partnerauth: ndovu login: 400 Bad Request: the Authorization header was not accepted"},
		{(*desk).ndovu, 401, "partnerauth: ndovu login: 401 Unauthorized: no such client id, or not the raw client secret of the onboarding e-mail"},
		{(*desk).ndovu, 403, "partnerauth: ndovu login: 403 Forbidden"},
	} {
		d := &desk{script: func(int, asked) told { return told{status: c.status} }}
		if _, err := c.of(d).Token(); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// A renewal that fails is nothing to callers until the token ends. Then they
// get its error, and with the next that succeeds a token again.
func TestNdovuRenewalFails(t *testing.T) {
	t.Parallel()
	for _, fails := range []told{{status: 401}, {status: 503}, {body: "{}"}, {err: io.EOF}, {status: 301}} {
		t.Run(fmt.Sprint(fails.status, fails.body, fails.err), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				d := &desk{script: func(n int, _ asked) told {
					if age := time.Since(began); n > 0 && age < 2*time.Hour {
						return fails
					}
					return told{body: fmt.Sprintf(`{"access_token":"token-%d","expires_in":3600,"token_type":"Bearer"}`, n)}
				}}
				source := d.ndovu()
				for ; time.Since(began) < 2*time.Hour+2*time.Minute; time.Sleep(time.Second) {
					token, err := source.Token()
					switch age := time.Since(began); {
					case age < time.Hour && (err != nil || token.AccessToken != "token-0"):
						t.Fatalf("got %v, %v after %v, want the first token", token, err, age)
					case age > time.Hour && age < 2*time.Hour && err == nil:
						t.Fatalf("got %v after %v", token, age)
					case age > 2*time.Hour+time.Minute && err != nil:
						t.Fatalf("got %v after %v", err, age)
					}
				}
				// 75 minutes of failing, at distances that grow to 30 or 60 s
				if got := d.count(); got < 70 || got > 3*75*3+50 {
					t.Errorf("got %d token requests", got)
				}
			})
		})
	}
}

// FuzzNdovuAnswer feeds an answer to a Source: an error that names the
// operation, or a token that can be sent.
func FuzzNdovuAnswer(f *testing.F) {
	for _, c := range statusFailures() {
		f.Add([]byte(c.says.body), "", max(c.says.status, 200))
	}
	for _, body := range []string{
		`{"access_token":"eyJ.eyJ.x","expires_in":3600,"token_type":"Bearer"}`, `{"access_token":"t","expires_in":1e400}`, `{"access_token":"t","expires_in":-1e300}`,
		`{"access_token":"t","expires_in":1e-12}`, `{"access_token":"t","expires_in":"60"}`, `{"access_token":"t","token_type":"mac"}`, `{"access_token":"a\nb"}`,
		`{"access_token":"` + jwt(`{"iat":1700000000,"exp":1700007200}`) + `"}`, `{"access_token":"` + jwt(`{"iat":-1e308,"exp":1e308}`) + `"}`,
	} {
		f.Add([]byte(body), in2026.Format(http.TimeFormat), 200)
	}
	f.Fuzz(func(t *testing.T, body []byte, date string, status int) {
		fuzzAnswer(t, body, date, status, "ndovu", (*desk).ndovu)
	})
}
