package partnerredis

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// An account is a partner's, which eight processes use at the same time.
type account struct {
	*partnertest.NowPost
	t     *testing.T
	fleet fleet
}

// served is how many calls of each process have been answered 200.
func (a *account) served() map[string]int {
	n := map[string]int{}
	for _, r := range a.Requests() {
		if r.Status == 200 && r.Path == "/api/v1/orders" {
			n[r.Header.Get("Worker")]++
		}
	}
	return n
}

// flows waits until every caller of every process has been served again. Who
// would still be on the way when tokens are revoked again would see a 401.
func (a *account) flows(within time.Duration) {
	a.t.Helper()
	before := a.served()
	until(a.t, within, "all are served", func() bool {
		now := a.served()
		for _, w := range a.fleet {
			if name := fmt.Sprint(w.cmd.Process.Pid); now[name] < before[name]+20 {
				return false
			}
		}
		return true
	})
}

// secret searches what lies in Redis and on its disk for what was sent to the
// partner.
func (a *account) secret(s *server) {
	a.t.Helper()
	all, tokens := s.contents(), map[string]bool{}
	if !bytes.Contains(all, []byte("partnerauth:{nowpost-")) {
		a.t.Error("nothing was saved")
	}
	for _, r := range a.Requests() {
		if token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); token != "" {
			tokens[token] = true
		}
	}
	tokens[partnertest.Password], tokens[partnertest.Email] = true, true
	for token := range tokens {
		for part := range strings.SplitSeq(token, ".") {
			if bytes.Contains(all, []byte(part)) {
				a.t.Errorf("%q of %q lies there", part, token)
			}
		}
	}
}

