package partnertest

import (
	"context"
	"net/http"
	"time"
)

// Request is one request as the server received it.
type Request struct {
	Time             time.Time // when it was counted
	Proto            string
	Host, RemoteAddr string
	Method, Path     string
	RawQuery         string
	Header           http.Header // shared with the server: read only
	Body             []byte
	ContentLength    int64 // -1: not announced
	TransferEncoding []string
	Status           int // of the answer; 0: none yet, or none at all
}

// Requests returns all requests received so far, in the order in which they
// were counted.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.requests))
	for i, r := range s.requests {
		all[i] = *r
	}
	return all
}

// Count tells how many requests were received for a method and an exact path;
// "" stands for any.
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

// Status tells how many answers had this status.
func (s *Server) Status(code int) int { return read(s, func() int { return s.answered[code] }) }

// Logins tells how many token requests with credentials were granted.
func (s *Server) Logins() int { return read(s, func() int { return s.logins }) }

// Refreshes tells how many refreshes were granted; Ndovu has none.
func (s *Server) Refreshes() int { return read(s, func() int { return s.refreshes }) }

// LoginRequests tells how many token requests with credentials were received,
// whatever became of them.
func (s *Server) LoginRequests() int { return s.Count(http.MethodPost, s.login) }

// Peak is the most requests counted in any one window so far, refused ones
// included: more than Limit means there was a 429.
func (s *Server) Peak() int { return read(s, func() int { return s.window.peak }) }

// Hanging tells how many requests a Fault holds right now.
func (s *Server) Hanging() int { return read(s, func() int { return s.hanging }) }

// Await returns when what() is true, or with ctx's error. It asks again
// whenever the server received, held or answered something:
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

// note changes the server's state and wakes those who Await it.
func (s *Server) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.events++
	s.happened.Broadcast()
}
