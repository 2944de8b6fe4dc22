package partnerauth_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// There is one Authorization on the wire, and it is ours, however the caller wrote it.
func TestOneAuthorization(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { got = req.Header["Authorization"] }))
	defer server.Close()
	base := new(http.Transport)
	defer base.CloseIdleConnections()
	authorize := func(req *http.Request, token *oauth2.Token) error {
		req.Header.Set("Authorization", "Bearer "+token.AccessToken)
		return nil
	}
	for _, authorize := range []func(*http.Request, *oauth2.Token) error{nil, authorize} {
		account := acme(good(new(partner)))
		account.BaseURL, account.Authorize = server.URL, authorize
		source := account.TokenSource()
		for _, spelling := range []string{"Authorization", "authorization", "AUTHORIZATION", "aUthorization"} {
			req := newRequest(t, "GET", server.URL, "")
			req.Header = http.Header{spelling: {"mine"}, "Other": {"x"}}
			code := status(t, &partnerauth.Transport{Source: source, Base: base}, req)
			errorIf(t, code != 200 || len(got) != 1 || got[0] != "Bearer token-1",
				"%s, Authorize %t: got %d with %q", spelling, authorize != nil, code, got)
			errorIf(t, len(req.Header) != 2 || req.Header[spelling][0] != "mine",
				"%s: the caller's header was changed: %v", spelling, req.Header)
		}
	}
}

