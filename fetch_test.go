package partnerauth_test

import (
	"bytes"
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

// What every fetch does, whoever the partner is. NowPost stands for both, and
// ndovu_source_test.go has some rows for Ndovu.

const aToken = `{"token":"t","access_token":"t"}` // to either partner's Source

// A failure is a reply that is no token, and what becomes of it.
type failure struct {
	name   string
	reply  reply
	text   string // how the error's text goes on after provider and op
	status int
	tries  int // requests that the first caller costs
}

// failures are the answers that say no in any partner's language; NowPost's test
// has them. What the partner writes into them is never in an error's text.
func failures() []failure {
	const html = `<!DOCTYPE html><html><body><pre>Echo Planted-Secret</pre></body></html>`
	const page = `{"success":false,"message":"Echo Planted-Secret"}`
	const notJSON = "200 OK: the answer is not the JSON"
	return []failure{
		{name: "307 with a token in it", reply: reply{status: 307, header: headers("Location: /elsewhere"), body: aToken},
			text: "307 Temporary Redirect: a redirect", status: 307, tries: 1},
		{name: "400", reply: reply{status: 400, body: page}, text: "400 Bad Request", status: 400, tries: 1},
		{name: "401", reply: reply{status: 401, body: page}, text: "401 Unauthorized: check the e-mail and password", status: 401,
			tries: 1},
		{name: "401 larger than 1 MiB", reply: reply{status: 401, body: strings.Repeat("x", 2<<20)}, text: "401 Unauthorized", status: 401,
			tries: 1},
		{name: "401 that breaks off", reply: reply{status: 401, body: `{"succ`, cut: true}, text: "401 Unauthorized", status: 401,
			tries: 1},
		{name: "403", reply: reply{status: 403, body: page}, text: "403 Forbidden: the account may not use this endpoint", status: 403,
			tries: 1},
		{name: "499, which has no text", reply: reply{status: 499}, text: "499", status: 499, tries: 1},
		{name: "500", reply: reply{status: 500, body: page}, text: "500 Internal Server Error", status: 500, tries: 3},
		{name: "502 in HTML", reply: reply{status: 502, body: html}, text: "502 Bad Gateway", status: 502, tries: 3},
		{name: "503 with Retry-After", reply: reply{status: 503, header: headers("Retry-After: 5")}, text: "503 Service Unavailable",
			status: 503, tries: 3},

		{name: "204", reply: reply{status: 204}, text: "204 No Content: the answer is not the JSON", status: 204, tries: 1},
		{name: "nothing in it", reply: reply{status: 200}, text: notJSON, status: 200, tries: 1},
		{name: "half an object", reply: reply{body: strings.TrimSuffix(aToken, "}")}, text: notJSON, status: 200, tries: 1},
		{name: "an object and more", reply: reply{body: aToken + " trailing"}, text: notJSON, status: 200, tries: 1},
		{name: "deep nesting", reply: reply{body: strings.Repeat(`{"data":`, 100_000)}, text: notJSON, status: 200, tries: 1},
		{name: "null", reply: reply{body: `null`}, text: "200 OK: no ", status: 200, tries: 1},
		{name: "larger than 1 MiB", reply: reply{body: aToken + strings.Repeat(" ", 1<<20)},
			text: "200 OK: the answer is larger than 1 MiB", status: 200, tries: 1},

		{name: "no connection", reply: reply{err: errors.New("connection refused by the test")}, text: "connection refused by the test",
			tries: 3},
		{name: "a body that breaks off", reply: reply{body: `{"token":"t","access_to`, cut: true}, text: "unexpected EOF", tries: 3},
	}
}

// noToken is a failure whose status is 200.
func noToken(name, body, text string) failure {
	return failure{name: name, reply: reply{body: body}, text: "200 OK: " + text, status: 200, tries: 1}
}

// checkFailure compares what a Source does with what f says.
func checkFailure(t *testing.T, p *partner, source *partnerauth.Source, provider string, f failure) {
	t.Helper()
	p.script = always(f.reply)
	token, err := source.Token()
	if err == nil {
		t.Fatalf("got the token %q, want an error", token.AccessToken)
	}
	want := "partnerauth: " + provider + " login: " + f.text
	errorIf(t, !strings.HasPrefix(err.Error(), want), "got %q, want %q and more", err, want)
	auth := authOf(err)
	if auth.Provider != provider || auth.Op != "login" || auth.StatusCode != f.status {
		t.Fatalf("got %#v, want an AuthError of %s with status %d", err, provider, f.status)
	}
	errorIf(t, auth.RetryAfter <= 0, "got RetryAfter %v, want when the partner is asked again", auth.RetryAfter)
	var answered *oauth2.RetrieveError
	switch is := errors.As(err, &answered); {
	case is != (f.status != 0):
		t.Errorf("got an oauth2.RetrieveError: %t", is)
	case is && (answered.Response == nil || answered.Response.StatusCode != f.status):
		t.Errorf("got an oauth2.RetrieveError of %+v, want status %d", answered.Response, f.status)
	case is && strings.Contains(answered.Error(), "Planted-Secret"):
		t.Errorf("%v has the secret in it", answered)
	}
	errorIf(t, f.reply.err != nil && !errors.Is(err, f.reply.err), "%v does not unwrap to the network error", err)
	refused := slices.Contains([]int{400, 401, 403, 422}, f.status) || strings.Contains(f.text, "success is false")
	errorIf(t, errors.Is(err, partnerauth.ErrCredentials) != refused, "got ErrCredentials %t for %d", !refused, f.status)
	text := fmt.Sprintf("%v %+[1]v %#[1]v", err)
	errorIf(t, strings.Contains(text, "Echo") || strings.Contains(text, "Planted"), "%s has the partner's answer or a secret in it", text)
	// whatever went wrong, the next caller does not cost a request at once
	_, again := source.Token()
	errorIf(t, !sameFailure(err, again), "the next caller got %v, want %v again", again, err)
	errorIf(t, p.count("login") != f.tries, "two callers cost %d requests, want %d", p.count("login"), f.tries)
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

// A failure that is given out again says how old it is, and how long it holds from now.
func TestFailureIsGivenOutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("login", reply{status: 503, header: headers("Retry-After: 60")})
		source := p.nowPost()
		_, first := source.Token()
		time.Sleep(3 * time.Second)
		_, again := source.Token()
		auth := authOf(again)
		const want = "partnerauth: nowpost login: 503 Service Unavailable (asked 3s ago, again in 58s)"
		errorIf(t, again == nil || again.Error() != want, "got %q, want %q", again, want)
		errorIf(t, auth.RetryAfter != 57*time.Second+rounded, "got RetryAfter %v, want it to count from now", auth.RetryAfter)
		errorIf(t, time.Since(auth.At) != 3*time.Second, "got At %v ago, want 3 s", time.Since(auth.At))
		errorIf(t, !sameFailure(first, again), "got %v after %v", again, first)
		errorIf(t, authOf(first).RetryAfter != time.Minute+rounded,
			"the first caller's error now has RetryAfter %v", authOf(first).RetryAfter)
		time.Sleep(58 * time.Second)
		source.Token()
		errorIf(t, p.count("login") != 2, "%d logins, want another after a minute", p.count("login"))
	})
}

