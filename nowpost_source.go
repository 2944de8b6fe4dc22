package partnerauth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/oauth2"
)

// NowPostBaseURL is the base URL of NowPost's API, from its authentication page.
const NowPostBaseURL = "https://api.nowpost.com"

// nowPostLifetime is a token's lifetime by NowPost's authentication page. It applies
// if the answer does not name one.
const nowPostLifetime = 24 * time.Hour

// NowPost is an account at NowPost, which runs parcel pick-up points. It signs
// in with POST /api/v1/auth/login and renews its token, which lives 24 hours,
// with POST /api/v1/auth/refresh, as NowPost's authentication page describes.
//
// A mistake in the fields is an [AuthError] that names the field, at first use.
// fmt, slog and encoding/json print no secret of a NowPost, unless it is in an
// unexported field of your own struct, where fmt calls no methods.
type NowPost struct {
	Email    string // of the account; required
	Password string // of the account; required, or PasswordFunc

	// PasswordFunc returns the password, in place of Password. It is called before
	// each login, with a context that ends with the login. After the partner has
	// refused a password, a different one is sent at once. An error of PasswordFunc
	// becomes an AuthError with Op "config".
	PasswordFunc func(context.Context) (string, error)

	// BaseURL is where the API is, with or without a path prefix and a slash at
	// its end; "" is NowPostBaseURL. It must be https, or http to loopback.
	BaseURL string

	// Base carries token requests, and for Client all requests; nil is the Base
	// of the Transport that needs the token, or http.DefaultTransport.
	Base http.RoundTripper

	// Store shares the token with other processes; nil keeps it in this one.
	Store Store
}

// NowPostFromEnv reads a NowPost from the environment: NOWPOST_EMAIL,
// NOWPOST_PASSWORD and, in place of NowPostBaseURL, NOWPOST_BASE_URL if it is
// set. Its error names the variable that is missing, or the field that is
// wrong.
func NowPostFromEnv() (NowPost, error) {
	c := NowPost{
		Email:    os.Getenv("NOWPOST_EMAIL"),
		Password: os.Getenv("NOWPOST_PASSWORD"),
		BaseURL:  os.Getenv("NOWPOST_BASE_URL"),
	}
	c.BaseURL = c.baseURL()
	if err := requireEnv("nowpost", "NOWPOST_EMAIL", "NOWPOST_PASSWORD"); err != nil {
		return NowPost{}, err
	}
	if err := newAccount(c.provider()).err; err != nil {
		return NowPost{}, err
	}
	return c, nil
}

// TokenSource returns a new Source for the account. Share it: each Source signs
// in for itself.
func (c NowPost) TokenSource() *Source { return c.provider().TokenSource() }

// Client returns a new http.Client for the account: that of a Transport with a
// new TokenSource, c.Base, and otherwise the defaults. Share it: each Client has
// a token and a quota of its own.
func (c NowPost) Client() *http.Client { return c.provider().Client() }

func (c NowPost) provider() Provider {
	return Provider{
		Name:      "nowpost",
		Account:   c.Email,
		BaseURL:   c.baseURL(),
		SignIn:    c.signIn,
		Refresh:   c.refresh,
		ReadToken: readNowPost,
		Hints: map[int]string{
			http.StatusUnauthorized: "check the e-mail and password",
			http.StatusForbidden:    "the account may not use this endpoint",
		},
		Base:     c.Base,
		Store:    c.Store,
		lifetime: nowPostLifetime,
		mistake: cmp.Or(checkCredential("Email", c.Email), checkUTF8("Email", c.Email),
			checkSecret("Password", c.Password, c.PasswordFunc), checkUTF8("Password", c.Password)),
	}
}

func (c NowPost) baseURL() string { return cmp.Or(c.BaseURL, NowPostBaseURL) }

func checkUTF8(field, value string) error {
	if !utf8.ValidString(value) {
		return fmt.Errorf("%s is not valid UTF-8, which JSON requires", field)
	}
	return nil
}

func (c NowPost) signIn(ctx context.Context) (*http.Request, error) {
	password, err := secretOf(ctx, "Password", c.Password, c.PasswordFunc)
	if err = cmp.Or(err, checkUTF8("the result of PasswordFunc", password)); err != nil {
		return nil, err
	}
	body, err := json.Marshal(struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}{c.Email, password})
	if err != nil {
		return nil, err
	}
	req, err := newTokenRequest(ctx, c.baseURL(), "/api/v1/auth/login", bytes.NewReader(body))
	if err == nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

func (c NowPost) refresh(ctx context.Context, current *oauth2.Token) (*http.Request, error) {
	req, err := newTokenRequest(ctx, c.baseURL(), "/api/v1/auth/refresh", nil)
	if err == nil {
		req.Header.Set("Authorization", "Bearer "+current.AccessToken)
	}
	return req, err
}

// readNowPost accepts the token in an envelope, as in the page's sample answer, and
// at the top level, where the page's code samples read it.
func readNowPost(_ http.Header, body []byte) (*oauth2.Token, error) {
	type grant struct {
		Token     string
		ExpiresAt json.RawMessage
	}
	var answer struct {
		Success json.RawMessage
		Data    json.RawMessage
		grant
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, notJSON(err)
	}
	if saysNo(answer.Success) {
		return nil, fmt.Errorf("success is false (%w)", ErrCredentials)
	}
	got := answer.grant
	if len(answer.Data) > 0 && answer.Data[0] == '{' {
		var data grant
		if err := json.Unmarshal(answer.Data, &data); err != nil {
			return nil, notJSON(err)
		}
		if data.Token != "" {
			got = data
		}
	}
	if got.Token == "" {
		return nil, errors.New("no token, neither in data.token nor in token")
	}
	token := &oauth2.Token{AccessToken: got.Token, TokenType: "Bearer"}
	token.Expiry, _ = time.Parse(time.RFC3339, strings.Trim(string(got.ExpiresAt), `"`))
	return token, nil
}

// saysNo reports whether the JSON value of success means failure: false, 0, or one of
// them in a string.
func saysNo(success json.RawMessage) bool {
	switch strings.ToLower(strings.Trim(string(success), `"`)) {
	case "false", "0", "no":
		return true
	}
	return false
}

// Format implements fmt.Formatter: all verbs print the scheme, host and port of
// the BaseURL, and nothing secret.
func (c NowPost) Format(f fmt.State, _ rune) { io.WriteString(f, safeString("NowPost", c.baseURL())) }

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (c NowPost) MarshalText() ([]byte, error) { return fmt.Append(nil, c), nil }
