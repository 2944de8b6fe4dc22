// Package partnertest has stand-ins for partners: servers on real sockets, or in
// memory, that follow the partners' pages, keep real accounts, orders and
// quotas, remember every request, and fail on demand. Module partnertest is what
// users of the package see of it.
package partnertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// The credentials that the servers accept unless Options set others. ClientSecret
// contains characters that a client must not escape.
const (
	Email        = "shop@example.com"
	Password     = "correct horse battery staple"
	ClientID     = "acme"
	ClientSecret = "s3cr3t:+/%& ü"
)

// Options configure a server. The zero value is a partner that behaves as its
// pages say, over plain http.
type Options struct {
	TLS      bool          // https with a certificate of its own, HTTP/2 and HTTP/1.1
	Lifetime time.Duration // of tokens; 0: 24 h for NowPost, 1 h for the others
	Limit    int           // requests in a window; 0: 100; negative: no quota
	Window   time.Duration // 0: one minute

	// Headers is how the quota is announced: "draft-8" (also ""), "draft-7",
	// "draft-6", "legacy" or "none".
	Headers string

	// Rotate makes a refresh revoke the token that it was made with (NowPost).
	Rotate bool

	// Flat makes the login answer {"token":…}, as the page's samples expect it
	// (NowPost).
	Flat bool

	// Envelope makes the refresh answer as the login does (NowPost).
	Envelope bool

	// ExpiresAt is announced instead of the true expiry, such as the page's own
	// "2024-01-15T12:00:00Z" (NowPost).
	ExpiresAt string

	// Latency passes after a request was carried out and before its answer.
	Latency time.Duration

	// Now is the server's clock, for quota, lifetimes and Date; nil: time.Now.
	Now func() time.Time

	Forget bool // keep no Requests, for benchmarks; the counts still work

	// The credentials that the server accepts; "": the constants.
	Email, Password, ClientID, ClientSecret string

	ShortName string // the partner's short name (Ndovu); "": "acme"

	// SignInPath is where a Provider signs in; "": TokenPath.
	SignInPath string

	// Accepts reports whether a sign-in has the right credentials (Provider); nil:
	// RFC 6749 with ClientID and ClientSecret.
	Accepts func(*http.Request) bool

	// RefreshPath is where a Provider renews tokens, which may be SignInPath; "":
	// nowhere.
	RefreshPath string

	// Answer writes the answer to a sign-in or a refresh (Provider); nil: RFC 6749.
	Answer func(http.ResponseWriter, Grant)

	// TokenHeader and TokenType are the header and the scheme of tokens (Provider).
	// Both "": Authorization and Bearer. TokenType alone "": the token alone.
	TokenHeader, TokenType string

	// Handler answers requests that carry a good token (Provider); nil: {}.
	Handler http.Handler

	// Listener is what Start serves on; nil: a free port of 127.0.0.1.
	Listener net.Listener

	// URL is where a server in memory is, such as "https://api.nowpost.com".
	URL string
}

// Server is what all stand-ins have in common. It is safe for concurrent use.
type Server struct {
	URL string // without a slash at the end

	opts  Options
	login string   // path of the token request
	paths []string // of the endpoints, with {name} for what varies
	mux   *http.ServeMux
	http  *httptest.Server // nil: in memory
	vault *vault
	base  context.Context    // of every request
	stop  context.CancelFunc // ends it

	inside sync.WaitGroup // handlers at work

	mu        sync.Mutex // guards the fields below and what the Set methods change
	happened  *sync.Cond // signals a change of these
	events    int
	closed    bool
	window    window
	faults    faults
	gate      chan struct{} // closed by Release
	hanging   int
	requests  []*Request
	received  map[endpoint]int
	answered  map[int]int
	logins    int
	refreshes int
}

type endpoint struct{ method, path string }

// conn is the context key of a request's net.Conn.
type conn struct{}

