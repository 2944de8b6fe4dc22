package partnerauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

const (
	wireLimit = 30 * time.Second // for all requests of one fetch together, waits not counted
	// loginShare is what a refresh leaves of wireLimit for the login after it.
	loginShare = 10 * time.Second
	// frozenTime is how much longer than its limit a request takes if the process
	// stood still meanwhile. It is then tried again as if it had not been.
	frozenTime = time.Second
	// lostToDate is how much sooner a token may end than exp and Date tell, which
	// have no fractions.
	lostToDate = time.Second
	maxTries   = 3       // of one operation, for network errors and 5xx
	maxPauses  = 5       // of one operation, for 429 and for times when the process stood still
	maxAnswer  = 1 << 20 // bytes
	// maxUnavailable is the longest pause after a 503 that a fetch waits for. A
	// longer one is returned to callers as an error.
	maxUnavailable = 31 * time.Second // 30 s, and what rounding may have lost
)

var (
	errOvertaken = errors.New("a token was rejected meanwhile")
	errFrozen    = errors.New("the process stood still")
	errExpired   = errors.New("the token has expired")
)

// Why a token is fetched. The other reason is unauthorized.
const (
	missing  = "missing"
	expiring = "expiring"
)

// A fetch gets one token, whoever waits for it. It builds the request, and sends nothing
// if that request was refused before. Otherwise it refreshes, or signs in if there is
// nothing to refresh or that fails. It ends with a lease, an error, or neither if a
// rejection has overtaken it.
type fetch struct {
	account  *account
	sender   *sender // of the Transport that needs the token, with the Base of token requests
	began    time.Time
	trigger  string
	last     *lease   // the token before, which may have ended or been rejected; nil: none
	unusable []string // tokens that a Store may have, but not one that is fetched

	// ctx ends with the fetch, or when a rejection has overtaken it. Its cause is then the
	// *AuthError, errOvertaken, or context.Canceled if there is a lease.
	ctx    context.Context
	end    context.CancelCauseFunc
	wanted atomic.Bool                // a caller waits for it
	lease  atomic.Pointer[lease]      // set before a Store has it
	queued atomic.Bool                // it waits for a permit
	span   atomic.Pointer[trace.Span] // nil: there is nothing to show yet

	// Only its own goroutine uses what follows.
	store     Store         // nil: there is none, or it has failed
	refreshes *oauth2.Token // that Refresh is called with; nil: none
	refusal   refusal       // of sign-ins so far
	used      time.Duration // on the wire
}

// renews returns the token that f renews before it ends; nil if callers wait for one.
func (f *fetch) renews() *lease {
	if f.trigger == expiring && f.last.isGood(f.began) {
		return f.last
	}
	return nil
}

// waitsFor returns what f waits for, if that is a permit, for a caller whose context has
// ended: what is wrong with the Limiter, or that it takes too long.
func (f *fetch) waitsFor(ctx context.Context) error {
	if !f.queued.Load() {
		return nil
	}
	return f.sender.queue.gaveUp(&waiter{ticket: forToken, ctx: ctx})
}

// run fetches, in the trace of parent. Whatever foreign code does in it, finish is called
// with a lease, an error, or neither if it is best to look again for what there is.
func (f *fetch) run(parent trace.SpanContext, finish func(*fetch, *lease, *AuthError)) {
	ctx := trace.ContextWithSpanContext(f.ctx, parent)
	var l *lease
	err := f.failed(login, 0, errGoexit)
	defer func() {
		if value := recover(); value != nil {
			l, err = nil, f.failed(login, 0, errPanic(value))
		}
		defer finish(f, l, err)      // when its span has ended: the program may end then
		defer func() { recover() }() // of telemetry
		f.endSpan(ctx, l, err)
	}()
	l, err = f.get(ctx)
}