// Token answers as they come: those that are good, and what is said of the others.
func TestAnswersAsTheyCome(t *testing.T) {
	const bom = "\xef\xbb\xbf"
	token := func(t string) string { return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q}`, t) }
	success := func(v string) string { return `{"success":` + v + `,"access_token":"t","data":{"token":"t"}}` }
	for _, c := range []struct {
		name    string
		reply   reply
		nowPost bool   // concerns NowPost alone
		want    string // the token, or what the error says if it starts with a space
	}{
		{name: "a byte order mark", reply: reply{body: bom + token("t")}, want: "t"},
		{name: "two byte order marks", reply: reply{body: bom + bom + token("t")}, want: " the answer is not the JSON"},
		{name: "a type in the field", reply: reply{body: token("Bearer t")}, want: "t"},
		{name: "a type in small letters", reply: reply{body: token("bearer  t")}, want: "t"},
		{name: "another type", reply: reply{body: token("Basic t")}, want: " characters that a header cannot have"},
		{name: "a type alone", reply: reply{body: token("Bearer ")}, want: " characters that a header cannot have"},
		{name: "gzip", reply: reply{header: headers("Content-Encoding: gzip"), body: "\x1f\x8b"}, want: " Content-Encoding, gzip,"},
		{name: "an encoding of its own", reply: reply{header: headers("Content-Encoding: Planted-Secret"), body: "x"},
			want: " Content-Encoding, unknown,"},
		{name: "identity", reply: reply{header: headers("Content-Encoding: identity"), body: token("t")}, want: "t"},
		{name: "true", reply: reply{body: success("true")}, want: "t"},
		{name: "1", reply: reply{body: success("1")}, want: "t"},
		{name: "a string", reply: reply{body: success(`"true"`)}, want: "t"},
		{name: "null", reply: reply{body: success("null")}, want: "t"},
		{name: "an object", reply: reply{body: success(`{"code":1}`)}, want: "t"},
		{name: "false", reply: reply{body: success("false")}, nowPost: true, want: " success is false"},
		{name: "0", reply: reply{body: success("0")}, nowPost: true, want: " success is false"},
		{name: "false in a string", reply: reply{body: success(`"False"`)}, nowPost: true, want: " success is false"},
		{name: "0 in a string", reply: reply{body: success(`"0"`)}, nowPost: true, want: " success is false"},
	} {
		p := &partner{script: always(c.reply)}
		byDefault := acme(good(p)) // reads RFC 6749's answer
		byDefault.ReadToken = nil
		nowPost, ndovu := providers[0].config(good(p)), providers[1].config(good(p))
		for name, account := range map[string]config{"nowpost": nowPost, "ndovu": ndovu, "acme": byDefault} {
			if c.nowPost && name != "nowpost" {
				continue
			}
			got, err := account.TokenSource().Token()
			if text, bad := strings.CutPrefix(c.want, " "); bad {
				errorIf(t, err == nil || !strings.Contains(err.Error(), text), "%s, %s: got %v, want %q in it", c.name, name, err, text)
				errorIf(t, err != nil && strings.Contains(err.Error(), "Planted"),
					"%s, %s: got the answer's words in %v", c.name, name, err)
				continue
			}
			errorIf(t, err != nil || got.AccessToken != c.want, "%s, %s: got %v, %v, want %s", c.name, name, got, err, c.want)
		}
	}
}

// A Base that asks for gzip itself, as with another client's header, is named.
func TestGzipOnTheWire(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, aToken)
		z.Close()
	}))
	defer server.Close()
	base := new(http.Transport)
	defer base.CloseIdleConnections()
	asking := roundTripFunc(func(req *http.Request) (*http.Response, error) {
		req.Header.Set("Accept-Encoding", "gzip")
		return base.RoundTrip(req)
	})
	for name, rt := range map[string]http.RoundTripper{"": base, "gzip": asking} {
		_, err := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: server.URL, Base: rt}.TokenSource().Token()
		errorIf(t, name == "" && err != nil || name != "" && (err == nil || !strings.Contains(err.Error(), "Content-Encoding, gzip")),
			"%q: got %v", name, err)
	}
}

// A body that was announced and is not there is an error to whoever reads it.
func TestBodyThatIsMissing(t *testing.T) {
	for _, c := range []struct {
		method string
		length int64
		want   error
	}{{"GET", 5, io.ErrUnexpectedEOF}, {"HEAD", 5, nil}, {"GET", 0, nil}, {"GET", -1, nil}} {
		rt := &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL},
			Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, ContentLength: c.length, Request: req}, nil
			})}
		resp, err := rt.RoundTrip(newRequest(t, c.method, apiURL, ""))
		must(t, err)
		_, err = io.ReadAll(resp.Body)
		errorIf(t, !errors.Is(err, c.want), "%s of %d B: got %v, want %v", c.method, c.length, err, c.want)
	}
	everyProvider(t, func(t *testing.T, pr provider) {
		p := new(partner)
		_, err := pr.config(good(roundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := p.RoundTrip(req)
			resp.Body, resp.ContentLength = nil, 5
			return resp, err
		}))).TokenSource().Token()
		errorIf(t, !errors.Is(err, io.ErrUnexpectedEOF), "a token request got %v, want %v", err, io.ErrUnexpectedEOF)
	})
}

// What rule 17 says beyond what pauseCases have.
func TestMorePauses(t *testing.T) {
	t.Parallel()
	in := func(d time.Duration) string { return in2026.Add(d).Format(time.RFC3339) }
	const s = time.Second
	for _, c := range []pauseCase{
		{"X-Rate-Limit-Reset, delta", fields("X-Rate-Limit-Remaining: 0", "X-Rate-Limit-Reset: 50"), 50 * s, 51 * s},
		{"X-Rate-Limit-Reset, epoch", fields(fmt.Sprint("X-Rate-Limit-Reset: ", in2026.Unix()+50)), 50 * s, 51 * s},
		{"X-Rate-Limit with some left", fields("X-Rate-Limit-Remaining: 1", "X-Rate-Limit-Reset: 50"), unnamed, unnamed},
		{"X-Rate-Limit after the others", fields("X-RateLimit-Reset: 17", "X-Rate-Limit-Reset: 50"), 17 * s, 18 * s},
		{"RFC 3339", fields("X-RateLimit-Reset: " + in(50*s)), 50 * s, 51 * s},
		{"RFC 3339 with a zone", fields("X-RateLimit-Reset: " + in2026.Add(50*s).In(time.FixedZone("", -7*3600)).Format(time.RFC3339)),
			50 * s, 51 * s},
		{"RFC 3339 with a fraction", fields("X-RateLimit-Reset: " + in2026.Add(50*s+300*time.Millisecond).Format(time.RFC3339Nano)),
			50*s + 300*time.Millisecond, 51 * s},
		{"RFC 3339 that has passed", fields("X-RateLimit-Reset: " + in(-2*s)), unnamed, unnamed},
		{"RFC 3339 in Retry-After", fields("Retry-After: " + in(50*s)), 50 * s, 51 * s},
		{"two equal fields", fields("Retry-After: 20, 20"), 20 * s, 21 * s},
		{"three, without spaces", fields("Retry-After: 20,20,20"), 20 * s, 21 * s},
		{"two that differ", fields("Retry-After: 20, 30"), unnamed, unnamed},
		{"one and nothing", fields("Retry-After: 20,"), unnamed, unnamed},
		{"a reset twice", fields("X-RateLimit-Reset: 50, 50"), 50 * s, 51 * s},
		{"0 stays 0", fields("Retry-After: 0"), 0, 0},
		{"0.0", fields("Retry-After: 0.0"), 0, 0},
		{"a fraction is exact", fields("Retry-After: 7.25"), 7250 * time.Millisecond, 7250 * time.Millisecond},
		{"whole seconds", fields("Retry-After: 1"), 1900 * time.Millisecond, 2 * s},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := new(partner).on("call", reply{status: 429, header: c.header}, reply{})
			time.Sleep(700 * time.Millisecond)
			took := elapsed(func() { get(t, p.custom(static("t"), limiterFunc(func(context.Context) error { return nil })), "/") })
			errorIf(t, took < c.least || took > c.most, "the second attempt came after %v, want %v to %v", took, c.least, c.most)
		})
	}
}

// A server that rounds Retry-After down is met by one retry: it takes the second.
func TestRetryAfterThatWasRoundedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := new(partner)
		p.script = func(a asked) reply {
			if left := 8*time.Second - time.Since(began) - time.Millisecond; a.op == "call" && left > 0 {
				return busy(fmt.Sprint(int(left.Seconds())))
			}
			return reply{}
		}
		code := get(t, p.custom(static("t"), nil), "/")
		p.open = true
		errorIf(t, p.count("call 429") != 1, "got %d after %d answers 429, want one", code, p.count("call 429"))
	})
}

// "Nothing remains" on every answer that is served is not believed for long, but
// where it is true it is, and a 429 makes it so again.
func TestNothingRemainsAgainAndAgain(t *testing.T) {
	spent := fields("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 60")
	for _, c := range []struct {
		name       string
		script     func(asked) reply
		served     int // calls in ten minutes, at least
		most429    int
		concurrent int
	}{
		{name: "always", script: always(reply{status: 200, header: spent}), served: 400},
		{name: "always, from many at once", script: always(reply{status: 200, header: spent}), served: 400, concurrent: 20},
		{name: "every other answer", script: func(a asked) reply {
			if a.nth%2 == 0 {
				return reply{status: 200}
			}
			return reply{status: 200, header: spent}
		}, served: 200},
		{name: "where it is true", script: fixedWindow(10), served: 90, most429: 1},
		{name: "one a minute", script: fixedWindow(1), served: 9, most429: 4},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{script: c.script}
			rt := p.custom(static("t"), &partnerauth.Quota{FixedRate: true})
			began := time.Now()
			atOnce(max(1, c.concurrent), func(int) {
				for time.Since(began) < 10*time.Minute {
					try(t.Context(), rt, "/")
					time.Sleep(time.Second)
				}
			}).Wait()
			served, refused := p.count("call 200"), p.count("call 429")
			errorIf(t, served < c.served, "%d calls were served in ten minutes, want at least %d", served, c.served)
			errorIf(t, refused > c.most429, "%d calls were refused, want %d at most", refused, c.most429)
		})
	}
}

// fixedWindow is a server that serves n calls a minute, and says so.
func fixedWindow(n int) func(asked) reply {
	served, minute := 0, int64(0)
	return func(asked) reply {
		now := time.Now()
		if m := now.Unix() / 60; m != minute {
			served, minute = 0, m
		}
		left := headers(fmt.Sprint("X-RateLimit-Remaining: ", max(0, n-served-1)),
			fmt.Sprint("X-RateLimit-Reset: ", (minute+1)*60-now.Unix()))
		if served++; served > n {
			return reply{status: 429, header: left}
		}
		return reply{status: 200, header: left}
	}
}

// Requests that follow redirects are resent, too.
func TestRedirectsAreCounted(t *testing.T) {
	rec := newRecording()
	p := &partner{open: true, script: func(a asked) reply {
		switch a.path {
		case "/a":
			return reply{status: 307, header: headers("Location: /b")}
		case "/b":
			return reply{status: 302, header: headers("Location: /c")}
		}
		return reply{}
	}}
	p.on("/c", reply{status: 401}, reply{})
	rt := rec.plain(p)
	rt.Source = renewing()
	resp, err := (&http.Client{Transport: rt}).Get(apiURL + "/a")
	must(t, err)
	resp.Body.Close()
	var got []string
	for _, s := range rec.clients() {
		got = append(got, attributeOf(s, "http.request.resend_count"))
	}
	errorIf(t, strings.Join(got, ",") != ",1,2,3", "got resend counts %q, want none, 1, 2, 3", got)
}

// renewing is a source that has another token each time.
func renewing() oauth2.TokenSource { return renewable{new(counting).Token, func(*oauth2.Token) {}} }

// counting is a source of the tokens token-1, token-2 and so on.
type counting struct{ n int }

func (c *counting) Token() (*oauth2.Token, error) {
	c.n++
	return &oauth2.Token{AccessToken: fmt.Sprint("token-", c.n)}, nil
}
