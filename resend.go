package partnerauth

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// errInsisted tells that a source still has the token that was answered 401.
var errInsisted = errors.New("partnerauth: the source has no other token")

// again reports whether the request is to be sent once more after resp, and if
// so has made everything ready for it.
func (c *call) again(resp *http.Response) bool {
	c.body = nil
	now := time.Now()
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !c.unauthorized && !outOfScope(resp) && c.waiter.tokens.reject(c.lease):
		c.reason = unauthorized
	case resp.StatusCode == http.StatusTooManyRequests && !c.limited && c.worthWaiting(now):
		c.reason, c.until = rateLimited, now.Add(2*c.queue.window+1)
	default:
		return false
	}
	body, ok := rewind(c.req)
	if !ok {
		return false
	}
	c.body, c.kept = body, resp
	keep(resp)
	if _, ours := c.waiter.tokens.(*Source); ours && c.reason == unauthorized { // a new token is sure to be another
		c.discard()
	}
	c.unauthorized = c.unauthorized || c.reason == unauthorized
	c.limited = c.limited || c.reason == rateLimited
	return true
}

// outOfScope reports whether a 401 says that the token is good, but not for this
// (RFC 6750): no login helps.
func outOfScope(resp *http.Response) bool {
	for _, v := range resp.Header["Www-Authenticate"] {
		if len(v) <= maxField && strings.Contains(strings.ToLower(strings.ReplaceAll(v, `"`, "")), "error=insufficient_scope") {
			return true
		}
	}
	return false
}

// worthWaiting reports whether the next turn comes before the deadline and
// within two windows. Where it does not, the answer is not even read.
func (c *call) worthWaiting(now time.Time) bool {
	wait := c.queue.wait(now, &waiter{line: c.line, ticket: c.ticket})
	deadline, bounded := c.ctx.Deadline()
	return wait <= 2*c.queue.window && (!bounded || !now.Add(wait).After(deadline))
}

// giveUp ends the call without another attempt: with the answer to the last one if
// that was only to be improved on, else with err.
func (c *call) giveUp(err error) (*http.Response, error) {
	closeBody(c.body)
	improved := err == errInsisted || c.reason == rateLimited && errors.Is(err, context.DeadlineExceeded)
	if improved && c.kept != nil && c.ctx.Err() == nil {
		return c.kept, nil
	}
	c.discard()
	return nil, err
}

// discard lets go of an answer that nobody will see.
func (c *call) discard() {
	if c.kept != nil {
		c.kept.Body.Close()
		c.kept = nil
	}
}

// rewind returns the body of req for another attempt, if it can be had.
func rewind(req *http.Request) (io.ReadCloser, bool) {
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		return req.Body, true
	case req.GetBody == nil:
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil && body != nil
}

// maxDrain and drainTime bound what is read of an answer that is to be followed
// by another, so that its connection can be used again.
const (
	maxDrain  = 64 << 10
	drainTime = time.Second
)

// keep reads the beginning of an answer's body, which mostly is all of it, so that
// the answer can be returned after all if there comes no other.
func keep(resp *http.Response) {
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