// get gets a token from the Store, or else from the partner while other processes wait
// for it there. A Store that fails, or whose lock is stuck, is passed over.
func (f *fetch) get(ctx context.Context) (*lease, *AuthError) {
	lockTime := wireLimit
	if f.account.savesBeforeExit() {
		lockTime = 2 * time.Second // a program may have been stopped for good while it had the lock
	}
	for {
		if l, err := f.stored(ctx); l != nil || err != nil {
			return l, err
		}
		lock, err := lockRecord(ctx, f.store, f.account.key)
		f.note(ctx, err)
		switch {
		case lock != nil:
			return f.locked(ctx, lock)
		case f.store == nil || time.Since(f.began) > lockTime:
			return f.fromPartner(ctx)
		case f.account.savesBeforeExit() && !f.wanted.Load():
			return nil, nil // another process renews the token
		}
		if !sleep(ctx, 20*time.Millisecond+rand.N(180*time.Millisecond)) {
			return nil, f.failed(login, 0, ctx.Err())
		}
	}
}

// locked gets a token under the Store's lock, and saves it, or a refusal for as long as
// that is to be remembered.
func (f *fetch) locked(ctx context.Context, lock Lock) (*lease, *AuthError) {
	defer func() { f.note(ctx, unlockRecord(ctx, lock)) }()
	if l, err := f.stored(ctx); l != nil || err != nil { // since then
		return l, err
	}
	l, err := f.fromPartner(ctx)
	f.lease.Store(l) // a rejection may overtake it while it is saved
	switch {
	case ctx.Err() != nil:
	case l != nil && l.from != fromStore:
		t, good := l.token, time.Until(l.ends)
		f.note(ctx, saveRecord(ctx, lock, record{Token: t.AccessToken, Type: t.TokenType, Refresh: t.RefreshToken, Lifetime: good}, good))
	case err != nil && err == f.refusal.err:
		f.note(ctx, saveRecord(ctx, lock, record{
			Refused: true, Digest: salted(f.refusal.digest, f.account.key), Count: f.refusal.count,
			Wrong: errors.Is(err, ErrCredentials), Status: err.StatusCode,
		}, err.RetryAfter+countTime))
	}
	return l, err
}

// note passes over the Store from now on if err is its failure, and not of the end of
// ctx.
func (f *fetch) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && f.store != nil {
		f.store = nil
		span := trace.SpanFromContext(f.traced(ctx, fromStore))
		span.AddEvent("partnerauth.store.failed", trace.WithAttributes(semconv.ErrorTypeKey.String(errorType(err))))
	}
}

// stored returns what the Store has, if it is of use: a token that is neither the last
// one nor one that was rejected, or a refusal of the same request. A refusal is of no
// use for a refresh: the session may go on all the same.
func (f *fetch) stored(ctx context.Context) (*lease, *AuthError) {
	r, left, err := loadRecord(ctx, f.store, f.account.key)
	f.note(ctx, err)
	switch {
	case sendable(r.Token) && left >= minLifetime && r.Token != f.last.text() && !slices.Contains(f.unusable, r.Token):
	case f.refusal.holds(f.began) && !f.refusal.asks:
		return nil, f.refusal.err.again(time.Now())
	case r.Refused && f.refreshes == nil:
		return nil, f.refusedElsewhere(ctx, r, left)
	default:
		return nil, nil
	}
	issued := time.Now().Add(min(0, left-r.Lifetime))
	token := &oauth2.Token{AccessToken: r.Token, TokenType: r.Type, RefreshToken: r.Refresh}
	l := newLease(token, max(r.Lifetime, left), issued, time.Now())
	l.issued, l.from = issued, fromStore
	return l, nil
}

// refusedElsewhere returns the refusal of the same request to another process; nil if
// there is none.
func (f *fetch) refusedElsewhere(ctx context.Context, r record, left time.Duration) *AuthError {
	_, digest, _, err := f.build(ctx, login)
	if err != nil {
		return nil
	}
	count := min(max(r.Count, 1), len(refusalTimes))
	if r.Count > 0 {
		left -= countTime // in which it is only counted
	}
	switch left = min(left, refusalTimes[len(refusalTimes)-1]*3/2); {
	case f.refusal.holds(time.Now()) && digest == f.refusal.digest:
		return f.refusal.err.again(time.Now())
	case !bytes.Equal(salted(digest, f.account.key), r.Digest):
		return nil
	case left <= 0:
		f.refusal.count = max(f.refusal.count, count)
		return nil
	}
	refused := f.answered(login, &http.Response{StatusCode: r.Status}, "", true, credentialsIf(r.Wrong))
	refused.RetryAfter = left
	f.refusal = refusal{setback: setback{err: refused, count: count, until: refused.At.Add(left)}, digest: digest}
	return refused
}

