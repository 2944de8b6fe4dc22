package partnertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

const memoryURL = "https://nowpost.test"

// inMemory returns a server in memory and a caller to it.
func inMemory(t *testing.T, o partnertest.Options) (*partnertest.NowPost, caller) {
	o.URL = memoryURL
	n := partnertest.NewNowPost(o)
	t.Cleanup(n.Close)
	return n, caller{t, n.URL, &http.Client{Transport: n}}
}

// TestMemoryIsASocket makes the same requests of both servers.
func TestMemoryIsASocket(t *testing.T) {
	_, socket := startNowPost(t, partnertest.Options{})
	_, memory := inMemory(t, partnertest.Options{})
	both := []caller{socket, memory}
	var token [2]string
	for _, test := range []struct {
		method, path, body string
		header             http.Header
		want               int
	}{
		{"POST", loginPath, `{"email":"shop@example.com","password":"correct horse battery staple"}`, asJSON, 200},
		{"POST", loginPath, `{"email":"shop@example.com","password":"wrong"}`, asJSON, 401},
		{"POST", loginPath, ``, nil, 400},
		{"GET", ordersPath, ``, nil, 401},
		{"GET", ordersPath + "?pageSize=7&search=a%20b", ``, bearer("TOKEN"), 200},
		{"HEAD", ordersPath, ``, bearer("TOKEN"), 200},
		{"POST", ordersPath, order("1", "Asha"), bearer("TOKEN"), 201},
		{"GET", ordersPath + "/ord_000001", ``, bearer("TOKEN"), 200},
		{"GET", ordersPath + "/a%2Fb", ``, bearer("TOKEN"), 404},
		{"POST", refreshPath, ``, http.Header{"Authorization": {"Bearer TOKEN"}}, 200},
		{"DELETE", ordersPath, ``, bearer("TOKEN"), 404},
		{"GET", "", ``, nil, 404},
	} {
		var got [2]reply
		for i, c := range both {
			header := maps.Clone(test.header)
			if header.Get("Authorization") != "" {
				header.Set("Authorization", "Bearer "+token[i])
			}
			got[i] = c.do(test.method, test.path, header, test.body, test.want)
			if s, _ := got[i].at("data", "token").(string); s != "" {
				token[i] = s
			}
		}
		a, b := got[0], got[1]
		if a.Status != b.Status || (a.ContentLength < 0) != (b.ContentLength < 0) || a.Proto != b.Proto {
			t.Errorf("%s %s: got %s %s %d in memory, want %s %s %d", test.method, test.path,
				b.Proto, b.Status, b.ContentLength, a.Proto, a.Status, a.ContentLength)
		}
		names := func(r reply) []string { return slices.Sorted(maps.Keys(r.Header)) }
		if !slices.Equal(names(a), names(b)) {
			t.Errorf("%s %s: got headers %q in memory, want %q", test.method, test.path, names(b), names(a))
		}
		if shape(t, a.body) != shape(t, b.body) {
			t.Errorf("%s %s: got %s in memory, want %s", test.method, test.path, b.body, a.body)
		}
	}
}

// shape is a body without what differs from one server to the next.
func shape(t *testing.T, body []byte) string {
	var v any
	if json.Unmarshal(body, &v) != nil {
		return string(body)
	}
	var hide func(any)
	hide = func(v any) {
		m, _ := v.(map[string]any)
		for key, value := range m {
			if slices.Contains([]string{"token", "label_url", "created_at", "updated_at", "expiresAt"}, key) {
				m[key] = "…"
			}
			hide(value)
		}
	}
	hide(v)
	plain, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

func TestMemoryFaults(t *testing.T) {
	n, c := inMemory(t, partnertest.Options{})
	for _, test := range []struct {
		name  string
		fault partnertest.Fault
		want  error
	}{
		{"reset", partnertest.Fault{Reset: true, Times: 1}, syscall.ECONNRESET},
		{"cut", partnertest.Fault{Cut: true, Times: 1}, io.ErrUnexpectedEOF},
	} {
		n.Inject(test.fault)
		if _, err := c.try(t.Context(), "GET", ordersPath, nil, ""); !errors.Is(err, test.want) {
			t.Errorf("%s: got error %v, want %v", test.name, err, test.want)
		}
	}
	n.Inject(partnertest.Fault{Status: 503, Times: 1, Header: http.Header{"Retry-After": {"7"}}})
	if got := c.do("GET", ordersPath, nil, "", 503); got.Header.Get("Retry-After") != "7" || !strings.Contains(string(got.body), "nginx") {
		t.Errorf("got %v %s, want nginx's page and Retry-After", got.Header, got.body)
	}

	if _, err := (caller{t, "https://elsewhere.test", c.client}).try(t.Context(), "GET", "/", nil, ""); !asDNS(err) {
		t.Errorf("another host: got error %v, want one of DNS", err)
	}
	(caller{t, memoryURL + ":443", c.client}).do("GET", ordersPath, nil, "", 401)

	before := n.Count("", "")
	body := &failing{}
	req, _ := http.NewRequest("POST", memoryURL+ordersPath, body)
	if _, err := n.RoundTrip(req); !errors.Is(err, errFailing) || !body.closed || n.Count("", "") != before {
		t.Errorf("got error %v, body closed %t, want its own error and a closed body", err, body.closed)
	}
	n.Close()
	if _, err := c.try(t.Context(), "GET", ordersPath, nil, ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed: got error %v, want ECONNREFUSED", err)
	}
}

func asDNS(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

var errFailing = errors.New("the disk is gone")

type failing struct{ closed bool }

func (*failing) Read([]byte) (int, error) { return 0, errFailing }
func (f *failing) Close() error           { f.closed = true; return nil }

// TestMemoryTime lets a minute of the quota, a delay and a deadline pass where
// time is virtual.
func TestMemoryTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, c := inMemory(t, partnertest.Options{Limit: 2, Latency: time.Second})
		began := time.Now()
		for _, want := range []int{401, 401, 429} {
			c.do("GET", ordersPath, nil, "", want)
		}
		if got := time.Since(began); got != 3*time.Second {
			t.Errorf("got %v for three answers, want 3 s", got)
		}
		time.Sleep(time.Minute)
		c.do("GET", ordersPath, nil, "", 401)

		n.Inject(partnertest.Fault{Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began = time.Now()
		if _, err := c.try(ctx, "GET", ordersPath, nil, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want that of the deadline", err)
		}
		if got := time.Since(began); got != time.Hour {
			t.Errorf("got %v for a deadline, want an hour", got)
		}

		time.Sleep(time.Minute)
		errs := make(chan error)
		hang := func() {
			_, err := c.try(t.Context(), "GET", ordersPath, nil, "")
			errs <- err
		}
		go hang()
		synctest.Wait()
		n.Release()
		if err := <-errs; err != nil {
			t.Errorf("released: got error %v, want none", err)
		}
		go hang()
		synctest.Wait()
		n.Close()
		if err := <-errs; !errors.Is(err, io.EOF) {
			t.Errorf("closed: got error %v, want EOF", err)
		}
	})
}
