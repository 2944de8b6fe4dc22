package partnerauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// NdovuDevBaseURL is Ndovu's development host, the only one in its documentation.
// Ask Ndovu for the production host.
const NdovuDevBaseURL = "https://be-dev-1.dev.ndovu.co"

// Ndovu is an account at Ndovu, which offers investment plans. It gets its token,
// which lives an hour, from POST /api/v3/partners/auth with HTTP Basic (RFC
// 7617) and no body, as Ndovu's authentication page describes. There is no
// refresh: it gets a new token in the same way.
//
// A mistake in the fields is an [AuthError] that names the field, at first use.
// fmt, slog and encoding/json print no secret of an Ndovu, unless it is in an
// unexported field of your own struct, where fmt calls no methods.
type Ndovu struct {
	ClientID     string // required; must not contain ':' (RFC 7617)
	ClientSecret string // the raw secret of the onboarding e-mail; required, or ClientSecretFunc

	// ClientSecretFunc returns the secret, in place of ClientSecret. It is called
	// before each login, with a context that ends with the login. After the partner
	// has refused a secret, a different one is sent at once. An error of
	// ClientSecretFunc becomes an AuthError with Op "config".
	ClientSecretFunc func(context.Context) (string, error)

	// BaseURL is where the API is, with or without a path prefix and a slash at
	// its end; required. It must be https, or http to loopback.
	BaseURL string

	// Base carries token requests, and for Client all requests; nil is the Base
	// of the Transport that needs the token, or http.DefaultTransport.
	Base http.RoundTripper

	// Store shares the token with other processes; nil keeps it in this one.
	Store Store
}

// NdovuFromEnv reads an Ndovu from the environment: NDOVU_CLIENT_ID,
// NDOVU_CLIENT_SECRET and NDOVU_BASE_URL. Its error names the variable that
// is missing, or the field that is wrong.
func NdovuFromEnv() (Ndovu, error) {
	c := Ndovu{
		ClientID:     os.Getenv("NDOVU_CLIENT_ID"),
		ClientSecret: os.Getenv("NDOVU_CLIENT_SECRET"),
		BaseURL:      os.Getenv("NDOVU_BASE_URL"),
	}
	if err := requireEnv("ndovu", "NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL"); err != nil {
		return Ndovu{}, err
	}
	if err := newAccount(c.provider()).err; err != nil {
		return Ndovu{}, err
	}
	return c, nil
}

// TokenSource returns a new Source for the account. Share it: each Source signs
// in for itself.
func (c Ndovu) TokenSource() *Source { return c.provider().TokenSource() }

// Client returns a new http.Client for the account: that of a Transport with a
// new TokenSource, c.Base, and otherwise the defaults. Share it: each Client has
// a token and a quota of its own.
func (c Ndovu) Client() *http.Client { return c.provider().Client() }

func (c Ndovu) provider() Provider {
	id := checkCredential("ClientID", c.ClientID)
	if strings.Contains(c.ClientID, ":") {
		id = errors.New("ClientID contains ':', which HTTP Basic authentication does not allow")
	}
	return Provider{
		Name:    "ndovu",
		Account: c.ClientID,
		BaseURL: c.BaseURL,
		SignIn:  c.signIn,
		Hints: map[int]string{
			http.StatusBadRequest:   "the Authorization header was not accepted",
			http.StatusUnauthorized: "no such client id, or not the raw client secret of the onboarding e-mail",
		},
		Base:    c.Base,
		Store:   c.Store,
		mistake: cmp.Or(id, checkSecret("ClientSecret", c.ClientSecret, c.ClientSecretFunc)),
	}
}

// signIn sends the pair as it is: RFC 6749 would have it form-encoded first, which
// the partner does not decode.
func (c Ndovu) signIn(ctx context.Context) (*http.Request, error) {
	secret, err := secretOf(ctx, "ClientSecret", c.ClientSecret, c.ClientSecretFunc)
	if err != nil {
		return nil, err
	}
	req, err := newTokenRequest(ctx, c.BaseURL, "/api/v3/partners/auth", nil)
	if err == nil {
		req.SetBasicAuth(c.ClientID, secret)
	}
	return req, err
}

// Format implements fmt.Formatter: all verbs print the scheme, host and port of
// the BaseURL, and nothing secret.
func (c Ndovu) Format(f fmt.State, _ rune) { io.WriteString(f, safeString("Ndovu", c.BaseURL)) }

// MarshalText implements encoding.TextMarshaler, for slog and encoding/json.
func (c Ndovu) MarshalText() ([]byte, error) { return fmt.Append(nil, c), nil }
