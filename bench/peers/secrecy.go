package main

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
)

// leaks reports whether a token arrives where a 307 of the API leads.
func leaks(t *testing.T, pr peer, location string) (leaked bool) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		p.api = func(_ string, r *http.Request) answer {
			if r.URL.Path == "/elsewhere" {
				return ok
			}
			return answer{http.StatusTemporaryRedirect, http.Header{"Location": {location}}}
		}
		c := start(t, pr, p)
		if c.get != nil {
			c.get(t.Context())
		} else {
			c.call(t.Context())
		}
		hits := p.callHits()
		if hits[0].token == "" {
			t.Errorf("%s: the first request had no token", pr.name)
		}
		if len(hits) != 2 && location != downgrade {
			t.Errorf("%s: got %d requests, want the redirect followed", pr.name, len(hits))
		}
		for _, h := range hits[1:] {
			leaked = leaked || h.token != ""
		}
	})
	return leaked
}

const downgrade = "http://partner.example/elsewhere"

func redirects(t *testing.T, pr peer) string {
	switch {
	case leaks(t, pr, "https://other.example/elsewhere"):
		return "no"
	case leaks(t, pr, downgrade):
		return "not from https to http on the same host"
	}
	return "yes"
}

func refusesHTTP(t *testing.T, pr peer) string {
	refuses := true
	synctest.Test(t, func(t *testing.T) {
		p := newPartner()
		c := pr.new(t, setup{partner: p, url: "http://partner.example", built: t.Context()})
		_, err := c.call(t.Context())
		refuses = err != nil
		for _, h := range p.callHits() {
			if h.token != "" {
				refuses = false
			}
		}
	})
	if refuses && leaks(t, pr, downgrade) {
		return "first hop only"
	}
	return yes(refuses)
}

func prints(t *testing.T, pr peer) string {
	var shown []string
	kept := 0
	synctest.Test(t, func(t *testing.T) {
		c := start(t, pr, newPartner())
		mustCall(t, c)
		synctest.Wait() // nobody is at work on what is printed
		for _, v := range c.holders {
			if reveals(v) {
				shown = append(shown, typeName(v))
			} else {
				kept++
			}
		}
		if c.handsOut != nil {
			if v := c.handsOut(); reveals(v) {
				shown = append(shown, typeName(v))
			}
		}
	})
	switch {
	case len(shown) == 0:
		return "yes"
	case kept == 0:
		return "no"
	}
	return "yes, but for `" + strings.Join(shown, "` and `") + "`"
}

func reveals(v any) bool {
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if text := fmt.Sprintf(verb, v); strings.Contains(text, secret) || tokens.MatchString(text) {
			return true
		}
	}
	return false
}

// typeName is a type's name as a program writes it.
func typeName(v any) string {
	name := strings.TrimPrefix(reflect.TypeOf(v).String(), "*")
	return strings.Replace(name, "exported.", "azcore.", 1)
}
