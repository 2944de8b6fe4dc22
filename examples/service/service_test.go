package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS_SERVICE") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// mountSecret makes a file as Kubernetes mounts a secret, and what rewrites it as Kubernetes does.
func mountSecret(t *testing.T, password string) (file string, rotate func(string)) {
	t.Helper()
	dir, versions := t.TempDir(), 0
	rotate = func(password string) {
		versions++
		version := fmt.Sprint("..", versions)
		check(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		check(t, os.WriteFile(filepath.Join(dir, version, "password"), []byte(password+"\n"), 0o600))
		check(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		check(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	rotate(password)
	file = filepath.Join(dir, "password")
	check(t, os.Symlink("..data/password", file))
	return file, rotate
}

// newTestService makes a service whose partner is p. Its password is in a file, and old.
func newTestService(t *testing.T, p http.RoundTripper, limiter partnerauth.Limiter) (s *service, rotate func(string), log *bytes.Buffer) {
	t.Helper()
	file, rotate := mountSecret(t, "old")
	log = new(bytes.Buffer)
	tel, err := newTelemetry(log)
	check(t, err)
	account := partnerauth.NowPost{Email: "shop@example.com", PasswordFunc: passwordFile(file), BaseURL: "https://nowpost.test"}
	return newService(account, &partnerauth.Transport{Base: p, Limiter: limiter}, tel), rotate, log
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const orderJSON = `{"partner_order_id":%q,"pudo_point_id":"p-1",` +
	`"customer":{"name":"Asha","email":"asha@example.com","phone":"+254700000000"},` +
	`"items":[{"name":"Tea","qty":2,"price":4.5,"weight_kg":0.25}]}`

// do asks the service itself, without network.
func do(ctx context.Context, h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)).WithContext(ctx))
	return rec
}

func post(t *testing.T, h http.Handler, id string) *httptest.ResponseRecorder {
	return do(t.Context(), h, "POST", "/orders", fmt.Sprintf(orderJSON, id))
}

func TestPlacesAnOrderOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &standIn{password: "old", latency: 100 * time.Millisecond}
		s, _, log := newTestService(t, p, nil)
		h := s.handler()
		for i, want := range []int{http.StatusCreated, http.StatusOK} {
			rec := post(t, h, "A-1")
			var o order
			if err := json.Unmarshal(rec.Body.Bytes(), &o); err != nil || rec.Code != want || o.ID != "ord_1" || o.Status != "created" {
				t.Errorf("time %d: %d %s, want %d and ord_1", i, rec.Code, rec.Body, want)
			}
		}
		if len(p.orders) != 1 {
			t.Errorf("the partner has %d orders, want 1", len(p.orders))
		}
		var line struct {
			TraceID string `json:"trace_id"`
			Order   string
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || len(line.TraceID) != 32 || line.Order != "A-1" {
			t.Errorf("the log has no line with a trace id and the order: %s", log)
		}
	})
}

func TestRefusesWhatIsNoOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newTestService(t, &standIn{password: "old"}, nil)
		h := s.handler()
		for body, want := range map[string]int{
			"no JSON":                    http.StatusBadRequest,
			`{"pudo_point_id":"p-1"}`:    http.StatusBadRequest,
			`{"partner_order_id":"A"}`:   http.StatusBadGateway, // the partner says 400
			`{"partner_order_id": true}`: http.StatusBadRequest,
		} {
			if rec := do(t.Context(), h, "POST", "/orders", body); rec.Code != want {
				t.Errorf("%s: %d %s, want %d", body, rec.Code, rec.Body, want)
			}
		}
	})
}

