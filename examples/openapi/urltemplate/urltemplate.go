// Package urltemplate names the spans of HTTP requests after the paths of an OpenAPI document:
// GET /api/v1/orders/{id} rather than GET, and never GET /api/v1/orders/ord_000017.
package urltemplate

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/partnerauth/partnerauth"
)

// Transport hands each request on, under a context that names the document's path it belongs to. It goes around a
// [partnerauth.Transport], which puts the name into its spans; a name given with
// [partnerauth.WithURLTemplate] by the caller gives way. A request that fits no path of the document goes on as it is.
//
// A Transport is safe for concurrent use.
type Transport struct {
	next  http.RoundTripper
	paths *http.ServeMux
}

// New returns a Transport for the operations of doc, found below baseURL. A path in baseURL, such as a gateway's, is
// part of the names: the conventions want the whole path of the URL.
//
// It fails on documents that [http.ServeMux] cannot route: two paths that fit the same URL, neither of them more
// special than the other, or a segment that is a parameter only in part.
func New(doc *openapi3.T, baseURL string, next http.RoundTripper) (*Transport, error) {
	base, err := url.Parse(baseURL)
	if err != nil {
		return nil, fmt.Errorf("urltemplate: base URL: %w", err)
	}
	prefix := strings.TrimRight(base.EscapedPath(), "/")
	t := &Transport{next: next, paths: http.NewServeMux()}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			if err := t.add(method, prefix+path); err != nil {
				return nil, fmt.Errorf("urltemplate: %s %s: %w", method, path, err)
			}
		}
	}
	return t, nil
}

// template is a path of the document, dressed as the handler under which ServeMux keeps it.
type template string

func (template) ServeHTTP(http.ResponseWriter, *http.Request) {}

var parameter = regexp.MustCompile(`\{[^{}]*\}`)

// add routes a path. ServeMux wants parameters to be Go identifiers, which OpenAPI does not, so they are numbered; and
// it takes a slash at the end for a whole tree unless told otherwise.
func (t *Transport) add(method, path string) (err error) {
	defer func() {
		if p := recover(); p != nil { // how ServeMux reports a bad pattern or a conflict
			err = fmt.Errorf("%v", p)
		}
	}()
	n := 0
	pattern := parameter.ReplaceAllStringFunc(path, func(string) string {
		n++
		return fmt.Sprintf("{p%d}", n)
	})
	if strings.HasSuffix(pattern, "/") {
		pattern += "{$}"
	}
	t.paths.Handle(method+" "+pattern, template(path))
	return nil
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	handler, _ := t.paths.Handler(req)
	if path, ok := handler.(template); ok {
		req = req.WithContext(partnerauth.WithURLTemplate(req.Context(), string(path)))
	}
	return t.next.RoundTrip(req)
}