// An endless answer is read no further than needed to see that it is too large.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	endless := &watchedBody{Reader: readerFunc(func(b []byte) (int, error) { return copy(b, bytes.Repeat([]byte(" "), len(b))), nil })}
	p := &partner{script: always(reply{stream: endless})}
	_, err := p.nowPost().Token()
	errorIf(t, err == nil || !strings.Contains(err.Error(), "1 MiB"), "got %v", err)
	errorIf(t, endless.read.Load() > 1<<20+1 || endless.closed.Load() == 0,
		"got %d bytes read, closed %d times, want little more than 1 MiB", endless.read.Load(), endless.closed.Load())
}

// Token requests follow no redirect: credentials go nowhere else, not even to
// another path of the same server.
func TestTokenRequestsFollowNoRedirect(t *testing.T) {
	t.Parallel()
	for _, code := range []int{301, 302, 303, 307, 308} {
		for _, to := range []string{"https://evil.example/api/v1/auth/login", "/elsewhere"} {
			for _, pr := range providers {
				p := &partner{script: always(reply{status: code, header: headers("Location: " + to)})}
				_, err := (&http.Client{Transport: p.transportOf(pr, nil)}).Get(apiURL + "/orders")
				errorIf(t, authOf(err).StatusCode != code, "%s: got %v, want an AuthError with the status %d", pr.name, err, code)
				errorIf(t, err == nil || !strings.Contains(err.Error(), "redirect"),
					"%s: got %v, want one that tells of a redirect", pr.name, err)
				errorIf(t, len(p.seen()) != 1, "%s: got %v, want the login alone", pr.name, p.seen())
			}
		}
	}
}

const pollEvery = 100 * time.Millisecond