// What the answer did not tell, the next round of reconciliation does.
func TestReconcilesUnknownOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &standIn{password: "old"}
		s, _, log := newTestService(t, p, nil)
		h := s.handler()
		p.lost = true
		if rec := post(t, h, "lost"); rec.Code != http.StatusAccepted {
			t.Errorf("an order without an answer: %d, want 202", rec.Code)
		}
		p.lost, p.down = false, true
		if rec := post(t, h, "never sent"); rec.Code != http.StatusAccepted {
			t.Errorf("an order without a connection: %d %s, want 202", rec.Code, rec.Body)
		}
		p.down = false
		time.Sleep(time.Minute)
		s.reconcile(t.Context())
		if rec := post(t, h, "lost"); rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), "ord_1") {
			t.Errorf("after reconciliation: %d %s, want 200 and ord_1", rec.Code, rec.Body)
		}
		if rec := post(t, h, "never sent"); rec.Code != http.StatusCreated {
			t.Errorf("an order that the partner does not have: %d %s, want 201", rec.Code, rec.Body)
		}
		if !strings.Contains(log.String(), `"reconciled","trace_id"`) {
			t.Errorf("the log does not tell of the round and its trace: %s", log)
		}
	})
}

func TestTellsWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &standIn{password: "new"}
		s, rotate, _ := newTestService(t, p, nil)
		h := s.handler()
		rec := post(t, h, "A")
		if after := rec.Header().Get("Retry-After"); rec.Code != 503 || after != "2" {
			t.Errorf("refused credentials: %d, Retry-After %q, want 503 and 2", rec.Code, after)
		}
		rotate("new")
		for range 97 { // and three logins
			check(t, s.call(t.Context(), "GET", "/api/v1/orders", "?search=A", nil, new(any)))
		}
		var wait sync.WaitGroup
		for i := range 3 {
			wait.Go(func() {
				if rec := post(t, h, fmt.Sprint(i)); rec.Code != 201 && rec.Code != 503 {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
			})
		}
		wait.Wait()
		rec = post(t, h, "A")
		if after := rec.Header().Get("Retry-After"); rec.Code != 503 || after < "60" || after > "62" {
			t.Errorf("a full quota: %d, Retry-After %q, want 503 and a minute", rec.Code, after)
		}
	})
}

// Kubernetes asks every second, and nothing else is asked before the answer is yes.
func TestReadiness(t *testing.T) {
	cases := []struct {
		name   string
		set    func(p *standIn) // as it is at first
		after  time.Duration    // and then, until then
		mend   func(p *standIn, rotate func(string))
		within time.Duration // of that, it is ready
		logins int           // at most
	}{
		{name: "at once", set: func(*standIn) {}, mend: func(*standIn, func(string)) {}, within: 0, logins: 1},
		{
			name: "no connection for 10 s", set: func(p *standIn) { p.down = true },
			after: 10 * time.Second, mend: func(p *standIn, _ func(string)) { p.down = false }, within: 15 * time.Second, logins: 1,
		},
		{
			name: "no connection for 10 min", set: func(p *standIn) { p.down = true },
			after: 10 * time.Minute, mend: func(p *standIn, _ func(string)) { p.down = false }, within: 31 * time.Second, logins: 1,
		},
		{
			name: "the password comes after an hour", set: func(p *standIn) { p.password = "new" },
			after: time.Hour, mend: func(_ *standIn, rotate func(string)) { rotate("new") }, within: time.Second, logins: 11,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				withoutDefaultTransport(t)
				p := &standIn{password: "old", latency: 200 * time.Millisecond}
				c.set(p)
				s, rotate, _ := newTestService(t, p, nil)
				h := s.handler()
				start := time.Now()
				mended := false
				for polls := 0; ; polls++ {
					if !mended && time.Since(start) >= c.after {
						p.with(func() { c.mend(p, rotate) })
						mended = true
					}
					asked := time.Now()
					rec := do(t.Context(), h, "GET", "/readyz", "")
					if took := time.Since(asked); took > time.Second {
						t.Errorf("a probe took %v", took)
					}
					if live := do(t.Context(), h, "GET", "/livez", ""); live.Code != 200 {
						t.Errorf("not alive: %d", live.Code)
					}
					if rec.Code == 200 {
						break
					}
					if rec.Code != 503 || time.Since(start) > c.after+time.Hour {
						t.Fatalf("after %v: %d %s", time.Since(start), rec.Code, rec.Body)
					}
					time.Sleep(time.Until(start.Add(time.Duration(polls+1) * time.Second)))
				}
				ready := time.Since(start) - c.after
				last := p.logins[len(p.logins)-1]
				t.Logf("ready %v after it could be, %v after the login that was granted; %d login requests",
					ready, time.Since(last.at), len(p.logins))
				if late := time.Since(last.at); !last.granted || late > 1100*time.Millisecond {
					t.Errorf("ready %v after the first login that succeeded, want by the next probe", late)
				}
				if ready > c.within+time.Second || len(p.logins) > c.logins {
					t.Errorf("ready after %v and %d logins, want %v and %d", ready, len(p.logins), c.within, c.logins)
				}
				for range 600 { // a probe every second costs nothing from now on
					time.Sleep(time.Second)
					if rec := do(t.Context(), h, "GET", "/readyz", ""); rec.Code != 200 {
						t.Fatalf("not ready any more: %s", rec.Body)
					}
				}
				if again := len(p.logins); again > c.logins {
					t.Errorf("%d logins after ten minutes of probes", again)
				}
			})
		})
	}
}

