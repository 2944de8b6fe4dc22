package partnerauth

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

// A tokenCache is where a Transport's calls get their tokens.
type tokenCache interface {
	// ask gets a token, perhaps after a 401, or nil where it has to be sought.
	ask(ctx context.Context, via *sender, rejected bool) (*lease, error)
	// seek gives w the token to send, which may be the one that it has, or the
	// fetch to wait for. It does not wait and runs no code of the user's;
	// errNoToken means that w has to ask.
	seek(w *waiter) error
	// reject forgets a token that was answered 401, and reports whether it is
	// worth asking for another.
	reject(l *lease) bool
}

// A customSource is a TokenSource of the user's own in a Transport.
type customSource struct {
	source oauth2.TokenSource
	last   atomic.Pointer[lease] // of the last token, for its header

	mu         sync.Mutex
	rejected   string        // the last access token that was
	rejections int           // how many there were
	told       chan struct{} // closed when the source has been told of the last
	relogins   *rate.Limiter
}

func newCustomSource(s oauth2.TokenSource) *customSource {
	return &customSource{source: s, relogins: newRelogins()}
}

// seek leaves w the lease that it has as long as that is good and nothing was
// rejected since it was asked for: it might have been that.
func (c *customSource) seek(w *waiter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case w.lease.good(time.Now()) && w.lease.rejections == c.rejections:
		return nil
	case w.outlived >= maxOutlived:
		return &AuthError{Op: "token", Err: errOutlived}
	}
	w.lease = nil
	return errNoToken
}

func (c *customSource) ask(ctx context.Context, via *sender, rejected bool) (*lease, error) {
	c.mu.Lock()
	rejections, told := c.rejections, c.told
	c.mu.Unlock()
	telling := isOpen(told)
	token, err := c.token(ctx, via)
	switch {
	case has[*AuthError](err):
		return nil, err
	case err == nil && (token == nil || !sendable(token.AccessToken) || !sendable(token.Type())):
		err = errors.New("the source returned no token that a header can carry")
	}
	if err != nil {
		return nil, &AuthError{Op: "token", Err: err}
	}
	l, outdated := c.lease(token, rejections)
	switch {
	case outdated && ctx.Err() == nil: // there was a rejection meanwhile, and it may have been that
		return c.ask(ctx, via, rejected)
	case l.insisted && rejected && telling:
		// The source was still being told. That may take long, or wait for this
		// very call.
		select {
		case <-told:
			return c.ask(ctx, via, true)
		case <-time.After(drainTime):
		case <-ctx.Done():
		}
	}
	if l.insisted && rejected {
		return nil, errInsisted
	}
	return l, nil
}

func isOpen(told <-chan struct{}) bool {
	select {
	case <-told:
		return false
	default:
		return told != nil
	}
}

func (c *customSource) token(ctx context.Context, via *sender) (*oauth2.Token, error) {
	if s, ok := c.source.(interface {
		TokenContext(context.Context) (*oauth2.Token, error)
	}); ok {
		return s.TokenContext(withSender(ctx, via))
	}
	return c.source.Token()
}

// lease makes a lease of token, which was asked for after so many rejections, or
// finds the one that it made of it before, and reports whether there were more
// since.
func (c *customSource) lease(token *oauth2.Token, rejections int) (_ *lease, outdated bool) {
	now := time.Now()
	c.mu.Lock()
	outdated = c.rejections > rejections
	insisted := !outdated && c.rejections > 0 && c.rejected == token.AccessToken
	c.mu.Unlock()
	if l := c.last.Load(); l != nil && l.token == token && l.good(now) && l.insisted == insisted &&
		l.rejections == rejections && strings.HasSuffix(l.authorization[0], token.AccessToken) {
		return l, outdated
	}
	l := &lease{
		token: token, authorization: []string{token.Type() + " " + token.AccessToken}, ends: token.Expiry,
		rejections: rejections, insisted: insisted,
	}
	if !l.good(now) {
		l.ends = time.Time{} // over: the server decides
	}
	c.last.Store(l)
	return l, outdated
}

// reject tells the source, unless it has been told and has the token still. Many
// are rejected for the same token, and only the first of them tells.
func (c *customSource) reject(l *lease) bool {
	s, ok := c.source.(interface{ Invalidate(*oauth2.Token) })
	if !ok || l.insisted {
		return false
	}
	c.mu.Lock()
	first := l.rejections == c.rejections && l.token.AccessToken != c.rejected
	if first {
		if !c.relogins.Allow() {
			c.mu.Unlock()
			return false
		}
		c.rejected, c.told = l.token.AccessToken, make(chan struct{})
		c.rejections++
	}
	told := c.told
	c.mu.Unlock()
	if first {
		defer close(told)
		s.Invalidate(l.token) // without the lock, since it is the user's code
	}
	return true
}
