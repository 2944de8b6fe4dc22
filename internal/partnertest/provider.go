package partnertest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// TokenPath is where a Provider signs in unless Options set another path.
const TokenPath = "/oauth/token"

// A Grant is what a Provider issues to a request that signed in or renewed.
type Grant struct {
	Token        string
	RefreshToken string // "" without Options.RefreshPath
	Lifetime     time.Duration
}

// Provider is a stand-in for the partner that its Options describe. Without any,
// it follows RFC 6749 with client credentials.
type Provider struct {
	*Server
}

// StartProvider starts a Provider on a socket. The caller must close it.
func StartProvider(o Options) *Provider {
	p := NewProvider(o)
	p.listen()
	return p
}

// NewProvider returns a Provider in memory. Requests reach it through RoundTrip.
func NewProvider(o Options) *Provider {
	o.Lifetime = or(o.Lifetime, time.Hour)
	o.SignInPath = or(o.SignInPath, TokenPath)
	if o.TokenHeader == "" && o.TokenType == "" {
		o.TokenType = "Bearer"
	}
	o.TokenHeader = http.CanonicalHeaderKey(or(o.TokenHeader, "Authorization"))
	p := &Provider{newServer(o, o.SignInPath)}
	if o.Accepts == nil {
		p.opts.Accepts = p.clientCredentials
	}
	if o.Answer == nil {
		p.opts.Answer = p.answer
	}
	if o.Handler == nil {
		p.opts.Handler = http.HandlerFunc(empty)
	}
	p.mux = http.NewServeMux()
	p.mux.HandleFunc("/", p.route)
	return p
}

func (p *Provider) route(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case path == p.opts.RefreshPath && (path != p.opts.SignInPath || fields(r)["grant_type"] == "refresh_token"):
		p.refresh(w, r)
	case path == p.opts.SignInPath:
		p.signIn(w, r)
	case p.authorized(r):
		p.opts.Handler.ServeHTTP(w, r)
	default:
		if strings.EqualFold(p.opts.TokenType, "Bearer") {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		}
		refuseToken(w, http.StatusUnauthorized, "invalid_token")
	}
}

func (p *Provider) signIn(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if !p.opts.Accepts(r) {
		refuseToken(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	p.note(func() { p.logins++ })
	p.grant(w)
}

// refresh accepts a refresh token in any field of the body, or a good token where
// it is usually sent.
func (p *Provider) refresh(w http.ResponseWriter, r *http.Request) {
	good := p.authorized(r)
	for _, value := range fields(r) {
		good = good || p.vault.renews(value)
	}
	if !good {
		refuseToken(w, http.StatusBadRequest, "invalid_grant")
		return
	}
	p.note(func() { p.refreshes++ })
	p.grant(w)
}

func (p *Provider) grant(w http.ResponseWriter) {
	g := Grant{Token: p.vault.issueOpaque(), Lifetime: p.opts.Lifetime}
	if p.opts.RefreshPath != "" {
		g.RefreshToken = p.vault.issueRefresh()
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	p.opts.Answer(w, g)
}

// answer writes the answer of RFC 6749, section 5.1.
func (p *Provider) answer(w http.ResponseWriter, g Grant) {
	writeJSON(w, http.StatusOK, struct {
		AccessToken  string  `json:"access_token"`
		TokenType    string  `json:"token_type"`
		ExpiresIn    float64 `json:"expires_in"`
		RefreshToken string  `json:"refresh_token,omitempty"`
	}{g.Token, or(p.opts.TokenType, "Bearer"), g.Lifetime.Seconds(), g.RefreshToken})
}

// clientCredentials checks a request by RFC 6749, section 4.4, with the client's
// credentials in the header or in the form, as section 2.3.1 allows. In the header
// they may be escaped or not, since clients differ.
func (p *Provider) clientCredentials(r *http.Request) bool {
	got := fields(r)
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = got["client_id"], got["client_secret"]
	}
	wantID, wantSecret := p.opts.ClientID, p.opts.ClientSecret
	return r.Method == http.MethodPost && got["grant_type"] == "client_credentials" &&
		(id == wantID && secret == wantSecret || basic && id == url.QueryEscape(wantID) && secret == url.QueryEscape(wantSecret))
}

// authorized reports whether a request carries one good token where the partner
// expects it.
func (p *Provider) authorized(r *http.Request) bool {
	values := r.Header[p.opts.TokenHeader]
	if len(values) != 1 {
		return false
	}
	token := values[0]
	if p.opts.TokenType != "" {
		scheme, rest, _ := strings.Cut(token, " ")
		if !strings.EqualFold(scheme, p.opts.TokenType) {
			return false
		}
		token = rest
	}
	return p.vault.good(token)
}

// fields returns the text fields of a body that is a form or a JSON object. The
// body can be read again afterwards.
func fields(r *http.Request) map[string]string {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	found := map[string]string{}
	var object map[string]any
	if json.Unmarshal(body, &object) == nil {
		for name, value := range object {
			if text, ok := value.(string); ok {
				found[name] = text
			}
		}
		return found
	}
	if form, err := url.ParseQuery(string(body)); err == nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		for name := range form {
			found[name] = form.Get(name)
		}
	}
	return found
}

func empty(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, struct{}{}) }

func refuseToken(w http.ResponseWriter, status int, code string) {
	writeJSON(w, status, struct {
		Error string `json:"error"`
	}{code})
}