// fromPartner gets a token from the partner: by refresh, and where that was no use by
// login.
func (f *fetch) fromPartner(ctx context.Context) (*lease, *AuthError) {
	if f.refreshes != nil {
		l, err := f.try(ctx, refresh)
		if l != nil || ctx.Err() != nil {
			return l, err
		}
		f.refusal.ofRefresh = err.isRefusal() || err.RetryAfter > 0 && f.renews() == nil
		if !f.sitsOut(ctx, err.RetryAfter) {
			return nil, err
		}
		f.refreshes = nil
		if l, err := f.stored(ctx); l != nil || err != nil { // what was no use for a refresh
			return l, err
		}
	}
	return f.try(ctx, login)
}

// sitsOut waits for the pause that the answer to a refresh asks for, which counts for a
// login as well, and reports whether it did: not if nobody waits for f, or for long.
func (f *fetch) sitsOut(ctx context.Context, wait time.Duration) bool {
	return wait <= 0 || f.wanted.Load() && wait <= maxUnavailable && sleep(ctx, wait)
}

// try repeats one operation while that may help and somebody waits for it: after a
// while for network errors and 5xx, after the pause that the partner asked for after a
// 429.
func (f *fetch) try(ctx context.Context, op string) (*lease, *AuthError) {
	tries, pauses := 0, 0
	for {
		l, err := f.exchange(ctx, op, tries+pauses)
		if err == nil || !mayPass(err) {
			return l, err
		}
		wait := max(err.RetryAfter, backoff(tries+pauses, 250*time.Millisecond, time.Second))
		switch {
		case errors.Is(err, errFrozen):
			pauses++
			wait = 0
		case !f.wanted.Load() || op == refresh && err.StatusCode == http.StatusTooManyRequests:
			return nil, err
		case err.StatusCode == http.StatusTooManyRequests:
			pauses++
		default:
			tries++
		}
		if tries == maxTries || pauses > maxPauses || f.left(op) <= 0 || !sleep(ctx, wait) {
			return nil, err
		}
	}
}

// mayPass reports whether another try may help.
func mayPass(err *AuthError) bool {
	switch status := err.StatusCode; {
	case err.sentNothing || err.Op == "config" || errors.Is(err, errOwnBase):
		return false
	case status == 0 || status == http.StatusTooManyRequests || errors.Is(err, errExpired):
		return true
	default:
		return (status >= 500 || slices.Contains(unconsidered, status)) && err.RetryAfter <= maxUnavailable
	}
}

// unconsidered are the statuses of 4xx that say nothing of the request.
var unconsidered = []int{http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}

// sleep waits for d, and reports whether ctx went on for that long.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// left returns how long the next request may take.
func (f *fetch) left(op string) time.Duration {
	left := wireLimit - f.used
	if op == refresh {
		left -= loginShare
	}
	return left
}

// build asks the provider for the request of an operation, and prepares it.
func (f *fetch) build(ctx context.Context, op string) (*http.Request, string, *origin, error) {
	var req *http.Request
	discard := func(error) {
		if req != nil {
			closeBody(req.Body)
		}
	}
	err := bounded(ctx, wireLimit, discard, func(ctx context.Context) (err error) {
		if op == refresh {
			req, err = f.account.Refresh(ctx, f.refreshes)
		} else {
			req, err = f.account.SignIn(ctx)
		}
		return err
	})
	if err != nil {
		return nil, "", nil, err
	}
	digest, to, err := prepare(req)
	return req, digest, to, err
}

// exchange is one try of an operation: a request is built and sent, and its answer
// read.
func (f *fetch) exchange(ctx context.Context, op string, resend int) (*lease, *AuthError) {
	req, digest, to, err := f.build(ctx, op)
	if err != nil {
		return nil, f.failed("config", 0, err)
	}
	if op == login && f.heldBack(ctx, digest) {
		return nil, f.refusal.err.again(time.Now())
	}
	ctx = f.traced(ctx, op)
	a := &attempt{
		sender: f.sender, origin: to, endpoint: newEndpoint(to.host, to.portNumber(), f.sender.telemetry.provider), body: req.Body,
		template: templateOf(req.Context()), forToken: true, resend: resend, mostPause: !f.wanted.Load(),
	}
	a.permit, err = f.acquire(ctx)
	if err == nil && op == refresh && f.refreshes.RefreshToken == "" && !f.last.isGood(time.Now()) {
		f.sender.giveBack(a.permit)
		err = errors.New("the token ended before its turn came")
	}
	if err != nil {
		failed := f.failed(op, 0, err)
		failed.sentNothing = true
		return nil, failed
	}
	l, failed := f.send(ctx, op, req, a)
	if op == login && failed != nil && failed.isRefusal() {
		f.refusal = f.refusal.with(failed, digest)
	}
	return l, failed
}

