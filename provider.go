package partnerauth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/oauth2"
)

// A Provider describes one account at a partner: how to sign in, how to read the
// answer, where the token may go. Its functions send nothing, lock nothing and
// retry nothing; the [Source] and the [Transport] do. Most programs use [NowPost]
// or [Ndovu], which are built on it.
//
// Name, BaseURL and SignIn are required; other zero values mean the stated
// defaults. A mistake in the fields is an [AuthError] with Op "config" that names
// the field, at first use and before anything is sent. A Provider may be copied.
//
// Tokens passed to the functions are shared and must not be changed. What fmt, slog
// and encoding/json print of a Provider contains no secret.
type Provider struct {
	// Name is the partner's name in errors, spans and metrics, such as "acme".
	Name string

	// Account distinguishes accounts in one Store; the user name is a good choice.
	// It is not treated as a secret.
	Account string

	// BaseURL is where the API is, with or without a path prefix and a slash at its
	// end. Its scheme, host and port are the only ones that see the token. It must
	// be https, or http to loopback.
	BaseURL string

	// SignIn returns the request that signs in. It is called before each try, and
	// may ask a vault for the secret. The URL may be on another host than BaseURL;
	// it must be https, or http to loopback. A template that [WithURLTemplate] put
	// into the request's context names its span. An error of SignIn is an AuthError
	// with Op "config".
	//
	// A request that the partner refused is recognized by its method, URL, headers
	// and body, and is not sent again for a while; another one is sent at once.
	SignIn func(ctx context.Context) (*http.Request, error)

	// Refresh returns the request that renews current: a token that is still good,
	// or, if it has a RefreshToken, one that has expired or was rejected. nil means
	// that SignIn renews.
	Refresh func(ctx context.Context, current *oauth2.Token) (*http.Request, error)

	// ReadToken reads a token from an answer with a status of 2xx. ExpiresIn counts
	// from when the request was sent. An Expiry with a monotonic clock reading is by
	// our clock, any other by the partner's. A token without a RefreshToken keeps the
	// one before. nil reads the answer of RFC 6749, section 5.1.
	//
	// An error that Is ErrCredentials is a refusal. Its text is shown and must not
	// repeat the answer.
	ReadToken func(header http.Header, body []byte) (*oauth2.Token, error)

	// Authorize adds the token to a request. It is called before each attempt, after
	// everything else is set. The request is a copy that may be changed, but it must
	// go to the same host.
	// nil sets the Authorization header.
	Authorize func(req *http.Request, token *oauth2.Token) error

	// Hints say what a refusal with a status means, for the error's text.
	Hints map[int]string

	// Base carries token requests, and for Client all requests; nil is the Base of
	// the Transport that needs the token, or http.DefaultTransport.
	Base http.RoundTripper

	// Store shares the token with other processes; nil keeps it in this one.
	Store Store

	mistake  error         // in the fields of NowPost or Ndovu
	lifetime time.Duration // of a token whose answer names none; 0: an hour
}

// Format implements fmt.Formatter: all verbs print the name and the host, and
// nothing secret.
func (p Provider) Format(f fmt.State, _ rune) { io.WriteString(f, safeString("Provider", p.BaseURL)) }

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (p Provider) MarshalText() ([]byte, error) { return fmt.Append(nil, p), nil }

// An account is a Provider made ready for use. It does not change.
type account struct {
	Provider
	origin *origin
	key    string // of its record in the Store
	err    *AuthError
}

func newAccount(p Provider) *account {
	p.lifetime = cmp.Or(p.lifetime, time.Hour)
	a := &account{Provider: p, key: storeKey(p.Name, p.BaseURL, p.Account)}
	var err error
	a.origin, err = parseOrigin("BaseURL", p.BaseURL)
	switch {
	case p.mistake != nil:
		a.err = configError(p.Name, "%w", p.mistake)
	case p.Name == "":
		a.err = configError("", "Name is empty")
	case p.SignIn == nil:
		a.err = configError(p.Name, "SignIn is nil")
	case err != nil:
		a.err = configError(p.Name, "%w", err)
	}
	if a.ReadToken == nil {
		a.ReadToken = readTokenResponse
	}
	return a
}

// savesBeforeExit reports whether renewals have to be waited for, as the program may
// end at any time.
func (a *account) savesBeforeExit() bool {
	store, ok := a.Store.(interface{ SavesBeforeExit() bool })
	return ok && store.SavesBeforeExit()
}

