package partnerauth_test

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// All tokens are revoked under 200 goroutines that create orders.
func TestRevokedUnderLoad(t *testing.T) {
	t.Parallel()
	const workers = 200
	const order = `{"partner_order_id":%q,"pudo_point_id":"pudo-1","customer":{"name":"N","email":"n@example.com","phone":"1"},` +
		`"items":[{"name":"%020000d","qty":1,"price":1,"weight_kg":1}]}`
	for _, useTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", useTLS), func(t *testing.T) {
			server, rt := onSockets(t, partnertest.Options{TLS: useTLS, Limit: -1})
			create := func(id string) {
				req := newRequest(t, "POST", server.URL+"/api/v1/orders", fmt.Sprintf(order, id, 0))
				req.Header.Set("Content-Type", "application/json")
				code := status(t, rt, req)
				errorIf(t, code != 201 || server.Created(id) != 1, "%s: got %d, created %d times, want once", id, code, server.Created(id))
			}
			var done atomic.Int32
			atOnce(workers, func(w int) {
				create(fmt.Sprint("first-", w))
				if done.Add(1) == workers/2 {
					server.RevokeAll()
				}
				create(fmt.Sprint("second-", w))
			}).Wait()
			n := server.LoginRequests()
			errorIf(t, n != 2, "got %d logins, want the first and one for all who were answered 401", n)
			errorIf(t, server.Status(401) == 0, "nobody was answered 401")
		})
	}
}

// Ten thousand requests that all get 401 for the same token cost one login.
func TestManyRejectionsOneLogin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var arrived sync.WaitGroup
		arrived.Add(10_000)
		p := &partner{script: func(a asked) reply {
			if a.token != "token-1" {
				return reply{}
			}
			arrived.Done()
			arrived.Wait()
			return reply{status: 401}
		}}
		rt := p.transport(nil)
		atOnce(10_000, func(int) {
			errorIf(t, get(t, rt, "/") != 200, "a call failed")
		}).Wait()
		errorIf(t, p.count("login") != 2, "got %d logins, want 2", p.count("login"))
	})
}

// A 401 that comes late must not drop the token that has replaced the rejected.
func TestLateRejectionKeepsTheNewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner).on("/slow", reply{status: 401, after: time.Second}, reply{})
		rt := p.transport(nil)
		get(t, rt, "/")
		go get(t, rt, "/slow")
		synctest.Wait()
		p.revokeAll()
		get(t, rt, "/") // signs in again
		before, _ := rt.Source.Token()
		time.Sleep(time.Minute)
		after, _ := rt.Source.Token()
		errorIf(t, before != after, "the token is %v, want that of the login, %v", after, before)
		errorIf(t, p.count("login") != 2, "%d logins, want 2", p.count("login"))
		errorIf(t, p.count("/slow") != 2, "the late 401 led to %d requests, want another", p.count("/slow"))
	})
}

func TestUnauthorizedAnswers(t *testing.T) {
	t.Run("insufficient scope costs no login", func(t *testing.T) {
		p := new(partner).on("call", reply{status: 401, header: headers(`WWW-Authenticate: Bearer realm="x", error="insufficient_scope"`)})
		rt := p.transport(nil)
		get(t, rt, "/")
		get(t, rt, "/")
		errorIf(t, p.count("login") != 1 || p.count("call") != 2,
			"2 calls: %d logins and %d requests, want 1 and 2", p.count("login"), p.count("call"))
	})

	t.Run("second 401 is returned as it is", func(t *testing.T) {
		p := new(partner).on("call", reply{status: 401, body: "always"})
		resp, err := p.transport(nil).RoundTrip(newRequest(t, "POST", apiURL+"/", "body"))
		if err != nil || resp.StatusCode != 401 {
			t.Fatalf("got %v, %v, want 401", resp, err)
		}
		body, _ := io.ReadAll(resp.Body)
		errorIf(t, string(body) != "always", "got body %q, want it whole", body)
		errorIf(t, p.count("call") != 2 || p.count("login") != 2,
			"got %d calls and %d logins, want 2 and 2", p.count("call"), p.count("login"))
	})

	t.Run("a body that cannot be had again", func(t *testing.T) {
		p := new(partner)
		rt := p.transport(nil)
		get(t, rt, "/")
		p.revokeAll()
		code := status(t, rt, posting(t, watched("once")))
		errorIf(t, code != 401 || p.count("call") != 2, "got %d after %d calls, want the 401 of one", code, p.count("call")-1)
		code = get(t, rt, "/")
		errorIf(t, code != 200 || p.count("call 401") != 1,
			"got %d after %d rejections, want 200 with a new token at once", code, p.count("call 401"))
	})

	t.Run("failed login after 401", func(t *testing.T) {
		p := new(partner).on("login", reply{}, reply{status: 403, header: headers("X-Request-Id: 42"), body: "{}"})
		rt := p.transport(nil)
		get(t, rt, "/")
		p.revokeAll()
		_, err := (&http.Client{Transport: rt}).Get(apiURL) // so that it is inside a *url.Error
		auth := authOf(err)
		answered, ok := errors.AsType[*oauth2.RetrieveError](err)
		if !ok || !errors.Is(err, partnerauth.ErrCredentials) || errors.Is(err, partnerauth.ErrRateLimited) || auth.Timeout() {
			t.Fatalf("got %v, want an AuthError with an oauth2.RetrieveError and ErrCredentials, and nothing else", err)
		}
		errorIf(t, auth.StatusCode != 403, "got status %d, want that of the login", auth.StatusCode)
		errorIf(t, auth.Op != "login", "got Op %q, want login", auth.Op)
		id := answered.Response.Header.Get("X-Request-Id")
		errorIf(t, id != "42", "got X-Request-Id %q, want that of the login's answer", id)
		errorIf(t, answered.Body != nil, "got the body %q, want none", answered.Body)
	})

	bubble(t, "an answer that never ends costs a second", func(t *testing.T) {
		endless, _ := io.Pipe()
		rt := new(partner).on("call", reply{status: 401, stream: endless}, reply{}).transport(nil)
		took := elapsed(func() { errorIf(t, get(t, rt, "/") != 200, "a call failed") })
		errorIf(t, took > 2*time.Second, "took %v, want two seconds at most", took)
	})
}

