package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// A customSource makes a foreign TokenSource the tokens of a Transport. A
// token is used for as long as no other was rejected since it was asked for: it might
// have been that one.
type customSource struct {
	source oauth2.TokenSource
	last   atomic.Pointer[lease] // of the last token, for its header
	asking chan struct{}         // has one in it while Token runs

	// mu guards what follows. No foreign code runs under it.
	mu       sync.Mutex
	relogins relogins
	rejected string          // the last access token that was
	telling  context.Context // ends when the source has been told of that; not the same for any two
}

func newCustomSource(s oauth2.TokenSource) *customSource {
	told, tell := context.WithCancel(context.Background())
	tell()
	return &customSource{source: s, relogins: newRelogins(), asking: make(chan struct{}, 1), telling: told}
}

// rejection returns the context of the last rejection.
func (c *customSource) rejection() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.telling
}

// lease asks the source for a token, which must be another one than after.
func (c *customSource) lease(ctx context.Context, _ time.Time, via *sender, after *lease) (*lease, string, error) {
	for {
		telling := c.rejection()
		told := telling.Err() != nil
		token, err := c.token(ctx, via)
		if err == nil && (token == nil || !sendable(token.AccessToken) || !sendable(token.Type())) {
			err = errors.New("the source returned no token that a header can carry")
		}
		if err != nil {
			return nil, "", customError(err)
		}
		switch {
		case c.rejection() != telling && ctx.Err() == nil:
			continue // there was a rejection meanwhile, and it may have been this token
		case after.text() != token.AccessToken:
			return c.leaseOf(token, telling), fromSource, nil
		case told || !within(ctx, drainTime, telling.Done()):
			return nil, "", errSameToken
		}
		// The source was still being told of the rejection. That may take long, or
		// wait for this very call.
	}
}

const fromSource = "source" // where a token comes from that is not ours

// token asks the source by TokenContext if it has that, else by Token: beside the
// caller, who may leave, and one question at a time.
func (c *customSource) token(ctx context.Context, via *sender) (*oauth2.Token, error) {
	if s, ok := c.source.(interface {
		TokenContext(context.Context) (*oauth2.Token, error)
	}); ok {
		return s.TokenContext(withSender(ctx, via))
	}
	select {
	case c.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("gave up waiting: %w", ended(ctx))
	}
	var token *oauth2.Token
	err := beside(ctx, nil, func(context.Context) (err error) {
		defer func() { <-c.asking }()
		token, err = c.source.Token()
		return err
	})
	switch {
	case err == nil:
		return token, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("gave up waiting: %w", ended(ctx))
	}
	return nil, err
}

// customError returns the AuthError for an error of a source. That of the partner in
// it, as x/oauth2 returns it, has a status and may mean the credentials.
func customError(err error) error {
	answer, ok := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case has[*AuthError](err):
		return err
	case !ok || answer.Response == nil:
		return &AuthError{Op: "token", At: time.Now(), Err: err}
	}
	status, word := answer.Response.StatusCode, answer.ErrorCode
	reason := &answerError{reason: statusText(status), answer: answer, cause: err}
	if _, ok := errorWords[word]; ok {
		reason.reason += ": " + word
	} else {
		word = "" // the partner's own
	}
	if isWrong(status, word) {
		reason.cause = errors.Join(ErrCredentials, err)
	}
	return &AuthError{Op: "token", StatusCode: status, At: time.Now(), Err: reason}
}

// leaseOf returns the lease of token, which was asked for after a rejection: the one made
// of it before if it is the same.
func (c *customSource) leaseOf(token *oauth2.Token, after context.Context) *lease {
	now := time.Now()
	if l := c.last.Load(); l != nil && l.token == token && l.isGood(now) && l.after == after && strings.HasSuffix(l.authorization[0], token.AccessToken) {
		return l
	}
	l := &lease{token: token, authorization: []string{token.Type() + " " + token.AccessToken}, issued: now, ends: token.Expiry, after: after}
	if !l.isGood(now) {
		l.ends = time.Time{} // it has expired: the server decides
	}
	c.last.Store(l)
	return l
}

func (c *customSource) usable(l *lease) bool {
	return l.isGood(time.Now()) && l.after == c.rejection()
}

func (c *customSource) newest(_ context.Context, _ *sender, l *lease) *lease {
	if c.usable(l) {
		return l
	}
	return nil
}

func (c *customSource) alwaysReplaces() bool { return false }

// reject invalidates the token at the source, unless that was done and the source still
// returns it. Of many calls with the same token, only the first does it.
func (c *customSource) reject(l *lease) bool {
	s, ok := c.source.(interface{ Invalidate(*oauth2.Token) })
	if !ok {
		return false
	}
	c.mu.Lock()
	now := time.Now()
	replaced := l.after != c.telling // another was rejected since it was asked for
	first := !replaced && l.text() != c.rejected && c.relogins.allow(l, now)
	telling, tell := context.WithCancel(context.Background())
	defer tell()
	if first {
		c.relogins.add(now, 1)
		c.rejected, c.telling = l.text(), telling
	}
	c.mu.Unlock()
	if first {
		s.Invalidate(l.token) // without the lock, since it is foreign code
	}
	return first || replaced
}
