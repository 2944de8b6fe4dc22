package bench

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// What all calls ask for, and where where there is no server.
const (
	Target = "https://partner.example.com"
	Path   = "/api/v3/partners/acme/plans?currency=KES"
)

// NewRequest is a request as a caller makes it. A call does not change it, so
// one goroutine may send it again and again.
func NewRequest(target string) *http.Request {
	req, err := http.NewRequest(http.MethodGet, target+Path, nil)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "shop/1.0")
	return req
}

// Do makes one call to the end: the answer read and closed.
func Do(call Call, req *http.Request) error {
	resp, err := call(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("got %s, want 200", resp.Status)
	}
	return nil
}

// Memory is a Base that answers at once, or after a Latency.
type Memory struct{ Latency time.Duration }

var memoryHeader = http.Header{"Content-Type": {"application/json"}}

// RoundTrip implements http.RoundTripper.
func (m Memory) RoundTrip(req *http.Request) (*http.Response, error) {
	if m.Latency > 0 {
		time.Sleep(m.Latency)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: memoryHeader, Body: http.NoBody, Request: req,
	}, nil
}

// A Server is one on this machine, with TLS, HTTP/1.1 and HTTP/2.
type Server struct {
	URL   string
	Token string // that it accepts
	Close func()
	pool  *x509.CertPool
}

var loopbackBody = []byte(`{"message":"Plans fetched successfully","data":{"total":0,"plans":[]}}`)

// StartLoopback starts a server that answers at once, whatever it is asked.
func StartLoopback() *Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(loopbackBody)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return &Server{server.URL, Token, server.Close, pool}
}

// StartStandIn starts a stand-in for Ndovu, which checks the token, keeps count,
// and makes its answer out of its plans.
func StartStandIn() (*Server, error) {
	ndovu := partnertest.StartNdovu(partnertest.Options{TLS: true, Limit: -1, Forget: true, Lifetime: 24 * time.Hour})
	s := &Server{URL: ndovu.URL, Close: ndovu.Close, pool: ndovu.CertPool()}
	base := s.Transport(false)
	defer base.CloseIdleConnections()
	token, err := partnerauth.Ndovu{
		ClientID: partnertest.ClientID, ClientSecret: partnertest.ClientSecret, BaseURL: s.URL, Base: base,
	}.TokenSource().Token()
	if err != nil {
		s.Close()
		return nil, err
	}
	s.Token = token.AccessToken
	return s, nil
}

// Transport is a Base that speaks HTTP/1.1 or HTTP/2 with the server and keeps
// its connections; the caller closes the idle ones.
func (s *Server) Transport(http2 bool) *http.Transport {
	t := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: s.pool},
		MaxIdleConnsPerHost: 64,
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	return t
}
