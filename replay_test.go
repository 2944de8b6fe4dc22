package partnerauth_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// A rewound is a body whose GetBody rewinds it, as with one file for all attempts. It
// notices when that happens while somebody reads it.
type rewound struct {
	mu      sync.Mutex
	file    io.ReadSeeker
	reading atomic.Int32
	opened  int // by GetBody
	early   int // of these while a Read was under way, or before Close
	closed  bool
}

func (r *rewound) Read(p []byte) (int, error) {
	r.reading.Add(1)
	defer r.reading.Add(-1)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Read(p)
}

func (r *rewound) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *rewound) again() (io.ReadCloser, error) {
	busy := r.reading.Load() > 0
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	if busy || !r.closed {
		r.early++
	}
	r.closed = false
	_, err := r.file.Seek(0, io.SeekStart)
	return r, err
}

// upload is a POST of r, chunked.
func upload(t testing.TB, url string, r *rewound) *http.Request {
	req := newRequest(t, "POST", url, "")
	req.Body, req.GetBody, req.ContentLength = r, r.again, -1
	return req
}

// protocols of real sockets. HTTP/2 closes a body in the middle of a Read.
var protocols = map[string]func(*httptest.Server){
	"HTTP/1.1": func(s *httptest.Server) { s.StartTLS() },
	"HTTP/2":   func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
}

// An upload that is refused before it was read arrives whole, or its caller gets the
// refusal: never a part of it under a 200.
func TestUploadIsNeverCut(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16) // 32 MiB are in internal/faults
	path := filepath.Join(t.TempDir(), "upload")
	must(t, os.WriteFile(path, content, 0o600))
	for protocol, start := range protocols {
		for _, status := range []int{401, 429} {
			t.Run(fmt.Sprintf("%s/%d", protocol, status), func(t *testing.T) {
				t.Parallel()
				var calls, whole, cut atomic.Int32
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if calls.Add(1) == 1 {
						io.CopyN(io.Discard, req.Body, 1<<20)
						w.Header().Set("Retry-After", "0")
						w.WriteHeader(status)
						return
					}
					if got, err := io.ReadAll(req.Body); err == nil && bytes.Equal(got, content) {
						whole.Add(1)
					} else {
						cut.Add(1)
					}
				}))
				start(server)
				defer server.Close()
				file, err := os.Open(path)
				must(t, err)
				defer file.Close()
				r := &rewound{file: file}
				rt := &partnerauth.Transport{Source: renewing(), Origins: []string{server.URL}, Base: server.Client().Transport}
				resp, err := rt.RoundTrip(upload(t, server.URL, r).WithContext(deadline(t, time.Minute)))
				errorIf(t, r.early > 0, "GetBody was called %d times while the first body was in use", r.early)
				if err != nil { // the connection broke under the upload, and the caller knows
					errorIf(t, cut.Load() > 0 && whole.Load() > 0, "got %v", err)
					return
				}
				resp.Body.Close()
				good := resp.StatusCode == status || resp.StatusCode == 200 && whole.Load() == 1 && cut.Load() == 0
				errorIf(t, !good, "got %d for %d whole uploads and %d that were cut", resp.StatusCode, whole.Load(), cut.Load())
			})
		}
	}
}

