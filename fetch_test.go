package partnerauth_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// What every fetch does, whoever the partner is.

const aToken = `{"token":"t","access_token":"t","key":"t"}` // to any partner's Source

// A failure is an answer to a sign-in that is no token, and what it means.
type failure struct {
	name    string
	only    string // the provider that has such an answer; "": all
	reply   reply
	text    string // how the error's text goes on after provider and op
	code    string // RFC 6749's word, which the error keeps
	tries   int    // requests that the first caller costs; 0: one
	refusal bool   // the partner's considered word: at most 10 sign-ins in the first hour
	wrong   bool   // it Is ErrCredentials
}

// failures are the answers that partners give to wrong credentials, and what only looks
// like it. What a partner writes into them is never in an error's text.
func failures() []failure {
	in := func(status int, body string, lines ...string) reply {
		return reply{status: status, body: body, header: headers(append([]string{"Content-Type: application/json"}, lines...)...)}
	}
	page := func(status int) reply {
		return reply{status: status, body: "<!DOCTYPE html><p>Planted-Secret", header: headers("Content-Type: text/html; charset=utf-8")}
	}
	const no = `{"success":false,"error_description":"Echo","message":"Planted-Secret"}`
	const notJSON, unsendable = "200 OK: the answer is not ", "200 OK: the token has characters that a header cannot"
	all := []failure{
		{name: "401", reply: in(401, no), refusal: true, wrong: true},
		{name: "401 that is empty", reply: reply{status: 401}, refusal: true, wrong: true},
		{name: "401 larger than 1 MiB", reply: reply{status: 401, body: strings.Repeat("x", 2<<20)}, refusal: true, wrong: true},
		{name: "401 that breaks off", reply: reply{status: 401, body: `{"succ`, cut: true}, refusal: true, wrong: true},
		{name: "401 of an HTML proxy", reply: page(401)},
		{name: "400", reply: in(400, no), refusal: true, wrong: true},
		{name: "400 with Retry-After", reply: in(400, no, "Retry-After: 30")},
		{name: "403", reply: in(403, no), refusal: true, wrong: true},
		{name: "403 of a firewall", reply: page(403)},
		{name: "403 of a firewall that says it is JSON", reply: in(403, "<html>Planted-Secret")},
		{name: "403 in text", reply: reply{status: 403, body: "no"}},
		{name: "403 with Retry-After", reply: in(403, no, "Retry-After: 30")},
		{name: "404", reply: in(404, no), refusal: true},
		{name: "404 of a proxy", reply: page(404)},
		{name: "408", reply: in(408, no), tries: 3},
		{name: "422", reply: in(422, no), refusal: true, wrong: true},
		{name: "422 that is empty, of type JSON", reply: in(422, ""), refusal: true, wrong: true},
		{name: "problem+json", reply: reply{status: 422, body: "{}", header: headers("Content-Type: application/problem+json")},
			refusal: true, wrong: true},
		{name: "423", reply: in(423, no), refusal: true},
		{name: "425", reply: in(425, no), tries: 3},
		{name: "499, which has no text", reply: reply{status: 499}},
		{name: "429 with Retry-After", reply: busy("20"), tries: 6},
		{name: "500", reply: in(500, no), tries: 3},
		{name: "502 in HTML", reply: page(502), tries: 3},
		{name: "503 with Retry-After", reply: in(503, "", "Retry-After: 5"), tries: 3},
		{name: "no connection", reply: reply{err: errors.New("refused by the test")}, text: "refused by the test", tries: 3},
		{name: "a body that breaks off", reply: reply{body: `{"token":"t","access_to`, cut: true}, text: "unexpected EOF", tries: 3},

		{name: "204", reply: reply{status: 204}, text: "204 No Content: the answer is not "},
		{name: "nothing in it", reply: reply{status: 200}, text: notJSON},
		{name: "half an object", reply: reply{body: strings.TrimSuffix(aToken, "}")}, text: notJSON},
		{name: "an object and more", reply: reply{body: aToken + " trailing"}, text: notJSON},
		{name: "deep nesting", reply: reply{body: strings.Repeat(`{"data":`, 100_000)}, text: notJSON},
		{name: "null", reply: reply{body: `null`}, text: "200 OK: "},
		{name: "no token", reply: reply{body: `{"success":true,"data":{},"expires_in":3600}`}, text: "200 OK: no "},
		{name: "token empty", reply: reply{body: strings.ReplaceAll(aToken, `"t"`, `""`)}, text: "200 OK: no "},
		{name: "token a number", reply: reply{body: strings.ReplaceAll(aToken, `"t"`, `1`)}, text: notJSON},
		{name: "token with a newline", reply: reply{body: strings.ReplaceAll(aToken, `"t"`, `"Echo\nX-Injected: 1"`)}, text: unsendable},
		{name: "token with DEL", reply: reply{body: strings.ReplaceAll(aToken, `"t"`, `"Echo\u007f"`)}, text: unsendable},
		{name: "larger than 1 MiB", reply: reply{body: aToken + strings.Repeat(" ", 1<<20)},
			text: "200 OK: the answer is larger than 1 MiB"},

		{name: "token_type mac", only: "ndovu", reply: reply{body: `{"access_token":"t","token_type":"mac"}`},
			text: "200 OK: token_type is not Bearer"},
		{name: "token_type a number", only: "ndovu", reply: reply{body: `{"access_token":"t","token_type":1}`}, text: notJSON},
		{name: "another partner's fields", only: "ndovu", reply: reply{body: `{"data":{"token":"t"},"token":"t"}`},
			text: "200 OK: no access_token"},
		{name: "no token anywhere", only: "nowpost", reply: reply{body: `{"access_token":"t"}`},
			text: "200 OK: no token, neither in data.token nor in token"},

		// the hints
		{name: "NowPost's 401", only: "nowpost", reply: in(401, no), text: "401 Unauthorized: check the e-mail and password",
			refusal: true, wrong: true},
		{name: "NowPost's 403", only: "nowpost", reply: in(403, no), text: "403 Forbidden: the account may not use this endpoint",
			refusal: true, wrong: true},
		{name: "Ndovu's 401", only: "ndovu", reply: in(401, no), refusal: true, wrong: true,
			text: "401 Unauthorized: no such client id, or not the raw client secret of the onboarding e-mail"},
		{name: "Ndovu's 400", only: "ndovu", reply: in(400, no), text: "400 Bad Request: the Authorization header was not accepted",
			refusal: true, wrong: true},
		{name: "acme's 401", only: "acme", reply: in(401, no), text: "401 Unauthorized: no such user", refusal: true, wrong: true},
	}
	for _, status := range []int{301, 302, 303, 307, 308} { // credentials go nowhere else, not even at the same server
		for _, to := range []string{"https://evil.example/api/v1/auth/login", "/elsewhere"} {
			redirect := reply{status: status, header: headers("Location: " + to), body: aToken}
			text := fmt.Sprint(status, " ", http.StatusText(status), ": a redirect")
			all = append(all, failure{name: text + " to " + to, reply: redirect, text: text})
		}
	}
	for body, status := range map[string]int{
		no: 200, `{"success":0}`: 200, `{"success":"false","data":null}`: 201, `{"success":"0"}`: 200, `{"success":"False"}`: 200,
		`{"success":false,"token":"t"}`: 200,
	} {
		text := fmt.Sprint(status, " ", http.StatusText(status), ": success is false")
		all = append(all, failure{name: body, only: "nowpost", reply: in(status, body), text: text, refusal: true, wrong: true})
	}
	for word, wrong := range map[string]bool{
		"invalid_client": true, "invalid_grant": true, "unauthorized_client": true,
		"invalid_request": false, "invalid_scope": false, "unsupported_grant_type": false,
	} {
		for _, status := range []int{400, 401} {
			body := fmt.Sprintf(`{"error":%q,"error_description":"Planted-Secret"}`, word)
			all = append(all, failure{name: fmt.Sprint(status, " ", word), reply: in(status, body),
				code: word, refusal: true, wrong: wrong})
		}
	}
	for _, word := range []string{`"Planted-Secret"`, `{"code":1}`} {
		all = append(all, failure{name: "error " + word, reply: in(400, `{"error":`+word+`}`), refusal: true, wrong: true})
	}
	return all
}

