package partnerauth

import (
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
)

// A provider is one account at NowPost or Ndovu: how its credentials are
// exchanged for a token. It does not change.
type provider struct {
	name      string
	origin    *origin           // where token requests go
	err       error             // *AuthError: what is wrong with the fields
	base      http.RoundTripper // of token requests; nil: that of the Transport
	store     Store             // nil: the token stays in this process
	key       string            // in the store
	refreshes bool              // can renew a token without the credentials
	asks      bool              // secret is code of the user's, and may return another by and by
	hints     map[int]string    // what a status means, where the partner's page says it

	// secret is asked before each login.
	secret func(context.Context) (string, error)
	// secrets are what must not show in what is kept of an answer to a login.
	secrets func(secret string) []string
	// request makes a token request: a login with the secret, a refresh with the
	// current token.
	request func(ctx context.Context, op, with string) (*http.Request, error)
	// read takes a token and its lifetime out of an answer of status 2xx.
	read func(body []byte, header http.Header) (token string, lifetime time.Duration, err error)
}

// setSecret makes p take its secret from a field or from that field's Func.
func (p *provider) setSecret(field, value string, ask func(context.Context) (string, error), check func(field, value string) error) error {
	if p.asks = ask != nil; !p.asks {
		p.secret = func(context.Context) (string, error) { return value, nil }
		return check(field, value)
	}
	p.secret = func(ctx context.Context) (string, error) {
		value, err := ask(ctx)
		if err == nil {
			err = check("what "+field+"Func returned", value)
		}
		return value, err
	}
	if value != "" {
		return fmt.Errorf("%s and %sFunc are both set", field, field)
	}
	return nil
}

// check notes the first mistake in the fields.
func (p *provider) check(user, secret error, baseURL string) {
	origin, err := parseOrigin("BaseURL", baseURL)
	p.origin = origin
	if err = cmp.Or(user, secret, err); err != nil {
		p.err = &AuthError{Provider: p.name, Op: "config", Err: err}
	}
}

func newTokenRequest(ctx context.Context, baseURL, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(baseURL, "/")+path, body)
	if err != nil {
		return nil, errors.New("BaseURL cannot be used in a request")
	}
	req.Header.Set("Accept", "application/json")
	return req, nil
}

// notJSON tells what is wrong with an answer without repeating any of it.
func notJSON(err error) error {
	const what = "the answer is not the JSON that was expected"
	if field, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && field.Field != "" {
		return fmt.Errorf("%s: %s is not a %v", what, field.Field, field.Type)
	}
	return errors.New(what)
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
