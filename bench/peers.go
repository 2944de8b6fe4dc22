package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// The quota that all limiters get: one that never makes a call wait, but that
// they have to keep count of.
const (
	plenty     = 1_000_000
	plentyTime = time.Millisecond
)

// A Setup is what a peer is built on.
type Setup struct {
	Base      http.RoundTripper
	Target    string              // the origin of all calls
	Telemetry Telemetry           // zero: OpenTelemetry's globals
	Grants    func() Grant        // a token request; nil: one that is good for long
	Limiter   partnerauth.Limiter // ours only; nil: a Quota as Minute says
	Minute    bool                // limiters of 100 a minute; else ones that never make a call wait
}

// A user's quota, which is partnerauth's default, and how many calls a Setup
// with Minute is good for after its first: no more than leave places free.
const (
	minutely    = 100
	minuteCalls = 90
)

func (s Setup) rateLimiter() *rate.Limiter {
	if s.Minute {
		return rate.NewLimiter(rate.Every(time.Minute/minutely), minutely)
	}
	return rate.NewLimiter(plenty/rate.Limit(plentyTime.Seconds()), plenty)
}

func (s Setup) quota() *partnerauth.Quota {
	if s.Minute {
		return new(partnerauth.Quota)
	}
	return &partnerauth.Quota{Requests: plenty, Window: plentyTime}
}

// A Grant is a new token and how long it takes until it is to be renewed. It is
// good for a third longer, at least.
type Grant struct {
	Token string
	Renew time.Duration
}

// Token is what all calls are sent with unless Setup.Grants says otherwise.
const Token = "4f1c9a07e2b35d8860c1f7a9be42d0537e8a6c19"

func (s Setup) grant() Grant {
	if s.Grants == nil {
		return Grant{Token, 24 * time.Hour}
	}
	return s.Grants()
}

// A Call sends one request, as http.RoundTripper does.
type Call func(*http.Request) (*http.Response, error)

// A Peer is one way to call a partner's API.
type Peer struct {
	Name     string
	Features string // of token, limiter, spans, metrics: what it does in a call
	Renews   bool   // it has a token cache
	Modes    []Mode // in which it is worth measuring
	New      func(Setup) (Call, error)

	Settle time.Duration // it renews a token no sooner
}

// Names of the peers that ratios are made of.
const (
	Bare  = "bare"
	Stack = "stack"
	Ours  = "partnerauth"
)

// Peers are all of them, ours last.
var Peers = []Peer{
	{Name: Bare, Modes: []Mode{Unset}, New: newBare},
	{Name: "oauth2", Features: "token", Renews: true, Modes: []Mode{Unset}, New: newOAuth2},
	{Name: "httptransport", Features: "token, spans, metrics", Renews: true, Modes: AllModes, New: newHTTPTransport},
	{Name: "azcore", Features: "token", Renews: true, Modes: []Mode{Unset}, New: newAzcore, Settle: 31 * time.Second},
	{Name: "azcore+otelhttp", Features: "token, spans, metrics", Modes: []Mode{Noop, Never, Always, Metrics}, New: newAzcore},
	{Name: "failsafe+oauth2", Features: "token, limiter", Modes: []Mode{Unset}, New: newFailsafe},
	{Name: Stack, Features: "token, limiter, spans, metrics", Renews: true, Modes: AllModes, New: newStack},
	{Name: "sdk", Features: "spans, metrics", Modes: []Mode{Never, Always, Metrics}, New: newSDK},
	{Name: Ours, Features: "token, limiter, spans, metrics", Renews: true, Modes: AllModes, New: newOurs},
}

// In returns the peers that are measured in mode.
func In(mode Mode) []Peer {
	return slices.DeleteFunc(slices.Clone(Peers), func(p Peer) bool { return !slices.Contains(p.Modes, mode) })
}

// ByName returns the peer of that name.
func ByName(name string) Peer {
	i := slices.IndexFunc(Peers, func(p Peer) bool { return p.Name == name })
	return Peers[i]
}

func newBare(s Setup) (Call, error) { return s.Base.RoundTrip, nil }

// oauth2Source renews ten seconds before the token's expiry, by the caller who
// notices, while all others wait.
type oauth2Source struct{ setup Setup }

func (o oauth2Source) Token() (*oauth2.Token, error) {
	g := o.setup.grant()
	return &oauth2.Token{AccessToken: g.Token, TokenType: "Bearer", Expiry: time.Now().Add(g.Renew + 10*time.Second)}, nil
}

func newOAuth2(s Setup) (Call, error) {
	t := &oauth2.Transport{Source: oauth2.ReuseTokenSource(nil, oauth2Source{s}), Base: s.Base}
	return t.RoundTrip, nil
}

// newStack is what one puts together by hand.
func newStack(s Setup) (Call, error) {
	limited := &limited{
		limiter: s.rateLimiter(),
		base:    otelhttp.NewTransport(s.Base, s.Telemetry.otelhttp()...),
	}
	t := &oauth2.Transport{Source: oauth2.ReuseTokenSource(nil, oauth2Source{s}), Base: limited}
	return t.RoundTrip, nil
}

