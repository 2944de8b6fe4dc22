package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/contract"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// shop is the program, its sheet, and the partner it works with.
type shop struct {
	t           *testing.T
	partner     *partnertest.NowPost
	program     program
	sheet       string // path
	out, errOut bytes.Buffer
}

// newShop has a partner without a quota, unless o says otherwise, and a sheet of so many orders.
func newShop(t *testing.T, o partnertest.Options, orders int) *shop {
	t.Helper()
	if o.Limit == 0 {
		o.Limit = -1
	}
	s := &shop{t: t, partner: partnertest.StartNowPost(o), sheet: filepath.Join(t.TempDir(), "sheet.csv")}
	t.Cleanup(s.partner.Close)
	t.Setenv("NOWPOST_EMAIL", partnertest.Email)
	t.Setenv("NOWPOST_PASSWORD", partnertest.Password)
	t.Setenv("NOWPOST_BASE_URL", s.partner.URL)
	document, err := openapi.NowPost()
	if err != nil {
		t.Fatal(err)
	}
	base := s.partner.Transport()
	t.Cleanup(base.CloseIdleConnections)
	s.program = program{
		out: &s.out, errOut: &s.errOut,
		settle: time.Millisecond, backoff: time.Millisecond,
		base:  contract.Check(t, document, base),
		quota: &partnerauth.Quota{Requests: 10_000},
	}
	text := head
	for i := range orders {
		text += fmt.Sprintf("%s,pudo_1,Jane Doe,jane@example.com,+2340000000000,Kettle,1,8200,1.4\n", orderID(i))
	}
	s.write(text)
	return s
}

func orderID(i int) string { return fmt.Sprintf("#%d", i) } // the partner's own sample is "#1001"; #1 is found in it, too

func (s *shop) write(sheet string) {
	s.t.Helper()
	if err := os.WriteFile(s.sheet, []byte(sheet), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shop) journal() string {
	return s.sheet + "." + strings.ReplaceAll(strings.TrimPrefix(s.partner.URL, "http://"), ":", "_") + ".journal"
}

// run runs the program with fresh output.
func (s *shop) run(ctx context.Context, flags ...string) (exit int) {
	s.out.Reset()
	s.errOut.Reset()
	return s.program.run(ctx, append(flags, s.sheet))
}

// want checks how a run ended.
func (s *shop) want(exit, wantExit int, summary string, problems ...string) {
	s.t.Helper()
	if exit != wantExit {
		s.t.Errorf("got exit %d, want %d", exit, wantExit)
	}
	if !strings.Contains(s.out.String(), summary) {
		s.t.Errorf("got output\n%s\nwant %q in it", s.out.String(), summary)
	}
	for _, p := range problems {
		if !strings.Contains(s.errOut.String(), p) {
			s.t.Errorf("got errors\n%s\nwant %q in it", s.errOut.String(), p)
		}
	}
	if len(problems) == 0 && s.errOut.Len() > 0 {
		s.t.Errorf("got errors\n%s\nwant none", s.errOut.String())
	}
}

// wantOnce checks that the partner has each of so many orders once, and no other.
func (s *shop) wantOnce(orders int) {
	s.t.Helper()
	for i := range orders {
		if n := s.partner.Created(orderID(i)); n != 1 {
			s.t.Errorf("got order %s %d times, want once", orderID(i), n)
		}
	}
	if n := len(s.partner.Orders()); n != orders {
		s.t.Errorf("got %d orders, want %d", n, orders)
	}
}

const creations = "/api/v1/orders"

// A quota of 100 requests in 3 s, tokens revoked twice under way, and each twentieth request turned away.
func TestEachOrderOnceWhateverHappensUnderneath(t *testing.T) {
	const window = 3 * time.Second
	s := newShop(t, partnertest.Options{Limit: 100, Window: window}, 150)
	s.program.quota = &partnerauth.Quota{Requests: 100, Window: window}
	s.partner.Inject(partnertest.Fault{
		Method: http.MethodPost, Path: creations, Rate: 0.05,
		Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	revoked := make(chan struct{})
	go func() {
		defer close(revoked)
		revoke(ctx, s.partner, 40, 100)
	}()
	exit := s.run(t.Context())
	cancel()
	<-revoked

	s.want(exit, 0, "150 orders: 150 created now, 0 before, 0 refused, 0 in doubt, 0 left; 0 bad lines")
	s.wantOnce(150)
	if n := s.partner.Logins(); n != 3 {
		t.Errorf("got %d logins, want 3", n)
	}
	if n := s.partner.Status(401); n < 2 {
		t.Errorf("got %d answers 401, want 2 or more: the revocations were not met", n)
	}
	if n := s.partner.Status(429); n < 7 {
		t.Errorf("got %d answers 429, want 7 or more", n)
	}
	if n := s.partner.Peak(); n > 100 {
		t.Errorf("got %d requests in one window, want at most 100", n)
	}
	if n := strings.Count(s.out.String(), " created as ord_"); n != 150 {
		t.Errorf("got %d lines of output for orders, want 150", n)
	}
}

// What is on the wire when the program is told to stop is finished, the rest is left, and the next run takes it up.
func TestInterrupt(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 30)
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Hang: true})
	ctx, interrupt := context.WithCancel(t.Context())
	exit := make(chan int)
	go func() { exit <- s.run(ctx, "-workers", "4") }()
	if err := s.partner.Await(t.Context(), func() bool { return s.partner.Hanging() == 4 }); err != nil {
		t.Fatal(err)
	}
	interrupt()
	s.partner.Release()
	s.want(<-exit, 1, "30 orders: 4 created now, 0 before, 0 refused, 0 in doubt, 26 left")
	if n := len(s.partner.Orders()); n != 4 {
		t.Errorf("got %d orders, want the 4 that were under way", n)
	}

	s.partner.ClearFaults()
	s.want(s.run(t.Context()), 0, "30 orders: 26 created now, 4 before, 0 refused, 0 in doubt, 0 left")
	s.wantOnce(30)
	s.want(s.run(t.Context()), 0, "30 orders: 0 created now, 30 before")
	s.wantOnce(30)
}

