package partnertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing/iotest"
)

// RoundTrip carries a request out in its caller's goroutine, without a socket. It
// blocks on timers and channels only, so it works in the bubble of
// testing/synctest in which the server was made. Faults have the effects that
// they have on a connection. A request to any other URL fails as if there were no
// such host. The request's body is read to its end first, even if its context
// ends meanwhile.
func (s *Server) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, line := req.Context(), &wire{}
	in, err := received(req, line)
	switch {
	case err != nil:
		return nil, err
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !strings.EqualFold(site(req.URL), s.URL):
		return nil, dialError(&net.DNSError{Err: "no such host", Name: req.URL.Hostname(), IsNotFound: true})
	case read(s, func() bool { return s.closed }):
		return nil, dialError(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	ans := httptest.NewRecorder()
	whole := s.handle(ans, in)
	switch {
	case whole || ans.Flushed: // an answer that is cut was flushed
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case line.closed:
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	default:
		return nil, io.EOF
	}
	resp := ans.Result()
	resp.Request = req
	if req.Method == http.MethodHead {
		resp.Body = http.NoBody
	} else if !whole {
		resp.Body = io.NopCloser(io.MultiReader(resp.Body, iotest.ErrReader(io.ErrUnexpectedEOF)))
	}
	return resp, nil
}

// handle calls serve and reports whether it gave a complete answer.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) (whole bool) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			panic(v)
		}
	}()
	s.serve(w, r)
	return true
}

// received returns req as net/http's server would receive it.
func received(req *http.Request, line *wire) (*http.Request, error) {
	body := []byte{}
	if req.Body != nil {
		defer req.Body.Close()
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
	}
	in := req.Clone(context.WithValue(req.Context(), conn{}, net.Conn(line)))
	switch {
	case req.ContentLength <= 0 && len(body) > 0:
		in.ContentLength, in.TransferEncoding = -1, []string{"chunked"}
	case req.ContentLength > 0 && req.ContentLength != int64(len(body)):
		return nil, fmt.Errorf("http: ContentLength=%d with Body length %d", req.ContentLength, len(body))
	}
	in.Body, in.GetBody = io.NopCloser(bytes.NewReader(body)), nil
	in.URL = &url.URL{Path: or(req.URL.Path, "/"), RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	in.Host, in.RequestURI = or(req.Host, req.URL.Host), req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:1"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/1.1", 1, 1
	return in, nil
}

// site returns a URL's scheme and host, without the scheme's default port.
func site(u *url.URL) string {
	host := u.Host
	switch u.Scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return u.Scheme + "://" + host
}

func dialError(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

// A wire is the connection of one request in memory. Only a Fault uses it, to
// close it.
type wire struct {
	net.Conn
	closed bool
}

func (w *wire) Close() error {
	w.closed = true
	return nil
}