// attempts are the times between the requests that a failing partner gets from
// callers who hardly stop asking, until there were n more: a hundredth of what
// they have waited, at least pollEvery.
func attempts(t *testing.T, p *partner, source *partnerauth.Source, n int) []time.Duration {
	t.Helper()
	from := len(p.seen())
	var last error
	since := time.Now()
	for asked := -1; len(p.seen()) < from+n; time.Sleep(max(pollEvery, time.Since(since)/100)) {
		_, err := source.Token()
		if err == nil {
			t.Fatal("got a token")
		}
		now := len(p.seen())
		if now == asked && !sameFailure(last, err) {
			t.Fatalf("got another error, %v after %v, without another request", err, last)
		}
		if now != asked {
			since = time.Now()
		}
		asked, last = now, err
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

// A partner locks accounts, so what it refused is not sent again soon. Callers
// get the error that there was.
func TestRefusedCredentialsBackOff(t *testing.T) {
	t.Parallel()
	for status, n := range map[int]int{400: 4, 401: len(refusals) + 9, 403: 4} {
		everyProvider(t, func(t *testing.T, pr provider) {
			no := reply{status: status, body: `{"success":false}`}
			p := new(partner).on("login", no)
			source := p.source(pr)
			check := func(gaps []time.Duration) {
				for i, gap := range gaps {
					least := refusals[min(i, len(refusals)-1)]
					most := least*3/2*101/100 + pollEvery
					errorIf(t, gap < least || gap > most, "got %v before request %d, want %v and up to half of it more", gap, i+2, least)
				}
			}
			gaps := attempts(t, p, source, n)
			check(gaps)
			errorIf(t, len(gaps) > len(refusals) && !spread(gaps[len(refusals):]), "got %v, want jitter", gaps)
			p.on("login") // no longer: after a success it starts over
			time.Sleep(time.Hour)
			token, err := source.Token()
			must(t, err)
			p.on("login", no).on("refresh", no)
			source.Invalidate(token)
			gaps = attempts(t, p, source, 3)
			check(slices.DeleteFunc(gaps, func(d time.Duration) bool { return d == 0 })) // a login at once after a refused refresh
		})
	}
}

func TestOtherFailuresBackOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reply reply
		tries int // in one fetch
	}{
		"5xx": {reply{status: 502}, 3},
		"cut": {reply{body: "{", cut: true}, 3},
		"404": {reply{status: 404}, 1},
	} {
		bubble(t, name, func(t *testing.T) {
			p := &partner{script: always(c.reply)}
			var fetches []time.Duration // between the last request of one and the first of the next
			for i, gap := range attempts(t, p, p.nowPost(), 20*c.tries) {
				if (i+1)%c.tries == 0 {
					fetches = append(fetches, gap)
				} else if gap < 100*time.Millisecond || gap > 2*time.Second {
					t.Errorf("got %v before a try inside a fetch", gap)
				}
			}
			for i, gap := range fetches {
				errorIf(t, gap < 500*time.Millisecond || gap > 31*time.Second || i > 8 && gap < 10*time.Second,
					"got %v before fetch %d, want 0.5 s growing to 30 s", gap, i+2)
			}
			errorIf(t, fetches[0] > 1500*time.Millisecond || !spread(fetches[9:]), "got %v, want a start at 0.5 s, and jitter", fetches)
		})
	}
}

// A failure that the next try or two get over is nothing to the caller.
func TestTriesInsideOneFetch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fails []reply
		least time.Duration
	}{
		"network":                   {[]reply{{err: io.ErrUnexpectedEOF}, {err: errors.New("reset")}}, 500 * time.Millisecond},
		"5xx":                       {[]reply{{status: 500}, {status: 502, body: "<html>"}}, 500 * time.Millisecond},
		"cut and 503":               {[]reply{{body: `{"token":`, cut: true}, {status: 503}}, 500 * time.Millisecond},
		"429 does not count as one": {[]reply{{status: 500}, busy("1"), busy("1"), {status: 500}}, 2 * time.Second},
		"429 that breaks off": {[]reply{{status: 429, header: headers("Retry-After: 4"), body: "Too ma", cut: true}},
			4 * time.Second},
	} {
		bubble(t, name, func(t *testing.T) {
			p := new(partner).on("login", append(c.fails, reply{})...)
			took := elapsed(func() { _, err := p.nowPost().Token(); must(t, err) })
			errorIf(t, p.count("login") != len(c.fails)+1 || took > 7*time.Second || took < c.least,
				"got %d requests in %v, want %d in seconds", p.count("login"), took, len(c.fails)+1)
		})
	}
}

// unnamed is the pause after a 429 that names none.
const unnamed = time.Minute

func TestTokenRequestMeets429(t *testing.T) {
	t.Parallel()
	bubble(t, "for ever", func(t *testing.T) {
		p := new(partner).on("login", busy("20"))
		source := p.nowPost()
		_, err := source.Token()
		auth := authOf(err)
		errorIf(t, auth.StatusCode != 429 || auth.RetryAfter < 20*time.Second || errors.Is(err, partnerauth.ErrCredentials),
			"got %v, want an AuthError with 429 that names the wait", err)
		n := p.count("login")
		errorIf(t, n < 2 || n > 10, "got %d requests before the caller was told, want a few", n)
		attempts(t, p, source, 20)
		least := slices.Min(p.gaps())
		errorIf(t, least < 20*time.Second, "got %v between requests, want 20 s", least)
	})
}