// Orders that still wait for the quota are not worth waiting for.
func TestInterruptWhileTheQuotaIsUsedUp(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 30)
	s.program.quota = &partnerauth.Quota{Requests: 6, Window: time.Hour} // the login and five orders
	ctx, interrupt := context.WithCancel(t.Context())
	exit := make(chan int)
	go func() { exit <- s.run(ctx) }()
	if err := s.partner.Await(t.Context(), func() bool { return s.partner.Status(http.StatusCreated) == 5 }); err != nil {
		t.Fatal(err)
	}
	interrupt()
	s.want(<-exit, 1, "30 orders: 5 created now, 0 before, 0 refused, 0 in doubt, 25 left")
	s.program.quota = &partnerauth.Quota{Requests: 10_000}
	s.want(s.run(t.Context()), 0, "30 orders: 25 created now, 5 before")
	s.wantOnce(30)
}

// A run that was killed leaves requests without an outcome in the journal, and perhaps half a line.
func TestGoOnAfterAKill(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 20)
	if exit := s.run(t.Context()); exit != 0 {
		t.Fatalf("got exit %d, want 0:\n%s", exit, s.errOut.String())
	}
	// As if the program had been killed after the partner had carried out #1, and before it had #20 and #21.
	var text strings.Builder
	for i := range 20 {
		if i != 1 {
			fmt.Fprintf(&text, `{"partner_order_id":%q,"state":"sending"}`+"\n"+`{"partner_order_id":%[1]q,"state":"created"}`+"\n", orderID(i))
		}
	}
	text.WriteString(`{"partner_order_id":"#1","state":"sending"}` + "\n" + `{"partner_order_id":"#20","state":"sending"}` + "\n" + `{"partner_order_id":"` + strings.Repeat("x", 5000))
	if err := os.WriteFile(s.journal(), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	sheet, err := os.ReadFile(s.sheet)
	if err != nil {
		t.Fatal(err)
	}
	s.write(string(sheet) + "#20,p,J,j@example.com,1,K,1,1,1\n" + "#21,p,J,j@example.com,1,K,1,1,1\n")
	s.want(s.run(t.Context()), 0, "22 orders: 2 created now, 20 before, 0 refused, 0 in doubt, 0 left")
	s.wantOnce(22)
	s.want(s.run(t.Context()), 0, "22 orders: 0 created now, 22 before")
	if n := s.partner.Count(http.MethodGet, creations); n != 2 {
		t.Errorf("got %d lookups, want one each for the 2 in doubt", n)
	}
}

func TestLostJournal(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 20)
	if exit := s.run(t.Context()); exit != 0 {
		t.Fatalf("got exit %d, want 0:\n%s", exit, s.errOut.String())
	}
	if err := os.Remove(s.journal()); err != nil {
		t.Fatal(err)
	}
	s.want(s.run(t.Context(), "-check"), 0, "20 orders: 0 created now, 20 before")
	s.wantOnce(20)
}