// withoutDefaultTransport makes any use of http.DefaultTransport an error.
func withoutDefaultTransport(t *testing.T) {
	was := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = was })
	http.DefaultTransport = roundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("x509: certificate signed by unknown authority")
	})
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A login by http.DefaultTransport, which knows no CA, must not hold the Transport back, whose Base does.
func TestReadyWithACAThatOnlyBaseKnows(t *testing.T) {
	partner := partnertest.StartNowPost(partnertest.Options{TLS: true})
	defer partner.Close()
	base := partner.Transport()
	defer base.CloseIdleConnections()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for _, first := range []bool{false, true} {
		tel, err := newTelemetry(io.Discard)
		check(t, err)
		account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
		s := newService(account, &partnerauth.Transport{Base: base}, tel)
		if first {
			if _, err := s.rt.Source.Token(); err == nil {
				t.Fatal("http.DefaultTransport trusts the partner")
			}
		}
		start := time.Now()
		rec := do(t.Context(), s.handler(), "GET", "/readyz", "")
		if took := time.Since(start); rec.Code != 200 || took > time.Second {
			t.Errorf("own login first: %v: %d %s after %v, want 200 within a second", first, rec.Code, rec.Body, took)
		}
	}
	if n := partner.LoginRequests(); n != 2 {
		t.Errorf("%d login requests, want 2: one for each service", n)
	}
}

// The batch is a round of reconciliation with a thousand orders, one after the other, or a thousand calls at once.
func TestBatchLeavesRoomForOthers(t *testing.T) {
	const fast, slow = 20 * time.Millisecond, 800 * time.Millisecond
	cases := []struct {
		latency     time.Duration
		atOnce      bool
		interactive time.Duration // between two interactive calls; 0: there are none
		least       float64       // calls a minute of the batch
	}{
		{fast, false, time.Second, 25},
		{fast, true, time.Second, 25},
		{slow, false, time.Second, 25},
		{slow, true, time.Second, 25},
		{fast, false, 65 * time.Second, 75}, // now and then, as an order at night
		{fast, true, 65 * time.Second, 75},
		{fast, false, 0, 85},
		{fast, true, 0, 85},
		{slow, false, 0, 74}, // one after the other there is time for no more
		{slow, true, 0, 85},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("latency=%v/atOnce=%v/interactive=%v", c.latency, c.atOnce, c.interactive), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &standIn{password: "old", latency: c.latency}
				s, _, _ := newTestService(t, p, nil)
				h := s.handler()
				for i := range 1000 {
					o := order{PartnerOrderID: fmt.Sprint("batch-", i), ID: "ord", Status: "created"}
					s.orders.Store(o.PartnerOrderID, o)
					p.orders = append(p.orders, o)
				}
				start := time.Now()
				check(t, s.rt.SignIn(t.Context()))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				var all sync.WaitGroup
				if c.atOnce {
					low := partnerauth.WithLowPriority(ctx)
					for _, o := range s.orders.Range {
						all.Go(func() { _ = s.check(low, o.(order)) })
					}
				} else {
					all.Go(func() { s.reconcile(ctx) })
				}
				var mu sync.Mutex
				placed, slowest := 0, time.Duration(0)
				for i := 0; c.interactive > 0 && time.Since(start) < 10*time.Minute-c.interactive; i++ {
					time.Sleep(c.interactive)
					all.Go(func() {
						began := time.Now()
						rec := post(t, h, fmt.Sprint("till-", i))
						mu.Lock()
						defer mu.Unlock()
						slowest = max(slowest, time.Since(began)-c.latency)
						if placed++; rec.Code != http.StatusCreated {
							t.Errorf("an interactive call was not served: %d %s", rec.Code, rec.Body)
						}
					})
				}
				all.Wait()
				batch := len(p.calls) - placed - 1
				perMinute := float64(batch) / time.Since(start).Minutes()
				t.Logf("%d interactive calls, the slowest waited %v; the batch got %.1f a minute", placed, slowest, perMinute)
				if slowest > 2*time.Second {
					t.Errorf("an interactive call waited %v, want at most 2 s", slowest)
				}
				if perMinute < c.least {
					t.Errorf("the batch got %.1f a minute, want at least %v", perMinute, c.least)
				}
			})
		})
	}
}

