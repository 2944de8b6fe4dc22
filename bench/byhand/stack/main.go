// Command stack lists orders with oauth2.Transport, rate.Limiter and otelhttp, put
// together by hand. It signs in, keeps one token until it expires, forgets a token
// that was answered 401 and retries once, limits and traces.
//
// It lacks what takes longer to write: renewal in the background, waiting callers
// that can leave, back-off after refused credentials, a limit that holds in every
// minute (a bucket of 100 admits up to 200 in the first), pauses after a 429, a
// token that stays at its host in a redirect, and errors without the answer's body.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

const baseURL = "https://api.nowpost.com"

// A login is an oauth2.TokenSource that signs in.
type login struct {
	client          *http.Client
	email, password string
}

func (l login) Token() (*oauth2.Token, error) {
	body, err := json.Marshal(map[string]string{"email": l.email, "password": l.password})
	if err != nil {
		return nil, err
	}
	resp, err := l.client.Post(baseURL+"/api/v1/auth/login", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("nowpost login: %s", resp.Status)
	}
	var answer struct {
		Data struct {
			Token     string    `json:"token"`
			ExpiresAt time.Time `json:"expiresAt"`
		} `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("nowpost login: %w", err)
	}
	if answer.Data.Token == "" {
		return nil, fmt.Errorf("nowpost login: no token in the answer")
	}
	return &oauth2.Token{AccessToken: answer.Data.Token, Expiry: answer.Data.ExpiresAt}, nil
}

// A forgetful source keeps one token, and forgets it on request.
type forgetful struct {
	login oauth2.TokenSource

	mu     sync.Mutex // guards reused
	reused oauth2.TokenSource
}

func (f *forgetful) Token() (*oauth2.Token, error) {
	f.mu.Lock()
	source := f.reused
	f.mu.Unlock()
	return source.Token()
}

func (f *forgetful) forget(rejected string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if token, err := f.reused.Token(); err == nil && "Bearer "+token.AccessToken == rejected {
		f.reused = oauth2.ReuseTokenSource(nil, f.login)
	}
}

// limited sends no request before the limiter allows it.
type limited struct {
	limiter *rate.Limiter
	base    http.RoundTripper
}

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := l.limiter.Wait(req.Context()); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	return l.base.RoundTrip(req)
}

// retrying sends a request again, once, if it was answered 401.
type retrying struct {
	source *forgetful
	base   http.RoundTripper
}

func (r retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	if resp.Request != nil {
		r.source.forget(resp.Request.Header.Get("Authorization"))
	}
	again := req.Clone(req.Context())
	if req.Body != nil && req.Body != http.NoBody {
		if req.GetBody == nil {
			return resp, nil
		}
		if again.Body, err = req.GetBody(); err != nil {
			return resp, nil
		}
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
	return r.base.RoundTrip(again)
}

func newClient(email, password string) *http.Client {
	way := limited{rate.NewLimiter(rate.Every(time.Minute/100), 100), otelhttp.NewTransport(http.DefaultTransport)}
	signIn := login{&http.Client{Transport: way}, email, password}
	source := &forgetful{login: signIn, reused: oauth2.ReuseTokenSource(nil, signIn)}
	return &http.Client{
		Transport: retrying{source, &oauth2.Transport{Source: source, Base: way}},
		Timeout:   time.Minute,
	}
}

func main() {
	email, password := os.Getenv("NOWPOST_EMAIL"), os.Getenv("NOWPOST_PASSWORD")
	if email == "" || password == "" {
		log.Fatal("NOWPOST_EMAIL and NOWPOST_PASSWORD have to be set")
	}
	client := newClient(email, password)
	resp, err := client.Get(baseURL + "/api/v1/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
}