// Whatever says no, the error names it in our words, nothing of it is sent again at once,
// and if it was the partner's considered word no account is locked by us: at most 10
// sign-ins in the first hour, of all processes that share a Store together.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, f := range failures() {
		for _, pr := range providers {
			if f.only != "" && f.only != pr.name {
				continue
			}
			bubble(t, pr.name+" "+f.name, func(t *testing.T) {
				p := new(partner).on("login", f.reply)
				account := good(p)
				account.store = storeIf(f.name == "401" || f.name == "423") // with a Store a digest costs time by design
				source := pr.config(account).TokenSource()
				other := source
				if account.store != nil {
					other = pr.config(account).TokenSource()
				}
				_, err := source.Token()
				f.check(t, pr, err)
				// whatever went wrong, the next caller does not cost a request at once
				_, again := source.Token()
				errorIf(t, !sameFailure(err, again), "the next caller got %v, want %v again", again, err)
				equal(t, "requests of two callers", len(p.seen()), max(f.tries, 1))
				if len(f.reply.body) > 1000 {
					return // more of them cost time
				}
				for i := range 15 { // every four minutes
					_, err := []*partnerauth.Source{other, source}[i%2].Token()
					errorIf(t, f.refusal && authOf(err).StatusCode != f.reply.status, "got %v, want the refusal", err)
					equal(t, "ErrCredentials", errors.Is(err, partnerauth.ErrCredentials), f.wrong)
					errorIf(t, i == 0 && f.refusal && p.count("login") > 1, "the other process has not found the refusal in the Store")
					time.Sleep(4 * time.Minute)
				}
				n := p.count("login")
				errorIf(t, (n <= 10) != f.refusal, "%d sign-ins in the first hour, want at most 10: %t", n, f.refusal)
				synctest.Wait()
			})
		}
	}
}

