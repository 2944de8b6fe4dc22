package partnertest

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
)

// Proxy tunnels https, as a company's proxy does.
type Proxy struct {
	*httptest.Server
	Asked chan string // the host and port of each tunnel
}

// StartProxy starts a Proxy for up to ten tunnels; the caller closes it.
func StartProxy() Proxy {
	asked := make(chan string, 10)
	return Proxy{httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Host
		partner, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer partner.Close()
		client, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			defer partner.Close()
			_, _ = io.Copy(partner, buffered)
		}()
		_, _ = io.Copy(client, partner)
	})), asked}
}
