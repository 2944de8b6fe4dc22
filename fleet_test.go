package partnerauth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// memory is a Store that several processes could share: several Sources do.
type memory struct {
	before    func(context.Context) error // each of its methods
	after     func()                      // likewise, when it has done what it does
	unlocking time.Duration               // how long it takes

	mu      sync.Mutex
	records map[string]kept
	locked  map[string]bool
	asked   int
}

type kept struct {
	record []byte
	ends   time.Time
}

// do does f, if before lets it.
func (m *memory) do(ctx context.Context, f func()) error {
	m.mu.Lock()
	if m.asked++; m.locked == nil {
		m.locked, m.records = map[string]bool{}, map[string]kept{}
	}
	m.mu.Unlock()
	if m.before != nil {
		if err := m.before(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	f()
	m.mu.Unlock()
	if m.after != nil {
		m.after()
	}
	return nil
}

func (m *memory) Load(ctx context.Context, key string) ([]byte, time.Duration, error) {
	var k kept
	err := m.do(ctx, func() { k = m.records[key] })
	return k.record, time.Until(k.ends), err
}

func (m *memory) TryLock(ctx context.Context, key string) (lock partnerauth.Lock, err error) {
	err = m.do(ctx, func() {
		if !m.locked[key] {
			m.locked[key], lock = true, memoryLock{m, key, new(atomic.Bool)}
		}
	})
	return lock, err
}

type memoryLock struct {
	*memory
	key   string
	ended *atomic.Bool // the program that has it
}

func (l memoryLock) Save(ctx context.Context, record []byte, good time.Duration) error {
	if l.ended.Load() {
		return errTest // nobody is there to do it
	}
	return l.do(ctx, func() { l.records[l.key] = kept{record, time.Now().Add(good)} })
}

func (l memoryLock) Unlock(context.Context) error {
	time.Sleep(l.unlocking)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked[l.key] = false
	return nil
}

// A program uses a memory until it has ended, which it does at once if it saves before.
type program struct {
	*memory
	saves bool
	ended *atomic.Bool
}

func (p program) SavesBeforeExit() bool { return p.saves }

func (p program) TryLock(ctx context.Context, key string) (partnerauth.Lock, error) {
	lock, err := p.memory.TryLock(ctx, key)
	if l, ok := lock.(memoryLock); ok {
		l.ended = p.ended
		return l, err
	}
	return lock, err
}

// fleet is n Transports of one account, each with a Source of its own.
func (p *partner) fleet(n int, store partnerauth.Store, password func(i int) string) []*partnerauth.Transport {
	return p.fleetOf(providers[0], n, store, password)
}

func (p *partner) fleetOf(pr provider, n int, store partnerauth.Store, password func(i int) string) []*partnerauth.Transport {
	all := make([]*partnerauth.Transport, n)
	for i := range all {
		all[i] = p.transport(nil)
		all[i].Source = pr.config(credentials{id: "shop@example.com", secret: password(i), store: store}).TokenSource()
	}
	return all
}

func samePassword(int) string { return "Planted-Secret" }

func TestStoreSharesOneToken(t *testing.T) {
	everyProvider(t, func(t *testing.T, pr provider) {
		p, store := new(partner).on("login", reply{after: time.Second}), new(memory)
		all := p.fleetOf(pr, 8, store, samePassword)
		calls := func(want string) {
			t.Helper()
			atOnce(5*len(all), func(i int) { get(t, all[i%len(all)], "/") }).Wait()
			synctest.Wait() // for a renewal, which nobody waits for
			errorIf(t, p.ops() != want, "got %q, want %q", p.ops(), want)
		}
		calls("login")
		asked := store.asked
		calls("login")
		errorIf(t, store.asked != asked, "a fresh token cost %d questions to the Store", store.asked-asked)
		p.revokeAll()
		relogin := "login login"
		if pr.name == "acme" {
			relogin = "login refresh login" // as its refresh token may be good still
		}
		calls(relogin)
		errorIf(t, p.count("call 401") > 40, "%d 401s, want one a call at most", p.count("call 401"))
		time.Sleep(23 * time.Hour) // past the renewal of all
		calls(relogin + " " + pr.renews)
		time.Sleep(time.Minute)
		calls(relogin + " " + pr.renews)
		before := p.count("login")
		for range 12 { // rotations do not use up the logins
			p.revokeAll()
			get(t, all[0], "/")
			get(t, all[1], "/")
		}
		errorIf(t, p.count("login")-before != 12, "%d logins for 12 more rotations, want 12", p.count("login")-before)

		// a new process needs none
		before = p.count("login")
		rec := newRecording()
		rt := rec.transport(p)
		rt.Source = p.fleetOf(pr, 1, store, samePassword)[0].Source
		get(t, rt, "/")
		errorIf(t, p.count("login") != before, "a new process signed in")
		tree := rec.tree(t, false)
		errorIf(t, !strings.Contains(tree, " token.source=store"), "got these spans, want the source store:\n%s", tree)
		errorIf(t, len(rec.clients()) != 1, "got these spans, want one request:\n%s", tree)
		for _, k := range store.records {
			errorIf(t, bytes.Contains(k.record, []byte("Planted-Secret")), "the record has the password in it: %s", k.record)
		}
	})
}

func TestStoreRemembersRefusals(t *testing.T) {
	everyProvider(t, func(t *testing.T, pr provider) {
		p := new(partner)
		p.script = func(a asked) reply {
			if a.op == "login" && a.secret() != "a new secret" {
				return reply{status: 401}
			}
			return reply{}
		}
		store := new(memory)
		secrets := slices.Repeat([]string{"an old secret"}, 7)
		all := p.fleetOf(pr, 8, store, func(i int) string { return append(secrets, "a new secret")[i] })
		for range 2 {
			atOnce(7, func(i int) {
				_, err := try(t.Context(), all[i], "/")
				errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "process %d: got %v, want ErrCredentials", i, err)
			}).Wait()
		}
		errorIf(t, p.count("login") != 1, "a wrong password cost %d logins in 7 processes, want 1", p.count("login"))
		errorIf(t, get(t, all[7], "/") != 200, "the process with the new password is kept out")
		atOnce(7, func(i int) { get(t, all[i], "/") }).Wait() // with its token
		errorIf(t, p.count("login") != 2, "%d logins, want one with each password", p.count("login"))
	})
}

// A session goes on although its password was refused to another process since;
// and where it ends, that password is not tried again.
func TestSessionAfterARefusal(t *testing.T) {
	const want = "login login refresh"
	for _, status := range []int{0, 401} {
		everyProvider(t, func(t *testing.T, pr provider) {
			if pr.renews != "refresh" {
				return
			}
			p, store := new(partner), new(memory)
			all := p.fleetOf(pr, 2, store, samePassword)
			get(t, all[0], "/")
			time.Sleep(20*time.Hour + 30*time.Minute) // past the renewal
			clear(store.records)
			p.on("login", reply{status: 401}).on("refresh", reply{status: status})
			all[1].SignIn(t.Context())
			get(t, all[0], "/")
			synctest.Wait()
			errorIf(t, p.ops() != want, "refresh answered %d: got %q, want %q", status, p.ops(), want)
		})
	}
}

// Processes that share a Store are to the partner as one, by the schedule, too: a job that a
// new process does every three minutes does not begin anew each time.
func TestStoreKeepsTheSchedule(t *testing.T) {
	t.Parallel()
	everyProvider(t, func(t *testing.T, pr provider) {
		p, store := new(partner).on("login", reply{status: 401}), new(memory)
		for range 20 {
			err := p.fleetOf(pr, 1, store, samePassword)[0].SignIn(t.Context())
			errorIf(t, !errors.Is(err, partnerauth.ErrCredentials), "got %v, want ErrCredentials", err)
			time.Sleep(3 * time.Minute)
		}
		n := p.count("login")
		errorIf(t, n > 10, "%d logins in an hour, want 10 at most", n)
		synctest.Wait()
		p.on("login", reply{})
		another := p.fleetOf(pr, 1, store, func(int) string { return "a new secret" })[0]
		errorIf(t, get(t, another, "/") != 200, "a new password was not tried")
	})
}

// A Store that fails or hangs costs time and nothing else.
func TestStoreThatFails(t *testing.T) {
	for name, before := range map[string]func(context.Context) error{
		"fails": func(context.Context) error { return errTest },
		"hangs": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		bubble(t, name, func(t *testing.T) {
			p, rec := new(partner), newRecording()
			rt := rec.transport(p)
			rt.Source = p.fleet(1, &memory{before: before}, samePassword)[0].Source
			took := elapsed(func() { get(t, rt, "/") })
			errorIf(t, took > 9*time.Second, "took %v", took)
			tree := rec.tree(t, false)
			errorIf(t, !strings.Contains(tree, "event=partnerauth.store.failed"), "no event on the fetch:\n%s", tree)
		})
	}
	bubble(t, "fails to save", func(t *testing.T) {
		p, n := new(partner), 0
		store := &memory{before: func(context.Context) error {
			if n++; n == 4 { // Load, TryLock, Load, Save
				return errTest
			}
			return nil
		}}
		all := p.fleet(2, store, samePassword)
		get(t, all[0], "/")
		get(t, all[1], "/")
		errorIf(t, p.ops() != "login login", "got %q, want a login each", p.ops())
	})
}

// A lock that a Store gives when its fetch has ended, because the token was
// rejected meanwhile, is given back. Else nobody could sign in any more.
func TestLockThatComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(partner)
		store := &memory{before: func(context.Context) error {
			time.Sleep(time.Second) // whatever becomes of the context
			return nil
		}}
		rt := p.fleet(1, store, samePassword)[0]
		get(t, rt, "/")
		time.Sleep(22 * time.Hour)
		get(t, rt, "/") // starts a renewal: Load, TryLock
		time.Sleep(1500 * time.Millisecond)
		p.revokeAll()
		took := elapsed(func() { get(t, rt, "/") })
		errorIf(t, took > 6*time.Second, "signed in after %v, want about 4 s: Load, TryLock, Load, Save", took)
		time.Sleep(10 * time.Second)
		for key, locked := range store.locked {
			errorIf(t, locked, "%s is still locked", key)
		}
	})
}

