package partnerauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"reflect"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/oauth2"
)

// Errors to test for with errors.Is. They arrive wrapped: http.Client puts them
// into a *url.Error.
var (
	// ErrCredentials is matched by an [AuthError] if the partner refused the
	// credentials. Repeating the call does not help; other credentials do.
	ErrCredentials = errors.New("credentials refused")

	// ErrRateLimited is matched by the error of a request, or of its retry after a
	// 401 or 429, that was not sent because the rate limit would have delayed it
	// past the context's deadline. [RateLimitError] says how long the wait would
	// have been.
	ErrRateLimited = errors.New("rate limited")

	// ErrInsecureURL is matched by the error of a request that would have sent a
	// token or credentials over plain http to a host that is not loopback.
	// Nothing was sent.
	ErrInsecureURL = errors.New("insecure URL")
)

// How a token is fetched. These are the Op of an AuthError as well.
const (
	login   = "login"
	refresh = "refresh"
)

// An AuthError says why there is no token to send. Either nothing of the
// caller's request was sent, or it was answered 401 and could not be sent again.
// When http.Client's Timeout expires, http.Client replaces the error by its own.
//
// Its text, and what fmt, slog and encoding/json print of it, contain no secret
// and nothing of the partner's answer but its status and the error code of RFC
// 6749. Most callers should test for [ErrCredentials] and otherwise try again
// after RetryAfter.
type AuthError struct {
	Provider   string // the Provider's Name, such as "nowpost"; "" for your own token source
	Op         string // "login", "refresh", "token" (your own token source), "authorize" or "config"
	StatusCode int    // status of the partner's answer; 0 if there was none

	// At is the time of the failure. The same failure is returned to later callers
	// until the partner may be asked again.
	At time.Time

	// RetryAfter is how long from now the Source will not ask the partner again
	// with the same credentials; 0 if the next call may ask.
	RetryAfter time.Duration

	// Err is the cause: an error that unwraps to *oauth2.RetrieveError, a network
	// or context error, or the mistake in the configuration.
	Err error

	sentNothing bool // for want of a permit, or because of an earlier failure that is returned again
}

// Error returns the provider, the operation and what was wrong.
func (e *AuthError) Error() string {
	var b strings.Builder
	b.WriteString("partnerauth: ")
	if e.Provider != "" {
		b.WriteString(e.Provider + " ")
	}
	b.WriteString(e.Op + ": " + e.cause())
	if e.sentNothing && e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (asked %v ago, again in %v)", time.Since(e.At).Round(time.Millisecond), e.RetryAfter.Round(time.Second))
	}
	return b.String()
}

// cause returns the text of Err, but never that of an oauth2.RetrieveError, which
// prints the partner's whole answer.
func (e *AuthError) cause() string {
	if safe, ok := errors.AsType[*answerError](e.Err); ok {
		return safe.Error()
	}
	if e.Err == nil || has[*oauth2.RetrieveError](e.Err) {
		return statusText(e.StatusCode)
	}
	return strings.ReplaceAll(e.Err.Error(), ": partnerauth: ", ": ") // the prefix is there already
}

// Unwrap returns Err.
func (e *AuthError) Unwrap() error { return e.Err }

// Is reports whether target is ErrCredentials and the partner refused the credentials. In
// an AuthError that a test makes, StatusCode 401 means that.
func (e *AuthError) Is(target error) bool {
	return target == ErrCredentials && e.StatusCode == http.StatusUnauthorized && !has[*answerError](e.Err)
}

// Timeout reports whether a deadline was the cause, as net.Error has it.
func (e *AuthError) Timeout() bool { return isTimeout(e.Err) }

// Format implements fmt.Formatter: all verbs print the text of the error.
func (e AuthError) Format(f fmt.State, _ rune) { io.WriteString(f, e.Error()) }

// MarshalText implements encoding.TextMarshaler, for encoding/json and slog.
func (e AuthError) MarshalText() ([]byte, error) { return []byte(e.Error()), nil }

// again returns the same failure for a caller that comes before the partner may be
// asked again.
func (e *AuthError) again(now time.Time) *AuthError {
	later := *e
	later.sentNothing, later.RetryAfter = true, e.At.Add(e.RetryAfter).Sub(now)
	return &later
}

