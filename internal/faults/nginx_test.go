package faults

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

type nginxConf struct {
	Dir, Upstream string
	Listen        string // what follows "listen"
	Zone, Server  string // directives of http{} and of server{}
}

const nginxTemplate = `
daemon off;
user root;
worker_processes 1;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/error.log notice;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path {{.Dir}}/body;
	proxy_temp_path {{.Dir}}/proxy;
	fastcgi_temp_path {{.Dir}}/fastcgi;
	uwsgi_temp_path {{.Dir}}/uwsgi;
	scgi_temp_path {{.Dir}}/scgi;
	{{.Zone}}
	server {
		listen {{.Listen}};
		{{.Server}}
		location / { proxy_pass {{.Upstream}}; }
	}
}
`

// startNginx starts one in front of a partner and returns the pid of its master.
func startNginx(t *testing.T, conf nginxConf) int {
	t.Helper()
	path := binary(t, "nginx-light", "nginx")
	if conf.Dir == "" {
		conf.Dir = publicDir(t)
	}
	file := write(t, conf.Dir, "nginx.conf", nginxTemplate, conf)
	address, _, _ := strings.Cut(conf.Listen, " ")
	return start(t, conf.Dir, address, path, "-e", filepath.Join(conf.Dir, "error.log"), "-c", file)
}

// certify writes a certificate for loopback, and its key, where nginx finds them, and returns who trusts it.
func certify(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	donor := httptest.NewTLSServer(nil) // the simplest owner of one
	defer donor.Close()
	cert := donor.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(donor.Certificate())
	return pool
}

// nginx reads its configuration anew ten times while callers work: each time the old workers end their connections,
// over HTTP/2 with a GOAWAY. Orders may fail that were on a connection at that moment, but few, and none is there twice.
func TestNginxReloads(t *testing.T) {
	t.Parallel()
	for protocol, set := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			partner := partnertest.StartNowPost(partnertest.Options{Limit: -1})
			t.Cleanup(partner.Close)
			dir, address := publicDir(t), freeAddress(t)
			base := newWire(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: certify(t, dir)}, Protocols: set()})
			pid := startNginx(t, nginxConf{Dir: dir, Upstream: partner.URL, Listen: address + " ssl http2",
				Server: "ssl_certificate cert.pem; ssl_certificate_key key.pem;"})
			quota := &partnerauth.Quota{Requests: 100, Window: 2 * time.Second}
			shop := newProgram(t, "https://"+address, quota, base)

			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			worked := make(chan []outcome, 1)
			go func() {
				worked <- shift{callers: 8, patience: 5 * time.Second, pause: 20 * time.Millisecond}.run(ctx, shop, "order")
			}()
			reloads := 10
			if *long {
				reloads = 60
			}
			for n := range reloads {
				created := partner.Status(http.StatusCreated)
				if !eventually(10*time.Second, func() bool { return partner.Status(http.StatusCreated) > created+10 }) {
					t.Fatalf("no orders come through after %d reloads", n)
				}
				if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				if n%(reloads/3) == 0 { // as often as logins after 401s are not rationed
					partner.RevokeAll()
				}
				rest(ctx, 400*time.Millisecond)
			}
			cancel()
			outcomes := <-worked
			succeeded := audit(t, partner, outcomes, quota)
			t.Logf("%d of %d orders succeeded; failures: %s", succeeded, len(outcomes), failures(outcomes))
			// at most those that were under way at a reload
			if lost := len(outcomes) - succeeded; lost > reloads*2 {
				t.Errorf("%d orders failed in %d reloads", lost, reloads)
			}
		})
	}
}

// A connection that the partner has closed meanwhile costs no order, as after a break of its callers.
func TestClosedIdleConnections(t *testing.T) {
	t.Parallel()
	partner := partnertest.StartNowPost(partnertest.Options{Limit: -1})
	t.Cleanup(partner.Close)
	address := freeAddress(t)
	startNginx(t, nginxConf{Upstream: partner.URL, Listen: address, Server: "keepalive_timeout 1s; client_header_timeout 1s;"}) // that of those never used, too
	base := newWire(&http.Transport{})
	quota := &partnerauth.Quota{Requests: 10_000, Window: time.Minute}
	shop := newProgram(t, "http://"+address, quota, base)

	var outcomes []outcome
	for round := range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		work := shift{callers: 4, patience: 5 * time.Second, pause: 20 * time.Millisecond}
		outcomes = append(outcomes, work.run(ctx, shop, fmt.Sprint("round ", round))...)
		cancel()
		if !eventually(5*time.Second, func() bool { return base.open.Load() == 0 }) {
			t.Fatal("nginx did not close its connections")
		}
	}
	if got := audit(t, partner, outcomes, quota); got != len(outcomes) {
		t.Errorf("%d of %d orders succeeded: %s", got, len(outcomes), failures(outcomes))
	}
}

// nginx is stricter than a count per window: it paces. What its limit_req refuses, the Quota learns from.
func testNginxLimits(t *testing.T) {
	t.Parallel()
	// where there is a burst, the Quota finds it, and that is all it takes
	learntBurst := func(t *testing.T, got tally) {
		got.atLeast(t, 85, 2)
		if n := sum(got.refused); n > 40 {
			t.Errorf("%d refused, want 40 at most", n)
		}
	}
	for _, limit := range []struct {
		name, burst     string
		status, windows int
		check           func(*testing.T, tally)
	}{
		{"burst 20, 429", "burst=20 nodelay", 429, 6, learntBurst},
		{"burst 20, 503", "burst=20 nodelay", 503, 6, learntBurst},
		{"burst 20 delayed, 429", "burst=20", 429, 6, learntBurst},
		{"burst 20 delayed, 503", "burst=20", 503, 6, learntBurst},
		{"no burst, 429", "", 429, 12, func(t *testing.T, got tally) {
			if n := sum(got.served); n < 12*55 {
				t.Errorf("%d served, want 55 a window", n)
			}
			if n := sum(got.refused[2:]); n >= 30 {
				t.Errorf("%d refused after the second window, want fewer than 30", n)
			}
			if n := sum(got.returned[2:]); n > 0 {
				t.Errorf("%d refusals reached callers after the second window, want none", n)
			}
		}},
		// A 503 may mean anything, so it teaches the burst and not the pace: what is sent too early goes on being
		// refused, which is every other request at worst.
		{"no burst, 503", "", 503, 12, func(t *testing.T, got tally) { got.atLeast(t, 40, 2) }},
	} {
		t.Run(limit.name, func(t *testing.T) {
			t.Parallel()
			url, window := newLimited(t)
			address := freeAddress(t)
			startNginx(t, nginxConf{Upstream: url, Listen: address,
				Zone:   fmt.Sprintf("limit_req_zone $server_port zone=all:1m rate=%dr/m;", int(100*time.Minute/window)),
				Server: fmt.Sprintf("limit_req zone=all %s; limit_req_status %d;", limit.burst, limit.status),
			})
			limit.check(t, hunger(t, "http://"+address, window, limit.windows))
		})
	}
}