func (f failure) check(t *testing.T, pr provider, err error) {
	t.Helper()
	text := f.text
	status := cmp.Or(f.reply.status, 200)
	if f.reply.err != nil || f.reply.cut && f.reply.status == 0 {
		status = 0
	}
	if text == "" {
		text = strings.TrimSpace(fmt.Sprint(status, " ", http.StatusText(status)))
	}
	want := "partnerauth: " + pr.name + " login: " + text
	errorIf(t, err == nil || !strings.HasPrefix(err.Error(), want), "got %v, want %q and more", err, want)
	auth := authOf(err)
	equal(t, "provider, op and status", fmt.Sprint(auth.Provider, auth.Op, auth.StatusCode), fmt.Sprint(pr.name, "login", status))
	after, _ := time.ParseDuration(f.reply.header.Get("Retry-After") + "s")
	errorIf(t, auth.At.IsZero() || auth.RetryAfter <= after, "got %#v, want when it was and when the partner is asked again", auth)
	errorIf(t, f.reply.err != nil && !errors.Is(err, f.reply.err), "%v does not unwrap to the network error", err)
	equal(t, "ErrCredentials", errors.Is(err, partnerauth.ErrCredentials), f.wrong)
	errorIf(t, !strings.Contains(fmt.Sprint(err), f.code), "got %v, want %q in it", err, f.code)
	answered, ok := errors.AsType[*oauth2.RetrieveError](err)
	equal(t, "there is an oauth2.RetrieveError", ok, status != 0)
	if ok {
		equal(t, "error code", answered.ErrorCode, f.code)
		errorIf(t, answered.Response == nil || answered.Response.StatusCode != status, "got %v, want the answer", answered.Response)
		errorIf(t, len(answered.Body) > 1<<20, "got %d bytes of the answer", len(answered.Body))
	}
	shown := fmt.Sprintf("%v %+[1]v %#[1]v %v", err, answered)
	errorIf(t, strings.Contains(shown, "Echo") || strings.Contains(shown, "Planted"), "%s has the partner's answer in it", shown)
}

// givenOut is how the text of a failure goes on when it is given out again.
var givenOut = regexp.MustCompile(`^(.*?)( \(asked \S+ ago, again in \S+\))?$`)

// sameFailure reports whether again is the failure err, given out to a later caller.
func sameFailure(err, again error) bool {
	a, b := authOf(err), authOf(again)
	text := func(err error) string { return givenOut.FindStringSubmatch(err.Error())[1] }
	return again != nil && a.At.Equal(b.At) && a.Op == b.Op && a.StatusCode == b.StatusCode && text(err) == text(again) &&
		errors.Is(err, partnerauth.ErrCredentials) == errors.Is(again, partnerauth.ErrCredentials)
}