// readTokenResponse reads the answer of RFC 6749, section 5.1.
func readTokenResponse(_ http.Header, body []byte) (*oauth2.Token, error) {
	var answer struct {
		AccessToken  string          `json:"access_token"`
		TokenType    string          `json:"token_type"`
		ExpiresIn    json.RawMessage `json:"expires_in"`
		RefreshToken string          `json:"refresh_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, notJSON(err)
	}
	switch {
	case answer.AccessToken == "" && errorWord(body) != "":
		return nil, refusedWith(errorWord(body))
	case answer.AccessToken == "":
		return nil, errors.New("no access_token")
	case answer.TokenType != "" && !strings.EqualFold(answer.TokenType, "Bearer"):
		return nil, errors.New("token_type is not Bearer")
	}
	token := &oauth2.Token{AccessToken: answer.AccessToken, TokenType: "Bearer", RefreshToken: answer.RefreshToken}
	n, err := strconv.ParseFloat(strings.Trim(string(answer.ExpiresIn), `"`), 64)
	if (err == nil || math.IsInf(n, 0)) && n == n { // too large for a float is just long
		token = token.WithExtra(map[string]any{"expires_in": n})
	}
	return token, nil
}

// errorWords are the error codes of RFC 6749, section 5.2. True are those that mean
// the credentials.
var errorWords = map[string]bool{
	"invalid_request": false, "invalid_client": true, "invalid_grant": true,
	"unauthorized_client": true, "unsupported_grant_type": false, "invalid_scope": false,
}

// errorWord returns the error code of an answer; "" if it has none of RFC 6749's.
func errorWord(body []byte) string {
	var answer struct{ Error json.RawMessage }
	var word string
	if json.Unmarshal(body, &answer) != nil || json.Unmarshal(answer.Error, &word) != nil {
		return ""
	}
	if _, ok := errorWords[word]; !ok {
		return ""
	}
	return word
}

// refusedWith returns the error of an answer with one of RFC 6749's error codes.
func refusedWith(word string) error {
	if errorWords[word] {
		return fmt.Errorf("%s (%w)", word, ErrCredentials)
	}
	return errors.New(word)
}

// isWrong reports whether a refusal means the credentials.
func isWrong(status int, word string) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusBadRequest, http.StatusForbidden, http.StatusUnprocessableEntity:
		return word == "" || errorWords[word]
	}
	return false
}

// notJSON says what is wrong with an answer without repeating any of it.
func notJSON(err error) error {
	const what = "the answer is not the JSON that was expected"
	if field, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && field.Field != "" {
		return fmt.Errorf("%s: %s is not a %v", what, field.Field, field.Type)
	}
	return errors.New(what)
}

// maxSignInBody is the largest body of a token request.
const maxSignInBody = 1 << 20

// prepare checks a token request, gives it a body that can be sent again, and returns
// its digest and where it goes. It closes the body of a request that cannot be sent.
func prepare(req *http.Request) (string, *origin, error) {
	if req == nil || req.URL == nil {
		return "", nil, errors.New("no request to send")
	}
	to, err := originOf("the URL of the token request", req.URL)
	if err == nil {
		err = cmp.Or(to.misdirected(req), checkHeader(req.Header))
	}
	body, readErr := readBody(req)
	if err = cmp.Or(err, readErr); err != nil {
		return "", nil, err
	}
	if req.Header == nil {
		req.Header = http.Header{}
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q %q\n", req.Method, req.URL.String())
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		fmt.Fprintf(hash, "%q %q\n", name, req.Header[name])
	}
	hash.Write(body)
	return string(hash.Sum(nil)), to, nil
}

// checkHeader names a header of a token request that cannot be sent.
func checkHeader(h http.Header) error {
	for name, values := range h {
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsFunc(v, unicode.IsControl) }) {
			return fmt.Errorf("header %q of the token request contains a control character, such as a newline", name)
		}
	}
	return nil
}

// readBody reads the body of a token request, and replaces it by what was read.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, maxSignInBody+1))
	req.Body.Close()
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the body of the token request: %w", err)
	case len(body) > maxSignInBody:
		return nil, errors.New("the body of the token request is larger than 1 MiB")
	}
	req.Body, req.ContentLength, req.GetBody = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	return body, nil
}

// newTokenRequest returns a POST to a path under baseURL.
func newTokenRequest(ctx context.Context, baseURL, path string, body io.Reader) (*http.Request, error) {
	ctx = WithURLTemplate(ctx, path)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(baseURL, "/")+path, body)
	if err != nil {
		return nil, errors.New("BaseURL cannot be used in a request")
	}
	req.Header.Set("Accept", "application/json")
	return req, nil
}

// checkSecret returns what is wrong with a field for a secret and its Func.
func checkSecret(field, value string, ask func(context.Context) (string, error)) error {
	switch {
	case ask != nil && value != "":
		return fmt.Errorf("%s and %[1]sFunc are both set", field)
	case ask != nil:
		return nil
	}
	return checkCredential(field, value)
}

// secretOf returns the secret in a field, or what its Func returns.
func secretOf(ctx context.Context, field, value string, ask func(context.Context) (string, error)) (string, error) {
	if ask == nil {
		return value, nil
	}
	value, err := ask(ctx)
	if err == nil {
		err = checkCredential("the result of "+field+"Func", value)
	}
	return value, err
}

// checkCredential returns an error for a credential that no partner would accept.
func checkCredential(field, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is empty", field)
	case strings.TrimRightFunc(value, unicode.IsSpace) != value:
		return fmt.Errorf("%s ends in a space or newline", field)
	case strings.ContainsFunc(value, unicode.IsControl):
		return fmt.Errorf("%s contains a control character, such as a newline", field)
	}
	return nil
}

func requireEnv(provider string, names ...string) error {
	for _, name := range names {
		if os.Getenv(name) == "" {
			return configError(provider, "%s is not set in the environment", name)
		}
	}
	return nil
}

// safeString shows a configuration's type and host.
func safeString(kind, baseURL string) string {
	host := ""
	if o, err := parseOrigin("BaseURL", baseURL); err == nil {
		host = o.scheme + "://" + o.host + ":" + o.port
	}
	return fmt.Sprintf("partnerauth.%s{%s}", kind, host)
}
