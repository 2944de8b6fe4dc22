package partnerauth_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// jwt is an unsigned token with the given claims.
func jwt(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + part([]byte(claims)) + "." + part([]byte("signature"))
}

// in2026 is when a partner answers whose client believes in 2000, where a bubble
// begins.
var in2026 = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// at is a time of the partner's in 2026, as NowPost writes it.
func at(d time.Duration) string { return in2026.Add(d).Format(time.RFC3339) }

// fields makes a header of lines, with a Date of 2026.
func fields(lines ...string) http.Header {
	return headers(append([]string{"Date: " + in2026.Format(http.TimeFormat)}, lines...)...)
}

// checkLife watches the token that first brings, which takes a second: how long
// it is served, when it is renewed and how, in times since the request for it was
// sent. Whatever is asked after that hangs.
func checkLife(t *testing.T, first reply, of func(*partner) *partnerauth.Source, want time.Duration, op string) (renewed time.Duration) {
	t.Helper()
	p := new(partner)
	first.after = time.Second
	p.script = func(a asked) reply {
		if a.n == 0 {
			return first
		}
		return reply{after: forever}
	}
	source, began := of(p), time.Now()
	token, err := source.Token()
	must(t, err)
	defer time.Sleep(time.Hour) // until what hangs has given up
	served := func() bool {
		ctx := deadline(t, time.Microsecond)
		now, err := source.TokenContext(ctx)
		return err == nil && now == token
	}
	for ; len(p.seen()) < 2; time.Sleep(want / 1000) {
		if time.Since(began) > 2*want {
			t.Fatalf("no renewal in %v", time.Since(began))
		}
		if served() {
			synctest.Wait()
		}
	}
	second := p.seen()[1]
	errorIf(t, second.op != op || second.at < want*75/100 || second.at > want*85/100+want/500,
		"got a %s after %v of %v, want a %s after 75 %% to 85 %%", second.op, second.at, want, op)
	ends := token.Expiry.Sub(began)
	errorIf(t, ends != want, "the token ends after %v, want %v", ends, want)
	time.Sleep(time.Until(token.Expiry) - time.Millisecond)
	errorIf(t, !served(), "the token is not served %v after it was asked for, a millisecond before its end", time.Since(began))
	time.Sleep(time.Millisecond)
	errorIf(t, served(), "the token is served %v after it was asked for, when it has ended", time.Since(began))
	return second.at
}

// Many processes do not renew at once.
func TestRenewalsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen []time.Duration
		for range 12 {
			seen = append(seen, checkLife(t, reply{body: aToken}, (*partner).nowPost, 24*time.Hour, "refresh"))
		}
		errorIf(t, !spread(seen) || slices.Max(seen)-slices.Min(seen) < 24*time.Hour*2/100, "got renewals after %v, want them spread", seen)
	})
}

// A stand-in that answers the page's sample literally, expiry in the past
// included, works. So does any token that is over by its own answer: it is
// used, renewed by login since an ended token must not be sent to refresh, and
// costs at most ten token requests a minute.
func TestAnswerPastItsOwnExpiry(t *testing.T) {
	t.Parallel()
	const sample = `{"success":true,"data":{"token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...",` +
		`"expiresAt":"2024-01-15T12:00:00Z","user":{"id":"user_123","email":"your-email@example.com"}}}`
	expiring := func(d time.Duration) string { return `{"token":"t","expiresAt":"` + at(d) + `"}` }
	for _, c := range []struct {
		name  string
		reply reply
	}{
		{"the page's sample", reply{header: fields(), body: sample}},
		{"over by a second", reply{header: fields(), body: expiring(-time.Second)}},
		{"over while it was on its way", reply{header: fields(), body: expiring(time.Second), after: 2 * time.Second}},
		{"by our clock", reply{body: `{"token":"t","expiresAt":"1999-12-31T23:59:59Z"}`}},
		{"JWT absurdly", reply{body: `{"token":"` + jwt(`{"iat":1e308,"exp":-1e308}`) + `"}`}},
		{"Ndovu's zero", reply{body: `{"access_token":"t","expires_in":0}`}},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{script: always(c.reply)}
			source := p.nowPost()
			if strings.Contains(c.reply.body, "access_token") {
				source = p.ndovu()
			}
			waited := 0
			for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(50 * time.Millisecond) {
				asked := time.Now()
				token, err := source.Token()
				if err != nil || !time.Now().Before(token.Expiry) {
					t.Fatalf("got %v, %v, want a token that is not over", token, err)
				}
				if time.Since(asked) > 0 {
					waited++
				}
			}
			errorIf(t, waited > 1 && c.reply.after == 0, "got %d callers that waited, want the first alone", waited)
			log := p.seen()
			errorIf(t, len(log) < 5 || p.count("refresh") > 0, "got %s in ten minutes, want several logins", p.ops())
			for i := 10; i < len(log); i++ {
				if d := log[i].at - log[i-10].at; d < time.Minute {
					t.Fatalf("got more than 10 token requests in a minute: %v", d)
				}
			}
			time.Sleep(time.Minute)
		})
	}
}

// A partner that is honest about its tokens is sent none, for a refresh neither,
// that has ended, and lifetimes are no matter.
func TestTokensOfAnyLifetime(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{5 * time.Second, 10 * time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		for op, of := range map[string]func(*partner) *partnerauth.Source{"refresh": (*partner).nowPost, "login": (*partner).ndovu} {
			bubble(t, fmt.Sprint(lifetime, " ", op), func(t *testing.T) {
				slow := reply{after: min(lifetime/20, 5*time.Second)}
				p := (&partner{lifetime: lifetime}).on("login", slow).on("refresh", slow)
				rt := p.transport(nil)
				rt.Source = of(p)
				const lives, calls = 20, 2000
				waited := 0
				for range calls {
					asked := time.Now()
					if got := get(t, rt, "/orders"); got != 200 {
						t.Fatalf("got %d", got)
					}
					if time.Since(asked) > 0 {
						waited++
					}
					time.Sleep(lifetime * lives / calls)
				}
				tokens := p.count("login") + p.count("refresh")
				errorIf(t, tokens < lives || tokens > lives*10/7+2 || waited > 1 || p.count(op) < tokens-1,
					"got %s in %d lifetimes and %d callers that waited, want one token in 80 %% of each and one caller", p.ops(), lives,
					waited)
				errorIf(t, p.count("call 401") > 0 || p.count("refresh 401") > 0, "a token was sent that had ended")
				time.Sleep(lifetime)
			})
		}
	}
}

// A token that nobody asked for while it ended is replaced by login.
func TestEndedTokenIsNotRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partner{lifetime: time.Minute}
		source := p.nowPost()
		for _, idle := range []time.Duration{0, time.Minute, time.Minute + time.Nanosecond, 100 * time.Hour} {
			time.Sleep(idle)
			_, err := source.Token()
			must(t, err)
		}
		errorIf(t, p.ops() != "login login login login", "got %s, want logins", p.ops())
	})
}
