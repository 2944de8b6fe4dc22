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

// again reports whether the request is to be sent again after resp, and if so has made
// everything ready for it.
func (c *call) again(ctx context.Context, resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		c.lease.accept()
	}
	now := time.Now()
	reason := c.decide(ctx, now, resp)
	switch {
	case reason == "":
		return false
	case reason == unauthorized && !c.client.tokens.reject(c.lease):
		return false
	case !c.replayable():
		return false
	}
	buffer(resp)
	if !c.replay(ctx) {
		return false
	}
	c.kept, c.reason, c.rejected = resp, reason, nil
	switch reason {
	case unauthorized:
		c.unauthorized, c.rejected = true, c.lease
		if c.client.tokens.surely() {
			c.discard() // there will be another answer
		}
	case rateLimited:
		c.limited, c.until = true, now.Add(2*c.client.sender.queue.window+1)
	}
	return true
}

// decide returns why the request is to be sent again after resp, "" if it is not.
func (c *call) decide(ctx context.Context, now time.Time, resp *http.Response) string {
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !c.unauthorized && !outOfScope(resp):
		return unauthorized
	case resp.StatusCode == http.StatusTooManyRequests && !c.limited && c.worthWaiting(ctx, now):
		return rateLimited
	}
	return ""
}

// worthWaiting reports whether the next turn comes before the deadline and within two
// windows. If it does not, the answer is not even read.
func (c *call) worthWaiting(ctx context.Context, now time.Time) bool {
	q := c.client.sender.queue
	wait := q.wait(now, c.ticket)
	deadline, bounded := ctx.Deadline()
	return wait <= 2*q.window && (!bounded || !now.Add(wait).After(deadline))
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

// giveUp ends the call without another attempt: with the answer to the last one if
// there was only a better one to be had, else with err.
func (c *call) giveUp(ctx context.Context, err error) (*http.Response, error) {
	closeBody(c.body)
	c.body = nil
	optional := err == errSameToken || c.reason == rateLimited && errors.Is(err, context.DeadlineExceeded)
	if optional && c.kept != nil && ctx.Err() == nil {
		return c.kept, nil
	}
	c.discard()
	return nil, err
}

// discard closes an answer that nobody will see.
func (c *call) discard() {
	if c.kept != nil {
		c.kept.Body.Close()
		c.kept = nil
	}
}

// replayable reports whether the request has no body, or one that GetBody returns
// again.
func (c *call) replayable() bool {
	return c.req.Body == nil || c.req.Body == http.NoBody || c.req.GetBody != nil
}

// replay gets the body for another attempt. GetBody may rewind what the Base still
// reads, which would cut the upload short, so it is called when the Base is done with
// the first body. That is waited for, but not for long.
func (c *call) replay(ctx context.Context) bool {
	if c.req.Body == nil || c.req.Body == http.NoBody {
		c.body = c.req.Body
		return true
	}
	if c.sent != nil && !c.sent.wait(ctx, replayTime) {
		return false
	}
	body, err := c.req.GetBody()
	if err != nil || body == nil {
		return false
	}
	c.body = body
	return true
}

// trackedBody hands the body of the next attempt over. One that GetBody might rewind
// is watched.
func (c *call) trackedBody() io.ReadCloser {
	body := c.body
	c.body, c.sent = nil, nil
	if body == nil || body == http.NoBody || c.req.GetBody == nil || copiedByGetBody(c.req) {
		return body
	}
	c.sent = &sentBody{body: body, done: make(chan struct{})}
	return c.sent
}

// copiedByGetBody reports whether the request's GetBody is one of http.NewRequest's,
// which return a new reader of what is in memory.
func copiedByGetBody(req *http.Request) bool {
	f := runtime.FuncForPC(reflect.ValueOf(req.GetBody).Pointer())
	return f != nil && strings.HasPrefix(f.Name(), "net/http.NewRequestWithContext.")
}

// replayTime is how long the Base may take until it is done with a body.
const replayTime = time.Second

// A sentBody is a body that the Base has. net/http may go on reading it after
// RoundTrip has returned, and may close it in the middle of a Read.
type sentBody struct {
	body io.ReadCloser
	done chan struct{} // closed when body is closed and no Read is under way

	mu      sync.Mutex // guards what follows; not held during a Read
	reading int
	closed  bool
	err     error // of Close
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b.reading++
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reading--
		b.settleLocked()
	}()
	return b.body.Read(p)
}

// Close closes the body once.
func (b *sentBody) Close() error {
	b.mu.Lock()
	first := !b.closed
	b.closed = true
	b.mu.Unlock()
	if !first {
		return b.err
	}
	err := b.body.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	b.settleLocked()
	return err
}

// settleLocked notes that nobody uses the body any more.
func (b *sentBody) settleLocked() {
	if !b.closed || b.reading > 0 {
		return
	}
	select {
	case <-b.done:
	default:
		close(b.done)
	}
}

// wait reports whether the body is done with within limit.
func (b *sentBody) wait(ctx context.Context, limit time.Duration) bool {
	select {
	case <-b.done:
		return true
	default:
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-b.done:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
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