// A partner that is away for long is not waited for inside one fetch. The failure that is
// given out again says how old it is, and how long it holds from now.
func TestFailureIsGivenOutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("login", reply{status: 503, header: headers("Retry-After: 60")})
		source := p.nowPost()
		var first error
		took := elapsed(func() { _, first = source.Token() })
		equal(t, "time until the first caller was told", took, 0)
		time.Sleep(3 * time.Second)
		_, again := source.Token()
		const want = "partnerauth: nowpost login: 503 Service Unavailable (asked 3s ago, again in 58s)"
		equal(t, "later error", fmt.Sprint(again), want)
		equal(t, "RetryAfter from now", authOf(again).RetryAfter, 57*time.Second+rounded)
		equal(t, "RetryAfter in the first caller's error", authOf(first).RetryAfter, time.Minute+rounded)
		equal(t, "age", time.Since(authOf(again).At), 3*time.Second)
		errorIf(t, !sameFailure(first, again), "got %v after %v", again, first)
		time.Sleep(58 * time.Second)
		source.Token()
		equal(t, "logins after a minute", p.count("login"), 2)
	})
}

// An endless answer is read no further than needed to see that it is too large.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	endless := &watchedBody{Reader: readerFunc(func(b []byte) (int, error) { return copy(b, bytes.Repeat([]byte(" "), len(b))), nil })}
	_, err := (&partner{script: always(reply{stream: endless})}).nowPost().Token()
	errorIf(t, !strings.Contains(fmt.Sprint(err), "1 MiB"), "got %v", err)
	errorIf(t, endless.read.Load() > 1<<20+1, "%d bytes were read, want little more than 1 MiB", endless.read.Load())
	errorIf(t, endless.closed.Load() == 0, "the answer was not closed")
}

// attempts are the times between the requests that a failing partner gets, until there
// were n more, from callers who ask just before and when the error says that they may.
func attempts(t *testing.T, p *partner, source *partnerauth.Source, n int) []time.Duration {
	t.Helper()
	from := len(p.seen())
	for len(p.seen()) < from+n {
		_, err := source.Token()
		asked, wait := len(p.seen()), authOf(err).RetryAfter
		if err == nil || wait <= 0 {
			t.Fatalf("got %v, want a failure that holds", err)
		}
		time.Sleep(wait - time.Millisecond)
		_, again := source.Token()
		if len(p.seen()) != asked || !sameFailure(err, again) {
			t.Fatalf("got %v after %v and %d more requests, want the same failure", again, err, len(p.seen())-asked)
		}
		time.Sleep(time.Millisecond)
	}
	return p.gaps()[from:]
}

// spread reports whether waits that ought to be alike differ, as with jitter. Some may
// be equal by chance.
func spread(waits []time.Duration) bool {
	return len(slices.Compact(slices.Sorted(slices.Values(waits)))) > 2
}

// refusals are the least waits after credentials were refused once, twice and so
// on. Up to half is added to each. They come to at most 10 logins in the first
// hour and about 100 a day.
var refusals = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 15 * time.Minute}

// A partner locks accounts, so what it refused is not sent again soon. After a success the
// schedule starts over.
func TestRefusedCredentialsBackOff(t *testing.T) {
	t.Parallel()
	everyProvider(t, func(t *testing.T, pr provider) {
		no := reply{status: 401, body: `{"success":false}`}
		p := new(partner).on("login", no)
		source := p.source(pr)
		check := func(gaps []time.Duration) {
			for i, gap := range gaps {
				least := refusals[min(i, len(refusals)-1)]
				errorIf(t, gap < least || gap > least*3/2, "got %v before request %d, want %v and up to half of it more", gap, i+2, least)
			}
		}
		gaps := attempts(t, p, source, len(refusals)+9)
		check(gaps)
		errorIf(t, !spread(gaps[len(refusals):]), "got %v, want jitter", gaps)
		p.on("login") // no longer
		time.Sleep(time.Hour)
		token, err := source.Token()
		must(t, err)
		p.on("login", no).on("refresh", no)
		source.Invalidate(token)
		gaps = attempts(t, p, source, 3)
		check(slices.DeleteFunc(gaps, func(d time.Duration) bool { return d == 0 })) // a login at once after a refused refresh
	})
}

