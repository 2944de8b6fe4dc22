package partnertest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A vault issues the tokens of one server and knows which of them are good.
type vault struct {
	now      func() time.Time
	lifetime time.Duration
	key      []byte // signs the JWTs

	mu        sync.Mutex
	grants    map[string]*grant // by jti, or by the token itself if it is opaque
	refreshes map[string]bool   // by refresh token; they do not expire
}

// A grant is what a token allows, and until when. Its expiry is exact, while that
// in a JWT is in whole seconds.
type grant struct {
	id          string
	expires     time.Time // zero: never
	apiKey      bool
	opaque      bool     // no JWT
	permissions []string // of an API key; none: all
}

// claims are a JWT's payload. exp - iat is always the lifetime, so exp has a
// fraction if the lifetime has one.
type claims struct {
	Subject  string  `json:"sub"`
	IssuedAt int64   `json:"iat"`
	Expires  float64 `json:"exp"`
	ID       string  `json:"jti"`
}

var b64 = base64.RawURLEncoding

var jwtHeader = b64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

func newVault(now func() time.Time, lifetime time.Duration) *vault {
	return &vault{now: now, lifetime: lifetime, key: []byte(rand.Text()), grants: map[string]*grant{}, refreshes: map[string]bool{}}
}

// issue returns a new JWT for subject, and its expiry.
func (v *vault) issue(subject string) (token string, expires time.Time) {
	now := v.now()
	g := &grant{id: rand.Text(), expires: now.Add(v.lifetime)}
	payload, err := json.Marshal(claims{subject, now.Unix(), float64(now.Unix()) + v.lifetime.Seconds(), g.id})
	if err != nil {
		panic(err)
	}
	v.keep(g)
	signed := jwtHeader + "." + b64.EncodeToString(payload)
	return signed + "." + b64.EncodeToString(v.sign(signed)), g.expires
}

// issueOpaque returns a new token without any structure.
func (v *vault) issueOpaque() string {
	g := &grant{id: "tok_" + rand.Text(), expires: v.now().Add(v.lifetime), opaque: true}
	v.keep(g)
	return g.id
}

// issueRefresh returns a new refresh token, good for any number of refreshes.
func (v *vault) issueRefresh() string {
	token := "ref_" + rand.Text()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refreshes[token] = true
	return token
}

func (v *vault) renews(token string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.refreshes[token]
}

func (v *vault) keep(g *grant) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.grants[g.id] = g
}

// bearer returns the grant of a request's bearer token, or nil if the token is
// missing, forged, expired or revoked.
func (v *vault) bearer(r *http.Request) *grant {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || len(r.Header["Authorization"]) != 1 {
		return nil
	}
	return v.find(token)
}

// good reports whether a token is neither forged, expired nor revoked.
func (v *vault) good(token string) bool { return v.find(token) != nil }

func (v *vault) find(token string) *grant {
	id, ok := token, true
	if strings.Contains(token, ".") {
		if id, ok = v.verify(token); !ok {
			return nil
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.grants[id]
	if g == nil || g.opaque != (id == token) || !g.expires.IsZero() && !v.now().Before(g.expires) {
		return nil
	}
	return g
}

// verify checks a JWT's signature and returns its jti.
func (v *vault) verify(token string) (jti string, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[0] != jwtHeader {
		return "", false
	}
	signature, err := b64.DecodeString(parts[2])
	if err != nil || !hmac.Equal(signature, v.sign(parts[0]+"."+parts[1])) {
		return "", false
	}
	payload, err := b64.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var c claims
	return c.ID, json.Unmarshal(payload, &c) == nil && c.ID != ""
}

func (v *vault) sign(text string) []byte {
	mac := hmac.New(sha256.New, v.key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// revoke ends a grant and reports whether it was still good. If two refreshes
// with a rotating token race, only one gets true.
func (v *vault) revoke(g *grant) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.grants[g.id]
	delete(v.grants, g.id)
	return ok
}

func (v *vault) revokeAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.grants)
}

func (g *grant) may(permission string) bool {
	return !g.apiKey || len(g.permissions) == 0 || slices.Contains(g.permissions, permission)
}
