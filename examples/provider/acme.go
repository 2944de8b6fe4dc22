package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/partnerauth/partnerauth"
	"golang.org/x/oauth2"
)

// Acme is an account at a partner that signs in with JSON and expects its token
// in a header of its own.
func Acme(baseURL, user, key string) partnerauth.Provider {
	return partnerauth.Provider{
		Name: "acme", Account: user, BaseURL: baseURL,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			ctx = partnerauth.WithURLTemplate(ctx, "/session") // names the span
			body, _ := json.Marshal(map[string]string{"user": user, "key": key})
			return http.NewRequestWithContext(ctx, "POST", baseURL+"/session", bytes.NewReader(body))
		},
		ReadToken: func(_ http.Header, body []byte) (*oauth2.Token, error) {
			var answer struct {
				Session string
				TTL     int64 // seconds
			}
			if json.Unmarshal(body, &answer) != nil {
				return nil, errors.New("the answer is not JSON")
			}
			return &oauth2.Token{AccessToken: answer.Session, ExpiresIn: answer.TTL}, nil
		},
		Authorize: func(req *http.Request, token *oauth2.Token) error {
			req.Header.Set("X-Acme-Token", token.AccessToken)
			return nil
		},
	}
}