func statusText(code int) string {
	if code == 0 {
		return "failed"
	}
	if text := http.StatusText(code); text != "" {
		return fmt.Sprintf("%d %s", code, text)
	}
	return strconv.Itoa(code)
}

func configError(provider, format string, args ...any) *AuthError {
	return &AuthError{Provider: provider, Op: "config", At: time.Now(), Err: fmt.Errorf(format, args...)}
}

// A RateLimitError is returned for a request whose turn would come after the
// deadline of its context. Nothing was sent. It matches [ErrRateLimited] and
// context.DeadlineExceeded.
type RateLimitError struct {
	wait time.Duration // until the turn would have come, as far as it is known
	left time.Duration // until the deadline
}

func (e *RateLimitError) Error() string {
	if e.left <= 0 {
		return fmt.Sprintf("partnerauth: %v: the deadline passed while waiting", ErrRateLimited)
	}
	return fmt.Sprintf("partnerauth: %v: the wait would be %v, the deadline is in %v",
		ErrRateLimited, e.wait.Round(time.Millisecond), e.left.Round(time.Millisecond))
}

// Is reports whether target is ErrRateLimited or context.DeadlineExceeded.
func (e *RateLimitError) Is(target error) bool {
	return target == ErrRateLimited || target == context.DeadlineExceeded
}

// Timeout returns true, as net.Error has it.
func (e *RateLimitError) Timeout() bool { return true }

// RetryAfter returns how long the wait would have been, from when the error was
// made. After that time a call is likely to be sent.
func (e *RateLimitError) RetryAfter() time.Duration { return e.wait }

// An answerError is an answer without a token. It holds the safe part of the answer, for
// errors.As to *oauth2.RetrieveError.
type answerError struct {
	reason  string
	refusal bool  // the partner's considered answer to these very credentials
	cause   error // what ReadToken returned, or ErrCredentials; nil: neither
	answer  *oauth2.RetrieveError
}

func (e *answerError) Error() string        { return e.reason }
func (e *answerError) Unwrap() error        { return e.answer }
func (e *answerError) Is(target error) bool { return errors.Is(e.cause, target) }

// isRefusal reports whether the partner considered the request and refused it: the
// same request will be refused again.
func (e *AuthError) isRefusal() bool {
	answer, ok := errors.AsType[*answerError](e.Err)
	return ok && answer.refusal
}

// errPanic returns the error for a panic in foreign code: its type and where it was, but
// not its value, which may hold a secret.
func errPanic(value any) error { return fmt.Errorf("panic of type %T\n%s", value, debug.Stack()) }

var errGoexit = errors.New("the goroutine was ended by runtime.Goexit")

// A contextKey is the key of something that a context carries for this package.
type contextKey int

const (
	priorityKey contextKey = iota // of WithLowPriority
	templateKey                   // of WithURLTemplate
	senderKey                     // of withSender
	attemptKey                    // of an attempt
)

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

// ended returns why ctx has ended: its error and, where one was given, the cause.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// neverLeft reports whether err was met before there was a connection to send a
// request on: while dialing, at a proxy's CONNECT, or in the TLS handshake.
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

var errProxy = errors.New("the proxy refused to connect")

// fromProxy reports whether err is the one that net/http returns when a proxy
// refuses a CONNECT: the text of its status, and nothing else.
func fromProxy(err error) bool {
	if reflect.TypeOf(err) != reflect.TypeOf(ErrCredentials) {
		return false
	}
	for status := 400; status < 600; status++ {
		if err.Error() == http.StatusText(status) {
			return true
		}
	}
	return false
}

// errorType returns the error.type of err: "credentials_refused", "rate_limited",
// "proxy_refused", "insecure_url", the status of a failed token request, or the type
// of the innermost error.
func errorType(err error) string {
	auth, ok := errors.AsType[*AuthError](err)
	switch {
	case errors.Is(err, ErrCredentials):
		return "credentials_refused"
	case errors.Is(err, ErrRateLimited):
		return "rate_limited"
	case errors.Is(err, errProxy):
		return "proxy_refused"
	case errors.Is(err, ErrInsecureURL):
		return "insecure_url"
	case !ok || auth.Op == "config":
	case auth.StatusCode >= 300:
		return strconv.Itoa(auth.StatusCode)
	default:
		for inner := error(auth); inner != nil; inner = errors.Unwrap(inner) {
			err = inner
		}
	}
	return semconv.ErrorType(err).Value.AsString()
}

