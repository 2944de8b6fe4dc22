package partnertest

import (
	"context"
	"net/http"
	"time"
)

// A Request is a request as the server received it.
type Request struct {
	Time             time.Time // at which it was counted
	Proto            string
	Host, RemoteAddr string
	Method, Path     string
	RawQuery         string
	Header           http.Header // must not be changed
	Body             []byte
	ContentLength    int64 // -1 if not announced
	TransferEncoding []string
	Status           int // of the answer; 0 if there is none, or none yet
}

// Requests returns all requests received so far, in the order of their arrival.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.requests))
	for i, r := range s.requests {
		all[i] = *r
	}
	return all
}

// Count returns the number of requests received with a method and an exact path;
// "" means any.
func (s *Server) Count(method, path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for e, times := range s.received {
		if (method == "" || method == e.method) && (path == "" || path == e.path) {
			n += times
		}
	}
	return n
}

// Status returns the number of answers with that status.
func (s *Server) Status(code int) int { return read(s, func() int { return s.answered[code] }) }

// Logins returns the number of sign-ins that were granted.
func (s *Server) Logins() int { return read(s, func() int { return s.logins }) }

// Refreshes returns the number of refreshes that were granted. Ndovu has none.
func (s *Server) Refreshes() int { return read(s, func() int { return s.refreshes }) }

// LoginRequests returns the number of sign-ins that were received, granted or not.
func (s *Server) LoginRequests() int { return s.Count(http.MethodPost, s.login) }

// Peak returns the largest number of requests in any one window so far, including
// refused ones. If it is more than Limit, there was a 429.
func (s *Server) Peak() int { return read(s, func() int { return s.window.peak }) }

// Hanging returns the number of requests that faults hold right now.
func (s *Server) Hanging() int { return read(s, func() int { return s.hanging }) }

// Await returns nil as soon as what returns true, or ctx's error when ctx ends
// first. It calls what whenever the server has received, held or answered a
// request:
//
//	Await(ctx, func() bool { return s.Hanging() == 3 })
func (s *Server) Await(ctx context.Context, what func() bool) error {
	defer context.AfterFunc(ctx, func() { s.note(func() {}) })()
	for {
		seen := read(s, func() int { return s.events })
		if what() {
			return nil
		}
		s.mu.Lock()
		for s.events == seen && ctx.Err() == nil {
			s.happened.Wait()
		}
		s.mu.Unlock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func read[T any](s *Server, what func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return what()
}

// note changes the server's state and wakes up every Await.
func (s *Server) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.events++
	s.happened.Broadcast()
}
