package partnerauth_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A readiness probe every second costs no more token requests than calls do, and
// says what a call would.
func TestSignInAsAProbe(t *testing.T) {
	for _, c := range []struct {
		name   string
		login  []reply
		most   int // token requests in ten minutes
		status int // of the AuthError at the end; 0: ready
	}{
		{name: "healthy", most: 1},
		{name: "refused", login: []reply{{status: 401}}, most: 7, status: 401},
		{name: "proxy's 403", login: []reply{{status: 403, body: "<html>"}}, most: 40, status: 403},
		{name: "away", login: []reply{{status: 500}}, most: 120, status: 500},
		{name: "away at first", login: []reply{{err: errTest}, {err: errTest}, {err: errTest}, {err: errTest}, {}}, most: 5},
	} {
		for _, pr := range providers {
			bubble(t, pr.name+" "+c.name, func(t *testing.T) {
				p := new(partner).on("login", c.login...)
				rt := p.transportOf(pr, nil)
				var err error
				for range 600 {
					err = rt.SignIn(deadline(t, time.Second))
					time.Sleep(time.Second)
				}
				errorIf(t, (err == nil) != (c.status == 0), "got %v, want the status %d", err, c.status)
				errorIf(t, authOf(err).StatusCode != c.status, "got %v, want the status %d", err, c.status)
				errorIf(t, p.count("login") > c.most, "%d logins, want %d at most", p.count("login"), c.most)
				errorIf(t, p.count("call") > 0, "%d calls, want none", p.count("call"))
				_, called := try(t.Context(), rt, "/")
				errorIf(t, (called == nil) != (err == nil), "a call says %v, SignIn %v", called, err)
				errorIf(t, errors.Is(called, partnerauth.ErrCredentials) != errors.Is(err, partnerauth.ErrCredentials),
					"a call says %v, SignIn %v", called, err)
			})
		}
	}
}

func TestSignInBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("login", reply{after: 5 * time.Second})
		rt := p.transport(&partnerauth.Quota{Requests: 1})
		_, err := try(t.Context(), p.transport(rt.Limiter), "/") // all that the Quota has, and its login another
		must(t, err)
		took := elapsed(func() { err = rt.SignIn(deadline(t, time.Second)) })
		errorIf(t, !errors.Is(err, context.DeadlineExceeded), "got %v, want the deadline's error", err)
		errorIf(t, took != time.Second, "gave up after %v, want a second", took)
		atOnce(5, func(int) { must(t, rt.SignIn(t.Context())) }).Wait()
		errorIf(t, p.count("login") != 2, "%d logins, want one each", p.count("login"))
		took = elapsed(func() { must(t, rt.SignIn(t.Context())) })
		errorIf(t, took > 0, "with a token it took %v: a permit?", took)
	})
	for name, rt := range map[string]*partnerauth.Transport{
		"Source": {}, "Origins": {Source: static("t")}, "Password": {Source: partnerauth.NowPost{Email: "e"}.TokenSource()},
	} {
		err := rt.SignIn(t.Context())
		errorIf(t, err == nil || !strings.Contains(err.Error(), name), "got %v, want an error that names %s", err, name)
	}
	must(t, new(partner).custom(static("t"), nil).SignIn(t.Context()))
	err := new(partner).custom(tokenFunc(func() (*oauth2.Token, error) { return nil, errTest }), nil).SignIn(t.Context())
	errorIf(t, !errors.Is(err, errTest), "got %v, want the source's own error", err)
}

// A login by http.DefaultTransport that failed, as of a probe of the Source, is
// no reason to hold back a Transport that has another way. A refusal is.
func TestSignInByItsOwnWay(t *testing.T) {
	before := http.DefaultTransport
	defer func() { http.DefaultTransport = before }()
	everyProvider(t, func(t *testing.T, pr provider) {
		account := func() *partnerauth.Source { return pr.config(good(nil)).TokenSource() }
		http.DefaultTransport = roundTripFunc(func(*http.Request) (*http.Response, error) { return nil, dialing })
		p := new(partner)
		rt := &partnerauth.Transport{Source: account(), Base: p}
		for range 20 {
			_, err := rt.Source.Token()
			errorIf(t, err == nil, "the DefaultTransport signed in")
			time.Sleep(time.Second)
		}
		took := elapsed(func() { must(t, rt.SignIn(t.Context())) })
		errorIf(t, took > time.Second, "signed in after %v, want at once", took)
		errorIf(t, p.count("login") != 1, "%d logins, want 1", p.count("login"))

		http.DefaultTransport = new(partner).on("login", reply{status: 401})
		rt = &partnerauth.Transport{Source: account(), Base: p}
		rt.Source.Token()
		err := rt.SignIn(t.Context())
		errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %v, want the refusal", err)
		errorIf(t, p.count("login") != 1, "%d logins, want no other after the refusal", p.count("login"))
	})
}

