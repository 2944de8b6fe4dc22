package partnerauth

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// Errors to test for with errors.Is; they arrive wrapped, through http.Client
// in a *url.Error.
var (
	// ErrCredentials is matched by an [AuthError] whose credentials the partner
	// refused: with status 401, or 400 or 403 in JSON. Only others will help.
	ErrCredentials = errors.New("credentials refused")

	// ErrRateLimited tells that the request was not sent, or not once more after
	// a 401 or 429, because its turn would not come before the deadline of its
	// context. It is also a context.DeadlineExceeded, and tells how long the wait
	// would have been:
	//
	//	var limited interface{ RetryAfter() time.Duration }
	//	if errors.As(err, &limited) { … }
	ErrRateLimited = errors.New("rate limited")

	// ErrInsecureURL tells that a credential or token would have gone over plain
	// http to a host that is not loopback. Nothing was sent.
	ErrInsecureURL = errors.New("insecure URL")
)

// An AuthError tells why there is no token to send. Nothing of the caller's
// request has been sent, or it was answered 401 and could not be sent again. An
// http.Client whose Timeout has passed puts an error of its own in its place.
//
// Its text, and what fmt, slog and encoding/json make of it, contain no secret
// and nothing of the partner's answer but the status.
type AuthError struct {
	Provider   string // "nowpost" or "ndovu"; "" for a source of the user's own
	Op         string // "login", "refresh", "token" (a user's own source) or "config"
	StatusCode int    // of the partner's answer; 0 if there was none

	// RetryAfter is how long after the failure the Source asks the partner again.
	// Until then callers get this same error, unless a Func returns another secret.
	RetryAfter time.Duration

	// Err unwraps to an *oauth2.RetrieveError, or is the network error, the
	// context's error or the mistake in the configuration.
	Err error
}

// Error names the provider, the operation and what was wrong.
func (e *AuthError) Error() string {
	s := "partnerauth: "
	if e.Provider != "" {
		s += e.Provider + " "
	}
	return s + e.Op + ": " + e.cause()
}

// cause is the text of Err, but never that of an oauth2.RetrieveError, which
// prints the partner's whole answer.
func (e *AuthError) cause() string {
	if safe, ok := errors.AsType[*answerError](e.Err); ok {
		return safe.Error()
	}
	if e.Err == nil || has[*oauth2.RetrieveError](e.Err) {
		return statusText(e.StatusCode)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *AuthError) Unwrap() error { return e.Err }

// Is reports whether target is ErrCredentials and the credentials were refused.
func (e *AuthError) Is(target error) bool {
	return target == ErrCredentials && e.refused()
}

// refused reports whether the partner said that the credentials are wrong.
func (e *AuthError) refused() bool {
	if e == nil {
		return false
	}
	answer, ok := errors.AsType[*answerError](e.Err)
	return e.StatusCode == http.StatusUnauthorized || ok && answer.refused
}

// refusal reports whether an answer is a partner's to wrong credentials. Proxies
// and firewalls answer 400 and 403 as well, in HTML.
func refusal(resp *http.Response, body []byte) bool {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return true
	case http.StatusBadRequest, http.StatusForbidden:
		kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		return kind == "application/json" || json.Valid(body)
	}
	return false
}

// Timeout reports whether a deadline was the cause, as net.Error has it.
func (e *AuthError) Timeout() bool { return isTimeout(e.Err) }

// Format implements fmt.Formatter: the text of the error for all verbs.
func (e AuthError) Format(f fmt.State, _ rune) { io.WriteString(f, e.Error()) }

// MarshalText implements encoding.TextMarshaler, for encoding/json and slog.
func (e AuthError) MarshalText() ([]byte, error) { return []byte(e.Error()), nil }

func statusText(code int) string {
	if code == 0 {
		return "failed"
	}
	if text := http.StatusText(code); text != "" {
		return fmt.Sprintf("%d %s", code, text)
	}
	return fmt.Sprint(code)
}

func configError(provider, format string, args ...any) *AuthError {
	return &AuthError{Provider: provider, Op: "config", Err: fmt.Errorf(format, args...)}
}

// An answerError is an answer that is no token. It keeps what is kept of it for
// those who unwrap to *oauth2.RetrieveError.
type answerError struct {
	reason  string
	refused bool
	answer  *oauth2.RetrieveError
}

func (e *answerError) Error() string { return e.reason }
func (e *answerError) Unwrap() error { return e.answer }

// A rateLimitError is the refusal of a wait that would end after the deadline.
type rateLimitError struct {
	wait time.Duration // until the turn would have come, as far as it can be told
	left time.Duration // until the deadline
}

func (e *rateLimitError) Error() string {
	if e.left <= 0 {
		return fmt.Sprintf("partnerauth: %v: the deadline passed while waiting", ErrRateLimited)
	}
	return fmt.Sprintf("partnerauth: %v: the wait would be %v, the deadline is in %v",
		ErrRateLimited, e.wait.Round(time.Millisecond), e.left.Round(time.Millisecond))
}

func (e *rateLimitError) Is(target error) bool {
	return target == ErrRateLimited || target == context.DeadlineExceeded
}

func (e *rateLimitError) Timeout() bool             { return true }
func (e *rateLimitError) RetryAfter() time.Duration { return e.wait }

// has reports whether an E is in err's tree.
func has[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// ended tells why ctx is over: its error and, where one was given, the cause.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// neverLeft reports whether err came before there was a connection to send a
// request on: of dialing, of a proxy's CONNECT, or of TLS.
func neverLeft(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		switch op.Op {
		case "dial", "proxyconnect", "socks connect", "remote error": // the last is TLS
			return true
		}
	}
	return has[*tls.CertificateVerificationError](err) || has[tls.RecordHeaderError](err) || errors.Is(err, errProxy) ||
		strings.Contains(err.Error(), "TLS handshake timeout")
}

// fromProxy reports whether err is what net/http makes of a proxy that refuses a
// CONNECT: the text of its status, and nothing else.
func fromProxy(err error) bool {
	if reflect.TypeOf(err) == reflect.TypeOf(ErrCredentials) {
		for status := 400; status < 600; status++ {
			if err.Error() == http.StatusText(status) {
				return true
			}
		}
	}
	return false
}

var errProxy = errors.New("the proxy refused to connect")
