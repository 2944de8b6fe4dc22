package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A standIn is NowPost in memory, for virtual time: no socket, no goroutine.
type standIn struct {
	latency time.Duration

	mu       sync.Mutex
	down     bool   // no connection comes about
	password string // the one that is accepted
	token    string // the one that is good; "": none
	issued   int
	logins   []attempt
	calls    []time.Time // all requests
	orders   []order
	lost     bool // takes orders and gives no answer
}

type attempt struct {
	at       time.Time
	password string
	granted  bool
}

func (p *standIn) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		req.Body.Close()
	}
	time.Sleep(p.latency / 2)
	status, answer, err := p.serve(req, body)
	time.Sleep(p.latency / 2)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}, "Date": {time.Now().UTC().Format(http.TimeFormat)}},
		Body:   io.NopCloser(strings.NewReader(answer)),
	}, nil
}

func (p *standIn) serve(req *http.Request, body []byte) (status int, answer string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return 0, "", errors.New("no route to host")
	}
	now := time.Now()
	p.calls = append(p.calls, now)
	if n := p.within(time.Minute); n > 100 {
		return 429, `{"success":false}`, nil
	}
	if req.URL.Path == "/api/v1/auth/login" {
		var got struct{ Password string }
		_ = json.Unmarshal(body, &got)
		granted := got.Password == p.password
		p.logins = append(p.logins, attempt{now, got.Password, granted})
		if !granted {
			return 401, `{"success":false,"error":"Invalid email or password"}`, nil
		}
		p.issued++
		p.token = fmt.Sprint("token-", p.issued)
		return 200, fmt.Sprintf(`{"success":true,"data":{"token":%q,"expiresAt":%q}}`, p.token,
			now.Add(24*time.Hour).UTC().Format(time.RFC3339)), nil
	}
	if p.token == "" || req.Header.Get("Authorization") != "Bearer "+p.token {
		return 401, `{"success":false}`, nil
	}
	if req.Method == "GET" {
		found := []order{}
		for _, o := range p.orders {
			if o.PartnerOrderID == req.URL.Query().Get("search") {
				found = append(found, o)
			}
		}
		b, _ := json.Marshal(map[string]any{"status": "success", "data": map[string]any{"orders": found}})
		return 200, string(b), nil
	}
	var o order
	if json.NewDecoder(bytes.NewReader(body)).Decode(&o) != nil || !bytes.Contains(body, []byte("customer")) {
		return 400, `{"success":false}`, nil
	}
	o.ID, o.Status = fmt.Sprintf("ord_%d", len(p.orders)+1), "created"
	p.orders = append(p.orders, o)
	if p.lost {
		return 0, "", errors.New("connection reset by peer")
	}
	b, _ := json.Marshal(map[string]any{"status": "success", "data": o})
	return 201, string(b), nil
}

// within counts the requests of the last d.
func (p *standIn) within(d time.Duration) (n int) {
	for i := len(p.calls) - 1; i >= 0 && time.Since(p.calls[i]) < d; i-- {
		n++
	}
	return n
}

// with changes the stand-in, or looks at it.
func (p *standIn) with(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
}

// loginsWith counts the logins with a password.
func (p *standIn) loginsWith(password string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.logins {
		if l.password == password {
			n++
		}
	}
	return n
}
