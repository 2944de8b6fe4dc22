package faults

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
)

const fileSize = 32 << 20

// A file is a body as os.File is one: GetBody rewinds it, and there is only one offset for all who read.
type file struct {
	at     atomic.Int64
	closed atomic.Int64
}

func (f *file) Read(into []byte) (int, error) {
	at := f.at.Load()
	n := int(min(int64(len(into)), fileSize-at))
	if n == 0 {
		return 0, io.EOF
	}
	for i := range into[:n] {
		into[i] = byte((at + int64(i)) * 7 >> 3)
	}
	f.at.Add(int64(n)) // and not a Store, so that a rewind meanwhile shows
	return n, nil
}

func (f *file) Close() error {
	f.closed.Add(1)
	return nil
}

func (f *file) rewound() (io.ReadCloser, error) {
	f.at.Store(0)
	return f, nil
}

// A whole file has this checksum.
var wholeFile = func() uint32 {
	sum := crc32.NewIEEE()
	io.Copy(sum, &file{})
	return sum.Sum32()
}()

// A file of 32 MB is uploaded in chunks to a partner that answers 401 or 429 before it has read it, while net/http
// still reads it. Whatever becomes of it, an upload that is answered 201 has arrived whole.
func TestFileIsNeverCut(t *testing.T) {
	repeats := 5
	if *long {
		repeats = 50
	}
	for _, early := range []int{http.StatusUnauthorized, http.StatusTooManyRequests} {
		for protocol, set := range protocols {
			t.Run(fmt.Sprintf("%d/%s", early, protocol), func(t *testing.T) {
				var refuse atomic.Bool
				var tokens atomic.Int64
				var got atomic.Uint32
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/api/v1/auth/login" {
						fmt.Fprintf(w, `{"success":true,"data":{"token":"token-%d","expiresAt":%q}}`,
							tokens.Add(1), time.Now().Add(24*time.Hour).Format(time.RFC3339))
						return
					}
					if refuse.Swap(false) {
						io.CopyN(io.Discard, r.Body, 1<<20)
						w.Header().Set("Retry-After", "0")
						w.WriteHeader(early)
						return
					}
					sum := crc32.NewIEEE()
					if _, err := io.Copy(sum, r.Body); err != nil {
						panic(http.ErrAbortHandler)
					}
					got.Store(sum.Sum32())
					w.WriteHeader(http.StatusCreated)
				}))
				server.EnableHTTP2 = true
				server.Config.ErrorLog = log.New(io.Discard, "", 0)
				server.StartTLS()
				t.Cleanup(server.Close)
				roots := x509.NewCertPool()
				roots.AddCert(server.Certificate())
				base := newWire(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: set()})
				uploaded, refused, broken := 0, 0, 0
				for range repeats {
					// a new one each time, since logins after 401s are rationed
					shop := newProgram(t, server.URL, &partnerauth.Quota{Requests: 1000}, base)
					ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
					f := &file{}
					req, err := http.NewRequestWithContext(ctx, "POST", shop.url+"/api/v1/orders", f)
					if err != nil {
						t.Fatal(err)
					}
					req.GetBody = f.rewound // a length that is not known makes chunks
					refuse.Store(true)
					got.Store(0)
					resp, err := shop.client.Do(req)
					switch {
					case err != nil && errors.Is(err, context.DeadlineExceeded):
						t.Errorf("got no answer in time: %v", err)
					case err != nil: // the connection was closed under the upload
						broken++
					case resp.StatusCode == early:
						refused++
					case resp.StatusCode != http.StatusCreated || got.Load() != wholeFile:
						t.Errorf("got %s, checksum %08x, want %08x", resp.Status, got.Load(), wholeFile)
					default:
						uploaded++
					}
					if err == nil {
						resp.Body.Close()
					}
					if !eventually(5*time.Second, func() bool { return f.closed.Load() > 0 }) {
						t.Error("the file was not closed")
					}
					cancel()
				}
				t.Logf("%d uploaded, %d answered %d, %d broken", uploaded, refused, early, broken)
				if uploaded*2 < repeats {
					t.Errorf("%d of %d were uploaded in the end, want half of them at least", uploaded, repeats)
				}
			})
		}
	}
}