// The partner takes the new password only, and no token of the old one, from one moment on.
func TestRotationUnderLoad(t *testing.T) {
	for _, late := range []time.Duration{0, 500 * time.Millisecond, 20 * time.Second, 90 * time.Second, time.Hour} {
		t.Run(fmt.Sprint("file after ", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &standIn{password: "old", latency: 100 * time.Millisecond}
				s, rotate, _ := newTestService(t, p, nil)
				start := time.Now()
				const change = time.Minute
				type failure struct {
					began, ended time.Duration
					err          error
				}
				var failures []failure
				succeeded := 0
				var mu sync.Mutex
				var all sync.WaitGroup
				for i := range int((change + late + time.Minute) / (700 * time.Millisecond)) {
					all.Go(func() {
						time.Sleep(time.Duration(i) * 700 * time.Millisecond)
						began := time.Since(start)
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						defer cancel()
						err := s.call(ctx, "GET", "/api/v1/orders", "?search=1", nil, new(any))
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							failures = append(failures, failure{began, time.Since(start), err})
						} else {
							succeeded++
						}
					})
				}
				time.Sleep(change)
				if late == 0 {
					rotate("new")
				}
				p.with(func() { p.password, p.token = "new", "" })
				if late > 0 {
					time.Sleep(late)
					rotate("new")
				}
				all.Wait()
				last := time.Duration(0)
				for _, f := range failures {
					last = max(last, f.began-change-late)
					if f.began > change+late {
						t.Errorf("a call begun %v after the file had the new password failed: %v", f.began-change-late, f.err)
					}
					if !errors.Is(f.err, partnerauth.ErrCredentials) {
						t.Errorf("got %v, want ErrCredentials", f.err)
					}
				}
				t.Logf("%d calls succeeded, %d failed, the last begun %v after the file had the password; logins: %d with the old, %d with the new",
					succeeded, len(failures), last, p.loginsWith("old"), p.loginsWith("new"))
				if n := p.loginsWith("new"); n != 1 {
					t.Errorf("%d logins with the new password, want 1", n)
				}
				// The first of them was granted, and the old password may be refused as often as rule 11 says.
				want := map[time.Duration]int{0: 1, 500 * time.Millisecond: 2, 20 * time.Second: 4, 90 * time.Second: 5, time.Hour: 11}[late]
				if n := p.loginsWith("old"); n > want {
					t.Errorf("%d logins with the old password, want at most %d", n, want)
				}
				if late == 0 && len(failures) > 0 {
					t.Errorf("%d calls failed though the file had the password in time", len(failures))
				}
			})
		})
	}
}

