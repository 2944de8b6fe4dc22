package partnerauth_test

import (
	"errors"
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

func TestCustomSourceFails(t *testing.T) {
	for name, source := range map[string]tokenFunc{
		"error": func() (*oauth2.Token, error) { return nil, errTest },
		"nil":   func() (*oauth2.Token, error) { return nil, nil },
		"empty": func() (*oauth2.Token, error) { return new(oauth2.Token), nil },
	} {
		p := new(partner)
		err := p.sentNothing(t, t.Context(), p.custom(source, nil))
		errorIf(t, authOf(err).Op != "token" || (name == "error") != errors.Is(err, errTest),
			"%s: got %v, want an AuthError about the token", name, err)
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
