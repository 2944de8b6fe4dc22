package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
)

const uploadSize = 20 << 20

// A depot stands in for the partner where an order is too large for it: it takes uploads and keeps their hashes.
type depot struct {
	early bool // a 401 comes before the upload was read, as from a gateway

	mu       sync.Mutex
	logins   int
	token    string // the good one
	refused  int
	received map[string][]string // hashes, by order
}

func (d *depot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/api/v1/auth/login" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.logins++
		d.token = fmt.Sprintf("token-%d", d.logins)
		fmt.Fprintf(w, `{"success":true,"data":{"token":%q,"expiresAt":%q}}`, d.token, time.Now().Add(24*time.Hour).Format(time.RFC3339))
		return
	}
	d.mu.Lock()
	good := r.Header.Get("Authorization") == "Bearer "+d.token
	if !good {
		d.refused++
	}
	d.mu.Unlock()
	if !good && d.early {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodGet {
		return
	}
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	switch {
	case err != nil || n != uploadSize:
		w.WriteHeader(http.StatusBadRequest)
	case !good:
		w.WriteHeader(http.StatusUnauthorized)
	default:
		d.mu.Lock()
		order := r.URL.Query().Get("order")
		d.received[order] = append(d.received[order], hex.EncodeToString(hash.Sum(nil)))
		d.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	}
}

// revoke makes the depot refuse the token it has given out.
func (d *depot) revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.token = "revoked"
}

// A parcel is a body that can be had again. It is no bytes.Reader, which net/http knows how to repeat by itself.
type parcel struct {
	content []byte
	open    atomic.Int64 // bodies that nobody has closed
}

func (p *parcel) body() (io.ReadCloser, error) {
	p.open.Add(1)
	return &parcelBody{parcel: p, rest: bytes.NewReader(p.content)}, nil
}

type parcelBody struct {
	parcel *parcel
	rest   *bytes.Reader
	closed atomic.Bool
}

func (b *parcelBody) Read(into []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.rest.Read(into)
}

func (b *parcelBody) Close() error {
	if !b.closed.Swap(true) {
		b.parcel.open.Add(-1)
	}
	return nil
}

// Two uploads of 20 MB begin with a token that was revoked. Each is sent once more with the token of one new login,
// from its first byte, and arrives whole and once; also where the 401 comes while the upload is still being read.
// Nothing else runs meanwhile: this is work for all processors.
func TestUploadsOverRevocation(t *testing.T) {
	for _, early := range []bool{false, true} {
		for protocol, set := range protocols {
			t.Run(fmt.Sprintf("early=%t/%s", early, protocol), func(t *testing.T) {
				d := &depot{early: early, received: map[string][]string{}}
				server := httptest.NewUnstartedServer(d)
				server.EnableHTTP2 = true
				server.StartTLS()
				t.Cleanup(server.Close)
				roots := x509.NewCertPool()
				roots.AddCert(server.Certificate())
				base := newWire(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: set()})
				quota := &partnerauth.Quota{Requests: 100, Window: time.Minute}
				shop := newProgram(t, server.URL, quota, base)

				content := bytes.Repeat([]byte("0123456789abcdef"), uploadSize/16)
				hash := sha256.Sum256(content)
				p := &parcel{content: content}
				send := func(order string) error {
					ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
					defer cancel()
					body, _ := p.body()
					req, err := http.NewRequestWithContext(ctx, "POST", shop.url+"/api/v1/orders?order="+order, body)
					if err != nil {
						return err
					}
					req.GetBody, req.ContentLength = p.body, uploadSize
					resp, err := shop.client.Do(req)
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					if resp.StatusCode != http.StatusCreated {
						return fmt.Errorf("got %s", resp.Status)
					}
					return nil
				}
				if got := shop.list(context.Background()); got != http.StatusOK {
					t.Fatalf("the first call got %d", got)
				}
				d.revoke()
				var wg sync.WaitGroup
				for _, order := range []string{"one", "two"} {
					wg.Go(func() {
						if err := send(order); err != nil {
							t.Errorf("upload %s: %v", order, err)
						}
					})
				}
				wg.Wait()

				d.mu.Lock()
				defer d.mu.Unlock()
				for _, order := range []string{"one", "two"} {
					if got := d.received[order]; len(got) != 1 || got[0] != hex.EncodeToString(hash[:]) {
						t.Errorf("upload %s: got %q, want %x once", order, got, hash)
					}
				}
				if d.logins != 2 || d.refused == 0 {
					t.Errorf("%d logins and %d uploads refused, want 2 and some", d.logins, d.refused)
				}
				if !eventually(5*time.Second, func() bool { return p.open.Load() == 0 }) {
					t.Errorf("%d bodies are not closed", p.open.Load())
				}
			})
		}
	}
}

// A rewinding is a body like a file of which there is one: GetBody rewinds it, whoever reads.
type rewinding struct {
	mu   sync.Mutex
	file *bytes.Reader
}

func (r *rewinding) Read(into []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Read(into)
}

func (r *rewinding) Close() error { return nil }

func (r *rewinding) rewind() (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.file.Seek(0, io.SeekStart)
	return r, err
}

// Chunked uploads of 32 MB that are refused early, 50 for each way: what was answered 201 has arrived whole. The caller
// may get the refusal or an error instead.
func TestRewoundUploadsAreNeverCut(t *testing.T) {
	const size, repeats = 32 << 20, 50
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	sum := crc32.ChecksumIEEE(content)
	for protocol, set := range protocols {
		for _, status := range []int{http.StatusUnauthorized, http.StatusTooManyRequests} {
			t.Run(fmt.Sprintf("%s/%d", protocol, status), func(t *testing.T) {
				var attempts, cut atomic.Int64
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/api/v1/auth/login" {
						fmt.Fprint(w, `{"token":"t"}`)
						return
					}
					if attempts.Add(1) == 1 {
						io.CopyN(io.Discard, r.Body, 1<<20)
						w.Header().Set("Retry-After", "0")
						w.WriteHeader(status)
						return
					}
					got := crc32.NewIEEE()
					if n, err := io.Copy(got, r.Body); err != nil || n != size || got.Sum32() != sum {
						cut.Add(1)
					}
					w.WriteHeader(http.StatusCreated)
				}))
				server.EnableHTTP2 = true
				server.StartTLS()
				defer server.Close()
				roots := x509.NewCertPool()
				roots.AddCert(server.Certificate())
				base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: set()}
				defer base.CloseIdleConnections()
				served := 0
				for range repeats {
					attempts.Store(0)
					cut.Store(0)
					account := partnerauth.NowPost{Email: "e", Password: "p", BaseURL: server.URL}
					rt := &partnerauth.Transport{Source: account.TokenSource(), Base: base, Limiter: &partnerauth.Quota{Requests: 10_000}}
					body := &rewinding{file: bytes.NewReader(content)}
					req, err := http.NewRequest("POST", server.URL+"/api/v1/orders", body)
					if err != nil {
						t.Fatal(err)
					}
					req.GetBody, req.ContentLength = body.rewind, -1
					resp, err := rt.RoundTrip(req)
					if err != nil {
						continue
					}
					resp.Body.Close()
					if resp.StatusCode == http.StatusCreated {
						if served++; cut.Load() > 0 {
							t.Errorf("got 201 for an upload that was cut")
						}
					}
				}
				t.Logf("%d of %d were served", served, repeats)
			})
		}
	}
}
