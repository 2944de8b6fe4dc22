package partnerauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// An origin is a scheme, host and port (RFC 6454) that tokens may be sent to. It
// does not change.
type origin struct {
	scheme string // lower case
	host   string // lower case, without brackets
	port   string // never empty
	common string // host and port as they are usually written in a URL
}

// parseOrigin reads an origin from a URL of a configuration field. Errors do not
// repeat the URL, since it may contain a password.
func parseOrigin(field, rawURL string) (*origin, error) {
	u, err := url.Parse(rawURL)
	switch {
	case rawURL == "":
		return nil, fmt.Errorf("%s is empty", field)
	case err != nil:
		return nil, fmt.Errorf("%s cannot be parsed as a URL", field)
	case u.Opaque != "" || u.Hostname() == "":
		return nil, fmt.Errorf("%s is not an absolute URL such as https://api.example.com", field)
	case u.User != nil:
		return nil, fmt.Errorf("%s must not contain a user or password", field)
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(rawURL, "#"):
		return nil, fmt.Errorf("%s must not contain a query or fragment", field)
	}
	return originOf(field, u)
}

// originOf returns the origin of u, or an error if no secret may be sent there.
func originOf(field string, u *url.URL) (*origin, error) {
	o := &origin{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: portOf(u), common: u.Host}
	port, err := strconv.Atoi(o.port)
	switch {
	case strings.ContainsFunc(u.Hostname(), func(r rune) bool { return r > '~' }): // İ is an i in lower case
		return nil, fmt.Errorf("%s has a host that is not ASCII, want its xn-- form", field)
	case o.scheme == "http" && !loopback(o.host):
		return nil, fmt.Errorf("%s: %w: %s is not loopback, use https", field, ErrInsecureURL, o.host)
	case o.scheme != "http" && o.scheme != "https":
		return nil, fmt.Errorf("%s has scheme %q, want https", field, o.scheme)
	case err != nil || port < 1 || port > 65535:
		return nil, fmt.Errorf("%s has port %q, want 1 to 65535", field, o.port)
	}
	return o, nil
}

// portNumber returns o's port.
func (o *origin) portNumber() int {
	n, _ := strconv.Atoi(o.port)
	return n
}

// matches reports whether a request to u goes to o.
func (o *origin) matches(u *url.URL) bool {
	if u.Scheme == o.scheme && u.Host == o.common {
		return true
	}
	return strings.EqualFold(u.Scheme, o.scheme) && sameHost(u.Hostname(), o.host) && portOf(u) == o.port
}

// misdirected returns an error if req, whose URL matches o, names another host in
// its Host field or in URL.Opaque.
func (o *origin) misdirected(req *http.Request) error {
	if req.URL.Opaque != "" || req.Host != "" && !o.matches(&url.URL{Scheme: o.scheme, Host: req.Host}) {
		return fmt.Errorf("the request's Host or URL.Opaque names another host than its URL, %s", o.host)
	}
	return nil
}

// sameHost compares a host with one in ASCII. Where the lengths are equal, no
// letters that only Unicode folds together can be among them.
func sameHost(host, ascii string) bool {
	return len(host) == len(ascii) && strings.EqualFold(host, ascii)
}

// insecure returns an error if u is plain http to a host of one of origins, since
// whoever sent a request there expected the token to go along.
func insecure(origins []*origin, u *url.URL) error {
	if !strings.EqualFold(u.Scheme, "http") || loopback(u.Hostname()) {
		return nil
	}
	for _, o := range origins {
		if sameHost(u.Hostname(), o.host) {
			return fmt.Errorf("partnerauth: %w: plain http to %s, use https", ErrInsecureURL, o.host)
		}
	}
	return nil
}

// pinned returns which of origins a request to u goes to, -1 if none.
func pinned(origins []*origin, u *url.URL) int {
	for i, o := range origins {
		if o.matches(u) {
			return i
		}
	}
	return -1
}

// signable returns which of origins req goes to; -1 if it goes elsewhere, or if an
// answer from elsewhere redirected it here.
func signable(origins []*origin, req *http.Request) (int, error) {
	if req.URL == nil {
		return -1, errors.New("partnerauth: the request has no URL")
	}
	to := pinned(origins, req.URL)
	if to < 0 {
		return -1, insecure(origins, req.URL)
	}
	if err := origins[to].misdirected(req); err != nil {
		return -1, fmt.Errorf("partnerauth: %w", err)
	}
	for r := req.Response; r != nil && r.Request != nil && r.Request.URL != nil; r = r.Request.Response {
		if pinned(origins, r.Request.URL) < 0 {
			return -1, nil // another host chose this URL
		}
	}
	return to, nil
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "https") {
		return "443"
	}
	return "80"
}

// loopback reports whether host is this machine by its name or address alone.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
