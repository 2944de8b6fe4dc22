package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	aztracing "github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithytracing "github.com/aws/smithy-go/tracing"
	"github.com/bradleyfalzon/ghinstallation/v2"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"k8s.io/client-go/transport"

	"github.com/partnerauth/partnerauth"
)

// secret is the credential of the peers that have one to keep.
const secret = "hunter2"

// A setup is what a client is built on.
type setup struct {
	*partner
	url   string          // of the API
	built context.Context // of whoever builds it
	optIn bool            // with what a user may switch on
}

// A client is a peer at work.
type client struct {
	call       func(context.Context) (status int, err error)
	get        func(context.Context) (status int, err error) // where call is no GET, whose redirects are followed
	invalidate func()                                        // forgets the token; nil: the peer has no such call
	holders    []any                                         // what a program keeps, credentials or tokens inside
	handsOut   func() any                                    // what it gives out as the token; nil: a plain string
	ownLimiter bool                                          // it has one, which is partner.limiter
	login      func() error                                  // its token request without it, traced; nil: as any other
}

type peer struct {
	name  string
	new   func(*testing.T, setup) client
	optIn bool // it has something to switch on: AWS's expiry window and its jitter
}

// In the order of the table's columns.
var peers = []peer{
	{name: "partnerauth", new: newPartnerauth},
	{name: "x/oauth2", new: newOAuth2},
	{name: "cloud auth", new: newCloud},
	{name: "azcore", new: newAzcore},
	{name: "client-go", new: newClientGo},
	{name: "aws-sdk", new: newAWS, optIn: true},
	{name: "ghinstallation", new: newGitHub},
}

// get is a call by an http.Client.
func get(s setup, rt http.RoundTripper) func(context.Context) (int, error) {
	c := &http.Client{Transport: rt}
	return func(ctx context.Context) (int, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/orders", nil)
		if err != nil {
			return 0, err
		}
		return status(c.Do(req))
	}
}

func status(resp *http.Response, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func newPartnerauth(_ *testing.T, s setup) client {
	config := partnerauth.Ndovu{ClientID: "acme", ClientSecret: secret, BaseURL: s.url}
	source := config.TokenSource()
	rt := &partnerauth.Transport{Source: source, Base: s.base(), Limiter: &s.limiter}
	return client{
		call:       get(s, rt),
		holders:    []any{config, source, rt},
		handsOut:   func() any { token, _ := source.Token(); return token },
		ownLimiter: true,
	}
}

func newOAuth2(_ *testing.T, s setup) client {
	config := clientcredentials.Config{
		ClientID: "acme", ClientSecret: secret, TokenURL: loginURL, AuthStyle: oauth2.AuthStyleInHeader,
	}
	ctx := context.WithValue(s.built, oauth2.HTTPClient, &http.Client{Transport: s.direct()})
	source := config.TokenSource(ctx)
	rt := &oauth2.Transport{Source: source, Base: s.base()}
	return client{
		call:     get(s, rt),
		holders:  []any{config, source, rt},
		handsOut: func() any { token, _ := source.Token(); return token },
	}
}

func newCloud(t *testing.T, s setup) client {
	provider, err := auth.New2LOTokenProvider(&auth.Options2LO{
		Email: "acme@example.com", PrivateKey: key(), TokenURL: loginURL, Client: &http.Client{Transport: s.direct()},
	})
	if err != nil {
		t.Fatal(err)
	}
	creds := auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: provider})
	c, err := httptransport.NewClient(&httptransport.Options{
		Credentials: creds, BaseRoundTripper: s.base(), Endpoint: s.url,
	})
	if err != nil {
		t.Fatal(err)
	}
	return client{
		call:     get(s, c.Transport),
		holders:  []any{creds, provider, c.Transport},
		handsOut: func() any { token, _ := creds.Token(context.Background()); return token },
	}
}

func newAzcore(t *testing.T, s setup) client {
	// Credentials make their token requests by a pipeline, so this one does, too.
	logins := runtime.NewPipeline("probe", "v1", runtime.PipelineOptions{}, &policy.ClientOptions{
		Transport: &http.Client{Transport: s.direct()}, Retry: policy.RetryOptions{MaxRetries: -1},
	})
	cred := azureCredential{s.partner, logins}
	bearer := runtime.NewBearerTokenPolicy(cred, []string{"orders"}, nil)
	calls := runtime.NewPipeline("probe", "v1", runtime.PipelineOptions{PerRetry: []policy.Policy{bearer}},
		&policy.ClientOptions{Transport: &http.Client{Transport: s.base()}})
	tracer := aztracing.NewTracer(func(ctx context.Context, _ string, _ *aztracing.SpanOptions) (context.Context, aztracing.Span) {
		return ctx, aztracing.NewSpan(aztracing.SpanImpl{End: s.spans.begin()})
	}, nil)
	return client{
		call: func(ctx context.Context) (int, error) {
			ctx, end := runtime.StartSpan(ctx, "Orders.List", tracer, nil)
			defer end(nil)
			req, err := runtime.NewRequest(ctx, http.MethodGet, s.url+"/orders")
			if err != nil {
				return 0, err
			}
			return status(calls.Do(req))
		},
		holders: []any{bearer, calls},
		handsOut: func() any {
			token, _ := cred.GetToken(context.Background(), policy.TokenRequestOptions{})
			return token
		},
		login: func() error {
			ctx, end := runtime.StartSpan(context.Background(), "Orders.List", tracer, nil)
			_, err := cred.GetToken(ctx, policy.TokenRequestOptions{})
			time.Sleep(time.Second) // so that the call's span ends later
			end(nil)
			return err
		},
	}
}

