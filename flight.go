package partnerauth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

const (
	wireLimit = 30 * time.Second // for all requests of one flight together, waits not counted
	hangLimit = 8 * time.Second  // for the first of them: what hangs may be the connection
	// loginShare is what a refresh leaves of wireLimit for the login after it.
	loginShare = 10 * time.Second
	maxTries   = 3       // of one operation, for network errors and 5xx
	maxPauses  = 5       // of one operation, for 429
	maxAnswer  = 1 << 20 // bytes
	// maxUnavailable is the longest pause after a 503 that a flight waits for.
	// Beyond it callers had better know.
	maxUnavailable = 30 * time.Second

	// shortWhile is how long a token is used whose own answer says that it is
	// over. It is renewed before that, at most eight times a minute.
	shortWhile = 10 * time.Second
	// leastLeft is how much of a lifetime an answer must leave not to count as
	// over. Less would be a token request for each call.
	leastLeft = 50 * time.Millisecond
	// maxLifetime is longer than any token lives.
	maxLifetime = 10 * 365 * 24 * time.Hour
)

// A flight is one fetch of a token, whoever waits for it. Only its own
// goroutine changes it, but for stale; done publishes what it has become.
type flight struct {
	source  *Source
	wire    wire
	op      string
	trigger string
	current *lease // the token to renew; nil: there is none, and callers wait

	ctx    context.Context // ends when the flight has landed or starts over
	cancel context.CancelFunc
	stale  bool          // a token was rejected since it started; guarded by source.mu
	used   time.Duration // on the wire
	span   atomic.Pointer[trace.SpanContext]

	done  chan struct{} // closed when the flight has landed
	lease *lease
	err   error
}

func (f *flight) run() {
	start := time.Now()
	ctx, span := f.wire.startFetch(f.ctx, f.op, f.trigger, f.current != nil)
	f.ctx = ctx
	link := span.SpanContext()
	f.span.Store(&link)
	for !f.source.land(f, f.fetch()) {
	}
	// landing has ended ctx, which must not look like a caller's cancellation
	f.wire.endFetch(context.WithoutCancel(ctx), span, start, f.op, f.trigger, f.err)
	close(f.done)
}

// fetched is what an exchange brought: a lease, or why there is none.
type fetched struct {
	lease *lease
	err   *AuthError
	again bool // another try may help
}

// fetch gets a token, by login where a refresh was no use.
func (f *flight) fetch() fetched {
	if f.op == refresh {
		if got := f.try(); got.lease != nil || f.ctx.Err() != nil {
			return got
		}
		f.op = login
	}
	return f.try()
}

// try repeats one operation while that may help: after a while for network
// errors and 5xx, after the pause that the partner asked for after 429.
func (f *flight) try() fetched {
	tries, pauses := 0, 0
	for {
		got := f.exchange(tries + pauses)
		if !got.again || f.ctx.Err() != nil || f.left() <= 0 {
			return got
		}
		wait := max(got.err.RetryAfter, backoff(tries+pauses, 250*time.Millisecond, time.Second))
		if got.err.StatusCode == http.StatusTooManyRequests {
			pauses++
		} else {
			tries++
		}
		if tries == maxTries || pauses > maxPauses {
			return got
		}
		select {
		case <-time.After(wait):
		case <-f.ctx.Done():
			return got
		}
	}
}

// left is how long the next request may take.
func (f *flight) left() time.Duration {
	left := wireLimit - f.used
	if f.op == refresh {
		left -= loginShare
	}
	if f.used == 0 {
		left = min(left, hangLimit)
	}
	return left
}

// exchange makes one request and reads its answer.
func (f *flight) exchange(resend int) fetched {
	a := &attempt{permit: permit{urgent: true}, origin: f.source.provider.origin, resend: resend}
	if _, err := f.wire.admit(f.ctx, a); err != nil {
		return f.failed(0, err)
	}
	var current string
	if f.op == refresh {
		if !f.current.good(time.Now()) {
			f.wire.giveBack(a)
			return f.failed(0, errors.New("the token ended before its turn came"))
		}
		current = f.current.token.AccessToken
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.left())
	defer cancel()
	req, err := f.source.provider.request(ctx, f.op, current)
	if err != nil {
		f.wire.giveBack(a)
		return f.failed(0, err)
	}

	a.body.ReadCloser = bodyOf(req)
	sent := time.Now()
	resp, err := f.wire.send(ctx, req, a)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		resp.Body.Close()
	}
	f.used += time.Since(sent)
	if err != nil && (resp == nil || resp.StatusCode/100 == 2) { // what refuses needs no body
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		got := f.failed(0, withoutAnswer(err))
		got.again = true
		return got
	}
	return f.judge(resp, body, sent, a.pause)
}

