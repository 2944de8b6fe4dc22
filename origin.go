package partnerauth

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// An origin is a scheme, host and port (RFC 6454) that tokens may be sent to.
type origin struct {
	scheme string // lower case
	host   string // lower case, without brackets
	port   string // never empty
	common string // the host and port of a URL as it is usually written
	*endpoint
}

// parseOrigin reads an origin from a URL of a configuration field. The URL is
// not repeated in errors, as it may hold a password.
func parseOrigin(field, rawURL string) (*origin, error) {
	u, err := url.Parse(rawURL)
	switch {
	case rawURL == "":
		return nil, fmt.Errorf("%s is empty", field)
	case err != nil:
		return nil, fmt.Errorf("%s cannot be parsed as a URL", field)
	case u.Opaque != "" || u.Hostname() == "":
		return nil, fmt.Errorf("%s is not an absolute URL such as https://api.example.com", field)
	case strings.ContainsFunc(u.Hostname(), func(r rune) bool { return r > '~' }):
		return nil, fmt.Errorf("%s has a host that is not ASCII, want its xn-- form", field)
	case u.User != nil:
		return nil, fmt.Errorf("%s must not have a user or password in it", field)
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(rawURL, "#"):
		return nil, fmt.Errorf("%s must not have a query or fragment", field)
	}
	o := &origin{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: portOf(u), common: u.Host}
	port, err := strconv.Atoi(o.port)
	switch {
	case o.scheme == "http" && !loopback(o.host):
		return nil, fmt.Errorf("%s: %w: %s is not loopback, use https", field, ErrInsecureURL, o.host)
	case o.scheme != "http" && o.scheme != "https":
		return nil, fmt.Errorf("%s has scheme %q, want https", field, o.scheme)
	case err != nil || port < 1 || port > 65535:
		return nil, fmt.Errorf("%s has port %q, want 1 to 65535", field, o.port)
	}
	o.endpoint = newEndpoint(o.host, port)
	return o, nil
}

// matches reports whether a request to u goes to o.
func (o *origin) matches(u *url.URL) bool {
	if u.Scheme == o.scheme && u.Host == o.common {
		return true
	}
	return strings.EqualFold(u.Scheme, o.scheme) && sameHost(u.Hostname(), o.host) && portOf(u) == o.port
}

// sameHost compares a host with one in ASCII. Of the same length, letters that
// only Unicode folds together cannot be among them.
func sameHost(host, ascii string) bool {
	return len(host) == len(ascii) && strings.EqualFold(host, ascii)
}

// pinned finds the origin that a request to u goes to, nil if it is none of
// those. Plain http to the host of one of them is an error, since whoever sent
// it there expected the token to go along.
func pinned(origins []*origin, u *url.URL) (*origin, error) {
	for _, o := range origins {
		if o.matches(u) {
			return o, nil
		}
	}
	if !strings.EqualFold(u.Scheme, "http") || loopback(u.Hostname()) {
		return nil, nil
	}
	for _, o := range origins {
		if sameHost(u.Hostname(), o.host) {
			return nil, fmt.Errorf("partnerauth: %w: plain http to %s, use https", ErrInsecureURL, o.host)
		}
	}
	return nil, nil
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