// Rotation of the password under load: nobody fails for longer than it takes the
// Func to return the new one, which is tried at once.
func TestPasswordRotation(t *testing.T) {
	t.Parallel()
	everyProvider(t, func(t *testing.T, pr provider) {
		for late, logins := range map[time.Duration]int{500 * time.Millisecond: 3, 2 * time.Minute: 6} {
			var known, good atomic.Value
			known.Store("old")
			good.Store("old")
			p := new(partner)
			p.script = func(a asked) reply {
				if a.op == "login" && a.secret() != good.Load().(string) {
					return reply{status: 401}
				}
				return reply{}
			}
			rt := p.transport(nil)
			ask := func(context.Context) (string, error) { return known.Load().(string), nil }
			rt.Source = pr.config(credentials{id: "e", ask: ask}).TokenSource()
			var last atomic.Int64 // failure
			began := time.Now()
			time.AfterFunc(time.Minute, func() { good.Store("new"); p.revokeAll() })
			time.AfterFunc(time.Minute+late, func() { known.Store("new") })
			atOnce(4, func(int) {
				for time.Since(began) < 5*time.Minute {
					if code, err := try(t.Context(), rt, "/"); code != 200 {
						errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %d, %v", code, err)
						last.Store(int64(time.Since(began)))
					}
					time.Sleep(100 * time.Millisecond)
				}
			}).Wait()
			over := time.Duration(last.Load()) - time.Minute
			most := late + time.Second // the Func is asked once a second
			errorIf(t, over <= 0 || over > most, "calls failed until %v, want %v at most", over, most)
			errorIf(t, p.count("login") > logins, "got %q, want %d logins at most", p.ops(), logins)
			errorIf(t, p.count("login 200") != 2, "%d logins succeeded, want one with each password", p.count("login 200"))
		}
	})
}

// What a Func says is a mistake of the configuration that may pass.
func TestFuncs(t *testing.T) {
	everyProvider(t, func(t *testing.T, pr provider) {
		var err error
		asked := 0
		ask := func(context.Context) (string, error) { asked++; return "secret", err }
		p := new(partner)
		source := pr.config(credentials{id: "i", ask: ask, base: p}).TokenSource()
		err = errTest
		_, got := source.Token()
		auth := authOf(got)
		errorIf(t, auth.Op != "config", "got %v, want Op config", got)
		errorIf(t, auth.Provider != pr.name, "got %v, want the provider", got)
		errorIf(t, !errors.Is(got, errTest), "got %v, want the Func's error", got)
		errorIf(t, errors.Is(got, partnerauth.ErrCredentials), "got %v, which is ErrCredentials", got)
		errorIf(t, len(p.seen()) > 0, "%v was sent", p.seen())
		for range 600 { // as any failed fetch, it backs off
			time.Sleep(100 * time.Millisecond)
			source.Token()
		}
		errorIf(t, asked < 4 || asked > 10, "the Func was asked %d times in a minute, want 4 to 10", asked)
		err = nil
		time.Sleep(time.Minute)
		_, got = source.Token()
		errorIf(t, got != nil, "got %v after the Func has recovered", got)
	})
}

// A Func that hangs, as while a vault is away, is given up with the fetch.
func TestFuncThatHangs(t *testing.T) {
	everyProvider(t, func(t *testing.T, pr provider) {
		p, hung := new(partner), new(atomic.Bool)
		source := pr.config(credentials{id: "e", base: p, ask: func(ctx context.Context) (string, error) {
			if !hung.Swap(true) {
				return "", sleep(ctx, time.Hour)
			}
			return "p", nil
		}}).TokenSource()
		_, err := source.TokenContext(deadline(t, 10*time.Minute))
		errorIf(t, authOf(err).Op != "config", "got %v, want the Func to have been given up", err)
		time.Sleep(time.Minute)
		_, err = source.TokenContext(deadline(t, 10*time.Minute))
		errorIf(t, err != nil, "the next caller: %v", err)
		time.Sleep(time.Hour)
	})
}
