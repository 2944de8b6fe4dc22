package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A verdict is an answer to a sign-in, and what it means.
type verdict struct {
	name    string
	reply   reply
	refusal bool // the partner's considered word: 10 in the first hour
	wrong   bool // ErrCredentials
	nowPost bool // NowPost alone has such an answer
	says    string
}

// verdicts are what partners answer to wrong credentials, and what only looks like it.
func verdicts() []verdict {
	in := func(status int, body string, lines ...string) reply {
		return reply{status: status, body: body, header: headers(append([]string{"Content-Type: application/json"}, lines...)...)}
	}
	page := func(status int) reply {
		return reply{status: status, body: "<!DOCTYPE html><p>Planted-Secret", header: headers("Content-Type: text/html; charset=utf-8")}
	}
	const no = `{"message":"Planted-Secret"}`
	return []verdict{
		{name: "401", reply: in(401, no), refusal: true, wrong: true},
		{name: "401 that is empty", reply: reply{status: 401}, refusal: true, wrong: true},
		{name: "401 of an HTML proxy", reply: page(401)},
		{name: "400", reply: in(400, no), refusal: true, wrong: true},
		{name: "403", reply: in(403, no), refusal: true, wrong: true},
		{name: "403 of a firewall", reply: page(403)},
		{name: "403 of a firewall that says it is JSON", reply: in(403, "<html>Planted-Secret")},
		{name: "403 in text", reply: reply{status: 403, body: "no"}},
		{name: "403 with Retry-After", reply: in(403, no, "Retry-After: 30")},
		{name: "400 with Retry-After", reply: in(400, no, "Retry-After: 30")},
		{name: "404", reply: in(404, no), refusal: true},
		{name: "404 of a proxy", reply: page(404)},
		{name: "419", reply: in(419, no), refusal: true},
		{name: "422", reply: in(422, no), refusal: true, wrong: true},
		{name: "423", reply: in(423, no), refusal: true},
		{name: "problem+json", reply: reply{status: 422, body: "{}", header: headers("Content-Type: application/problem+json")}, refusal: true, wrong: true},
		{name: "408", reply: in(408, no)},
		{name: "425", reply: in(425, no)},
		{name: "500", reply: in(500, no)},
		{name: "invalid_client", reply: in(401, `{"error":"invalid_client"}`), refusal: true, wrong: true, says: "invalid_client"},
		{name: "invalid_grant", reply: in(400, `{"error":"invalid_grant","error_description":"Planted-Secret"}`), refusal: true, wrong: true, says: "invalid_grant"},
		{name: "unauthorized_client", reply: in(403, `{"error":"unauthorized_client"}`), refusal: true, wrong: true, says: "unauthorized_client"},
		{name: "invalid_request", reply: in(400, `{"error":"invalid_request"}`), refusal: true, says: "invalid_request"},
		{name: "invalid_scope", reply: in(401, `{"error":"invalid_scope"}`), refusal: true, says: "invalid_scope"},
		{name: "unsupported_grant_type", reply: in(422, `{"error":"unsupported_grant_type"}`), refusal: true, says: "unsupported_grant_type"},
		{name: "an error of its own", reply: in(400, `{"error":"Planted-Secret"}`), refusal: true, wrong: true},
		{name: "an error that is an object", reply: in(400, `{"error":{"code":1}}`), refusal: true, wrong: true},
		{name: "success false", reply: in(200, `{"success":false}`), refusal: true, wrong: true, nowPost: true},
		{name: "success 0", reply: in(200, `{"success":0}`), refusal: true, wrong: true, nowPost: true},
		{name: `success "false"`, reply: in(201, `{"success":"false","data":null}`), refusal: true, wrong: true, nowPost: true},
		{name: `success "0"`, reply: in(200, `{"success":"0"}`), refusal: true, wrong: true, nowPost: true},
	}
}

// Whatever status a partner has for wrong credentials, no account is locked by us: at
// most 10 sign-ins in the first hour, and about 100 a day; with a Store, of all
// processes together. What is no considered word backs off as other failures do.
func TestWhatIsARefusal(t *testing.T) {
	t.Parallel()
	for _, c := range verdicts() {
		for _, processes := range []int{1, 3} {
			if processes > 1 && c.name != "401" && c.name != "423" && c.name != "success 0" {
				continue // a digest costs time by design
			}
			bubble(t, fmt.Sprintf("%s, %d processes", c.name, processes), func(t *testing.T) {
				for provider := range new(partner).everybody(nil) {
					if c.nowPost && provider != "nowpost" {
						continue
					}
					p := new(partner).on("login", c.reply)
					var store partnerauth.Store
					if processes > 1 {
						store = new(memory)
					}
					var sources []*partnerauth.Source
					for range processes {
						sources = append(sources, p.everybody(store)[provider])
					}
					hour, began := 0, time.Now()
					for n := 0; time.Since(began) < 24*time.Hour; n++ {
						_, err := sources[n%processes].Token()
						if err == nil || errors.Is(err, partnerauth.ErrCredentials) != c.wrong {
							t.Fatalf("%s: got %v, want ErrCredentials %t", provider, err, c.wrong)
						}
						checkVerdict(t, err, c)
						if time.Since(began) < time.Hour {
							hour = p.count("login")
							time.Sleep(time.Duration(3*processes*processes) * time.Second)
						} else if c.name == "401" && processes == 1 {
							time.Sleep(time.Minute)
						} else {
							break // one kind of refusal is enough for the day
						}
					}
					errorIf(t, (hour <= 10) != c.refusal, "%s: %d sign-ins in the first hour, want at most 10: %t", provider, hour, c.refusal)
					day := p.count("login")
					errorIf(t, c.refusal && day > 110, "%s: %d sign-ins in a day, want about 100", provider, day)
					time.Sleep(time.Minute)
				}
			})
		}
	}
}