// The file is away for a while, as it is while somebody mends a secret by hand.
func TestPasswordFileIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &standIn{password: "old"}
		s, _, _ := newTestService(t, p, nil)
		file := filepath.Join(t.TempDir(), "password")
		s.rt.Source = partnerauth.NowPost{Email: "shop@example.com", PasswordFunc: passwordFile(file), BaseURL: "https://nowpost.test"}.TokenSource()
		h := s.handler()
		for range 300 {
			if rec := do(t.Context(), h, "GET", "/readyz", ""); rec.Code != 503 || !strings.Contains(rec.Body.String(), "no such file") {
				t.Fatalf("without the file: %d %s", rec.Code, rec.Body)
			}
			time.Sleep(time.Second)
		}
		check(t, os.WriteFile(file, []byte("old"), 0o600))
		start := time.Now()
		for do(t.Context(), h, "GET", "/readyz", "").Code != 200 {
			time.Sleep(time.Second)
		}
		took := time.Since(start)
		t.Logf("ready %v after the file was there", took)
		if took > 31*time.Second || len(p.logins) != 1 {
			t.Errorf("ready after %v and %d logins", took, len(p.logins))
		}
	})
}

func TestShutsDownGracefully(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &standIn{password: "old", latency: 8 * time.Second}
		s, _, log := newTestService(t, p, nil)
		ctx, stop := context.WithCancel(t.Context())
		l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		ended := make(chan error)
		go func() { ended <- s.run(ctx, l) }()

		client := &http.Client{Transport: &http.Transport{DialContext: l.dial}}
		defer client.CloseIdleConnections()
		p.with(func() { p.latency = 0 })
		ask := func(path string) int {
			resp, err := client.Get("http://service" + path)
			if err != nil {
				return 0
			}
			defer resp.Body.Close()
			return resp.StatusCode
		}
		if got := ask("/readyz"); got != 200 {
			t.Errorf("ready: %d", got)
		}
		p.with(func() { p.latency = 8 * time.Second })
		var late sync.WaitGroup
		late.Go(func() {
			resp, err := client.Post("http://service/orders", "application/json", strings.NewReader(fmt.Sprintf(orderJSON, "late")))
			if err != nil || resp.StatusCode != 201 {
				t.Errorf("an order under way at the end: %v %v, want 201", resp, err)
				return
			}
			resp.Body.Close()
		})
		time.Sleep(time.Second)
		stop()
		time.Sleep(time.Second)
		if got := ask("/readyz"); got != 503 {
			t.Errorf("ready while shutting down: %d, want 503", got)
		}
		if got := ask("/livez"); got != 200 {
			t.Errorf("alive while shutting down: %d, want 200", got)
		}
		start := time.Now()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > drain+grace {
			t.Errorf("took %v", took)
		}
		late.Wait()
		if !strings.Contains(log.String(), `"shutting down"`) {
			t.Error("the log does not tell")
		}
	})
}

// The program itself: it is configured by its environment, and ends well on SIGTERM.
func TestProgram(t *testing.T) {
	partner := partnertest.StartNowPost(partnertest.Options{})
	defer partner.Close()
	file, _ := mountSecret(t, partnertest.Password)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "RUN_AS_SERVICE=1", "LISTEN=127.0.0.1:0", "NOWPOST_BASE_URL="+partner.URL,
		"NOWPOST_EMAIL="+partnertest.Email, "NOWPOST_PASSWORD_FILE="+file)
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := json.NewDecoder(stderr)
	var listening struct{ Msg, Address string }
	if err := lines.Decode(&listening); err != nil || listening.Msg != "listening" {
		t.Fatalf("the first line: %+v %v", listening, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"/livez": "", "/readyz": "", "/metrics": "\ngo_goroutines "} {
		resp, err := client.Get("http://" + listening.Address + path)
		check(t, err)
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	_, _ = io.Copy(io.Discard, stderr)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if partner.Logins() != 1 {
		t.Errorf("%d logins, want 1", partner.Logins())
	}
}

// A pipeListener connects without network.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
