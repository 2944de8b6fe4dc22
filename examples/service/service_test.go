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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS_SERVICE") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	loginPath  = "/api/v1/auth/login"
	ordersPath = "/api/v1/orders"
)

// mountSecret writes a password to a file as Kubernetes mounts a secret. rotate replaces it the way Kubernetes does.
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

// newPartner returns a NowPost in memory for a test with virtual time. Its password is "old".
func newPartner(t *testing.T, latency time.Duration) *partnertest.NowPostStandIn {
	partner := partnertest.NowPostInMemory(partnertest.Options{Password: "old", Latency: latency})
	t.Cleanup(partner.Drain)
	return partner
}

// newTestService returns a service for an account at partner, whose password it reads from a file: "old" until rotate.
func newTestService(t *testing.T, partner *partnertest.NowPostStandIn) (s *service, rotate func(string), log *bytes.Buffer) {
	t.Helper()
	file, rotate := mountSecret(t, "old")
	log = new(bytes.Buffer)
	tel, err := newTelemetry(log)
	check(t, err)
	account := partnerauth.NowPost{Email: partnertest.Email, PasswordFunc: passwordFile(file), BaseURL: partner.URL}
	return newService(account, &partnerauth.Transport{Base: partner}, tel), rotate, log
}

// logins returns the logins that the partner has answered.
func logins(partner *partnertest.NowPostStandIn) []partnertest.Request {
	return slices.DeleteFunc(partner.Requests(), func(r partnertest.Request) bool { return r.Path != loginPath || r.Status == 0 })
}

// loginsWith counts those with a password.
func loginsWith(partner *partnertest.NowPostStandIn, password string) (n int) {
	for _, r := range logins(partner) {
		var got struct{ Password string }
		if json.Unmarshal(r.Body, &got) == nil && got.Password == password {
			n++
		}
	}
	return n
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

// do sends a request to the service without a network.
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
		partner := newPartner(t, 100*time.Millisecond)
		s, _, log := newTestService(t, partner)
		h := s.handler()
		for i, want := range []int{http.StatusCreated, http.StatusOK} {
			rec := post(t, h, "A-1")
			var o order
			if err := json.Unmarshal(rec.Body.Bytes(), &o); err != nil || rec.Code != want || o.ID != "ord_000001" || o.Status != "created" {
				t.Errorf("time %d: got %d %s, want %d and ord_000001", i, rec.Code, rec.Body, want)
			}
		}
		if got := partner.Created("A-1"); got != 1 {
			t.Errorf("got %d orders at the partner, want 1", got)
		}
		var line struct {
			TraceID string `json:"trace_id"`
			Order   string
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || len(line.TraceID) != 32 || line.Order != "A-1" {
			t.Errorf("got log %s, want a line with a trace id and the order", log)
		}
	})
}

func TestRejectsWhatIsNotAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newTestService(t, newPartner(t, 0))
		h := s.handler()
		for body, want := range map[string]int{
			"no JSON":                    http.StatusBadRequest,
			`{"pudo_point_id":"p-1"}`:    http.StatusBadRequest,
			`{"partner_order_id":"A"}`:   http.StatusBadGateway, // the partner says 400
			`{"partner_order_id": true}`: http.StatusBadRequest,
		} {
			if rec := do(t.Context(), h, "POST", "/orders", body); rec.Code != want {
				t.Errorf("%s: got %d %s, want %d", body, rec.Code, rec.Body, want)
			}
		}
	})
}