// One Store serves all accounts, and what lies in it under one's key is of no use
// for another.
func TestStoreOfManyAccounts(t *testing.T) {
	p, store := new(partner), new(memory)
	for _, pr := range providers {
		for _, c := range []credentials{
			{id: "a@example.com"},
			{id: "b@example.com"},
			{id: "a@example.com", baseURL: "https://other.example"},
		} {
			c.secret, c.base, c.store = "pass", p, store
			_, err := pr.config(c).TokenSource().Token()
			must(t, err)
		}
	}
	n := 3 * len(providers)
	errorIf(t, p.count("login") != n, "%d logins, want %d", p.count("login"), n)
	errorIf(t, len(store.records) != n, "%d records, want %d", len(store.records), n)
	for key := range store.records {
		errorIf(t, strings.Contains(key, "example.com"), "the key %q tells the account", key)
	}
	// rubbish counts as absent
	for _, rubbish := range []string{"", "{", "null", `{"token":"a\nb","lifetime":1}`, `{"status":401}`, "\xff\x00"} {
		for key, k := range store.records {
			store.records[key] = kept{[]byte(rubbish), k.ends}
		}
		for _, pr := range providers {
			_, err := pr.config(credentials{id: "a@example.com", secret: "pass", base: p, store: store}).TokenSource().Token()
			errorIf(t, err != nil, "%s, a record %q: %v", pr.name, rubbish, err)
		}
	}
}