func newServer(o Options, login string) *Server {
	switch o.Headers {
	case "":
		o.Headers = "draft-8"
	case "draft-8", "draft-7", "draft-6", "legacy", "none":
	default:
		panic(fmt.Sprintf("partnertest: unknown Headers %q", o.Headers))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Limit = or(o.Limit, 100)
	o.Window = or(o.Window, time.Minute)
	o.Email, o.Password = or(o.Email, Email), or(o.Password, Password)
	o.ClientID, o.ClientSecret = or(o.ClientID, ClientID), or(o.ClientSecret, ClientSecret)
	o.ShortName = or(o.ShortName, "acme")

	s := &Server{
		opts:     o,
		login:    login,
		mux:      http.NewServeMux(),
		vault:    newVault(o.Now, o.Lifetime),
		window:   window{limit: o.Limit, length: o.Window},
		gate:     make(chan struct{}),
		received: map[endpoint]int{},
		answered: map[int]int{},
	}
	s.happened = sync.NewCond(&s.mu)
	s.mux.HandleFunc("/", notFound)
	s.URL = o.URL
	s.base, s.stop = context.WithCancel(context.Background())
	return s
}

// endpoint adds what answers a method and a path, in the form of http.ServeMux.
func (s *Server) endpoint(pattern string, h http.HandlerFunc) {
	_, path, _ := strings.Cut(pattern, " ")
	s.paths = append(s.paths, path)
	s.mux.HandleFunc(pattern, h)
}

// Paths returns those of the server's endpoints, with {name} for what varies.
func (s *Server) Paths() []string { return slices.Compact(slices.Sorted(slices.Values(s.paths))) }

// Reaches reports whether a Fault's Path, "" and prefixes included, is that of
// an endpoint.
func (s *Server) Reaches(path string) bool {
	prefix, open := strings.CutSuffix(path, "*")
	return path == "" || slices.ContainsFunc(s.paths, func(known string) bool {
		if open && strings.HasPrefix(known, prefix) {
			return true
		}
		fixed, _, varies := strings.Cut(known, "{")
		if open && varies && strings.HasPrefix(prefix, fixed) {
			return true
		}
		return matches(known, path)
	})
}

// matches compares a path with a known one, element by element.
func matches(known, path string) bool {
	k, p := strings.Split(known, "/"), strings.Split(path, "/")
	return slices.EqualFunc(k, p, func(k, p string) bool { return k == p || strings.HasPrefix(k, "{") && p != "" })
}

// listen starts serving on a socket.
func (s *Server) listen() {
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	if s.opts.Listener != nil {
		s.http.Listener.Close()
		s.http.Listener = s.opts.Listener
	}
	// Tests make handshakes that fail.
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.http.Config.BaseContext = func(net.Listener) context.Context { return s.base }
	s.http.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, conn{}, c)
	}
	if s.opts.TLS {
		s.http.EnableHTTP2 = true
		s.http.TLS = &tls.Config{
			Certificates: []tls.Certificate{newCertificate()},
			NextProtos:   []string{"h2", "http/1.1"},
		}
		s.http.StartTLS()
	} else {
		s.http.Start()
	}
	s.URL = s.http.URL
}

// Close drops every connection, whatever hangs on it, and returns when no
// goroutine of the server is left.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if s.http != nil {
		// First, so that no client connects again after the next line.
		s.http.Listener.Close()
		s.http.CloseClientConnections()
		s.http.Close()
	}
	s.inside.Wait()
}

// Transport returns a new transport that trusts the server and attempts HTTP/2.
// The caller must close its idle connections.
func (s *Server) Transport() *http.Transport {
	t := &http.Transport{ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 256}
	if pool := s.CertPool(); pool != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return t
}

// CertPool returns a pool with the server's certificate, or nil if the server
// speaks plain http.
func (s *Server) CertPool() *x509.CertPool {
	if s.http == nil || s.http.Certificate() == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.http.Certificate())
	return pool
}

// RevokeAll makes the server answer 401 to every token and API key issued so
// far.
func (s *Server) RevokeAll() { s.vault.revokeAll() }