// singleSession is a way to the partner where each login ends the older sessions.
func singleSession(t *testing.T, p *partnertest.NowPost) string {
	to, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/auth/login") {
			p.RevokeAll()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestFleetTokens has eight processes with one account.
func TestFleetTokens(t *testing.T) {
	t.Parallel()
	const n = 8
	tests := []struct {
		name                string
		options             partnertest.Options
		single              bool // session
		password            string
		during              time.Duration
		fault               partnertest.Fault
		act                 func(*account)
		logins, mostLogins  int // asked for
		refreshes, mostRefr int
		refused             bool // callers
	}{
		{name: "cold start: 1 login", during: 2 * time.Second, logins: 1, mostLogins: 1},
		{name: "a slow login: 1", during: 7 * time.Second, logins: 1, mostLogins: 1,
			fault: partnertest.Fault{Path: "/api/v1/auth/login", Delay: 5 * time.Second}},
		{name: "revoked three times: 1 login each", during: 6 * time.Second, logins: 4, mostLogins: 4, act: func(a *account) {
			for range 3 {
				a.flows(3 * time.Second)
				a.RevokeAll()
			}
			a.flows(3 * time.Second)
		}},
		{name: "one session only: 1 login, and 1 when it is revoked", single: true, during: 4 * time.Second, logins: 2, mostLogins: 2,
			act: func(a *account) {
				a.flows(3 * time.Second)
				a.RevokeAll()
				a.flows(3 * time.Second)
			}},
		{name: "the holder is killed in its login: signed in within 5 s", during: 7 * time.Second, logins: 2, mostLogins: 2,
			fault: partnertest.Fault{Path: "/api/v1/auth/login", Hang: true, Times: 1},
			act: func(a *account) {
				until(a.t, 3*time.Second, "a login is under way", func() bool { return a.Hanging() == 1 })
				pass(1500 * time.Millisecond) // the lock has been renewed
				var holder string
				for _, r := range a.Requests() {
					if strings.HasSuffix(r.Path, "/auth/login") {
						holder = r.Header.Get("Worker")
					}
				}
				for i, w := range a.fleet {
					if fmt.Sprint(w.cmd.Process.Pid) == holder {
						w.kill()
						a.fleet = append(a.fleet[:i:i], a.fleet[i+1:]...)
					}
				}
				if len(a.fleet) != n-1 {
					a.t.Errorf("the holder %s is none of the workers", holder)
				}
				killed := time.Now()
				until(a.t, 5*time.Second, "they are signed in", func() bool { return len(a.served()) > 0 })
				a.t.Logf("signed in %v after the holder was killed", time.Since(killed).Round(time.Millisecond))
			}},
		{name: "a wrong password: 1 login", password: "wrong", during: 900 * time.Millisecond, logins: 1, mostLogins: 1, refused: true},
		// A call of the process that refreshes may meet its 401 before the answer is
		// there, which then counts no more: a login for each refresh at most.
		{name: "tokens of 4 s, each refresh ends the older", options: partnertest.Options{Lifetime: 4 * time.Second, Rotate: true},
			during: 13 * time.Second, logins: 1, mostLogins: 5, refreshes: 2, mostRefr: 5},
	}
	for _, name := range servers {
		for _, test := range tests {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				s := startProgram(t, name, "--appendonly", "yes")
				test.options.Limit = -1
				p := partnertest.StartNowPost(test.options)
				t.Cleanup(p.Close)
				if test.fault.Path != "" {
					p.Inject(test.fault)
				}
				j := job{Redis: []string{s.addr()}, Account: p.URL, Password: partnertest.Password, Hungry: 5, For: test.during}
				if test.single {
					j.Account = singleSession(t, p)
				}
				if test.password != "" {
					j.Password = test.password
				}
				a := &account{p, t, startFleet(t, n, j)}
				a.fleet.go_()
				if test.act != nil {
					test.act(a)
				}
				r := a.fleet.wait()
				t.Logf("%d logins, %d refreshes, %d answers of 401, %d calls: %+v", p.LoginRequests(), p.Refreshes(), p.Status(401), r.Sent, r)
				a.secret(s)
				if got := p.LoginRequests(); got < test.logins || got > test.mostLogins {
					t.Errorf("got %d logins, want %d to %d", got, test.logins, test.mostLogins)
				}
				if got := p.Refreshes(); got < test.refreshes || got > test.mostRefr {
					t.Errorf("got %d refreshes, want %d to %d", got, test.refreshes, test.mostRefr)
				}
				if test.refused {
					if r.Failed != r.Sent || !strings.Contains(r.Error, "credentials") && !strings.Contains(r.Error, "401") {
						t.Errorf("got %d of %d refused, the last by %q, want all", r.Failed, r.Sent, r.Error)
					}
				} else if r.Refused401 > 0 || r.Failed > 0 {
					t.Errorf("got %d answers of 401 and %d errors (%s), want none to any caller", r.Refused401, r.Failed, r.Error)
				}
			})
		}
	}
}

// TestKeyRotation deploys a new key for the records as second, then as first,
// and drops the old when the token has been renewed: nobody signs in for that.
// Who has neither key does.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	client := startServer(t).client()
	defer client.Close()
	p := partnertest.StartNowPost(partnertest.Options{Limit: -1, Lifetime: 8 * time.Second})
	defer p.Close()
	base := p.Transport()
	defer base.CloseIdleConnections()
	for _, step := range []struct {
		name   string
		keys   [][]byte
		renews bool // until the token has been renewed
		logins int
	}{
		{"the old key", [][]byte{key(1)}, false, 1},
		{"the new one as second", [][]byte{key(1), key(2)}, false, 1},
		{"the new one as first", [][]byte{key(2), key(1)}, true, 1},
		{"the old one dropped", [][]byte{key(2)}, false, 1},
		{"a wrong one", [][]byte{key(3)}, false, 2},
	} {
		source := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: p.URL, Base: base,
			Store: mustStore(t, client, step.keys...)}.TokenSource()
		first, err := source.Token()
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		until(t, 10*time.Second, "the token is renewed", func() bool {
			now, err := source.Token()
			return !step.renews || err == nil && now.AccessToken != first.AccessToken
		})
		if got := p.Logins(); got != step.logins {
			t.Errorf("%s: got %d logins, want %d", step.name, got, step.logins)
		}
	}
}
