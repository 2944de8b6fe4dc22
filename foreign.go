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

// A foreignSource is a source of the user's own in a Transport.
type foreignSource struct {
	source oauth2.TokenSource
	last   atomic.Pointer[lease] // of the last token, for its header

	mu         sync.Mutex
	rejected   string // the last access token that was
	rejections int    // how many there were
	relogins   *rate.Limiter
}

func newForeignSource(s oauth2.TokenSource) *foreignSource {
	return &foreignSource{source: s, relogins: newRelogins()}
}

func (f *foreignSource) obtain(ctx context.Context, w *wire) (*lease, string, error) {
	f.mu.Lock()
	asked := f.rejections
	f.mu.Unlock()
	token, err := f.token(ctx, w)
	var auth *AuthError
	switch {
	case errors.As(err, &auth):
		return nil, "", err
	case err == nil && (token == nil || !sendable(token.AccessToken)):
		err = errors.New("the source returned no token that a header can carry")
	}
	if err != nil {
		return nil, "", &AuthError{Op: "token", Err: err}
	}
	now := time.Now()
	if l := f.last.Load(); l != nil && l.token == token && strings.HasSuffix(l.authorization[0], token.AccessToken) &&
		(l.ends.IsZero() || l.good(now)) {
		return l, "", nil
	}
	l := &lease{token: token, authorization: []string{token.Type() + " " + token.AccessToken}, ends: token.Expiry}
	if !l.good(now) {
		l.ends = time.Time{} // over, or without an end: the server decides
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l.spent = token.AccessToken == f.rejected && asked == f.rejections
	f.last.Store(l)
	return l, "", nil
}

func (f *foreignSource) token(ctx context.Context, w *wire) (*oauth2.Token, error) {
	if s, ok := f.source.(interface {
		TokenContext(context.Context) (*oauth2.Token, error)
	}); ok {
		return s.TokenContext(withWire(ctx, w))
	}
	return f.source.Token()
}

// renewed returns l unless it has ended. A token without an expiry never does.
func (f *foreignSource) renewed(_ context.Context, _ *wire, l *lease) *lease {
	if l.ends.IsZero() || l.good(time.Now()) {
		return l
	}
	return nil
}

func (f *foreignSource) reject(l *lease) bool {
	s, ok := f.source.(interface{ Invalidate(*oauth2.Token) })
	if !ok || l.spent { // asked for after it was rejected, the source still had it
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rejected != l.token.AccessToken { // many are rejected for the same token
		if !f.relogins.Allow() {
			return false
		}
		f.rejected = l.token.AccessToken
	}
	s.Invalidate(l.token)
	f.rejections++
	f.last.Store(nil)
	return true
}