// heldBack reports whether a refusal holds back a sign-in with that digest: it is the
// request that was refused, or SignIn returns another one each time.
func (f *fetch) heldBack(ctx context.Context, digest string) bool {
	if !f.refusal.holds(time.Now()) || digest == f.refusal.digest {
		return f.refusal.holds(time.Now())
	}
	_, second, _, err := f.build(ctx, login)
	f.refusal.varies = err != nil || second != digest
	return f.refusal.varies
}

// acquire waits for a permit.
func (f *fetch) acquire(ctx context.Context) (permit, error) {
	f.queued.Store(true)
	defer f.queued.Store(false)
	p, _, err := f.sender.acquire(ctx, false, func() (permit, error) { return f.inTurn(ctx) })
	return p, err
}

// inTurn waits before all callers if there are some who wait for f, or will: a renewal
// lets them go first until its turn would come after the end of the token, when the queue
// refuses it.
func (f *fetch) inTurn(ctx context.Context) (permit, error) {
	q := f.sender.queue
	if !f.wanted.Load() {
		patient, cancel := context.WithDeadline(ctx, f.last.ends)
		defer cancel()
		if p, err := q.acquire(patient, q.newTicket(forLater), nil); err == nil {
			return p, nil
		}
	}
	return q.acquire(ctx, q.newTicket(forToken), nil)
}

// send sends the request and reads its answer.
func (f *fetch) send(ctx context.Context, op string, req *http.Request, a *attempt) (*lease, *AuthError) {
	limit := f.left(op)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sent := time.Now()
	resp, err := f.sender.send(ctx, req, a)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		resp.Body.Close()
	}
	received := time.Now()
	took := received.Sub(sent)
	if err == nil || resp != nil && resp.StatusCode/100 != 2 { // a refusal needs no body
		f.used += took
		l, failed := f.read(op, resp, body, sent, received)
		if resp.StatusCode == http.StatusTooManyRequests {
			failed.RetryAfter = a.pause
		}
		return l, failed
	}
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("no answer in time: %w", err)
	}
	err = withText(err, networkText(err))
	if took > limit+frozenTime {
		err = fmt.Errorf("%w: %w", errFrozen, err)
	} else {
		f.used += took
	}
	return nil, f.failed(op, 0, err)
}

// read makes a lease of an answer, or an error that says what is wrong with it.
func (f *fetch) read(op string, resp *http.Response, body []byte, sent, received time.Time) (*lease, *AuthError) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")) // a byte order mark, which RFC 8259 lets us ignore
	switch {
	case resp.StatusCode/100 == 3:
		return nil, f.answered(op, resp, "a redirect, which is not followed", false, nil)
	case isRefusal(resp, body, received):
		word := errorWord(body)
		return nil, f.answered(op, resp, word, true, credentialsIf(isWrong(resp.StatusCode, word)))
	case resp.StatusCode/100 != 2:
		return nil, f.answered(op, resp, "", false, nil)
	case len(body) > maxAnswer:
		return nil, f.answered(op, resp, "the answer is larger than 1 MiB", false, nil)
	}
	token, err := f.readToken(resp, body)
	if err != nil {
		return nil, f.answered(op, resp, err.Error(), errors.Is(err, ErrCredentials), err)
	}
	date, _ := http.ParseTime(resp.Header.Get("Date"))
	lifetime, ok := lifetimeOf(token, date, sent)
	if !ok {
		lifetime = f.account.lifetime
	}
	// known is a token that was good and is not to be had for longer by this answer.
	known := f.last != nil && !f.last.expiredOnArrival && (f.renews() != nil || f.last.text() == token.AccessToken)
	if known && sent.Add(lifetime).Sub(f.last.ends) < 2*lostToDate {
		lifetime -= lostToDate // nobody extends it, so it will be used to its end
	}
	l := newLease(token, lifetime, sent, received)
	l.from = op
	if l.expiredOnArrival && known {
		failed := f.answered(op, resp, errExpired.Error(), false, errExpired)
		failed.RetryAfter = max(failed.RetryAfter, lostToDate) // the partner will notice
		return nil, failed
	}
	return l, nil
}