func TestOtherFailuresBackOff(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]reply{"5xx": {status: 502}, "cut": {body: "{", cut: true}, "404": {status: 404}} {
		bubble(t, name, func(t *testing.T) {
			p, tries := &partner{script: always(reply)}, 3 // in one fetch
			if reply.status == 404 {
				tries = 1
			}
			var fetches []time.Duration // between the last request of one and the first of the next
			for i, gap := range attempts(t, p, p.nowPost(), 20*tries) {
				if (i+1)%tries == 0 {
					fetches = append(fetches, gap)
				} else {
					errorIf(t, gap < 100*time.Millisecond || gap > 2*time.Second, "got %v before a try inside a fetch", gap)
				}
			}
			least, most := slices.Min(fetches), slices.Max(fetches)
			errorIf(t, least < 500*time.Millisecond || most > 31*time.Second, "got %v to %v, want 0.5 s to 30 s", least, most)
			errorIf(t, fetches[0] > 1500*time.Millisecond, "got %v at first, want 0.5 s", fetches[0])
			errorIf(t, slices.Min(fetches[9:]) < 10*time.Second || !spread(fetches[9:]), "got %v, want it to grow, and jitter", fetches)
		})
	}
}

// With Retry-After beside any status, the next request is not sooner than that, nor later
// than a quarter of an hour for it, nor for any process that shares the Store.
func TestRetryAfterBesideAnyStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 302, 400, 401, 403, 404, 408, 423, 425, 429, 500, 503} {
		for after, want := range map[string]time.Duration{"45": 45 * time.Second, "900": 15 * time.Minute, "86400": 15 * time.Minute} {
			bubble(t, fmt.Sprintf("%d, Retry-After %s", status, after), func(t *testing.T) {
				header := headers("Content-Type: application/json", "Retry-After: "+after)
				p := new(partner).on("login", reply{status: status, body: `{"success":false}`, header: header})
				all := p.fleet(1, nil, samePassword)
				if status == 423 {
					all = p.fleet(2, new(memory), samePassword)
				}
				for i := 0; p.count("login") < 2; i++ {
					all[i%len(all)].SignIn(deadline(t, time.Millisecond))
					time.Sleep(want / 20)
				}
				gap := p.gaps()[0]
				most := max(want, time.Minute)*3/2 + want/10 // the schedule's wait may be the longer one
				errorIf(t, gap < want || gap > most, "the next sign-in came after %v, want %v and little more", gap, want)
				time.Sleep(time.Hour)
			})
		}
	}
}

// A sign-in that is another one each time, as with an assertion that has a fresh id, is
// held back by time alone, by the same schedule, and SignIn is asked twice only once.
func TestAssertionIsHeldByTime(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		bubble(t, fmt.Sprint("shared ", shared), func(t *testing.T) {
			p, asked := new(partner).on("login", reply{status: 401, body: "{}"}), 0
			provider := acme(good(p))
			provider.Store = storeIf(shared)
			provider.SignIn = func(ctx context.Context) (*http.Request, error) {
				asked++
				return http.NewRequestWithContext(ctx, "POST", apiURL+acmeLogin, strings.NewReader(fmt.Sprint("jti=", asked)))
			}
			source := provider.TokenSource()
			for range 60 {
				_, err := source.Token()
				errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %v, want ErrCredentials", err)
				time.Sleep(time.Minute)
			}
			n := p.count("login")
			errorIf(t, n > 10, "%d sign-ins in the first hour, want 10 at most", n)
			errorIf(t, asked > 3*n+5, "SignIn was asked %d times for %d sign-ins", asked, n)
			p.on("login", reply{})
			time.Sleep(25 * time.Minute)
			_, err := source.Token()
			must(t, err) // the partner has changed its mind
		})
	}
}

// A failure that the next try or two get over is nothing to the caller.
func TestTriesInsideOneFetch(t *testing.T) {
	t.Parallel()
	const half = 500 * time.Millisecond
	for _, c := range []struct {
		name  string
		fails []reply
		least time.Duration
	}{
		{name: "network", fails: []reply{{err: io.ErrUnexpectedEOF}, {err: errTest}}, least: half},
		{name: "5xx", fails: []reply{{status: 500}, {status: 502, body: "<html>"}}, least: half},
		{name: "cut and 503", fails: []reply{{body: `{"token":`, cut: true}, {status: 503}}, least: half},
		{name: "429 does not count", fails: []reply{{status: 500}, busy("1"), busy("1"), {status: 500}}, least: 2 * time.Second},
		{name: "429 that breaks off", fails: []reply{{status: 429, header: headers("Retry-After: 4"), body: "Too ma", cut: true}},
			least: 4 * time.Second},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := new(partner).on("login", append(c.fails, reply{})...)
			took := elapsed(func() { _, err := p.nowPost().Token(); must(t, err) })
			equal(t, "requests", p.count("login"), len(c.fails)+1)
			errorIf(t, took < c.least || took > 7*time.Second, "took %v, want %v and little more", took, c.least)
		})
	}
}

