package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A limitedError is what a PermitLimiter returns that cannot let anybody go.
type limitedError struct{}

func (limitedError) Error() string             { return "Redis is away" }
func (limitedError) Is(target error) bool      { return target == partnerauth.ErrRateLimited }
func (limitedError) RetryAfter() time.Duration { return 3 * time.Second }

// hangs is a Limiter's code that takes half an hour.
func hangs(ctx context.Context) error { return sleep(ctx, 30*time.Minute) }

// Whoever waits learns what for, on a cold Source as on a warm one, within its deadline:
// the error of the Limiter is in its own, and a refusal by it goes to a caller as it is.
func TestWaitersLearnWhatFor(t *testing.T) {
	t.Parallel()
	fails := func(err error, hang bool) func(context.Context) error {
		return func(ctx context.Context) error {
			if hang {
				hangs(ctx)
			}
			return err
		}
	}
	for _, c := range []struct {
		name    string
		limiter partnerauth.Limiter
		want    error
		limited bool // ErrRateLimited
	}{
		{"a Limiter that fails", limiterFunc(fails(errTest, false)), errTest, false},
		{"a Limiter that refuses", limiterFunc(fails(limitedError{}, false)), limitedError{}, true},
		{"a Limiter that hangs", limiterFunc(hangs), nil, true},
		{"a PermitLimiter that fails", &permits{before: fails(errTest, false)}, errTest, false},
		{"a PermitLimiter that fails in the end", &permits{before: fails(errTest, true)}, errTest, false},
		{"a PermitLimiter that refuses", &permits{before: fails(limitedError{}, false)}, limitedError{}, true},
		{"a PermitLimiter that refuses in the end", &permits{before: fails(limitedError{}, true)}, limitedError{}, true},
		{"a PermitLimiter that hangs", &permits{before: hangs}, nil, true},
	} {
		for _, warm := range []bool{true, false} {
			for _, pr := range providers {
				bubble(t, fmt.Sprintf("%s, %s, warm %t", c.name, pr.name, warm), func(t *testing.T) {
					p := &partner{open: true}
					rt := p.transportOf(pr, c.limiter)
					if warm {
						other := p.transport(nil)
						other.Source = rt.Source
						get(t, other, "/")
					}
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					var err error
					took := elapsed(func() { _, err = try(ctx, rt, "/") })
					errorIf(t, took > 5*time.Second, "it took %v, want 5 s at most", took)
					errorIf(t, err == nil || c.want != nil && !errors.Is(err, c.want), "got %v, want %v", err, c.want)
					errorIf(t, errors.Is(err, partnerauth.ErrRateLimited) != c.limited, "got %v, want ErrRateLimited %t", err, c.limited)
					errorIf(t, warm && c.want == limitedError{} && err != c.want, "got %v, want it as it is", err)
					auth := authOf(err)
					errorIf(t, warm != (auth.Op == ""), "got %v, want an AuthError where there is no token", err)
					time.Sleep(time.Hour)
				})
			}
		}
	}
}

// A Token of the user's own that hangs does not hold its caller, and is asked one
// question at a time.
func TestTokenThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, asked, asking, most := &partner{open: true}, 0, 0, 0
		rt := p.custom(tokenFunc(func() (*oauth2.Token, error) {
			asked++
			asking++
			most = max(most, asking)
			if asked == 1 {
				time.Sleep(time.Hour)
			}
			asking--
			return static("t").Token()
		}), nil)
		for _, c := range []struct {
			ctx  context.Context
			took time.Duration
			want error
		}{
			{deadline(t, 5*time.Second), 5 * time.Second, context.DeadlineExceeded},
			{deadline(t, 6*time.Second), time.Second, context.DeadlineExceeded},
			{leaving(t, 7*time.Second), time.Second, context.Canceled},
		} {
			var err error
			took := elapsed(func() { err = p.sentNothing(t, c.ctx, rt) })
			errorIf(t, took != c.took, "left after %v, want %v", took, c.took)
			errorIf(t, authOf(err).Op != "token" || !errors.Is(err, c.want), "got %v, want an AuthError with %v", err, c.want)
			errorIf(t, errors.Is(err, partnerauth.ErrRateLimited), "got %v, which is no matter of limits", err)
		}
		time.Sleep(2 * time.Hour)
		errorIf(t, get(t, rt, "/") != 200, "the next call failed")
		errorIf(t, most != 1, "%d questions at once, want one", most)
	})
}