func TestRateLimitedAnswers(t *testing.T) {
	for _, c := range []struct {
		name     string
		reply    reply
		times    int
		deadline time.Duration
		status   int
		calls    int
		took     time.Duration
	}{
		{name: "pause and once more", reply: busy("7"), times: 1, status: 200, calls: 2, took: 7 * time.Second},
		{name: "no header", reply: reply{status: 429}, times: 1, status: 200, calls: 2, took: 600 * time.Millisecond},
		{name: "a second 429 is returned", reply: busy("7"), times: 2, status: 429, calls: 2, took: 7 * time.Second},
		{name: "past the deadline", reply: busy("7"), times: 1, deadline: 5 * time.Second, status: 429, calls: 1},
		{name: "within the deadline", reply: busy("7"), times: 1, deadline: 8 * time.Second, status: 200, calls: 2, took: 7 * time.Second},
		{name: "more than two windows", reply: busy("121"), times: 1, status: 429, calls: 1},
		{name: "two windows", reply: busy("120"), times: 1, status: 200, calls: 2, took: 2 * time.Minute},
		{name: "at once", reply: busy("0"), times: 1, status: 200, calls: 2},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := new(partner).on("call", append(slices.Repeat([]reply{c.reply}, c.times), reply{})...)
			req := newRequest(t, "POST", apiURL, "body").WithContext(deadline(t, cmp.Or(c.deadline, time.Hour)))
			var code int
			took := elapsed(func() { code = status(t, p.transport(&partnerauth.Quota{}), req) })
			errorIf(t, code != c.status || p.count("call") != c.calls, "got %d after %d calls, want %d after %d",
				code, p.count("call"), c.status, c.calls)
			errorIf(t, took < c.took || took > c.took+time.Second, "took %v, want %v", took, c.took)
		})
	}

	bubble(t, "one that is not worth waiting for is not even read", func(t *testing.T) {
		endless, _ := io.Pipe()
		r := busy("121")
		r.stream = endless
		rt, req := new(partner).on("call", r).transport(nil), newRequest(t, "GET", apiURL, "")
		took := elapsed(func() {
			resp, err := rt.RoundTrip(req)
			errorIf(t, err != nil || resp.StatusCode != 429, "got %v, %v", resp, err)
		})
		errorIf(t, took > 0, "the 429 was returned after %v, want at once", took)
	})
	bubble(t, "everybody pauses, queued requests too", func(t *testing.T) {
		p := new(partner).on("/first", busy("30"), reply{}, busy("30"))
		rt := p.transport(&partnerauth.Quota{})
		go get(t, rt, "/first")
		synctest.Wait()
		took := elapsed(func() { get(t, rt, "/second") })
		errorIf(t, took < 30*time.Second, "the second went after %v, want the pause of 30 s", took)
		var order []string
		for _, a := range p.seen() {
			order = append(order, a.path)
		}
		want := []string{loginPath, "/first", "/first", "/second"}
		errorIf(t, !slices.Equal(order, want), "got order %v, want %v", order, want)
		ctx := deadline(t, 5*time.Second)
		code, err := try(ctx, rt, "/first")
		errorIf(t, code != 429, "got %d, %v, want 429", code, err)
		refused(t, ctx, rt, 0)
	})
}