// unnamed is the pause after a 429 that names none.
const unnamed = time.Minute

// A login that takes long is one login, which has 30 seconds on the wire. Those who
// wait for it get its token, or leave at their deadlines.
func TestSlowLogin(t *testing.T) {
	const limit = 30 * time.Second
	for _, took := range []time.Duration{time.Second, 9 * time.Second, 29 * time.Second, forever} {
		bubble(t, took.String(), func(t *testing.T) {
			p := new(partner).on("login", reply{after: took})
			source, began := p.nowPost(), time.Now()
			patience := []time.Duration{500 * time.Millisecond, 10 * time.Second, time.Hour}
			atOnce(len(patience), func(i int) {
				_, err := source.TokenContext(deadline(t, patience[i]))
				equal(t, "time until the caller left", time.Since(began), min(patience[i], took, limit))
				equal(t, "there is a token", err == nil, took < min(patience[i], limit))
				if err != nil {
					equal(t, "Op", authOf(err).Op, "login")
					errorIf(t, !errors.Is(err, context.DeadlineExceeded), "got %v, want context.DeadlineExceeded", err)
				}
			}).Wait()
			equal(t, "logins", p.count("login"), 1)
		})
	}
}

// fuzzAnswer feeds an answer to a Source, starting from what the tables have: what comes of
// it is an error that names the operation, or a token that can be sent.
func fuzzAnswer(f *testing.F, pr provider, answers ...string) {
	for _, c := range failures() {
		f.Add([]byte(c.reply.body), "", max(c.reply.status, 200))
	}
	for _, body := range answers {
		f.Add([]byte(body), in2026.Format(http.TimeFormat), 200)
	}
	f.Fuzz(func(t *testing.T, body []byte, date string, status int) {
		if status < 100 || status > 999 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			p := &partner{script: func(a asked) reply {
				errorIf(t, a.op == "call" && !sendable(a.token), "the API was sent %q", a.token)
				return reply{status: status, header: http.Header{"Date": {date}}, body: string(body)}
			}}
			source := p.source(pr)
			token, err := source.Token()
			asked := len(p.seen())
			errorIf(t, asked > 6, "got %d requests in one fetch", asked)
			if err != nil {
				equal(t, "status", authOf(err).StatusCode, status)
				errorIf(t, !strings.HasPrefix(err.Error(), "partnerauth: "+pr.name+" login: "), "got %v", err)
				answered, ok := errors.AsType[*oauth2.RetrieveError](err)
				errorIf(t, !ok || answered.Response == nil || answered.Error() == "", "got %v, want an oauth2.RetrieveError", err)
				mayRefuse := status/100 == 2 || slices.Contains([]int{400, 401, 403, 422}, status)
				errorIf(t, errors.Is(err, partnerauth.ErrCredentials) && !mayRefuse, "got %v for %d", err, status)
				_, again := source.Token()
				errorIf(t, !sameFailure(err, again), "got %v at once after %v", again, err)
				equal(t, "requests, with those of the next caller", len(p.seen()), asked)
				return
			}
			errorIf(t, status < 200 || status > 299, "got a token from a %d", status)
			errorIf(t, !sendable(token.AccessToken), "got the token %q, which cannot be sent", token.AccessToken)
			equal(t, "type", token.TokenType, "Bearer")
			left := time.Until(token.Expiry)
			errorIf(t, left <= 0 || left > 20*366*24*time.Hour, "the token is good for %v, want 20 years at most", left)
			try(t.Context(), &partnerauth.Transport{Source: source, Base: p}, "/orders")
			synctest.Wait()
		})
	})
}

// sendable reports whether a token is made of what RFC 9110 lets stand in a
// header, spaces apart.
func sendable(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r < '!' || r > '~' })
}