// A partner that is away for long is not waited for inside one fetch.
func TestLongUnavailabilityIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("login", reply{status: 503, header: headers("Retry-After: 600")})
		source := p.nowPost()
		var err error
		took := elapsed(func() { _, err = source.Token() })
		auth := authOf(err)
		errorIf(t, auth.StatusCode != 503, "got %v, want the 503", err)
		errorIf(t, auth.RetryAfter != 10*time.Minute+rounded, "got RetryAfter %v, want what the answer says", auth.RetryAfter)
		errorIf(t, took > 0, "told after %v, want at once", took)
		time.Sleep(10 * time.Minute)
		source.Token()
		errorIf(t, p.count("login") != 1, "got %d logins, want one until the partner is back", p.count("login"))
	})
}

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
				left := time.Since(began)
				errorIf(t, left != min(patience[i], took, limit) || (err == nil) != (took < min(patience[i], limit)),
					"one with %v got %v after %v", patience[i], err, left)
				errorIf(t, err != nil && (authOf(err).Op != "login" || !errors.Is(err, context.DeadlineExceeded)),
					"got %v, want an AuthError of a login", err)
			}).Wait()
			errorIf(t, p.count("login") != 1, "got %d logins, want one", p.count("login"))
		})
	}
}

// fuzzAnswer feeds an answer to a Source: what comes of it is an error that
// names the operation, or a token that can be sent.
func fuzzAnswer(t *testing.T, body []byte, date string, status int, provider string, of func(*partner) *partnerauth.Source) {
	if status < 100 || status > 999 {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		p := &partner{script: func(a asked) reply {
			errorIf(t, a.op == "call" && !sendable(a.token), "the API was sent %q", a.token)
			return reply{status: status, header: http.Header{"Date": {date}}, body: string(body)}
		}}
		source := of(p)
		token, err := source.Token()
		asked := len(p.seen())
		errorIf(t, asked > 6, "got %d requests in one fetch", asked)
		if err != nil {
			auth := authOf(err)
			errorIf(t, auth.Provider != provider || auth.StatusCode != status || !strings.HasPrefix(err.Error(),
				"partnerauth: "+provider+" login: "),
				"got %v", err)
			var answered *oauth2.RetrieveError
			errorIf(t, !errors.As(err, &answered) || answered.Response == nil || answered.Error() == "",
				"got %v, want an oauth2.RetrieveError", err)
			refused := errors.Is(err, partnerauth.ErrCredentials)
			mayRefuse := status/100 == 2 || slices.Contains([]int{400, 401, 403, 422}, status)
			errorIf(t, refused && !mayRefuse, "got %v for %d", err, status)
			errorIf(t, status == 401 && !refused && !bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) && !bytes.Contains(body,
				[]byte("error")),
				"got %v for %d", err, status)
			_, again := source.Token()
			errorIf(t, !sameFailure(err, again), "got %v at once after %v", again, err)
			errorIf(t, len(p.seen()) != asked, "the next caller cost %d requests", len(p.seen())-asked)
			return
		}
		errorIf(t, status < 200 || status > 299, "got a token from a %d", status)
		errorIf(t, !sendable(token.AccessToken), "got the token %q, which cannot be sent", token.AccessToken)
		errorIf(t, token.TokenType != "Bearer", "got the type %q", token.TokenType)
		errorIf(t, !token.Expiry.After(time.Now()), "got the expiry %v, which has passed", token.Expiry)
		errorIf(t, token.Expiry.After(time.Now().AddDate(20, 0, 0)), "got the expiry %v, want 20 years at most", token.Expiry)
		try(t.Context(), &partnerauth.Transport{Source: source, Base: p}, "/orders")
		synctest.Wait()
	})
}

// fuzzFailures seeds with what the tables have.
func fuzzFailures(f *testing.F, answers ...string) {
	for _, c := range failures() {
		f.Add([]byte(c.reply.body), "", max(c.reply.status, 200))
	}
	for _, body := range answers {
		f.Add([]byte(body), in2026.Format(http.TimeFormat), 200)
	}
}

// sendable reports whether a token is made of what RFC 9110 lets stand in a
// header, spaces apart.
func sendable(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r < '!' || r > '~' })
}

// An AuthError that a user's test makes matches ErrCredentials by its status.
func TestAuthErrorOfATest(t *testing.T) {
	for status, want := range map[int]bool{0: false, 400: false, 401: true, 403: false} {
		err := fmt.Errorf("call: %w", &partnerauth.AuthError{Provider: "acme", Op: "login", StatusCode: status})
		got := errors.Is(err, partnerauth.ErrCredentials)
		errorIf(t, got != want, "status %d: ErrCredentials %t, want %t", status, got, want)
	}
}
