package partnerauth_test

import (
	"context"
	"errors"
	"net/http"
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
				for range 600 {
					rt.SignIn(deadline(t, time.Second))
					time.Sleep(time.Second)
				}
				err := rt.SignIn(deadline(t, time.Minute)) // long enough for a fetch to end
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

// Rotation of the password under load: nobody fails for longer than it takes the Func to
// return the new one, which is tried at once. While a refusal holds, the Func is asked once
// a second, also by processes that share a Store.
func TestPasswordRotation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		late   time.Duration // how long the Func has the old one only
		shared bool
		logins int // at most
	}{
		{late: 500 * time.Millisecond, logins: 3},
		{late: 40 * time.Second, shared: true, logins: 6},
		{late: 10 * time.Minute, logins: 8},
	} {
		everyProvider(t, func(t *testing.T, pr provider) {
			var known, good atomic.Value
			known.Store("old")
			good.Store("old")
			p := new(partner)
			p.script = func(a asked) reply {
				if a.op == "login" && a.secret() != good.Load().(string) {
					return reply{status: 422, header: headers("Content-Type: application/json"), body: "{}"}
				}
				return reply{}
			}
			var asked, last atomic.Int64 // the Func; the last failure
			ask := func(context.Context) (string, error) { asked.Add(1); return known.Load().(string), nil }
			rt := p.transport(nil)
			rt.Source = pr.config(credentials{id: "e", ask: ask, store: storeIf(c.shared)}).TokenSource()
			began := time.Now()
			time.AfterFunc(time.Minute, func() { good.Store("new"); p.revokeAll() })
			time.AfterFunc(time.Minute+c.late, func() { known.Store("new") })
			time.Sleep(time.Minute - time.Second)
			for time.Since(began) < time.Minute+c.late+10*time.Second {
				atOnce(2, func(int) {
					if code, err := try(t.Context(), rt, "/"); code != 200 {
						errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %d, %v", code, err)
						last.Store(int64(time.Since(began)))
					}
				}).Wait()
				time.Sleep(max(100*time.Millisecond, min(c.late/1000, 500*time.Millisecond)))
			}
			over := time.Duration(last.Load()) - time.Minute
			errorIf(t, over <= 0 || over > c.late+time.Second, "calls failed for %v, want %v and a second at most", over, c.late)
			errorIf(t, p.count("login") > c.logins, "got %q, want %d logins at most", p.ops(), c.logins)
			errorIf(t, p.count("login 200") != 2, "%d logins succeeded, want one with each password", p.count("login 200"))
			most := int64(c.late/time.Second) + 3*int64(p.count("login")) + 2
			errorIf(t, asked.Load() > most, "the Func was asked %d times, want %d at most", asked.Load(), most)
		})
	}
}

// An error of a Func is a mistake of the configuration that may pass. It backs off as any
// failed fetch, and a Func that hangs, as while a vault is away, is given up with the fetch.
func TestFuncs(t *testing.T) {
	everyProvider(t, func(t *testing.T, pr provider) {
		p, asked := new(partner), 0
		answers := func(context.Context) (string, error) { return "", errTest }
		ask := func(ctx context.Context) (string, error) { asked++; return answers(ctx) }
		source := pr.config(credentials{id: "i", ask: ask, base: p}).TokenSource()
		_, err := source.Token()
		auth := authOf(err)
		errorIf(t, auth.Op != "config" || auth.Provider != pr.name, "got %v, want Op config and the provider", err)
		errorIf(t, !errors.Is(err, errTest), "got %v, want the Func's error", err)
		errorIf(t, errors.Is(err, partnerauth.ErrCredentials), "got %v, which is ErrCredentials", err)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			source.Token()
		}
		synctest.Wait()
		errorIf(t, asked < 4 || asked > 10, "the Func was asked %d times in a minute, want 4 to 10", asked)
		errorIf(t, len(p.seen()) > 0, "%v was sent", p.seen())

		answers = func(ctx context.Context) (string, error) { return "", sleep(ctx, time.Hour) }
		time.Sleep(time.Minute)
		_, err = source.TokenContext(deadline(t, 10*time.Minute))
		errorIf(t, authOf(err).Op != "config", "got %v, want the Func to have been given up", err)
		synctest.Wait()
		answers = func(context.Context) (string, error) { return "secret", nil }
		time.Sleep(time.Minute)
		_, err = source.TokenContext(deadline(t, 10*time.Minute))
		errorIf(t, err != nil, "got %v after the Func has recovered", err)
		time.Sleep(time.Hour)
	})
}