// A search for #1 finds #10 to #19 and #100 to #130, too, and shows the newest first.
func TestLookupReadsAllPages(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 131)
	if exit := s.run(t.Context(), "-workers", "1"); exit != 0 {
		t.Fatalf("got exit %d, want 0:\n%s", exit, s.errOut.String())
	}
	if err := os.WriteFile(s.journal(), []byte(`{"partner_order_id":"#1","state":"sending"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.write(head + "#1,p,J,j@example.com,1,K,1,1,1\n")
	s.want(s.run(t.Context()), 0, "1 orders: 0 created now, 1 before")
	s.wantOnce(131)
	if n := s.partner.Count(http.MethodGet, creations); n != 3 {
		t.Errorf("got %d pages of the search, want 3", n)
	}
}

func TestDamagedJournal(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 1)
	if err := os.WriteFile(s.journal(), []byte("{\"partner_order_id\":\"#0\",\"sta\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(s.run(t.Context()), 2, "", ".journal: line 1 is not an entry")
	s.wantOnce(0)
}

// lossy carries some requests out and loses their answers, headers included.
type lossy struct {
	http.RoundTripper
	lose func(*http.Request) bool
}

func (l lossy) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(req)
	if err == nil && l.lose(req) {
		resp.Body.Close()
		return nil, errors.New("connection reset by peer")
	}
	return resp, err
}

// conflicting is a partner that takes an order and calls it a duplicate.
type conflicting struct{ http.RoundTripper }

func (c conflicting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusCreated {
		resp.StatusCode = http.StatusConflict
	}
	return resp, err
}

// A failure that leaves open whether there is an order is looked into before anything is sent again.
func TestAmbiguousFailures(t *testing.T) {
	for name, fault := range map[string]partnertest.Fault{
		"carried out, answer cut":    {Cut: true},
		"reset before carrying out":  {Reset: true},
		"bad gateway":                {Status: http.StatusBadGateway},
		"success without an order":   {Body: "{}"},
		"success that is not JSON":   {Body: "<p>done</p>"},
		"asked to come back":         {Status: http.StatusServiceUnavailable},
		"gateway tired of waiting":   {Status: http.StatusGatewayTimeout},
		"request timeout of a proxy": {Status: http.StatusRequestTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, partnertest.Options{}, 12)
			s.program.base = s.partner.Transport() // these answers are not in the document
			fault.Method, fault.Path, fault.Times = http.MethodPost, creations, 5
			s.partner.Inject(fault)
			s.want(s.run(t.Context()), 0, "12 orders: 12 created now")
			s.wantOnce(12)
			if n := s.partner.Count(http.MethodGet, creations); n < 5 {
				t.Errorf("got %d lookups, want 5 or more", n)
			}
		})
	}
	t.Run("known already", func(t *testing.T) {
		s := newShop(t, partnertest.Options{}, 12)
		s.program.base = conflicting{s.partner.Transport()}
		s.want(s.run(t.Context()), 0, "12 orders: 12 created now")
		s.wantOnce(12)
	})
	t.Run("carried out, answer lost", func(t *testing.T) {
		s := newShop(t, partnertest.Options{}, 12)
		s.program.base = lossy{s.program.base, func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Path == creations }}
		s.want(s.run(t.Context()), 0, "12 orders: 12 created now")
		s.wantOnce(12)
		if n := s.partner.Count(http.MethodPost, creations); n != 12 {
			t.Errorf("got %d creations sent, want 12", n)
		}
	})
}

// A list that does not show the shop's own ids cannot settle a doubt.
func TestUnsureList(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 3)
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Cut: true, Times: 1})
	s.partner.Inject(partnertest.Fault{Method: http.MethodGet, Body: `{"data":{"orders":[{"id":"ord_1","status":"created"}],
		"pagination":{"page":1,"pageSize":10,"total":1,"totalPages":1,"hasNext":false,"hasPrevious":false}}}`})
	s.want(s.run(t.Context(), "-workers", "1"), 1, "3 orders: 2 created now, 0 before, 0 refused, 1 in doubt, 0 left",
		"line 2: #0: it may exist")
	s.wantOnce(3)
}

// Without the list there is no telling, and no going on.
func TestListOutOfReach(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 30)
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Cut: true, Times: 1})
	s.partner.Inject(partnertest.Fault{Method: http.MethodGet, Status: http.StatusInternalServerError})
	s.want(s.run(t.Context(), "-workers", "1"), 2, "30 orders: 0 created now, 0 before, 0 refused, 1 in doubt, 29 left",
		"cannot find out whether #0 exists, after 8 attempts: 500 Internal Server Error")
	s.partner.ClearFaults()
	s.want(s.run(t.Context()), 0, "30 orders: 29 created now, 1 before")
	s.wantOnce(30)
}

func TestBadLinesAreReportedAndTheRestGoesOn(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 0)
	s.write(head +
		"#0,p,J,j@example.com,1,K,1,1,1\n" +
		"#1,p,J,j@example.com,1,\"K,1,1,1\n" +
		"#1,p,J,j@example.com,1,K,1,1,1\n" +
		"#2,p,J,j@example.com,1,K,none,1,1\n" +
		"#2,p,J,j@example.com,1,K,1,1,1\n")
	s.want(s.run(t.Context()), 1, "3 orders: 3 created now, 0 before, 0 refused, 0 in doubt, 0 left; 2 bad lines",
		"line 3: column 32: extraneous or missing", `line 5: qty "none" is not a whole number`)
	s.wantOnce(3)
}

func TestRefusedOrderIsReportedAndTheRestGoesOn(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 10)
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Times: 1,
		Status: http.StatusBadRequest, Body: `{"success":false,"error":"no such pick-up point"}`})
	s.want(s.run(t.Context(), "-workers", "1"), 1, "10 orders: 9 created now, 0 before, 1 refused, 0 in doubt, 0 left",
		`line 2: #0: 400 Bad Request {"success":false,"error":"no such pick-up point"}`)
	s.want(s.run(t.Context()), 0, "10 orders: 1 created now, 9 before")
	s.wantOnce(10)
}

func TestWrongPasswordStopsAtOnce(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 30)
	t.Setenv("NOWPOST_PASSWORD", "wrong")
	s.want(s.run(t.Context()), 2, "30 orders: 0 created now, 0 before, 0 refused, 0 in doubt, 30 left",
		"orders: partnerauth: nowpost login: 401 Unauthorized", "Check NOWPOST_EMAIL and NOWPOST_PASSWORD")
	if n := s.partner.LoginRequests(); n != 1 {
		t.Errorf("got %d logins tried, want 1", n)
	}
	if strings.Contains(s.errOut.String()+s.out.String(), "wrong") {
		t.Error("the password is in the output")
	}
	t.Setenv("NOWPOST_PASSWORD", partnertest.Password)
	s.want(s.run(t.Context()), 0, "30 orders: 30 created now")
	s.wantOnce(30)
}

