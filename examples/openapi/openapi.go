// Package openapi holds OpenAPI documents of the two partner APIs, from which the clients beside it are generated:
// with oapi-codegen in nowpost and ndovu, with ogen in ogen/nowpost and ogen/ndovu. The partners publish no documents
// of their own; these follow their pages.
//
// A generated client needs one thing to sign in, pace itself and survive a revoked token, an http.Client:
//
//	account, err := partnerauth.NowPostFromEnv()
//	// …
//	api, err := nowpost.NewClientWithResponses(partnerauth.NowPostBaseURL, nowpost.WithHTTPClient(account.Client()))
//
// A client of ogen's takes the same http.Client, and a SecuritySource whose empty token partnerauth replaces.
//
// Package urltemplate adds span names taken from the document. The programs orders and plans show all of it at work.
package openapi

import (
	_ "embed"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:generate go tool oapi-codegen -config nowpost/oapi-codegen.yaml nowpost.yaml
//go:generate go tool oapi-codegen -config ndovu/oapi-codegen.yaml ndovu.yaml
//go:generate go tool ogen -loglevel error -clean -config ogen/nowpost/ogen.yaml -target ogen/nowpost -package nowpost nowpost.yaml
//go:generate go tool ogen -loglevel error -clean -config ogen/ndovu/ogen.yaml -target ogen/ndovu -package ndovu ndovu.yaml

var (
	//go:embed nowpost.yaml
	nowPost []byte
	//go:embed ndovu.yaml
	ndovu []byte
)

// NowPost reads the document of NowPost's API, a new copy with each call.
func NowPost() (*openapi3.T, error) { return openapi3.NewLoader().LoadFromData(nowPost) }

// Ndovu reads the document of Ndovu's API, a new copy with each call.
func Ndovu() (*openapi3.T, error) { return openapi3.NewLoader().LoadFromData(ndovu) }