// permits is a PermitLimiter that lets requests through as before says, and keeps
// account of its permits.
type permits struct {
	before   func(context.Context) error
	estimate func()
	returned func()

	mu      sync.Mutex
	waiting []int
	given   []*given
}

type given struct {
	*permits
	ends []string // how it was ended
}

func (l *permits) Wait(context.Context) error {
	return errors.New("a PermitLimiter was asked for Wait")
}

func (l *permits) Permit(ctx context.Context, waiting int) (partnerauth.Permit, error) {
	l.mu.Lock()
	l.waiting = append(l.waiting, waiting)
	l.mu.Unlock()
	if l.before != nil {
		if err := l.before(ctx); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &given{permits: l}
	l.given = append(l.given, g)
	return g, nil
}

func (l *permits) Estimate(int) time.Duration {
	if l.estimate != nil {
		l.estimate()
	}
	return 0
}

func (l *permits) Period() time.Duration { return time.Minute }

func (g *given) end(how string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ends = append(g.ends, how)
}

func (g *given) Settle(status int, pause time.Duration) { g.end(fmt.Sprint(status, " ", pause)) }

func (g *given) Return() {
	if g.end("returned"); g.returned != nil {
		g.returned()
	}
}

// ended are how the permits ended, each of them once.
func (l *permits) ended(t *testing.T) (all []string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, g := range l.given {
		if len(g.ends) != 1 {
			t.Errorf("permit %d was ended %d times: %q", i, len(g.ends), g.ends)
		}
		all = append(all, g.ends...)
	}
	return all
}

func TestPermitsAreSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &permits{}
		p := new(partner).on("call", reply{}, reply{err: errBusy}, reply{err: dialing}, busy("7"), reply{status: 401}, reply{},
			reply{status: 429}, reply{}, reply{status: 503, header: headers("Retry-After: 3")}, reply{})
		rt := p.transport(l)
		for range 7 {
			try(t.Context(), rt, "/")
		}
		got := l.ended(t)
		want := []string{"200 0s", "200 0s", "0 0s", "returned", "429 7.999s", "401 0s", "200 0s", "200 0s", "429 1m0s", "200 0s",
			"503 3.999s", "200 0s"}
		errorIf(t, !slices.Equal(got, want), "got %q, want %q", got, want)
	})
}