// What a Base does with a body after its answer decides whether there is a second
// attempt, and when. The wait is a second, and no longer than the caller's.
func TestReplayWaitsForTheBase(t *testing.T) {
	const forEver = time.Hour
	for _, c := range []struct {
		name     string
		status   int
		closes   time.Duration // the body, after the answer
		reads    time.Duration // how long a Read takes that began before
		closing  time.Duration // how long Close takes
		deadline time.Duration
		want     int
		took     time.Duration
	}{
		{name: "done", want: 200},
		{name: "closed soon", closes: 900 * time.Millisecond, want: 200, took: 900 * time.Millisecond},
		{name: "closed too late", closes: 1100 * time.Millisecond, want: 401, took: time.Second},
		{name: "never closed", closes: forEver, want: 401, took: time.Second},
		{name: "closed in the middle of a Read", reads: 800 * time.Millisecond, want: 200, took: 800 * time.Millisecond},
		{name: "a Close that lasts", reads: 500 * time.Millisecond, closing: 800 * time.Millisecond, want: 200,
			took: 800 * time.Millisecond},
		{name: "a Read that does not end", reads: forEver, want: 401, took: time.Second},
		{name: "429, closed soon", status: 429, closes: 900 * time.Millisecond, want: 200, took: 900 * time.Millisecond},
		{name: "429, never closed", status: 429, closes: forEver, want: 429, took: time.Second},
		{name: "the caller leaves", closes: forEver, deadline: 300 * time.Millisecond, want: 401, took: 300 * time.Millisecond},
	} {
		bubble(t, c.name, func(t *testing.T) {
			calls, got := 0, ""
			base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if calls++; calls > 1 {
					body, err := io.ReadAll(req.Body)
					must(t, err)
					req.Body.Close()
					got = string(body)
					return answer(req, 200, ""), nil
				}
				if c.reads > 0 {
					go req.Body.Read(make([]byte, 4))
					synctest.Wait()
				}
				switch {
				case c.closes > 0:
					time.AfterFunc(c.closes, func() { req.Body.Close() })
				case c.closing > 0:
					go req.Body.Close()
				default:
					req.Body.Close()
				}
				resp := answer(req, max(c.status, 401), "refused")
				resp.Header.Set("Retry-After", "0")
				return resp, nil
			})
			text := strings.NewReader("0123456789")
			slow := &slowBody{Reader: text, first: c.reads, closing: c.closing}
			req := newRequest(t, "POST", apiURL, "").WithContext(deadline(t, cmp.Or(c.deadline, time.Minute)))
			req.Body, req.ContentLength = slow, 10
			req.GetBody = func() (io.ReadCloser, error) {
				busy := slow.reading.Load() > 0 || slow.closed.Load() == 0
				errorIf(t, busy, "GetBody was called while the Base has the first body")
				_, err := text.Seek(0, io.SeekStart)
				return io.NopCloser(text), err
			}
			rt := &partnerauth.Transport{Source: renewing(), Origins: []string{apiURL}, Base: base}
			began := time.Now()
			resp, err := rt.RoundTrip(req)
			must(t, err)
			took := time.Since(began)
			body, err := io.ReadAll(resp.Body)
			errorIf(t, err != nil || c.want != 200 && string(body) != "refused", "got the body %q, %v", body, err)
			errorIf(t, resp.StatusCode != c.want, "got %d, want %d", resp.StatusCode, c.want)
			errorIf(t, took != c.took, "it took %v, want %v", took, c.took)
			errorIf(t, c.want == 200 && got != "0123456789", "the second attempt had the body %q", got)
			time.Sleep(2 * forEver)
		})
	}
}

// net/http sends a request again itself where a connection turns out to be closed. The body
// that it gets for that is waited for, like the first.
func TestReplayWaitsForTheBasesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rewound{file: strings.NewReader("0123456789")}
		got, calls := "", 0
		base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if calls++; calls > 1 {
				body, err := io.ReadAll(req.Body)
				must(t, err)
				got = string(body)
				return answer(req, 200, ""), req.Body.Close()
			}
			req.Body.Close()
			second, err := req.GetBody()
			must(t, err)
			second.Read(make([]byte, 4))
			time.AfterFunc(900*time.Millisecond, func() { second.Close() })
			return answer(req, 401, ""), nil
		})
		rt := &partnerauth.Transport{Source: renewing(), Origins: []string{apiURL}, Base: base}
		var code int
		took := elapsed(func() { code = status(t, rt, upload(t, apiURL, r)) })
		errorIf(t, r.early > 0, "GetBody was called %d times while the Base has a body", r.early)
		errorIf(t, code != 200 || got != "0123456789", "got %d for the body %q, want 200 for all of it", code, got)
		errorIf(t, took != 900*time.Millisecond, "it took %v, want 900ms", took)
	})
}

// A slowBody takes its time for the first Read, and for Close.
type slowBody struct {
	io.Reader
	first, closing  time.Duration
	reading, closed atomic.Int32
}

func (b *slowBody) Read(p []byte) (int, error) {
	b.reading.Add(1)
	defer b.reading.Add(-1)
	time.Sleep(b.first)
	return b.Reader.Read(p)
}