// readToken has the provider read the answer, and checks the token.
func (f *fetch) readToken(resp *http.Response, body []byte) (*oauth2.Token, error) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, fmt.Errorf("the answer has a Content-Encoding, %s, that was not undone: Base asks for it", named(encoding, "gzip", "deflate", "br", "zstd", "compress"))
	}
	read, err := f.account.ReadToken(resp.Header, body)
	switch {
	case err != nil:
		return nil, err
	case read == nil || read.AccessToken == "":
		return nil, errors.New("no token")
	}
	token := *read
	if scheme, rest, ok := strings.Cut(token.AccessToken, " "); ok && strings.EqualFold(scheme, "Bearer") {
		token.AccessToken = strings.TrimSpace(rest)
	}
	switch {
	case f.account.Refresh == nil:
		token.RefreshToken = "" // it is of no use
	case token.RefreshToken == "" && f.refreshes != nil:
		token.RefreshToken = f.refreshes.RefreshToken
	}
	switch {
	case len(token.AccessToken) > maxToken:
		return nil, errors.New("the token is longer than 16 KiB")
	case !sendable(token.AccessToken) || !sendable(token.Type()):
		return nil, errors.New("the token has characters that a header cannot have")
	}
	return &token, nil
}

// named returns the word that equals s, or "unknown", so that nothing of a server's own
// words is shown.
func named(s string, words ...string) string {
	for _, word := range words {
		if strings.EqualFold(s, word) {
			return word
		}
	}
	return "unknown"
}

// isRefusal reports whether an answer is of status 4xx and the partner's considered one
// to the request: not a limit, nor the page of a proxy or a firewall.
func isRefusal(resp *http.Response, body []byte, now time.Time) bool {
	status := resp.StatusCode
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	_, limited := retryAfter(resp.Header, now)
	switch {
	case status/100 != 4 || slices.Contains(unconsidered, status):
		return false
	case kind == "text/html" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")):
		return false
	case limited && (status == http.StatusForbidden || status == http.StatusBadRequest):
		return false
	}
	return status == http.StatusUnauthorized || kind == "application/json" || strings.HasSuffix(kind, "+json") || json.Valid(body)
}

func credentialsIf(wrong bool) error {
	if wrong {
		return ErrCredentials
	}
	return nil
}

// answered returns the error of an answer without a token, which may be a refusal. The
// partner's page may say what the status of a refusal means. The next request is not
// sent sooner than the answer asks for.
func (f *fetch) answered(op string, resp *http.Response, why string, refusal bool, cause error) *AuthError {
	if refusal && why == "" {
		why = f.account.Hints[resp.StatusCode]
	}
	e := &answerError{reason: statusText(resp.StatusCode), refusal: refusal, cause: cause, answer: kept(resp, why)}
	if why != "" {
		e.reason += ": " + why
	}
	failed := f.failed(op, resp.StatusCode, e)
	failed.RetryAfter, _ = retryAfter(resp.Header, failed.At)
	return failed
}

func (f *fetch) failed(op string, status int, err error) *AuthError {
	return &AuthError{Provider: f.account.Name, Op: op, StatusCode: status, At: time.Now(), Err: err}
}

// kept returns the little of an answer that helps to find out what went wrong.
func kept(resp *http.Response, word string) *oauth2.RetrieveError {
	header := http.Header{}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		header.Set("Date", date.UTC().Format(http.TimeFormat))
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		header.Set("Content-Type", named(kind, "application/json", "application/problem+json", "text/html", "text/plain"))
	}
	if id := resp.Header.Get("X-Request-Id"); len(id) <= 64 && strings.Trim(id, "0123456789abcdefABCDEF-") == "" {
		header.Set("X-Request-Id", id)
	}
	e := &oauth2.RetrieveError{Response: &http.Response{
		Status: statusText(resp.StatusCode), StatusCode: resp.StatusCode, Header: header, Body: http.NoBody,
	}}
	if _, ok := errorWords[word]; ok {
		e.ErrorCode = word
	}
	return e
}

