package partnertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// serve handles a request: it counts and reads it; refuses it, lets a fault hit it
// or carries it out; waits; and answers.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	entry, quota, ok := s.receive(r)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer s.inside.Done()
	defer s.note(func() {}) // for an Await, also if the request ends without an answer

	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	s.note(func() { entry.Body = body })
	r.Body = io.NopCloser(bytes.NewReader(body))

	ans := httptest.NewRecorder()
	var fault Fault
	if quota.exceeded() {
		quota.announce(ans.Header(), s.opts.Headers)
		refuse(ans)
	} else {
		s.note(func() { fault = s.faults.strike(r.Method, r.URL.Path) })
		s.hold(r.Context(), fault)
		switch {
		case fault.Reset:
			reset(r.Context().Value(conn{}).(net.Conn))
			panic(http.ErrAbortHandler)
		case fault.replaces():
			fault.answer(ans, r)
		default:
			quota.announce(ans.Header(), s.opts.Headers)
			ans.Header().Set("X-Powered-By", "Express")
			s.mux.ServeHTTP(ans, r)
			maps.Copy(ans.Header(), fault.Header)
		}
	}
	s.wait(r.Context(), s.opts.Latency)
	s.note(func() {
		entry.Status = ans.Code
		s.answered[ans.Code]++
	})
	s.send(w, ans, fault.Cut)
}

// receive counts a request before anything else happens, since the partners'
// limiter comes before authentication. It returns false if the server is closed.
func (s *Server) receive(r *http.Request) (*Request, quota, bool) {
	entry := &Request{
		Proto: r.Proto, Host: r.Host, RemoteAddr: r.RemoteAddr,
		Method: r.Method, Path: r.URL.Path, RawQuery: r.URL.RawQuery, Header: r.Header,
		ContentLength: r.ContentLength, TransferEncoding: r.TransferEncoding,
	}
	var q quota
	open := false
	s.note(func() {
		if open = !s.closed; !open {
			return
		}
		s.inside.Add(1) // with the lock held, so before Close waits
		entry.Time = s.opts.Now()
		q = s.window.hit(entry.Time)
		s.received[endpoint{r.Method, r.URL.Path}]++
		if !s.opts.Forget {
			s.requests = append(s.requests, entry)
		}
	})
	return entry, q, open
}

// wait waits for d. If the client leaves or the server closes first, it panics
// with http.ErrAbortHandler.
func (s *Server) wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	case <-s.base.Done():
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) send(w http.ResponseWriter, ans *httptest.ResponseRecorder, cut bool) {
	body := ans.Body.Bytes()
	maps.Copy(w.Header(), ans.Header())
	if w.Header().Get("Date") == "" {
		w.Header().Set("Date", s.opts.Now().UTC().Format(http.TimeFormat))
	}
	if ans.Code != http.StatusNoContent && ans.Code != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(ans.Code)
	if cut {
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body)
}

// reset closes a connection so that the peer receives a RST.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // impossible: all answers are plain data
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
