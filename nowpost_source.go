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
)

// NowPostBaseURL is NowPost's API, as its authentication page names it.
const NowPostBaseURL = "https://api.nowpost.com"

// nowPostLifetime is how long NowPost's page says that tokens live. It counts
// where an answer does not tell.
const nowPostLifetime = 24 * time.Hour

// NowPost is an account at NowPost: parcel pick-up points and orders. It signs
// in with POST /api/v1/auth/login and renews its token, which lives 24 hours,
// with POST /api/v1/auth/refresh, as NowPost's authentication page describes.
//
// A mistake in the fields is an [AuthError] that names the field, at first use.
// What fmt, slog and encoding/json make of a NowPost contains no secret, except
// in an unexported field of your own struct, where fmt calls no methods.
type NowPost struct {
	Email    string // of the account; required
	Password string // of the account; required, or PasswordFunc

	// PasswordFunc is asked for the password before each login, in place of
	// Password, with a context that ends with the login. A password other than
	// one that was refused is tried at once. An error of it is an AuthError of Op
	// "config".
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
// set. Its error names the variable that is missing.
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
	return c, nil
}

// TokenSource returns a new Source for the account. Share it: each Source signs
// in for itself.
func (c NowPost) TokenSource() *Source { return newSource(c.provider()) }

// Client returns a new http.Client for the account: that of a Transport with a
// new TokenSource, c.Base, and otherwise the defaults. Share it: each Client has
// a token and a quota of its own.
func (c NowPost) Client() *http.Client {
	return &http.Client{Transport: &Transport{Source: c.TokenSource(), Base: c.Base}}
}

func (c NowPost) provider() *provider {
	p := &provider{
		name:      "nowpost",
		base:      c.Base,
		store:     c.Store,
		key:       storeKey("nowpost", c.baseURL(), c.Email),
		refreshes: true,
		secrets:   func(password string) []string { return []string{password} },
		hints: map[int]string{
			http.StatusUnauthorized: "check the e-mail and password",
			http.StatusForbidden:    "the account may not use this endpoint",
		},
		request: c.request,
		read:    c.read,
	}
	p.check(checkText("Email", c.Email), p.setSecret("Password", c.Password, c.PasswordFunc, checkText), c.baseURL())
	return p
}

func (c NowPost) baseURL() string { return cmp.Or(c.BaseURL, NowPostBaseURL) }

// checkText checks a field that has to stand in JSON.
func checkText(field, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is empty", field)
	case !utf8.ValidString(value):
		return fmt.Errorf("%s is not valid UTF-8, which JSON has to be", field)
	}
	return nil
}

func (c NowPost) request(ctx context.Context, op, with string) (*http.Request, error) {
	if op == refresh {
		req, err := newTokenRequest(ctx, c.baseURL(), "/api/v1/auth/refresh", nil)
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+with)
		}
		return req, err
	}
	body, err := json.Marshal(struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}{c.Email, with})
	if err != nil {
		return nil, err
	}
	req, err := newTokenRequest(ctx, c.baseURL(), "/api/v1/auth/login", bytes.NewReader(body))
	if err == nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

// read accepts the token in an envelope, as the page's sample answer has it, and
// at the top level, where the page's code samples read it.
func (c NowPost) read(body []byte, header http.Header) (string, time.Duration, error) {
	type grant struct {
		Token     string
		ExpiresAt json.RawMessage
	}
	var answer struct {
		Success *bool
		Data    json.RawMessage
		grant
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", 0, notJSON(err)
	}
	if answer.Success != nil && !*answer.Success {
		return "", 0, errors.New("success is false")
	}
	got := answer.grant
	if len(answer.Data) > 0 && answer.Data[0] == '{' {
		var data grant
		if err := json.Unmarshal(answer.Data, &data); err != nil {
			return "", 0, notJSON(err)
		}
		if data.Token != "" {
			got = data
		}
	}
	if got.Token == "" {
		return "", 0, errors.New("no token, neither in data.token nor in token")
	}
	return got.Token, c.lifetime(got.Token, got.ExpiresAt, header), nil
}

// lifetime trusts what does not depend on our clock first.
func (c NowPost) lifetime(token string, expiresAt json.RawMessage, header http.Header) time.Duration {
	ends, err := time.Parse(time.RFC3339, strings.Trim(string(expiresAt), `"`))
	if date, dateErr := http.ParseTime(header.Get("Date")); err == nil && dateErr == nil {
		return ends.Truncate(time.Second).Sub(date) // a Date has no fractions either
	}
	if lifetime, ok := jwtLifetime(token); ok {
		return lifetime
	}
	if err == nil {
		return time.Until(ends)
	}
	return nowPostLifetime
}

// Format implements fmt.Formatter, for all verbs that go vet accepts: it tells
// where the account is, and nothing secret.
func (c NowPost) Format(f fmt.State, _ rune) { io.WriteString(f, safeString("NowPost", c.baseURL())) }

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (c NowPost) MarshalText() ([]byte, error) { return fmt.Append(nil, c), nil }
