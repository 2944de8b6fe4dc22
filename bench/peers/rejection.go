package main

import (
	"encoding/base64"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// refuse lets p answer 401 to a token.
func (p *partner) refuse(token string, header http.Header) {
	p.api = func(got string, _ *http.Request) answer {
		if got == token {
			return answer{http.StatusUnauthorized, header}
		}
		return ok
	}
}

func forgets(t *testing.T, pr peer) string {
	// What the next call is sent with, after a token of another call, or of the
	// very one, was refused.
	next := func(same bool) (token string) {
		synctest.Test(t, func(t *testing.T) {
			p := newPartner()
			c := start(t, pr, p)
			if !same {
				mustCall(t, c)
				time.Sleep(time.Second)
			}
			p.refuse("token-1", nil)
			c.call(t.Context())
			time.Sleep(time.Second)
			c.call(t.Context())
			token = p.last()
		})
		return token
	}
	switch {
	case next(false) == "token-1":
		return byHand(t, pr)
	case forgetsGood(t, pr):
		return "blindly, a good new one too"
	case next(true) == "token-1":
		return "not if the call itself had fetched it"
	}
	return "the rejected one only"
}

// forgetsGood reports whether a 401 that comes late, when there is a new token
// already, costs that one.
func forgetsGood(t *testing.T, pr peer) (forgets bool) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		c := start(t, pr, p)
		mustCall(t, c)
		time.Sleep(time.Second)
		slow := true
		release := make(chan struct{})
		p.api = func(token string, _ *http.Request) answer {
			if slow {
				slow = false
				<-release
			}
			if token == "token-1" {
				return answer{status: http.StatusUnauthorized}
			}
			return ok
		}
		done := make(chan struct{})
		go func() { c.call(t.Context()); close(done) }()
		synctest.Wait()
		c.call(t.Context()) // is refused
		time.Sleep(time.Second)
		mustCall(t, c) // has token-2
		close(release)
		<-done
		time.Sleep(time.Second)
		mustCall(t, c)
		forgets = p.last() != "token-2"
	})
	return forgets
}

// byHand reports whether a peer that does not forget by itself can be made
// to, also while a fetch is under way that was answered before.
func byHand(t *testing.T, pr peer) (text string) {
	text = "no"
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		c := start(t, pr, p)
		if c.invalidate == nil {
			return
		}
		mustCall(t, c)
		c.invalidate()
		mustCall(t, c)
		if p.last() == "token-2" {
			text = "by hand"
		}
	})
	if text == "no" {
		return text
	}
	synctest.Test(t, func(t *testing.T) {
		p, release := newPartner(), make(chan struct{})
		p.login = func(n int, r *http.Request) int {
			if n == 1 {
				return held(r, release)
			}
			return http.StatusOK
		}
		c := start(t, pr, p)
		done := make(chan struct{})
		go func() { c.call(t.Context()); close(done) }()
		synctest.Wait()
		c.invalidate()
		close(release)
		<-done
		mustCall(t, c)
		if p.last() == "token-1" {
			text += ", lost during a fetch"
		}
	})
	return text
}

func sendsAgain(t *testing.T, pr peer) string {
	again := func(header http.Header) (is bool) {
		synctest.Test(t, func(t *testing.T) {
			p := newPartner()
			c := start(t, pr, p)
			mustCall(t, c)
			p.refuse("token-1", header)
			before := len(p.callHits())
			code, err := c.call(t.Context())
			is = err == nil && code == http.StatusOK && len(p.callHits()) == before+2
		})
		return is
	}
	// Continuous access evaluation, by which Azure asks for another token.
	claims := base64.StdEncoding.EncodeToString([]byte(`{"access_token":{}}`))
	challenge := http.Header{"Www-Authenticate": {`Bearer error="insufficient_claims", claims="` + claims + `"`}}
	switch {
	case again(nil):
		return "yes"
	case again(challenge):
		return "CAE challenges only"
	}
	return "no"
}