// description returns the status description of a span that ended with err: the
// text of an error that this package made, "" for any other.
func description(err error) string {
	if !has[*AuthError](err) && !has[*RateLimitError](err) && !errors.Is(err, ErrInsecureURL) {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// A redactedError stands for an error whose text must not be shown. It answers for the
// original, but errors.As does not find that, nor does fmt.
type redactedError struct {
	text     string
	original func() error
}

func (e *redactedError) Error() string        { return e.text }
func (e *redactedError) Is(target error) bool { return errors.Is(e.original(), target) }
func (e *redactedError) Timeout() bool        { return isTimeout(e.original()) }
func (e *redactedError) ErrorType() string    { return errorType(e.original()) } // for semconv
func (e *redactedError) Temporary() bool { // for net.Error
	var t interface{ Temporary() bool }
	return errors.As(e.original(), &t) && t.Temporary()
}

// withText returns err if its text is text, else an error with that text.
func withText(err error, text string) error {
	if text == err.Error() {
		return err
	}
	return &redactedError{text, func() error { return err }}
}

const redacted = "REDACTED"

const (
	minRedacted  = 4        // shorter secrets are part of every other word
	maxErrorText = 16 << 10 // longer texts of errors are not kept
)

// withoutToken returns err without a text that repeats the token, in whatever encoding:
// none touches letters and digits, so the longest run of them is looked for.
func withoutToken(err error, token string) error {
	text, run := err.Error(), ""
	isOther := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	for _, next := range strings.FieldsFunc(token, isOther) {
		if len(next) > len(run) {
			run = next
		}
	}
	switch {
	case len(text) > maxErrorText, len(run) >= minRedacted && strings.Contains(text, run):
		return withText(err, redacted)
	case strings.Contains(text, "malformed"): // and what of the answer was
		return withText(err, networkText(err))
	}
	return err
}

// networkText returns what is known to be safe of an error's text: what the standard
// library says, but for names in certificates and what net/http quotes of an answer
// that it cannot parse. Other errors are looked into, or shown by their type.
func networkText(err error) string {
	switch {
	case has[*tls.CertificateVerificationError](err):
		return "tls: the server's certificate was not accepted: " + certificateFault(err)
	case has[textproto.ProtocolError](err):
		return "malformed header in the answer"
	}
	safe := err // the outermost of those that are standard all the way down
	for e := err; e != nil; e = errors.Unwrap(e) {
		if !isStandard(e) {
			safe = errors.Unwrap(e)
		}
	}
	if safe == nil || len(safe.Error()) > maxErrorText {
		for inner := err; inner != nil; inner = errors.Unwrap(inner) {
			err = inner
		}
		return fmt.Sprintf("error of type %T", err)
	}
	return withoutQuoted(safe.Error())
}

// isStandard reports whether err is of a type of the standard library, or of this
// package. A *url.Error is not: it repeats the URL.
func isStandard(err error) bool {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	path, _, _ := strings.Cut(t.PkgPath(), "/")
	return t.PkgPath() != "net/url" && !strings.Contains(path, ".") || t.PkgPath() == reflect.TypeFor[AuthError]().PkgPath()
}

func certificateFault(err error) string {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case has[x509.HostnameError](err):
		return "it is for another host name"
	case has[x509.UnknownAuthorityError](err):
		return "it is signed by an unknown authority"
	case ok && invalid.Reason == x509.Expired:
		return "it has expired or is not yet valid"
	}
	return "it is not valid"
}

// withoutQuoted cuts what stands between quotes.
func withoutQuoted(v string) string { return quoted.ReplaceAllString(v, `""`) }

var quoted = regexp.MustCompile(`(?s)"(\\.|[^"\\])*("|\\?$)`)

// closeBody closes a request's body, if there is one.
func closeBody(body io.Closer) {
	if body != nil {
		body.Close()
	}
}
