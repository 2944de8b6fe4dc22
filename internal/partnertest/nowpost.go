package partnertest

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// NowPost is a stand-in for the parcel partner.
type NowPost struct {
	*Server
	orders orderBook
}

// StartNowPost starts a NowPost on a socket. The caller must close it.
func StartNowPost(o Options) *NowPost {
	n := NewNowPost(o)
	n.listen()
	return n
}

// NewNowPost returns a NowPost in memory. Requests reach it through RoundTrip.
func NewNowPost(o Options) *NowPost {
	o.Lifetime = or(o.Lifetime, 24*time.Hour)
	n := &NowPost{Server: newServer(o, "/api/v1/auth/login")}
	n.endpoint("POST /api/v1/auth/login", n.logIn)
	n.endpoint("POST /api/v1/auth/refresh", n.refresh)
	n.endpoint("POST /partner/api-keys", n.createKey)
	n.endpoint("POST /api/v1/orders", n.authorized("orders:write", n.createOrder))
	n.endpoint("GET /api/v1/orders", n.authorized("orders:read", n.listOrders))
	n.endpoint("GET /api/v1/orders/{id}", n.authorized("orders:read", n.showOrder))
	n.endpoint("POST /api/v1/orders/{id}/cancel", n.authorized("orders:write", n.cancelOrder))
	return n
}

// SetPassword changes the password that a login needs. Tokens stay good.
func (n *NowPost) SetPassword(password string) {
	n.note(func() { n.opts.Password = password })
}

func (n *NowPost) logIn(w http.ResponseWriter, r *http.Request) {
	// A map, because a struct's fields match in any letter case.
	var got map[string]string
	if !readJSON(w, r, &got) {
		return
	}
	if len(got) != 2 || got["email"] == "" || got["password"] == "" {
		fail(w, http.StatusBadRequest, "email and password are required, and nothing else")
		return
	}
	if got["email"] != n.opts.Email || got["password"] != read(n.Server, func() string { return n.opts.Password }) {
		fail(w, http.StatusUnauthorized, "Invalid email or password")
		return
	}
	n.note(func() { n.logins++ })
	n.grant(w, !n.opts.Flat)
}

func (n *NowPost) refresh(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		fail(w, http.StatusBadRequest, "A refresh has no body")
		return
	}
	old := n.vault.bearer(r)
	if old == nil || old.apiKey || n.opts.Rotate && !n.vault.revoke(old) {
		fail(w, http.StatusUnauthorized, "Invalid or missing token")
		return
	}
	n.note(func() { n.refreshes++ })
	n.grant(w, n.opts.Envelope)
}

type user struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

type session struct {
	Token     string `json:"token"`
	ExpiresAt string `json:"expiresAt,omitempty"`
	User      *user  `json:"user,omitempty"`
}

// grant answers with a new token.
func (n *NowPost) grant(w http.ResponseWriter, enveloped bool) {
	who := &user{"user_123", n.opts.Email}
	token, expires := n.vault.issue(who.ID)
	if !enveloped {
		writeJSON(w, http.StatusOK, session{Token: token})
		return
	}
	layout := "2006-01-02T15:04:05Z"
	if n.opts.Lifetime%time.Second != 0 {
		// In whole seconds a short token could expire before it is issued.
		layout = "2006-01-02T15:04:05.000Z"
	}
	writeJSON(w, http.StatusOK, struct {
		Success bool    `json:"success"`
		Data    session `json:"data"`
	}{true, session{token, or(n.opts.ExpiresAt, expires.UTC().Format(layout)), who}})
}

type apiKey struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Permissions []string   `json:"permissions"`
	IsActive    bool       `json:"isActive"`
	CreatedAt   time.Time  `json:"createdAt"`
	UpdatedAt   time.Time  `json:"updatedAt"`
	ExpiresAt   *time.Time `json:"expiresAt,omitempty"`
}

func (n *NowPost) createKey(w http.ResponseWriter, r *http.Request) {
	who := n.vault.bearer(r)
	if who == nil {
		fail(w, http.StatusUnauthorized, "Invalid or missing token")
		return
	}
	if who.apiKey {
		fail(w, http.StatusForbidden, "API keys cannot create API keys")
		return
	}
	now := n.opts.Now().UTC().Truncate(time.Millisecond)
	var k apiKey
	if !readJSON(w, r, &k) {
		return
	}
	if k.Name == "" || k.ExpiresAt != nil && !k.ExpiresAt.After(now) {
		fail(w, http.StatusBadRequest, "name is required, and expiresAt must lie in the future")
		return
	}
	k.ID, k.IsActive, k.CreatedAt, k.UpdatedAt = "key_"+rand.Text()[:12], true, now, now
	k.Permissions = append([]string{}, k.Permissions...) // [] rather than null
	secret := &grant{id: "npk_" + rand.Text(), apiKey: true, opaque: true, permissions: k.Permissions}
	if k.ExpiresAt != nil {
		secret.expires = *k.ExpiresAt
	}
	n.vault.keep(secret)
	writeJSON(w, http.StatusCreated, struct {
		APIKey    apiKey `json:"apiKey"`
		KeyString string `json:"keyString"`
	}{k, secret.id})
}

func (n *NowPost) authorized(permission string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch who := n.vault.bearer(r); {
		case who == nil:
			fail(w, http.StatusUnauthorized, "Invalid or missing token")
		case !who.may(permission):
			fail(w, http.StatusForbidden, "Insufficient permissions")
		default:
			next(w, r)
		}
	}
}

// readJSON reads a JSON body. If it is not one, it answers 400, without quoting
// it, and returns false.
func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || !strings.EqualFold(t, "application/json") {
		fail(w, http.StatusBadRequest, "Content-Type must be application/json")
		return false
	}
	body, _ := io.ReadAll(r.Body)
	if json.Unmarshal(body, into) != nil {
		fail(w, http.StatusBadRequest, "The body is not the JSON object expected here")
		return false
	}
	return true
}

func fail(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, struct {
		Success bool   `json:"success"`
		Error   string `json:"error"`
	}{false, text})
}
