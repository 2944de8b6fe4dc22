// Package contract holds a client and a server to an OpenAPI document, in tests.
package contract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// Check returns a RoundTripper that reports to t each request and each answer that doc does not allow: unknown paths,
// parameters and bodies that do not fit their schema, a missing or wrong kind of Authorization, undocumented statuses.
// Answers from 500 on are let through, for they come from anywhere on the way.
func Check(t testing.TB, doc *openapi3.T, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	doc.Servers = nil // paths alone: a stand-in is at another address
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &checker{t, router, next}
}

type checker struct {
	t      testing.TB
	router routers.Router
	next   http.RoundTripper
}

func (c *checker) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := buffered(req)
	if err != nil {
		return nil, err
	}
	route, params, err := c.router.FindRoute(req)
	if err != nil {
		c.t.Errorf("%s %s is not in the document: %v", req.Method, req.URL.Path, err)
		return c.next.RoundTrip(req)
	}
	asked := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc:    authentication,
			IncludeResponseStatus: true,
			MultiError:            true,
			SkipSettingDefaults:   true, // a check must not change what it checks
		},
	}
	if err := openapi3filter.ValidateRequest(req.Context(), asked); err != nil {
		c.t.Errorf("%s %s: request: %v", req.Method, req.URL.Path, err)
	}
	if req.GetBody != nil { // the validator has read it
		if req.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}

	resp, err := c.next.RoundTrip(req)
	if err != nil || resp.StatusCode >= http.StatusInternalServerError {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
		return resp, nil // broken off on the way: no fault of the server's
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	answered := (&openapi3filter.ResponseValidationInput{
		RequestValidationInput: asked, Status: resp.StatusCode, Header: resp.Header, Options: asked.Options,
	}).SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(req.Context(), answered); err != nil {
		c.t.Errorf("%s %s: answer %d: %v", req.Method, req.URL.Path, resp.StatusCode, err)
	}
	return resp, nil
}

// buffered returns a copy of req whose body can be replayed, and closes the body of req.
func buffered(req *http.Request) (*http.Request, error) {
	body := req.Body
	req = req.Clone(req.Context())
	if body == nil || body == http.NoBody {
		req.GetBody = nil
		return req, nil
	}
	data, err := io.ReadAll(body)
	body.Close()
	if err != nil {
		return nil, err
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	req.Body, _ = req.GetBody()
	return req, nil
}

// authentication checks that a request carries the kind of Authorization its operation wants. Whether the token is good
// is the server's to say.
func authentication(_ context.Context, in *openapi3filter.AuthenticationInput) error {
	header := in.RequestValidationInput.Request.Header.Values("Authorization")
	if len(header) != 1 {
		return fmt.Errorf("%d Authorization headers", len(header))
	}
	scheme, credentials, _ := strings.Cut(header[0], " ")
	if !strings.EqualFold(scheme, in.SecurityScheme.Scheme) {
		return fmt.Errorf("the Authorization header is not %s", in.SecurityScheme.Scheme)
	}
	if credentials == "" {
		return errors.New("the Authorization header has no credentials")
	}
	return nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