// What is a token, and what the error says of an answer that is not quite what the page
// shows. The third partner reads RFC 6749's answer here.
func TestTokens(t *testing.T) {
	t.Parallel()
	const odd = "!#$%&'()*+-./:;<=>?@[]^_{|}~"
	const bom, unsendable = "\xef\xbb\xbf", "characters that a header cannot have"
	body := func(text string) reply { return reply{body: text} }
	encoded := func(how, text string) reply { return reply{header: headers("Content-Encoding: " + how), body: text} }
	for _, c := range []struct {
		name  string
		only  string // the provider; "": all
		reply reply
		want  string // "": an error
		wrong string // in the error's text
	}{
		{name: "201", reply: reply{status: 201, body: aToken}, want: "t"},
		{name: "exactly 1 MiB", reply: body(aToken + strings.Repeat(" ", 1<<20-len(aToken))), want: "t"},
		{name: "every character that may be in it", reply: body(saying(odd, "")), want: odd},
		{name: "both", only: "nowpost", reply: body(`{"token":"flat","data":{"token":"enveloped"}}`), want: "enveloped"},
		{name: "token_type empty", only: "ndovu", reply: body(saying("t", `,"token_type":""`)), want: "t"},
		{name: "token_type in lower case", only: "ndovu", reply: body(saying("t", `,"token_type":"bearer"`)), want: "t"},
		{name: "more than the page shows", only: "ndovu",
			reply: body(`{"access_token":"t","refresh_token":"r","scope":["a"],"token":"x","success":false}`), want: "t"},
		{name: "a byte order mark", reply: body(bom + saying("t", "")), want: "t"},
		{name: "two of them", reply: body(bom + bom + saying("t", "")), wrong: "the answer is not the JSON"},
		{name: "the type before the token", reply: body(saying("Bearer t", "")), want: "t"},
		{name: "in lower case, with two spaces", reply: body(saying("bearer  t", "")), want: "t"},
		{name: "another type before the token", reply: body(saying("Basic t", "")), wrong: unsendable},
		{name: "the type alone", reply: body(saying("Bearer ", "")), wrong: unsendable},
		{name: "gzip that the Base asked for", reply: encoded("gzip", "\x1f\x8b"), wrong: " Content-Encoding, gzip,"},
		{name: "an unknown encoding", reply: encoded("Planted-Secret", "x"), wrong: " Content-Encoding, unknown,"},
		{name: "identity", reply: encoded("identity", saying("t", "")), want: "t"},
		{name: "success true", reply: body(saying("t", `,"success":true`)), want: "t"},
		{name: "success 1", reply: body(saying("t", `,"success":1`)), want: "t"},
		{name: "success a text", reply: body(saying("t", `,"success":"true"`)), want: "t"},
		{name: "success null", reply: body(saying("t", `,"success":null`)), want: "t"},
		{name: "success an object", reply: body(saying("t", `,"success":{"code":1}`)), want: "t"},
	} {
		for _, pr := range providers {
			if c.only != "" && c.only != pr.name {
				continue
			}
			t.Run(pr.name+" "+c.name, func(t *testing.T) {
				p := &partner{script: always(c.reply)}
				source := p.source(pr)
				if pr.name == "acme" {
					account := acme(good(p))
					account.ReadToken = nil
					source = account.TokenSource()
				}
				token, err := source.Token()
				equal(t, "requests", p.ops(), "login")
				if c.want == "" {
					errorIf(t, !strings.Contains(fmt.Sprint(err), c.wrong), "got %v, want %q in it", err, c.wrong)
					errorIf(t, strings.Contains(fmt.Sprint(err), "Planted"), "got the answer's words in %v", err)
					return
				}
				must(t, err)
				equal(t, "token", token.AccessToken, c.want)
				equal(t, "type", token.Type(), "Bearer")
				equal(t, "refresh token", token.RefreshToken, "")
				errorIf(t, !token.Valid(), "got %v, which is not valid", token)
			})
		}
	}
}

// An AuthError that a user's test makes matches ErrCredentials by its status.
func TestAuthErrorOfATest(t *testing.T) {
	for status, want := range map[int]bool{0: false, 400: false, 401: true, 403: false} {
		err := fmt.Errorf("call: %w", &partnerauth.AuthError{Provider: "acme", Op: "login", StatusCode: status})
		equal(t, fmt.Sprint(status, " is ErrCredentials"), errors.Is(err, partnerauth.ErrCredentials), want)
	}
}