// TestReconcilesUnknownOrders lets two orders end without an answer. Only reconciliation can find out which of them the
// partner has.
func TestReconcilesUnknownOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := newPartner(t, 0)
		s, _, log := newTestService(t, partner)
		h := s.handler()
		partner.Inject(partnertest.Fault{Method: "POST", Path: ordersPath, Times: 1, Cut: true})
		if rec := post(t, h, "lost"); rec.Code != http.StatusAccepted {
			t.Errorf("an order without an answer: got %d, want 202", rec.Code)
		}
		partner.Inject(partnertest.Fault{Method: "POST", Path: ordersPath, Times: 1, Reset: true})
		if rec := post(t, h, "never carried out"); rec.Code != http.StatusAccepted {
			t.Errorf("an order on a connection that broke: got %d %s, want 202", rec.Code, rec.Body)
		}
		time.Sleep(time.Minute)
		s.reconcile(t.Context())
		if rec := post(t, h, "lost"); rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), "ord_000001") {
			t.Errorf("after reconciliation: got %d %s, want 200 and ord_000001", rec.Code, rec.Body)
		}
		if rec := post(t, h, "never carried out"); rec.Code != http.StatusCreated {
			t.Errorf("an order that the partner does not have: got %d %s, want 201", rec.Code, rec.Body)
		}
		for _, id := range []string{"lost", "never carried out"} {
			if got := partner.Created(id); got != 1 {
				t.Errorf("%s: got %d orders at the partner, want 1", id, got)
			}
		}
		if !strings.Contains(log.String(), `"reconciled","trace_id"`) {
			t.Errorf("got log %s, want a line for the round with its trace", log)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := newPartner(t, 0)
		partner.SetPassword("new")
		s, rotate, _ := newTestService(t, partner)
		h := s.handler()
		want := func(what string, least, most int) (seconds int) {
			t.Helper()
			rec := post(t, h, "A")
			seconds, err := strconv.Atoi(rec.Header().Get("Retry-After"))
			if rec.Code != http.StatusServiceUnavailable || err != nil || seconds < least || seconds > most {
				t.Errorf("%s: got %d, Retry-After %q, want 503 and %d to %d", what, rec.Code, rec.Header().Get("Retry-After"), least, most)
			}
			return seconds
		}
		time.Sleep(time.Duration(want("a refused password", 1, 2)) * time.Second)
		left := want("a password that is refused again", 5, 8)
		if got := len(logins(partner)); got != 2 {
			t.Errorf("got %d logins after waiting as long as the header says, want 2", got)
		}
		time.Sleep(3 * time.Second)
		want("the same refusal, 3 s later", left-3, left-3)
		rotate("new")
		time.Sleep(2 * time.Minute)
		before := partner.Count("", "")
		for range 98 { // and a login
			check(t, s.call(t.Context(), "GET", ordersPath, "?search=A", nil, new(any)))
		}
		if rec := post(t, h, "the last"); rec.Code != http.StatusCreated {
			t.Errorf("got %d %s, want 201", rec.Code, rec.Body)
		}
		if got := partner.Count("", "") - before; got != 100 {
			t.Errorf("got %d requests since the last minute, want the 100 of a quota", got)
		}
		want("a full quota", 60, 62)
		time.Sleep(40 * time.Second)
		want("a full quota, 40 s later", 20, 22)
		time.Sleep(time.Minute)
		partner.Inject(partnertest.Fault{Path: ordersPath, Status: 429, Header: http.Header{"Retry-After": {"30"}}, Times: 1})
		want("a 429 that asks for more than the deadline", 30, 30)
	})
}

