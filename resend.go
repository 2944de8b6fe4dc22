package partnerauth

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Why a request is sent again.
const (
	unauthorized = "unauthorized"
	rateLimited  = "rate_limited"
)

// errSameToken is returned for a source that still returns the token that was
// answered 401.
var errSameToken = errors.New("partnerauth: the source has no other token")

// A retry is what a call keeps for its next attempt.
type retry struct {
	req  *http.Request
	body io.ReadCloser // of the next attempt, until it is handed over
	sent *sentBodies   // that were handed over, if they have to be waited for

	reason string         // why there is a next attempt; "": it is the first
	kept   *http.Response // the last answer, returned if there is no other after all
	until  time.Time      // how long a 429 is held back

	unauthorized, limited bool // it was sent again after a 401, after a 429
}

// decide returns why the request is to be sent again after resp, "" if it is not. A 429
// is only worth it if the next turn comes soon enough. wait returns how long it takes.
func (r *retry) decide(ctx context.Context, resp *http.Response, window time.Duration, wait func(time.Time) time.Duration) string {
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !r.unauthorized && !outOfScope(resp):
		return unauthorized
	case resp.StatusCode != http.StatusTooManyRequests || r.limited:
		return ""
	}
	now := time.Now()
	next := wait(now)
	deadline, bounded := ctx.Deadline()
	most := 2*window + time.Second // seconds may have been rounded down
	if next >= most || bounded && now.Add(next).After(deadline) {
		return ""
	}
	r.until = now.Add(most)
	return rateLimited
}

// prepare makes everything ready for another attempt, for that reason and after resp. It
// reports whether it could: if not, resp is still to be returned.
func (r *retry) prepare(ctx context.Context, reason string, resp *http.Response) bool {
	if !replayable(r.req) {
		return false
	}
	buffer(resp)
	if !r.replay(ctx) {
		return false
	}
	r.reason = reason
	r.limited = r.limited || reason == rateLimited
	r.unauthorized = r.unauthorized || reason == unauthorized
	return true
}

// giveUp ends the call without another attempt: with the answer to the last one if
// there was only a better one to be had, else with err.
func (r *retry) giveUp(ctx context.Context, err error) (*http.Response, error) {
	optional := err == errSameToken || r.reason == rateLimited && errors.Is(err, context.DeadlineExceeded)
	if optional && r.kept != nil && ctx.Err() == nil {
		return r.kept, nil
	}
	return nil, err
}

// close closes what is left when a call ends, be it by a panic of foreign code: an answer
// other than the one that is returned, and a body that was not handed over.
func (r *retry) close(returned *http.Response) {
	if r.kept != returned {
		r.discard()
	}
	closeBody(r.body)
}

// discard closes an answer that nobody will see.
func (r *retry) discard() {
	if r.kept != nil {
		r.kept.Body.Close()
		r.kept = nil
	}
}

// replayable reports whether a request has no body, or one that GetBody returns again.
func replayable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// replay gets the body for another attempt. GetBody may rewind what the Base still
// reads, which would cut the upload short, so it is called when the Base is done with
// the first body. That is waited for, but not for long.
func (r *retry) replay(ctx context.Context) bool {
	if r.req.Body == nil || r.req.Body == http.NoBody {
		r.body = r.req.Body
		return true
	}
	if r.sent != nil && !within(ctx, replayTime, r.sent.allDone()) {
		return false
	}
	body, err := r.req.GetBody()
	if err != nil || body == nil {
		return false
	}
	r.body = body
	return true
}

// handOver returns the body of the next attempt. One that GetBody might rewind is
// watched.
func (r *retry) handOver() io.ReadCloser {
	body := r.body
	r.body, r.sent = nil, nil
	if body == nil || body == http.NoBody || r.req.GetBody == nil || copiedByGetBody(r.req) {
		return body
	}
	r.sent = &sentBodies{getBody: r.req.GetBody}
	return r.sent.watch(body)
}

// outOfScope reports whether a 401 says that the token is good, but not for this
// request (RFC 6750). No login helps.
func outOfScope(resp *http.Response) bool {
	for _, v := range resp.Header["Www-Authenticate"] {
		if len(v) <= maxField && strings.Contains(strings.ToLower(strings.ReplaceAll(v, `"`, "")), "error=insufficient_scope") {
			return true
		}
	}
	return false
}

// copiedByGetBody reports whether the request's GetBody is one of http.NewRequest's,
// which return a new reader of what is in memory.
func copiedByGetBody(req *http.Request) bool {
	f := runtime.FuncForPC(reflect.ValueOf(req.GetBody).Pointer())
	return f != nil && strings.HasPrefix(f.Name(), "net/http.NewRequestWithContext.")
}

// replayTime is how long the Base may take until it is done with a body.
const replayTime = time.Second

// sentBodies are the bodies that the Base has for one attempt: the first, and those that it
// gets by GetBody itself, as net/http does where a connection turns out to be closed.
type sentBodies struct {
	getBody func() (io.ReadCloser, error) // of the request

	mu   sync.Mutex    // guards what follows, and closed of each body; not held during a Read
	uses int           // Reads under way, and one more for each body until Close has returned
	done chan struct{} // closed when uses is 0
}

// watch returns body as the Base gets it.
func (s *sentBodies) watch(body io.ReadCloser) *sentBody {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses++; s.uses == 1 {
		s.done = make(chan struct{})
	}
	return &sentBody{ReadCloser: body, all: s}
}

func (s *sentBodies) allDone() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

func (s *sentBodies) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses--; s.uses == 0 {
		close(s.done)
	}
}

// A sentBody is a body that the Base has. net/http may go on reading it after
// RoundTrip has returned, and may close it in the middle of a Read.
type sentBody struct {
	io.ReadCloser
	all    *sentBodies
	closed bool
}

// again is GetBody for the Base.
func (b *sentBody) again() (io.ReadCloser, error) {
	body, err := b.all.getBody()
	if err != nil || body == nil || body == http.NoBody {
		return body, err
	}
	return b.all.watch(body), nil
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.all.mu.Lock()
	if b.closed {
		b.all.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b.all.uses++
	b.all.mu.Unlock()
	defer b.all.leave()
	return b.ReadCloser.Read(p)
}

// Close closes the body once.
func (b *sentBody) Close() error {
	b.all.mu.Lock()
	first := !b.closed
	b.closed = true
	b.all.mu.Unlock()
	if !first {
		return nil
	}
	defer b.all.leave()
	return b.ReadCloser.Close()
}

// maxDrain and drainTime bound what is read of an answer that is to be followed by
// another, so that its connection can be used again.
const (
	maxDrain  = 64 << 10
	drainTime = time.Second
)

// buffer reads the beginning of an answer's body, which mostly is all of it, so that
// the answer can still be returned if there is no other.
func buffer(resp *http.Response) {
	open := resp.Body
	late := time.AfterFunc(drainTime, func() { open.Close() })
	begins, err := io.ReadAll(io.LimitReader(open, maxDrain))
	late.Stop()
	if err == nil && len(begins) < maxDrain {
		open.Close()
		resp.Body = io.NopCloser(bytes.NewReader(begins))
		return
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(begins), open), open}
}

// within reports whether done is closed within limit and before ctx ends.
func within(ctx context.Context, limit time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
