package provider

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/partnerauth/partnerauth"
)

// Globex is an account at a partner that uses OAuth 2.0 client credentials (RFC
// 6749, section 4.4). Its token endpoint may be on another host than its API.
func Globex(baseURL, tokenURL, id, secret string) partnerauth.Provider {
	return partnerauth.Provider{
		Name: "globex", Account: id, BaseURL: baseURL,
		SignIn: func(ctx context.Context) (*http.Request, error) {
			form := strings.NewReader("grant_type=client_credentials")
			req, err := http.NewRequestWithContext(ctx, "POST", tokenURL, form)
			if err == nil {
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
			}
			return req, err
		},
	}
}