func (b *slowBody) Close() error {
	time.Sleep(b.closing)
	b.closed.Add(1)
	return nil
}

// connect-go's GetBody returns the same payload again, which counts what was read of it
// for all (connect-go #541).
type payload struct {
	mu     sync.Mutex
	data   []byte
	offset int
}

func (p *payload) Read(into []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offset >= len(p.data) {
		return 0, io.EOF
	}
	n := copy(into, p.data[p.offset:min(len(p.data), p.offset+1000)])
	p.offset += n
	return n, nil
}

func (*payload) Close() error { return nil }

func (p *payload) again() (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offset = 0
	return p, nil
}

// Payloads that all attempts share arrive whole, over both protocols.
func TestSharedPayload(t *testing.T) {
	for protocol, start := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			var got [][]byte
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Authorization") == "Bearer token-1" {
					w.WriteHeader(401)
					return
				}
				body, _ := io.ReadAll(req.Body)
				got = append(got, body)
			}))
			start(server)
			defer server.Close()
			data := bytes.Repeat([]byte("0123456789"), 50_000)
			for range 3 {
				p := &payload{data: data}
				req := newRequest(t, "POST", server.URL, "")
				req.Body, req.GetBody, req.ContentLength = p, p.again, int64(len(data))
				rt := &partnerauth.Transport{Source: renewing(), Origins: []string{server.URL}, Base: server.Client().Transport}
				before := len(got)
				resp, err := rt.RoundTrip(req)
				if err != nil || resp.StatusCode != 200 {
					continue // the caller knows
				}
				resp.Body.Close()
				whole := len(got) == before+1 && bytes.Equal(got[before], data)
				errorIf(t, !whole, "got 200 for %d uploads, the first of %d B, want one of %d",
					len(got)-before, len(got[before]), len(data))
			}
		})
	}
}

// Bodies that http.NewRequest made from memory are copies: the Base gets them as they
// are, and need not be done with them.
func TestBodiesFromMemoryAreNotWaitedFor(t *testing.T) {
	for name, make := range map[string]func() io.Reader{
		"bytes.Buffer":   func() io.Reader { return bytes.NewBufferString("body") },
		"bytes.Reader":   func() io.Reader { return bytes.NewReader([]byte("body")) },
		"strings.Reader": func() io.Reader { return strings.NewReader("body") },
	} {
		bubble(t, name, func(t *testing.T) {
			req, err := http.NewRequest("POST", apiURL, make())
			must(t, err)
			first, calls := req.Body, 0
			p := new(partner)
			base := roundTripFunc(func(sent *http.Request) (*http.Response, error) {
				if calls++; calls == 1 {
					errorIf(t, sent.Body != first, "the Base got a %T, want the caller's %T", sent.Body, first)
					return answer(sent, 401, ""), nil // and reads on
				}
				return p.RoundTrip(sent)
			})
			rt := &partnerauth.Transport{Source: renewing(), Origins: []string{apiURL}, Base: base}
			p.open = true
			var code int
			took := elapsed(func() { code = status(t, rt, req) })
			errorIf(t, code != 200 || took > 0, "got %d after %v, want 200 at once", code, took)
			errorIf(t, calls != 2, "got %d attempts, want 2", calls)
			for _, a := range p.seen() {
				errorIf(t, a.body != "body", "the second attempt had the body %q", a.body)
			}
		})
	}
}

// A GetBody that fails, or that closes nothing, is no way to lose an answer.
func TestReplayThatFails(t *testing.T) {
	for name, again := range map[string]func() (io.ReadCloser, error){
		"an error": func() (io.ReadCloser, error) { return nil, errors.New("gone") },
		"nil":      func() (io.ReadCloser, error) { return nil, nil },
	} {
		p := new(partner).on("call", reply{status: 401, body: "refused"})
		rt := p.transport(nil)
		req := posting(t, watched("body"))
		req.GetBody = again
		resp, err := rt.RoundTrip(req)
		must(t, err)
		body, _ := io.ReadAll(resp.Body)
		errorIf(t, resp.StatusCode != 401 || string(body) != "refused", "%s: got %d with %q", name, resp.StatusCode, body)
	}
}