var (
	errBusy = errors.New("connection reset by the test")
	dialing = dialError("dial")
)

func TestPermitLimiterIsToldWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &permits{before: func(ctx context.Context) error { return sleep(ctx, time.Second) }}
		rt := (&partner{open: true}).custom(static("t"), l)
		atOnce(5, func(int) { get(t, rt, "/") }).Wait()
		got := l.waiting
		errorIf(t, len(got) != 5 || slices.Max(got) > 5 || got[4] != 1 || got[1] != 4, "got counts %v, want at last 4, 3, 2, 1", got)
		l.ended(t)
	})
}

// A permit that comes when whoever it was for has gone is for the next, and is
// returned if there is none. A panic then does not take the process with it.
func TestAbandonedPermitIsReturned(t *testing.T) {
	for next, want := range map[int][]string{0: {"returned"}, 1: {"200 0s"}} {
		synctest.Test(t, func(t *testing.T) {
			l := &permits{
				before:   func(context.Context) error { time.Sleep(10 * time.Second); return nil },
				returned: func() { panic("by the test") },
			}
			rt := (&partner{open: true}).custom(static("t"), l)
			gone := atOnce(1, func(int) { try(leaving(t, time.Second), rt, "/") })
			synctest.Wait()
			atOnce(next, func(int) { get(t, rt, "/") }).Wait()
			gone.Wait()
			time.Sleep(time.Minute)
			got := l.ended(t)
			errorIf(t, !slices.Equal(got, want), "%d behind: got %q, want %q", next, got, want)
		})
	}
}

// A permit that comes during a pause is one too many for later.
func TestPermitOfAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &permits{before: func(ctx context.Context) error { return sleep(ctx, 5*time.Second) }}
		p := (&partner{open: true}).on("/first", reply{status: 503, header: headers("Retry-After: 60"), after: 8 * time.Second})
		rt := p.custom(static("t"), l)
		first := atOnce(1, func(int) { get(t, rt, "/first") })
		time.Sleep(10 * time.Second) // the next is granted when the first is answered
		get(t, rt, "/")
		first.Wait()
		got := l.ended(t)
		errorIf(t, !slices.Equal(got, []string{"503 1m0.999s", "returned", "200 0s"}), "got %q", got)
	})
}

// A refusal that is read from a Store holds for as long as it says there, and
// counts for what it says, if that makes sense.
func TestRefusalReadFromStore(t *testing.T) {
	for name, c := range map[string]struct {
		count string
		left  time.Duration
	}{
		"at its end":      {"6", time.Hour + 2*time.Second},
		"without a count": {"0", 2 * time.Second},
		"counted down":    {"-6", 2 * time.Second},
		"counted up":      {"9223372036854775807", time.Hour + 2*time.Second},
	} {
		bubble(t, name, func(t *testing.T) {
			p, store := new(partner).on("login", reply{status: 401}), new(memory)
			first := p.fleet(1, store, samePassword)[0]
			for range 6 {
				time.Sleep(authOf(first.SignIn(t.Context())).RetryAfter)
			}
			for key, k := range store.records {
				record := strings.Replace(string(k.record), `"count":6`, `"count":`+c.count, 1)
				store.records[key] = kept{[]byte(record), time.Now().Add(c.left)}
			}
			second := p.fleet(1, store, samePassword)[0]
			auth := authOf(second.SignIn(t.Context()))
			errorIf(t, auth.RetryAfter != 2*time.Second || p.count("login") != 6,
				"got %#v after %d logins, want what is stored, for 2 s", auth, p.count("login"))
			time.Sleep(2 * time.Second)
			errorIf(t, second.SignIn(t.Context()) == nil || p.count("login") != 7, "%d logins, want another", p.count("login"))
			time.Sleep(time.Hour)
			p.on("login", reply{})
			must(t, second.SignIn(t.Context()))
		})
	}
}

// The lock of a program that was stopped is waited for two seconds, and no renewal is left
// to a program that may have ended by then.
func TestStoreOfShortPrograms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, store := new(partner), program{new(memory), true, new(atomic.Bool)}
		must(t, p.fleet(1, store, samePassword)[0].SignIn(t.Context()))
		for key := range store.records { // the one that all of this account use
			_, err := store.TryLock(t.Context(), key)
			must(t, err)
		}
		clear(store.records)
		rt := p.fleet(1, store, samePassword)[0]
		took := elapsed(func() { must(t, rt.SignIn(t.Context())) })
		errorIf(t, took < 2*time.Second || took > 3*time.Second, "signed in after %v, want it to go on alone after 2 s", took)
	})
}