func TestAccountThatMayNotCreateStopsAtOnce(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 30)
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Status: http.StatusForbidden})
	s.want(s.run(t.Context(), "-workers", "1"), 2, "30 orders: 0 created now, 0 before, 0 refused, 0 in doubt, 30 left",
		"orders: 403 Forbidden\n", "does not let this account create orders")
	if n := s.partner.Count(http.MethodPost, creations); n != 1 {
		t.Errorf("got %d orders tried, want 1", n)
	}
}

func TestUsage(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 1)
	t.Run("no workers", func(t *testing.T) {
		s.want(s.run(t.Context(), "-workers", "0"), 2, "", "-workers must be 1 or more")
	})
	t.Run("unknown flag", func(t *testing.T) {
		s.want(s.run(t.Context(), "-quick"), 2, "", "-quick")
	})
	t.Run("no sheet", func(t *testing.T) {
		s.errOut.Reset()
		s.want(s.program.run(t.Context(), nil), 2, "", "which sheet?")
	})
	t.Run("two runs at once", func(t *testing.T) {
		j, err := openJournal(s.journal())
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		s.want(s.run(t.Context()), 2, "", "another run is at work on this sheet")
	})
	t.Run("incomplete environment", func(t *testing.T) {
		t.Setenv("NOWPOST_PASSWORD", "")
		s.want(s.run(t.Context()), 2, "", "NOWPOST_PASSWORD")
	})
	s.wantOnce(0)
}

// On a terminal a bar takes the place of the lines.
func TestTerminal(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 40)
	s.program.terminal = true
	s.partner.Inject(partnertest.Fault{Method: http.MethodPost, Path: creations, Times: 1, Status: http.StatusBadRequest})
	s.want(s.run(t.Context()), 1, "\n40 orders: 39 created now, 0 before, 1 refused", ": 400 Bad Request\n")
	out := s.out.String()
	for _, want := range []string{"orders   0% |", "(0/40", "100% |██████████████████████████████| (40/40"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q, want %q in it", out, want)
		}
	}
	if strings.Contains(out, "created as") {
		t.Errorf("got %q, want no lines beside the bar", out)
	}
}

// Without credentials the program brings a partner along.
func TestStandIn(t *testing.T) {
	s := newShop(t, partnertest.Options{}, 0)
	t.Setenv("NOWPOST_EMAIL", "")
	t.Setenv("NOWPOST_PASSWORD", "")
	exit := s.program.run(t.Context(), nil)
	s.want(exit, 0, "150 orders: 150 created now, 0 before, 0 refused, 0 in doubt, 0 left; 0 bad lines\nUnderneath: ")
	if !strings.Contains(s.out.String(), "; 3 logins ") {
		t.Errorf("got output\n%s\nwant 3 logins in it", s.out.String())
	}
}