// The rejected answer is drained, so that the second attempt finds its connection
// free, or given up if it is long: one connection is enough for all.
func TestRejectedAnswerFreesItsConnection(t *testing.T) {
	for size, same := range map[int]bool{30_000: true, 3_000_000: false} {
		server, rt := onSockets(t, partnertest.Options{})
		rt.Base.(*http.Transport).MaxConnsPerHost = 1
		server.Inject(partnertest.Fault{Path: "/api/v1/orders", Times: 1, Status: 401, Body: strings.Repeat("x", size)})
		code := status(t, rt, newRequest(t, "GET", server.URL+"/api/v1/orders", "").WithContext(deadline(t, time.Minute)))
		errorIf(t, code != 200, "%d B: got %d, want 200", size, code)
		seen := server.Requests()
		for _, r := range seen {
			errorIf(t, same && r.RemoteAddr != seen[0].RemoteAddr, "%s %s came on another connection than the first", r.Method, r.Path)
		}
		errorIf(t, len(seen) != 4, "%d B: got %d requests, want login, 401, login, 200", size, len(seen))
	}
}

// replayable makes req a POST of text that can be had again, and returns what
// was opened of it.
func replayable(req *http.Request, text string) func() []*watchedBody {
	var mu sync.Mutex
	var bodies []*watchedBody
	req.GetBody = func() (io.ReadCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, watched(text))
		return bodies[len(bodies)-1], nil
	}
	req.Body, _ = req.GetBody()
	return func() []*watchedBody { return bodies }
}

// The contract of http.RoundTripper, on every way that a request can take.
func TestRoundTripperContract(t *testing.T) {
	for _, c := range []struct {
		name   string
		what   string // is answered
		turns  []reply
		change func(*http.Response) (*http.Response, error) // of what is answered to a call
		want   int                                          // 0: an error
		tries  int                                          // that open the body
	}{
		{name: "200", want: 200, tries: 1},
		{name: "401 and 200", what: "call", turns: []reply{{status: 401}, {}}, want: 200, tries: 2},
		{name: "error", what: "call", turns: []reply{{err: errTest}}, tries: 1},
		{name: "response and error", tries: 1, change: func(resp *http.Response) (*http.Response, error) { return resp, errTest }},
		{name: "nil and nil", tries: 1, change: func(*http.Response) (*http.Response, error) { return nil, nil }},
		{name: "nil body", want: 200, tries: 1,
			change: func(resp *http.Response) (*http.Response, error) { resp.Body = nil; return resp, nil }},
		{name: "login fails", what: "login", turns: []reply{{status: 401}}, tries: 1},
	} {
		for _, method := range []string{"GET", "POST", "ODD\x01"} {
			t.Run(c.name+" "+method, func(t *testing.T) {
				p := new(partner).on(c.what, c.turns...)
				rt := p.transport(nil)
				rt.Base = roundTripFunc(func(req *http.Request) (*http.Response, error) {
					resp, err := p.RoundTrip(req)
					if c.change != nil && err == nil {
						return c.change(resp)
					}
					return resp, err
				})
				req := newRequest(t, "GET", apiURL+"/", "")
				req.Method, req.Header = method, http.Header{"Accept": {"a/b"}, "Authorization": {"mine"}, "Nil": nil}
				bodies := replayable(req, "body")
				header, copied := maps.Clone(req.Header), *req
				resp, err := rt.RoundTrip(req)
				if (c.want == 0) != (err != nil) || (resp == nil) != (err != nil) {
					t.Fatalf("got %v, %v", resp, err)
				}
				if err == nil {
					errorIf(t, resp.StatusCode != c.want, "got %d, want %d", resp.StatusCode, c.want)
					errorIf(t, resp.Request != req, "got an answer to %v, want the caller's request", resp.Request)
					resp.Body.Close()
				}
				errorIf(t, !maps.EqualFunc(header, req.Header, slices.Equal), "the header is now %v", req.Header)
				same := req.Method == copied.Method && req.URL == copied.URL && req.Body == copied.Body
				errorIf(t, !same, "the request was changed: %v", req)
				errorIf(t, len(bodies()) != c.tries, "%d bodies were opened, want %d", len(bodies()), c.tries)
				for i, b := range bodies() {
					errorIf(t, b.closed.Load() != 1, "body %d was closed %d times, want once", i, b.closed.Load())
				}
			})
		}
	}

	t.Run("bad requests", func(t *testing.T) {
		rt := new(partner).transport(nil)
		code := status(t, rt, &http.Request{URL: &url.URL{Scheme: "https", Host: "api.example", Path: "/"}})
		errorIf(t, code != 200, "nil header and no method: got %d, want 200", code)
		_, err := rt.RoundTrip(&http.Request{})
		errorIf(t, err == nil, "no URL: got no error")
	})
}