// TestReadiness probes every second, as Kubernetes does. No other request arrives before the service is ready.
func TestReadiness(t *testing.T) {
	cases := []struct {
		name   string
		fault  partnertest.Fault // until mended
		wrong  bool              // the password in the file, until mended
		after  time.Duration     // is the trouble mended
		within time.Duration     // is the service ready then
		logins int               // that the partner answers, at most
	}{
		{name: "at once", within: 0, logins: 1},
		{name: "no connection for 10 s", fault: partnertest.Fault{Reset: true}, after: 10 * time.Second, within: 15 * time.Second, logins: 1},
		{name: "no connection for 10 min", fault: partnertest.Fault{Reset: true}, after: 10 * time.Minute, within: 31 * time.Second, logins: 1},
		{name: "the password comes after an hour", wrong: true, after: time.Hour, within: time.Second, logins: 11},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				withoutDefaultTransport(t)
				partner := newPartner(t, 200*time.Millisecond)
				partner.Inject(c.fault)
				if c.wrong {
					partner.SetPassword("new")
				}
				s, rotate, _ := newTestService(t, partner)
				h := s.handler()
				start := time.Now()
				mended := false
				for polls := 0; ; polls++ {
					if !mended && time.Since(start) >= c.after {
						partner.ClearFaults()
						if c.wrong {
							rotate("new")
						}
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
				all := logins(partner)
				last := all[len(all)-1]
				t.Logf("ready %v after it could be, %v after the login that was granted; %d logins", ready, time.Since(last.Time), len(all))
				if late := time.Since(last.Time); last.Status != 200 || late > 1100*time.Millisecond {
					t.Errorf("ready %v after a login that was answered %d, want it by the next probe after one that was granted", late, last.Status)
				}
				if ready > c.within+time.Second || len(all) > c.logins {
					t.Errorf("ready after %v and %d logins, want %v and %d", ready, len(all), c.within, c.logins)
				}
				for range 600 { // from now on a probe every second costs nothing
					time.Sleep(time.Second)
					if rec := do(t.Context(), h, "GET", "/readyz", ""); rec.Code != 200 {
						t.Fatalf("no longer ready: %s", rec.Body)
					}
				}
				if again := len(logins(partner)); again > c.logins {
					t.Errorf("got %d logins after ten minutes of probes, want %d at most", again, c.logins)
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

// TestReadyWithACAThatOnlyBaseKnows fails a login through http.DefaultTransport, which does not trust the partner's
// certificate. That must not delay the Transport, whose Base does.
func TestReadyWithACAThatOnlyBaseKnows(t *testing.T) {
	partner := partnertest.NowPost(t, partnertest.Options{TLS: true})
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for _, first := range []bool{false, true} {
		tel, err := newTelemetry(io.Discard)
		check(t, err)
		account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
		s := newService(account, &partnerauth.Transport{Base: partner}, tel)
		if first {
			if _, err := s.rt.Source.Token(); err == nil {
				t.Fatal("http.DefaultTransport trusts the partner")
			}
		}
		start := time.Now()
		rec := do(t.Context(), s.handler(), "GET", "/readyz", "")
		if took := time.Since(start); rec.Code != 200 || took > time.Second {
			t.Errorf("own login first: %v: got %d %s after %v, want 200 within a second", first, rec.Code, rec.Body, took)
		}
	}
	if got := partner.Count("POST", loginPath); got != 2 {
		t.Errorf("got %d login requests, want 2: one for each service", got)
	}
}

// TestBatchLeavesRoomForOthers runs a batch beside interactive calls. The batch is a round of reconciliation with a
// thousand orders, one after the other, or a thousand calls at once.
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
				partner := newPartner(t, c.latency)
				s, _, _ := newTestService(t, partner)
				h := s.handler()
				for i := range 1000 {
					o := order{PartnerOrderID: fmt.Sprint("batch-", i), ID: "ord", Status: "created"}
					s.orders.Store(o.PartnerOrderID, o)
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
				batch := partner.Count("GET", ordersPath)
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

// TestRotationUnderLoad changes the password at the partner, which then accepts neither the old one nor its tokens, and
// in the file at the same time or later.
func TestRotationUnderLoad(t *testing.T) {
	for _, late := range []time.Duration{0, 500 * time.Millisecond, 20 * time.Second, 90 * time.Second, time.Hour} {
		t.Run(fmt.Sprint("file after ", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				partner := newPartner(t, 100*time.Millisecond)
				s, rotate, _ := newTestService(t, partner)
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
						err := s.call(ctx, "GET", ordersPath, "?search=1", nil, new(any))
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
				partner.SetPassword("new")
				partner.RevokeAll()
				if late > 0 {
					time.Sleep(late)
					rotate("new")
				}
				all.Wait()
				last := time.Duration(0)
				for _, f := range failures {
					last = max(last, f.began-change-late)
					if f.began > change+late+time.Second { // the file is read once a second
						t.Errorf("a call begun %v after the file had the new password failed: %v", f.began-change-late, f.err)
					}
					if !errors.Is(f.err, partnerauth.ErrCredentials) {
						t.Errorf("got %v, want ErrCredentials", f.err)
					}
				}
				t.Logf("%d calls succeeded, %d failed, the last begun %v after the file had the password; logins: %d with the old, %d with the new",
					succeeded, len(failures), last, loginsWith(partner, "old"), loginsWith(partner, "new"))
				if n := loginsWith(partner, "new"); n != 1 {
					t.Errorf("%d logins with the new password, want 1", n)
				}
				// The first of them was granted, and the old password may be refused as often as rule 11 says.
				want := map[time.Duration]int{0: 1, 500 * time.Millisecond: 2, 20 * time.Second: 4, 90 * time.Second: 5, time.Hour: 11}[late]
				if n := loginsWith(partner, "old"); n > want {
					t.Errorf("%d logins with the old password, want at most %d", n, want)
				}
				if late == 0 && len(failures) > 0 {
					t.Errorf("%d calls failed though the file had the password in time", len(failures))
				}
			})
		})
	}
}

// TestPasswordFileIsMissing has no file for a while, as when somebody repairs a secret by hand.
func TestPasswordFileIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := newPartner(t, 0)
		s, _, _ := newTestService(t, partner)
		file := filepath.Join(t.TempDir(), "password")
		s.rt.Source = partnerauth.NowPost{Email: partnertest.Email, PasswordFunc: passwordFile(file), BaseURL: partner.URL}.TokenSource()
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
		if got := partner.Logins(); took > 31*time.Second || got != 1 {
			t.Errorf("ready after %v and %d logins, want 31s at most and 1", took, got)
		}
	})
}

func TestShutsDownGracefully(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner := newPartner(t, 0)
		s, _, log := newTestService(t, partner)
		ctx, stop := context.WithCancel(t.Context())
		l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		ended := make(chan error)
		go func() { ended <- s.run(ctx, l) }()

		client := &http.Client{Transport: &http.Transport{DialContext: l.dial}}
		defer client.CloseIdleConnections()
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
		partner.Inject(partnertest.Fault{Path: ordersPath, Delay: 8 * time.Second})
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
			t.Errorf("got log %s, want a line about shutting down", log)
		}
	})
}

// TestProgram runs the program itself: its environment configures it, and SIGTERM ends it with status 0.
func TestProgram(t *testing.T) {
	partner := partnertest.NowPost(t, partnertest.Options{})
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

// A pipeListener accepts connections in memory.
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
