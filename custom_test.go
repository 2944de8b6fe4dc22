package partnerauth_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A source of the user's own with our methods is treated like ours: its login
// takes a permit, and its 401 is worth another try.
func TestCustomSourceWithOurMethods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner)
		rt := p.custom(struct{ *partnerauth.Source }{p.nowPost()}, &partnerauth.Quota{Requests: 3})
		get(t, rt, "/")
		p.revokeAll()
		took := elapsed(func() { errorIf(t, get(t, rt, "/") != 200, "a 401 was not worth another try") })
		errorIf(t, p.count("login") != 2 || took < time.Minute,
			"%d logins, and a call took %v, want 2 and a permit for each", p.count("login"), took)
	})
}

// One without Invalidate gets its 401 back as it is.
func TestCustomSourceWithoutOurMethods(t *testing.T) {
	p := new(partner)
	rt := p.custom(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "key", TokenType: "token"}), nil)
	code := get(t, rt, "/")
	errorIf(t, code != 401 || p.count("call") != 1, "got %d after %d calls, want the 401 of one", code, p.count("call"))
	got := p.seen()[0].header.Get("Authorization")
	errorIf(t, got != "token key", "got Authorization %q, want the token's own type", got)
}

// Its error counts as ours would, and nothing of a partner's answer in it is shown.
func TestCustomSourceIsRefused(t *testing.T) {
	answered := func(status int, word string) error {
		return &oauth2.RetrieveError{Response: &http.Response{StatusCode: status}, ErrorCode: word, Body: []byte("hunter2")}
	}
	for _, c := range []struct {
		token   *oauth2.Token
		err     error
		refused bool
		text    string // how the error's begins
	}{
		{err: answered(401, ""), refused: true, text: "401 Unauthorized"},
		{err: answered(400, "invalid_grant"), refused: true, text: "400 Bad Request: invalid_grant"},
		{err: answered(400, "invalid_scope"), text: "400 Bad Request: invalid_scope"},
		{err: answered(400, "hunter2"), refused: true, text: "400 Bad Request"}, // a word of the partner's own
		{err: answered(500, ""), text: "500 Internal Server Error"},
		{err: fmt.Errorf("my source: %w", &oauth2.RetrieveError{Body: []byte("hunter2")}), text: "failed"},
		{err: errTest},
		{text: "the source returned"},
		{token: new(oauth2.Token), text: "the source returned"},
	} {
		p := new(partner)
		source := tokenFunc(func() (*oauth2.Token, error) { return c.token, c.err })
		err := p.sentNothing(t, t.Context(), p.custom(source, nil))
		errorIf(t, !strings.HasPrefix(fmt.Sprint(err), "partnerauth: token: "+c.text), "got %v, want %q", err, c.text)
		errorIf(t, strings.Contains(fmt.Sprint(err), "hunter2"), "got %v, which repeats the answer", err)
		errorIf(t, errors.Is(err, partnerauth.ErrCredentials) != c.refused, "got %v, want ErrCredentials %t", err, c.refused)
		errorIf(t, c.err != nil && !errors.Is(err, c.err), "%v does not unwrap to the source's own error", err)
		status := 0
		if answered, ok := errors.AsType[*oauth2.RetrieveError](c.err); ok && answered.Response != nil {
			status = answered.Response.StatusCode
		}
		errorIf(t, authOf(err).Op != "token" || authOf(err).StatusCode != status, "got %#v, want Op token and %d", authOf(err), status)
	}
}

// A misused 401 is bounded here, too, whether Invalidate brings another token or
// does nothing.
func TestCustomInvalidateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("call", reply{status: 401})
		rt := p.custom(struct{ *partnerauth.Source }{p.nowPost()}, nil)
		for range 500 {
			get(t, rt, "/")
		}
		n := p.count("login")
		errorIf(t, n < 4 || n > 25, "500 calls cost %d logins, want 4 to 25", n)

		p = new(partner)
		rt = p.custom(renewable{static("t").Token, func(*oauth2.Token) {}}, &partnerauth.Quota{Requests: 1_000_000})
		for range 500 {
			get(t, rt, "/")
		}
		errorIf(t, len(p.seen()) != 500, "500 calls cost %d requests, want no other for a token that was rejected", len(p.seen()))
	})
}

// A custom token that is over is sent: the server decides.
func TestCustomTokenThatIsOver(t *testing.T) {
	for _, l := range limiters {
		bubble(t, l.name, func(t *testing.T) {
			p := &partner{open: true}
			token := &oauth2.Token{AccessToken: "t", Expiry: time.Now().Add(time.Second)}
			rt := p.custom(oauth2.StaticTokenSource(token), l.make())
			ctx := deadline(t, 10*time.Minute)
			for n := range 110 { // so that some wait
				if _, err := try(ctx, rt, "/"); err != nil {
					t.Fatalf("%v after %d", err, n)
				}
			}
		})
	}
}