// checkVerdict checks the words of an error, which are ours or RFC 6749's.
func checkVerdict(t *testing.T, err error, c verdict) {
	t.Helper()
	answered, ok := errors.AsType[*oauth2.RetrieveError](err)
	text := fmt.Sprintf("%v %+v %v", err, err, answered)
	errorIf(t, !ok || answered.ErrorCode != c.says, "%s: got %+v, want the error code %q", c.name, answered, c.says)
	errorIf(t, !strings.Contains(err.Error(), c.says), "%s: got %q, want %q in it", c.name, err, c.says)
	errorIf(t, strings.Contains(text, "Planted"), "%s: got %s, which repeats the answer", c.name, text)
}

// With Retry-After beside any status, the next request is not sooner than that, and not
// later than a quarter of an hour for it.
func TestRetryAfterBesideAnyStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 302, 400, 401, 403, 404, 408, 423, 425, 429, 500, 503} {
		for _, shared := range []bool{false, true} {
			if shared && status != 423 {
				continue
			}
			for after, want := range map[string]time.Duration{"900": 15 * time.Minute, "86400": 15 * time.Minute, "45": 45 * time.Second} {
				bubble(t, fmt.Sprintf("%d, Retry-After %s, shared %t", status, after, shared), func(t *testing.T) {
					p := new(partner).on("login", reply{status: status, body: `{"success":false}`, header: headers("Content-Type: application/json", "Retry-After: "+after)})
					var store partnerauth.Store
					if shared {
						store = new(memory)
					}
					first, second := p.everybody(store)["nowpost"], p.everybody(store)["nowpost"]
					for began := time.Now(); time.Since(began) < 40*time.Minute && p.count("login") < 3; time.Sleep(map[bool]time.Duration{false: 4 * time.Second, true: 20 * time.Second}[shared]) {
						_, err := first.TokenContext(deadline(t, time.Millisecond))
						errorIf(t, err == nil, "got a token")
						if shared {
							second.TokenContext(deadline(t, time.Millisecond))
						}
					}
					log := p.seen()
					if len(log) < 2 {
						t.Fatalf("got %d sign-ins in 40 minutes, want another", len(log))
					}
					gap := log[1].at - log[0].at
					errorIf(t, gap < want, "%d: the next sign-in came after %v, want %v", status, gap, want)
					errorIf(t, gap > max(want, time.Minute)*3/2+20*time.Second, "%d: the next sign-in came after %v, want %v and little more", status, gap, want)
					time.Sleep(time.Hour)
				})
			}
		}
	}
}

// A sign-in that is another one each time, as with an assertion that has a fresh id, is
// held back by time alone, and SignIn is asked twice only once.
func TestAssertionIsHeldByTime(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		bubble(t, fmt.Sprint("shared ", shared), func(t *testing.T) {
			p := new(partner).on("login", reply{status: 401, body: "{}"})
			asked := 0
			acme := acmeAccount(p, func(a *partnerauth.Provider) {
				a.SignIn = func(ctx context.Context) (*http.Request, error) {
					asked++
					return http.NewRequestWithContext(ctx, "POST", apiURL+authPath, strings.NewReader(fmt.Sprint("jti=", asked)))
				}
				if shared {
					a.Store = new(memory)
				}
			})
			source := acme.TokenSource()
			began, hour := time.Now(), 0
			for time.Since(began) < 24*time.Hour {
				_, err := source.Token()
				errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %v, want ErrCredentials", err)
				if time.Since(began) < time.Hour {
					hour = p.count("login")
				}
				time.Sleep(map[bool]time.Duration{false: 5 * time.Second, true: time.Minute}[shared])
			}
			n := p.count("login")
			errorIf(t, hour > 10 || n > 110, "%d sign-ins in the first hour and %d in a day, want 10 and about 100 at most", hour, n)
			errorIf(t, asked > 3*n+5, "SignIn was asked %d times for %d sign-ins", asked, n)
			p.on("login", reply{})
			time.Sleep(25 * time.Minute)
			_, err := source.Token()
			errorIf(t, err != nil, "got %v once the partner has changed its mind", err)
		})
	}
}

