package faults

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

const squidTemplate = `
http_port {{.Listen}}
pid_filename none
cache deny all
cache_log /dev/null
access_log none
coredump_dir none
shutdown_lifetime 0 seconds
visible_hostname squid.test
pinger_enable off
{{if .Passwords}}
auth_param basic program /usr/lib/squid/basic_ncsa_auth {{.Passwords}}
auth_param basic children 2 startup=1
acl known proxy_auth REQUIRED
acl barred proxy_auth barred
http_access deny barred
http_access allow known
http_access deny all
{{else}}
http_access allow all
{{end}}
`

// startSquid starts one, which asks for passwords if it is given any, and returns its address.
func startSquid(t *testing.T, passwords string) string {
	t.Helper()
	path, dir, address := binary(t, "squid", "squid"), publicDir(t), freeAddress(t)
	if passwords != "" {
		passwords = write(t, dir, "passwords", passwords, nil)
	}
	file := write(t, dir, "squid.conf", squidTemplate, map[string]string{"Listen": address, "Passwords": passwords})
	start(t, dir, address, path, "-N", "-d", "1", "-f", file)
	return address
}

// ncsa is a line of squid's password file, in its oldest form, which needs no crypt.
func ncsa(user, password string) string {
	return fmt.Sprintf("%s:%x\n", user, md5.Sum([]byte(password)))
}

// Requests to the partner, the login first, go through CONNECT tunnels. What the proxy refuses is an error that says
// that the proxy did, and not one that sends the user to look at the partner's password.
func TestSquid(t *testing.T) {
	t.Parallel()
	open := startSquid(t, "")
	// one user a case: squid asks once for all requests in which it meets a user's name at the same time
	locked := startSquid(t, ncsa("shop", "open sesame")+ncsa("other", "open sesame")+ncsa("barred", "open sesame"))
	partner := partnertest.StartNowPost(partnertest.Options{TLS: true, Limit: -1})
	t.Cleanup(partner.Close)
	nobody := "https://" + freeAddress(t)

	for _, c := range []struct {
		name, proxy string
		user        *url.Userinfo
		partner     string
		status      string // of the proxy's refusal; "": it lets us through
	}{
		{"no password asked", open, nil, partner.URL, ""},
		{"right password", locked, url.UserPassword("shop", "open sesame"), partner.URL, ""},
		{"wrong password", locked, url.UserPassword("other", "open barley"), partner.URL, "407"},
		{"no password", locked, nil, partner.URL, "407"},
		{"not allowed", locked, url.UserPassword("barred", "open sesame"), partner.URL, "403 or 407"},
		{"partner unreachable", open, nil, nobody, "503"},
	} {
		for protocol, set := range protocols {
			t.Run(c.name+"/"+protocol, func(t *testing.T) {
				t.Parallel()
				proxy := &url.URL{Scheme: "http", Host: c.proxy, User: c.user}
				base := newWire(partner.Transport())
				base.Protocols = set()
				var way atomic.Pointer[url.URL]
				way.Store(proxy)
				base.Proxy = func(*http.Request) (*url.URL, error) { return way.Load(), nil }
				quota := &partnerauth.Quota{Requests: 20, Window: time.Minute}
				cold := newProgram(t, c.partner, quota, base)

				got := cold.order(context.Background(), t.Name(), 20*time.Second)
				if c.status == "" {
					if got.err != nil || got.status != http.StatusCreated || partner.Created(t.Name()) != 1 {
						t.Fatalf("got %d, %v, and %d orders; want one", got.status, got.err, partner.Created(t.Name()))
					}
					return
				}
				blamesProxy(t, "login", got.err)
				if c.partner != partner.URL {
					return
				}
				// Signed in by another way, a call meets the same refusal.
				way.Store(nil)
				warm := newProgram(t, c.partner, quota, base)
				if got := warm.order(context.Background(), t.Name()+"1", 20*time.Second); got.err != nil {
					t.Fatal(got.err)
				}
				warm.client.CloseIdleConnections()
				way.Store(proxy)
				got = warm.order(context.Background(), t.Name()+"2", 20*time.Second)
				blamesProxy(t, "call", got.err)
				if n := partner.Created(t.Name() + "2"); n != 0 {
					t.Errorf("%d orders came through", n)
				}
			})
		}
	}
}

// blamesProxy checks what a user reads.
func blamesProxy(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error", what)
	}
	// net/http may say "Proxy Authentication Required" of itself, which is the status' name
	if !strings.Contains(strings.ToLower(err.Error()), "proxy") {
		t.Errorf("%s: %q does not say that the proxy refused", what, err)
	}
	if errors.Is(err, partnerauth.ErrCredentials) || strings.Contains(err.Error(), "e-mail") {
		t.Errorf("%s: %q blames the partner's password", what, err)
	}
	if strings.Contains(err.Error(), "open") {
		t.Errorf("%s: %q has the proxy's password in it", what, err)
	}
}