// traced returns ctx with the span of the fetch, which it makes if there is none yet: a
// fetch that sends nothing has none.
func (f *fetch) traced(ctx context.Context, op string) context.Context {
	span := f.span.Load()
	if span == nil {
		_, started := f.sender.telemetry.startFetch(ctx, f.began, op, f.trigger, f.renews() != nil)
		span = &started
		f.span.Store(span)
	}
	return trace.ContextWithSpan(ctx, *span)
}

// endSpan ends the span of the fetch, if it did anything.
func (f *fetch) endSpan(ctx context.Context, l *lease, err *AuthError) {
	op, failed, sentNothing := refresh, failure{}, err == nil || err.sentNothing
	switch {
	case l != nil:
		op, sentNothing = l.from, false
	case err != nil:
		op, failed = err.Op, failure{errorType(err), description(err)}
	}
	if sentNothing && f.span.Load() == nil {
		return
	}
	ctx = f.traced(ctx, op)
	f.sender.telemetry.endFetch(trace.SpanFromContext(ctx), op, f.trigger, failed)
	if !sentNothing {
		f.sender.telemetry.metrics.recordFetch(ctx, time.Since(f.began), op, f.trigger, failed.kind)
	}
}

// spanContext returns that of f's span, as far as there is one.
func (f *fetch) spanContext() trace.SpanContext {
	if span := f.span.Load(); span != nil {
		return (*span).SpanContext()
	}
	return trace.SpanContext{}
}

// A setback is what the failures since the last success have led to.
type setback struct {
	err      *AuthError // the last failure
	count    int
	until    time.Time // no fetch starts before
	renewals bool      // except one that callers wait for
}

func (b *setback) holds(now time.Time) bool { return now.Before(b.until) }

// with returns the setback after another failure. After a 429 to a renewal, callers wait
// for the queue, for a window at most. After a 200, they may find the token replaced.
func (b setback) with(err *AuthError, renewal bool) setback {
	err.RetryAfter = max(err.RetryAfter, backoff(b.count, 500*time.Millisecond, 30*time.Second))
	wait, limited := err.RetryAfter, err.StatusCode == http.StatusTooManyRequests
	if renewal && limited {
		wait <<= min(b.count, 4) // each pauses callers again
	}
	return setback{err, b.count + 1, err.At.Add(wait), renewal && (limited || err.StatusCode == http.StatusOK)}
}

// A refusal is the setback by the partner's considered answers to credentials. It holds
// back the same request only.
type refusal struct {
	setback
	digest    string    // of the request that was refused
	varies    bool      // SignIn returns another request each time, so time alone counts
	asks      bool      // the fetch that has it may ask SignIn for another request
	asked     time.Time // when such a fetch last began
	ofRefresh bool      // the last token's RefreshToken is of no use
}

// refusalTimes are how long refused credentials are not sent again, the last for all
// that follow: partners lock accounts, for the process with the new password as well
// as for the one with the old. That is at most 10 requests in the first hour and about
// 100 a day.
var refusalTimes = [...]time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 15 * time.Minute,
}

// mayAsk reports whether SignIn may be asked for another request. It may ask a vault, so
// once a second is enough.
func (r *refusal) mayAsk(now time.Time) bool { return !r.varies && now.Sub(r.asked) >= time.Second }

// with returns the refusal after another one.
func (r refusal) with(err *AuthError, digest string) refusal {
	wait := refusalTimes[min(r.count, len(refusalTimes)-1)]
	err.RetryAfter = max(err.RetryAfter, wait+rand.N(wait/2))
	r.setback = setback{err: err, count: r.count + 1, until: err.At.Add(err.RetryAfter)}
	r.digest, r.asked = digest, time.Time{}
	return r
}

// backoff returns the wait after n failures: at least first, doubling, at most most,
// spread over half of itself so that many processes do not come at once.
func backoff(n int, first, most time.Duration) time.Duration {
	d := most * 2 / 3
	if n < 16 {
		d = min(d, first<<n)
	}
	return d + rand.N(d/2)
}