// judge makes a lease of an answer, or an error that tells what is wrong with it.
func (f *flight) judge(resp *http.Response, body []byte, sent time.Time, pause time.Duration) fetched {
	received := time.Now()
	status := resp.StatusCode
	reason := statusText(status)
	var token string
	var lifetime time.Duration
	var err error
	switch {
	case status >= 300 && status < 400:
		err = errors.New("a redirect, which is not followed")
	case status < 200 || status > 299:
		if why := f.source.provider.hints[status]; why != "" {
			reason += ": " + why
		}
		got := f.failed(status, &answerError{reason, f.answer(resp, body)})
		got.err.RetryAfter = pause
		got.again = status == http.StatusTooManyRequests || status >= 500 && pause <= maxUnavailable
		return got
	case len(body) > maxAnswer:
		err, body = errors.New("the answer is larger than 1 MiB"), nil
	default:
		token, lifetime, err = f.source.provider.read(body, resp.Header)
		body = nil // it may have a token in it that is good
	}
	if err == nil && !sendable(token) {
		err = errors.New("the token has characters that a header cannot have")
	}
	if err != nil {
		return f.failed(status, &answerError{reason + ": " + err.Error(), f.answer(resp, body)})
	}
	return fetched{lease: newLease(token, min(lifetime, maxLifetime), sent, received)}
}

func (f *flight) failed(status int, err error) fetched {
	return fetched{err: &AuthError{Provider: f.source.provider.name, Op: f.op, StatusCode: status, Err: err}}
}

// answer keeps of resp what helps to find out what went wrong, but no body that
// has a secret in it.
func (f *flight) answer(resp *http.Response, body []byte) *oauth2.RetrieveError {
	header, secrets := http.Header{}, f.secrets()
	for _, name := range []string{"Content-Type", "Date", "Retry-After", "X-Request-Id"} {
		if v := resp.Header.Get(name); v != "" {
			header.Set(name, scrub(v, secrets...))
		}
	}
	if text := string(body); len(body) > maxAnswer || scrub(text, secrets...) != text {
		body = nil
	}
	return &oauth2.RetrieveError{
		Response: &http.Response{
			Status: statusText(resp.StatusCode), StatusCode: resp.StatusCode,
			Proto: resp.Proto, ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
			Header: header, Body: http.NoBody,
		},
		Body: body,
	}
}

// secrets are all that may come back in an answer.
func (f *flight) secrets() []string {
	secrets := f.source.provider.secrets
	if f.current != nil {
		secrets = append(slices.Clip(secrets), f.current.token.AccessToken)
	}
	return secrets
}

// newLease makes a lease that counts from when its request was sent, since the
// partner began to count no earlier.
func newLease(token string, lifetime time.Duration, sent, received time.Time) *lease {
	l := &lease{authorization: []string{"Bearer " + token}, ends: sent.Add(lifetime)}
	if l.ends.Sub(received) < leastLeft {
		l.spent, lifetime, sent = true, shortWhile, received
		l.ends = received.Add(shortWhile)
	}
	// between 75 % and 85 %, so that many processes do not renew at once
	l.renew = sent.Add(lifetime*3/4 + rand.N(lifetime/10+1))
	l.token = &oauth2.Token{AccessToken: token, TokenType: "Bearer", Expiry: l.ends}
	return l
}

// sendable reports whether token can stand in a header: visible ASCII.
func sendable(token string) bool {
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return token != ""
}

// jwtLifetime reads exp minus iat from a token, if it is a JWT that has both
// (RFC 7519). Its signature is not ours to check.
func jwtLifetime(token string) (time.Duration, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, false
	}
	var claims struct{ Exp, Iat *float64 }
	if json.Unmarshal(payload, &claims) != nil || claims.Exp == nil || claims.Iat == nil {
		return 0, false
	}
	return seconds(*claims.Exp - *claims.Iat), true
}

// seconds is n seconds, or as much of it as a lifetime can be.
func seconds(n float64) time.Duration {
	limit := maxLifetime.Seconds()
	return time.Duration(max(-limit, min(limit, n)) * float64(time.Second))
}