type azureCredential struct {
	*partner
	pipeline runtime.Pipeline
}

func (c azureCredential) GetToken(ctx context.Context, _ policy.TokenRequestOptions) (azcore.AccessToken, error) {
	req, err := runtime.NewRequest(ctx, http.MethodPost, loginURL)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	resp, err := c.pipeline.Do(req)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	if !runtime.HasStatusCode(resp, http.StatusOK) {
		return azcore.AccessToken{}, runtime.NewResponseError(resp)
	}
	var got struct {
		Token string    `json:"token"`
		Ends  time.Time `json:"expires_at"`
	}
	err = runtime.UnmarshalAsJSON(resp, &got)
	return azcore.AccessToken{Token: got.Token, ExpiresOn: got.Ends}, err
}

func newClientGo(_ *testing.T, s setup) client {
	source := transport.NewCachedTokenSource(clientGoSource{s.partner})
	rt := transport.ResettableTokenSourceWrapTransport(source)(s.base())
	return client{
		call:     get(s, rt),
		holders:  []any{source, rt},
		handsOut: func() any { token, _ := source.Token(); return token },
	}
}

// clientGoSource has no context to hand on: oauth2.TokenSource takes none.
type clientGoSource struct{ *partner }

func (c clientGoSource) Token() (*oauth2.Token, error) {
	token, ends, err := c.fetch(context.Background())
	if err != nil {
		return nil, err
	}
	return &oauth2.Token{AccessToken: token, TokenType: "Bearer", Expiry: ends}, nil
}

func newAWS(t *testing.T, s setup) client {
	cache := aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		token, ends, err := s.fetch(ctx)
		if err != nil {
			return aws.Credentials{}, err
		}
		return aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: secret, SessionToken: token, CanExpire: true, Expires: ends}, nil
	}), func(o *aws.CredentialsCacheOptions) {
		if s.optIn {
			o.ExpiryWindow, o.ExpiryWindowJitterFrac = 5*time.Minute, 0.5
		}
	})
	web := awshttp.NewBuildableClient().WithTransportOptions(func(base *http.Transport) {
		base.DialContext, base.DialTLSContext = s.dialer(t, "http"), s.dialer(t, "https")
		base.ForceAttemptHTTP2 = false
	})
	const region = "eu-west-1"
	service := sts.New(sts.Options{
		Region: region, BaseEndpoint: &s.url, Credentials: cache, HTTPClient: web, TracerProvider: smithyTracer{&s.spans},
	})
	return client{
		call: func(ctx context.Context) (int, error) {
			_, err := service.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
			if answered, ok := errors.AsType[*awshttp.ResponseError](err); ok {
				return answered.HTTPStatusCode(), nil
			}
			return http.StatusOK, err
		},
		get: func(ctx context.Context) (int, error) {
			creds, err := cache.Retrieve(ctx)
			if err != nil {
				return 0, err
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/orders", nil)
			if err != nil {
				return 0, err
			}
			empty := fmt.Sprintf("%x", sha256.Sum256(nil))
			if err := v4.NewSigner().SignHTTP(ctx, creds, req, empty, "orders", region, time.Now()); err != nil {
				return 0, err
			}
			return status(web.Do(req))
		},
		invalidate: cache.Invalidate,
		holders:    []any{cache, service},
		handsOut:   func() any { creds, _ := cache.Retrieve(context.Background()); return creds },
	}
}

// smithyTracer leads the SDK's spans to where the probes find them.
type smithyTracer struct{ *spans }

func (s smithyTracer) Tracer(string, ...smithytracing.TracerOption) smithytracing.Tracer { return s }

func (s smithyTracer) StartSpan(ctx context.Context, name string, _ ...smithytracing.SpanOption) (context.Context, smithytracing.Span) {
	return ctx, smithySpan{name, s.begin()}
}

type smithySpan struct {
	name string
	end  func()
}

func (s smithySpan) Name() string                                  { return s.name }
func (s smithySpan) Context() smithytracing.SpanContext            { return smithytracing.SpanContext{} }
func (s smithySpan) AddEvent(string, ...smithytracing.EventOption) {}
func (s smithySpan) SetStatus(smithytracing.SpanStatus)            {}
func (s smithySpan) SetProperty(_, _ any)                          {}
func (s smithySpan) End()                                          { s.end() }

func newGitHub(t *testing.T, s setup) client {
	rt, err := ghinstallation.New(s.base(), 1, 2, key())
	if err != nil {
		t.Fatal(err)
	}
	rt.BaseURL = s.url
	return client{call: get(s, rt), holders: []any{rt}}
}

// key is for the peers that sign their token requests.
var key = sync.OnceValue(func() []byte {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
})
