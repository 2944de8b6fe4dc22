package model

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// The answers that decide whether a request is sent again.
var deciding = map[string]reply{
	"200":      {},
	"401":      {Status: 401},
	"scope":    {Status: 401, Header: map[string]string{"WWW-Authenticate": `Bearer error="insufficient_scope"`}},
	"403":      {Status: 403},
	"429":      {Status: 429},
	"429 1 s":  {Status: 429, Header: map[string]string{"Retry-After": "1"}},
	"429 1 h":  {Status: 429, Header: map[string]string{"Retry-After": "3600"}},
	"500":      {Status: 500},
	"503 1 s":  {Status: 503, Header: map[string]string{"Retry-After": "1"}},
	"network":  {Err: errNetwork},
	"no route": {Err: errDial},
}

// retries is the whole policy for calls: how often a request is sent that is answered so,
// if its body can be replayed or not.
func retries(answers [3]string, replayable bool) int {
	after401, after429 := false, false
	for n, answer := range answers {
		switch {
		case answer == "401" && replayable && !after401:
			after401 = true
		case (answer == "429" || answer == "429 1 s") && replayable && !after429:
			after429 = true
		default:
			return n + 1
		}
	}
	return len(answers)
}

// (13 to 17) Whatever three answers a call gets, with whatever body: it is sent as often
// as the policy says, and the last answer is the one that is returned. These are all, so
// no change of the policy goes unnoticed.
func TestRetriesOfCalls(t *testing.T) {
	for a := range deciding {
		for b := range deciding {
			if b != "200" && retries([3]string{a, "200", "200"}, true) == 1 {
				continue // nobody sees the second answer; if somebody does, 200 tells as well
			}
			for c := range deciding {
				if c != "200" && retries([3]string{a, b, "200"}, true) < 3 {
					continue
				}
				for _, body := range []string{"none", "again", "file", "once"} {
					answers := [3]string{a, b, c}
					want := retries(answers, body != "once")
					got, end, err := sendings(t, answers, body)
					last := deciding[answers[want-1]]
					status := last.Status
					if status == 0 && last.Err == nil {
						status = 200
					}
					if got != want || end != status || (err == nil) != (last.Err == nil) {
						t.Errorf("%v, body %s: sent %d times and got %d, %v, want %d times and %d, %v", answers, body, got, end, err, want, status, last.Err)
					}
				}
			}
		}
	}
}

// sendings plays a call that is answered so, and returns how often it was sent and what
// it got.
func sendings(t *testing.T, answers [3]string, body string) (n, status int, err error) {
	synctest.Test(t, func(*testing.T) {
		p := &partner{answer: func(n int, a *attempt) reply {
			if a.path != apiPath || n >= len(answers) {
				return reply{}
			}
			return deciding[answers[n]]
		}}
		transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: &partnerauth.Quota{Requests: 1000}}
		c := &caller{id: 1, ctx: context.Background(), method: "POST", done: make(chan struct{})}
		text := strings.NewReader("body")
		switch body {
		case "again":
			c.body = text
		case "once":
			c.body = io.MultiReader(text)
		case "file":
			c.body = io.MultiReader(text)
			c.getBody = func() (io.ReadCloser, error) {
				text.Seek(0, io.SeekStart)
				return io.NopCloser(text), nil
			}
		}
		c.run(transport)
		<-c.done
		n, status, err = len(p.of(apiPath)), c.status, c.err
		time.Sleep(time.Hour)
	})
	return n, status, err
}

// The answers that decide whether a token request is sent again.
var decidingSignIn = map[string]reply{
	"200":       {},
	"302":       {Status: 302},
	"401":       {Status: 401},
	"403 HTML":  {Status: 403, Header: map[string]string{"Content-Type": "text/html"}},
	"408":       {Status: 408},
	"429 1 s":   {Status: 429, Header: map[string]string{"Retry-After": "1"}},
	"500":       {Status: 500},
	"503 10 s":  {Status: 503, Header: map[string]string{"Retry-After": "10"}},
	"503 1 min": {Status: 503, Header: map[string]string{"Retry-After": "60"}},
	"network":   {Err: errNetwork},
	"no route":  {Err: errDial},
}

// tries is the whole policy for a login that a caller waits for: how often it is sent,
// if it is answered so, and with the last answer from then on.
func tries(answers []string) int {
	failures, pauses := 0, 0
	for n := 1; ; n++ {
		switch answers[min(n, len(answers))-1] {
		case "408", "500", "503 10 s", "network", "no route":
			failures++
		case "429 1 s":
			pauses++
		default:
			return n
		}
		if failures == 3 || pauses == 6 {
			return n
		}
	}
}

// (11) Whatever a login is answered, it is sent as often as the policy says. A renewal
// that nobody waits for is sent once, and its login after it once.
func TestTriesOfLogins(t *testing.T) {
	for a := range decidingSignIn {
		for b := range decidingSignIn {
			for c := range decidingSignIn {
				answers := []string{a, b, c}
				synctest.Test(t, func(t *testing.T) {
					p := &partner{answer: func(n int, a *attempt) reply {
						if a.path != loginPath {
							return reply{}
						}
						return decidingSignIn[answers[min(n, len(answers)-1)]]
					}}
					transport := &partnerauth.Transport{Source: p.source(), Base: p, Limiter: &partnerauth.Quota{Requests: 1000}}
					one := call(transport, 1, context.Background())
					<-one.done
					want := tries(answers)
					good := answers[min(want, len(answers))-1] == "200"
					if got := len(p.of(loginPath)); got != want || (one.err == nil) != good {
						t.Errorf("logins answered %v: %d and %v, want %d", answers, got, one.err, want)
					}
					time.Sleep(time.Hour)
				})
			}
		}
	}
	for status, logins := range map[string]int{"401": 1, "403 HTML": 1, "500": 1, "network": 1, "429 1 s": 0, "200": 0} {
		synctest.Test(t, func(t *testing.T) {
			p := &partner{lifetime: time.Hour, answer: func(n int, a *attempt) reply {
				if a.path == refreshPath {
					return decidingSignIn[status]
				}
				return reply{}
			}}
			source := p.source()
			transport := &partnerauth.Transport{Source: source, Base: p, Limiter: &partnerauth.Quota{Requests: 1000}}
			<-call(transport, 1, context.Background()).done
			sleepUntil(52 * time.Minute) // beyond 85 % of the lifetime
			<-call(transport, 2, context.Background()).done
			synctest.Wait()
			if r, l := len(p.of(refreshPath)), len(p.of(loginPath))-1; r != 1 || l != logins {
				t.Errorf("a renewal answered %s: %d refreshes and %d logins, want 1 and %d", status, r, l, logins)
			}
			time.Sleep(time.Hour)
		})
	}
}