// limited is the usual RoundTripper around a rate.Limiter.
type limited struct {
	limiter *rate.Limiter
	base    http.RoundTripper
}

func (l *limited) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := l.limiter.Wait(req.Context()); err != nil {
		return nil, err
	}
	return l.base.RoundTrip(req)
}

// newHTTPTransport has its own otelhttp inside where the globals are meant. It
// cannot be given providers, so elsewhere that is replaced by one that has them.
func newHTTPTransport(s Setup) (Call, error) {
	base := s.Base
	if !s.Telemetry.global() {
		base = otelhttp.NewTransport(base, s.Telemetry.otelhttp()...)
	}
	client, err := httptransport.NewClient(&httptransport.Options{
		Credentials:      auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: googleProvider{s}}),
		BaseRoundTripper: base,
		Endpoint:         s.Target,
		DisableTelemetry: !s.Telemetry.global(),
	})
	if err != nil {
		return nil, err
	}
	return client.Transport.RoundTrip, nil
}

// googleProvider's tokens are renewed in the background 225 seconds before
// their expiry.
type googleProvider struct{ setup Setup }

func (g googleProvider) Token(context.Context) (*auth.Token, error) {
	got := g.setup.grant()
	return &auth.Token{Value: got.Token, Type: "Bearer", Expiry: time.Now().Add(got.Renew + 225*time.Second)}, nil
}

// newAzcore reuses the request, as all others do, which spares azcore the
// request it would make for each call. Its own spans need a bridge to
// OpenTelemetry, so where there is a provider it gets an otelhttp instead.
func newAzcore(s Setup) (Call, error) {
	base := s.Base
	if !s.Telemetry.global() {
		base = otelhttp.NewTransport(base, s.Telemetry.otelhttp()...)
	}
	bearer := runtime.NewBearerTokenPolicy(azureCredential{s}, []string{"orders"}, nil)
	pipeline := runtime.NewPipeline("bench", "v1.0.0",
		runtime.PipelineOptions{PerRetry: []policy.Policy{bearer}},
		&policy.ClientOptions{
			Transport: transporter{base},
			Telemetry: policy.TelemetryOptions{Disabled: true}, // it would make the User-Agent longer each time
		})
	return func(req *http.Request) (*http.Response, error) {
		r, err := runtime.NewRequestFromRequest(req)
		if err != nil {
			return nil, err
		}
		runtime.SkipBodyDownload(r)
		return pipeline.Do(r)
	}, nil
}

type transporter struct{ base http.RoundTripper }

func (t transporter) Do(req *http.Request) (*http.Response, error) { return t.base.RoundTrip(req) }

// azureCredential's tokens say when they are to be renewed.
type azureCredential struct{ setup Setup }

func (a azureCredential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	g, now := a.setup.grant(), time.Now()
	return azcore.AccessToken{Token: g.Token, RefreshOn: now.Add(g.Renew), ExpiresOn: now.Add(g.Renew + time.Hour)}, nil
}

// newFailsafe has its token from oauth2, since failsafe-go has none.
func newFailsafe(s Setup) (Call, error) {
	limiter := ratelimiter.NewBurstyBuilder[*http.Response](plenty, plentyTime).WithMaxWaitTime(time.Second).Build()
	t := &oauth2.Transport{
		Source: oauth2.ReuseTokenSource(nil, oauth2Source{s}),
		Base:   failsafehttp.NewRoundTripper(s.Base, limiter),
	}
	return t.RoundTrip, nil
}

func newOurs(s Setup) (Call, error) {
	limiter := s.Limiter
	if limiter == nil {
		limiter = s.quota()
	}
	t := &partnerauth.Transport{
		Source:         NewSource(s),
		Base:           s.Base,
		Limiter:        limiter,
		TracerProvider: s.Telemetry.Tracers,
		MeterProvider:  s.Telemetry.Meters,
		Propagator:     s.Telemetry.Propagator,
	}
	return t.RoundTrip, nil
}

// NewSource is a Source of ours that has its tokens from s.
func NewSource(s Setup) *partnerauth.Source {
	return partnerauth.Ndovu{
		ClientID: "acme", ClientSecret: "secret",
		BaseURL: s.Target,
		Base:    tokenEndpoint{s},
	}.TokenSource()
}

// tokenEndpoint answers Ndovu's token requests in memory. Ours renews at 75 to
// 85 % of a lifetime.
type tokenEndpoint struct{ setup Setup }

func (e tokenEndpoint) RoundTrip(req *http.Request) (*http.Response, error) {
	g := e.setup.grant()
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(fmt.Sprintf(
			`{"access_token":%q,"token_type":"Bearer","expires_in":%v}`, g.Token, (g.Renew * 4 / 3).Seconds()))),
		Request: req,
	}, nil
}