// What x/oauth2's own sources say of an answer is in the error.
func TestRetrieveErrorOfACustomSource(t *testing.T) {
	for _, c := range []struct {
		status int
		word   string
		wrong  bool
	}{
		{401, "", true}, {400, "invalid_client", true}, {400, "invalid_grant", true}, {403, "", true}, {422, "", true},
		{400, "", true}, {400, "invalid_scope", false}, {400, "invalid_request", false}, {400, "Planted-Secret", true},
		{404, "", false}, {500, "", false}, {429, "", false},
	} {
		for _, wrapped := range []bool{false, true} {
			answered := &oauth2.RetrieveError{
				Response: &http.Response{StatusCode: c.status}, Body: []byte("Planted-Secret"),
				ErrorCode: c.word, ErrorDescription: "Planted-Secret",
			}
			var cause error = answered
			if wrapped {
				cause = fmt.Errorf("vault: %w", answered)
			}
			p := new(partner)
			err := p.sentNothing(t, t.Context(), p.custom(tokenFunc(func() (*oauth2.Token, error) { return nil, cause }), nil))
			auth, name := authOf(err), fmt.Sprint(c.status, " ", c.word)
			wrong := errors.Is(err, partnerauth.ErrCredentials)
			errorIf(t, auth.StatusCode != c.status || auth.Op != "token", "%s: got %#v", name, auth)
			errorIf(t, wrong != c.wrong, "%s: got %v, want ErrCredentials %t", name, err, c.wrong)
			errorIf(t, strings.Contains(err.Error(), "Planted"), "%s: got %v, which repeats the answer", name, err)
			got, ok := errors.AsType[*oauth2.RetrieveError](err)
			errorIf(t, !ok || got != answered || !errors.Is(err, cause), "%s: the RetrieveError is lost", name)
			known := strings.HasPrefix(c.word, "invalid")
			errorIf(t, known && !strings.Contains(err.Error(), c.word), "%s: got %v, want the word in it", name, err)
		}
	}
	// one without a Response, whose Error would panic
	p := new(partner)
	err := p.sentNothing(t, t.Context(), p.custom(tokenFunc(func() (*oauth2.Token, error) { return nil, &oauth2.RetrieveError{} }), nil))
	errorIf(t, err.Error() == "", "got an error without a text")
}

// A passing is a Base of the user's own around another.
type passing struct{ http.RoundTripper }

func (p passing) RoundTrip(req *http.Request) (*http.Response, error) {
	return p.RoundTripper.RoundTrip(req.Clone(context.WithValue(req.Context(), foreignKey{}, 1)))
}

// A Transport that is its own Base says so at once, for token requests, calls, and what
// goes elsewhere, and without spending the quota.
func TestOwnBase(t *testing.T) {
	before := http.DefaultTransport
	defer func() { http.DefaultTransport = before }()
	var depth int
	deep := func(rt http.RoundTripper) http.RoundTripper {
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if depth++; depth > 1000 {
				return nil, io.ErrNoProgress
			}
			return rt.RoundTrip(req)
		})
	}
	for name, set := range map[string]func(rt *partnerauth.Transport){
		"directly":                 func(rt *partnerauth.Transport) { rt.Base = rt },
		"wrapped":                  func(rt *partnerauth.Transport) { rt.Base = passing{passing{rt}} },
		"in another Transport":     func(rt *partnerauth.Transport) { rt.Base = new(partner).foreign(rt) },
		"as http.DefaultTransport": func(rt *partnerauth.Transport) { http.DefaultTransport = rt },
		"as it, wrapped":           func(rt *partnerauth.Transport) { http.DefaultTransport = passing{rt} },
	} {
		for _, url := range []string{apiURL, "https://elsewhere.example"} {
			sources := map[string]oauth2.TokenSource{"static": static("t")}
			for _, pr := range providers {
				sources[pr.name] = pr.config(good(nil)).TokenSource()
			}
			for kind, source := range sources {
				http.DefaultTransport = before
				depth = 0
				rt := &partnerauth.Transport{Source: source, Origins: []string{apiURL}}
				set(rt)
				if rt.Base != nil {
					rt.Base = deep(rt.Base)
				} else {
					http.DefaultTransport = deep(http.DefaultTransport)
				}
				body := watched("x")
				req := posting(t, body)
				req.URL, _ = req.URL.Parse(url)
				_, err := rt.RoundTrip(req)
				where := name + ", " + kind + ", " + url
				told := err != nil && strings.Contains(err.Error(), "its own Base")
				errorIf(t, !told, "%s: got %v, want an error that names the mistake", where, err)
				errorIf(t, depth > 3, "%s: %d rounds", where, depth)
				errorIf(t, body.closed.Load() == 0, "%s: the body was not closed", where)
			}
		}
	}
}

// foreign is a Transport for another partner on top of base.
func (p *partner) foreign(base http.RoundTripper) *partnerauth.Transport {
	return &partnerauth.Transport{Source: static("other"), Origins: []string{"https://other.example"}, Base: base}
}

// Many requests to elsewhere at once, and Transports on top of each other, are no circle.
func TestNoCircle(t *testing.T) {
	p := &partner{open: true}
	inner := p.custom(static("t"), &partnerauth.Quota{Requests: 1000})
	inner.Origins = []string{"https://inner.example"}
	outer := &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL}, Base: passing{inner}}
	for _, url := range []string{apiURL, "https://inner.example", "https://elsewhere.example"} {
		atOnce(50, func(int) {
			code := status(t, outer, newRequest(t, "GET", url, ""))
			errorIf(t, code != 200, "%s: got %d", url, code)
		}).Wait()
	}
	// a Base may use the client for something else meanwhile
	rt := &partnerauth.Transport{Source: static("t"), Origins: []string{apiURL}}
	rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == "/outer" {
			get(t, rt, "/inner")
		}
		return p.RoundTrip(req)
	})
	errorIf(t, get(t, rt, "/outer") != 200, "a call inside a call failed")
}