// While a refusal holds, SignIn is asked at most once a second, and what it then
// returns that is another request is sent at once.
func TestAnotherSecretIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		for _, after := range []time.Duration{3 * time.Second, time.Minute, map[bool]time.Duration{false: 2 * time.Hour, true: 40 * time.Second}[shared]} {
			bubble(t, fmt.Sprintf("%v, shared %t", after, shared), func(t *testing.T) {
				p := &partner{script: func(a asked) reply {
					if a.op == "login" && !strings.Contains(a.body, "new") {
						return reply{status: 422, body: "{}"}
					}
					return reply{}
				}}
				var asked atomic.Int64
				secret := "an old secret"
				account := partnerauth.NowPost{Email: "e", BaseURL: apiURL, Base: p, PasswordFunc: func(context.Context) (string, error) {
					asked.Add(1)
					return secret, nil
				}}
				if shared {
					account.Store = new(memory)
				}
				source, began := account.TokenSource(), time.Now()
				for time.Since(began) < after {
					source.Token()
					time.Sleep(100 * time.Millisecond)
				}
				errorIf(t, asked.Load() > 3*int64(after/time.Second)+10, "the Func was asked %d times in %v, want once a second and for each try", asked.Load(), after)
				secret = "a new one"
				began = time.Now()
				_, err := source.Token()
				for err != nil && time.Since(began) < time.Minute {
					time.Sleep(100 * time.Millisecond)
					_, err = source.Token()
				}
				errorIf(t, time.Since(began) > 1100*time.Millisecond, "the new secret was tried after %v (%v), want a second at most", time.Since(began), err)
			})
		}
	}
}

// Mistakes that a partner would refuse for ever are named before anything is sent.
func TestMistakesAreNamed(t *testing.T) {
	for _, secret := range []string{"", "a\n", "a ", "a\t", "a\x00b", "a\u00a0", "a\r\nb", "a\x7f"} {
		ask := func(context.Context) (string, error) { return secret, nil }
		p := new(partner)
		basic := func(ctx context.Context) (*http.Request, error) {
			req, err := http.NewRequestWithContext(ctx, "POST", apiURL+authPath, nil)
			req.Header["X-Secret"] = []string{"a\x00" + secret}
			return req, err
		}
		for field, source := range map[string]*partnerauth.Source{
			"Password":         partnerauth.NowPost{Email: "e", Password: secret, BaseURL: apiURL, Base: p}.TokenSource(),
			"Email":            partnerauth.NowPost{Email: secret, Password: "p", BaseURL: apiURL, Base: p}.TokenSource(),
			"PasswordFunc":     partnerauth.NowPost{Email: "e", PasswordFunc: ask, BaseURL: apiURL, Base: p}.TokenSource(),
			"ClientID":         partnerauth.Ndovu{ClientID: secret, ClientSecret: "s", BaseURL: apiURL, Base: p}.TokenSource(),
			"ClientSecret":     partnerauth.Ndovu{ClientID: "i", ClientSecret: secret, BaseURL: apiURL, Base: p}.TokenSource(),
			"ClientSecretFunc": partnerauth.Ndovu{ClientID: "i", ClientSecretFunc: ask, BaseURL: apiURL, Base: p}.TokenSource(),
			"X-Secret":         acmeAccount(p, func(a *partnerauth.Provider) { a.SignIn = basic }).TokenSource(),
		} {
			_, err := source.Token()
			auth := authOf(err)
			errorIf(t, auth.Op != "config" || !strings.Contains(err.Error(), field), "%q as %s: got %v, want an error that names it", secret, field, err)
			errorIf(t, len(p.seen()) > 0, "%q as %s: something was sent", secret, field)
		}
	}
}

// A refusal that the next process finds in the Store is shown there as it was.
func TestRefusalIsSharedAsItWas(t *testing.T) {
	for _, c := range verdicts() {
		if !c.refusal || c.nowPost {
			continue
		}
		bubble(t, c.name, func(t *testing.T) {
			p, store := new(partner).on("login", c.reply), new(memory)
			p.everybody(store)["acme"].Token()
			_, err := p.everybody(store)["acme"].Token()
			auth := authOf(err)
			errorIf(t, errors.Is(err, partnerauth.ErrCredentials) != c.wrong, "got %v, want ErrCredentials %t", err, c.wrong)
			errorIf(t, auth.StatusCode != c.reply.status, "got status %d, want %d", auth.StatusCode, c.reply.status)
			errorIf(t, p.count("login") != 1, "%d sign-ins, want one", p.count("login"))
			synctest.Wait()
		})
	}
}
