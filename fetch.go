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
	maxPauses  = 5       // of one operation, for 429
	maxAnswer  = 1 << 20 // bytes
	// maxUnavailable is the longest pause after a 503 that a fetch waits for. A
	// longer one is returned to callers as an error.
	maxUnavailable = 31 * time.Second // 30 s, and what rounding may have lost
)

// A fetch gets one token, whoever waits for it. It builds the request, and sends nothing
// if that request was refused before. Otherwise it refreshes, or signs in if there is
// nothing to refresh or that fails. It ends with a lease, an error, or neither if a
// rejection has overtaken it.
type fetch struct {
	account *account
	known   *knownTokens
	way     *sender // of the Transport that needs the token
	sender  *sender // the way, with the Base of token requests
	began   time.Time
	plan    fetchPlan

	wanted context.Context    // has ended when a caller waits for it
	want   context.CancelFunc // ends wanted
	done   chan struct{}      // closed at its end, or when a rejection has overtaken it
	got    result             // set before done is closed, unless it was overtaken
	cancel context.CancelFunc
	queued atomic.Bool           // it waits for a permit
	saving atomic.Pointer[lease] // that it has got

	// Only its own goroutine uses what follows.
	vault *vault        // nil: there is no Store
	used  time.Duration // on the wire
	trace fetchTrace
}

// A fetchPlan is the reason for a fetch, and its inputs. Only its own goroutine uses it.
type fetchPlan struct {
	trigger   string
	renews    *lease        // nil: there is no token, and callers wait
	refreshes *oauth2.Token // that Refresh is called with; nil: none
	refusal   refusal       // of earlier sign-ins
}

// A fetchTrace is the span of a fetch, made when there is something to show.
type fetchTrace struct {
	parent  trace.SpanContext
	span    trace.Span // nil: not yet
	context atomic.Pointer[trace.SpanContext]
}

// A result is what a fetch, or a part of it, leads to.
type result struct {
	lease *lease
	from  string // how the token was fetched
	err   *AuthError

	again         bool    // another try may help
	frozen        bool    // the process stood still, so that the try does not count
	sentNothing   bool    // the partner was not asked
	forgetRefresh bool    // the RefreshToken was refused
	refusal       refusal // if err is one
}

// newFetch returns a fetch for run, which is to be called with the context that is
// returned.
func newFetch(account *account, known *knownTokens, way *sender, now time.Time, plan fetchPlan) (*fetch, context.Context) {
	f := &fetch{account: account, known: known, way: way, sender: way, began: now, plan: plan, done: make(chan struct{})}
	if account.Base != nil {
		f.sender = way.withBase(account.Base)
	}
	f.wanted, f.want = context.WithCancel(context.Background())
	if plan.renews == nil {
		f.want() // by whoever starts it, and before it may have failed
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	return f, ctx
}

func (f *fetch) isWanted() bool { return f.wanted.Err() != nil }

// waitsFor returns what f waits for, if that is a permit, for a caller whose context has
// ended: what is wrong with the Limiter, or that it takes too long.
func (f *fetch) waitsFor(ctx context.Context) error {
	if !f.queued.Load() {
		return nil
	}
	q := f.sender.queue
	if cause := q.trouble(ctx); cause != nil {
		return cause
	}
	if ctx.Err() != context.DeadlineExceeded {
		return nil
	}
	return &RateLimitError{wait: q.wait(time.Now(), forToken)}
}

// run fetches. Whatever foreign code does in it, finish is called with a result.
func (f *fetch) run(ctx context.Context, parent trace.SpanContext, finish func(*fetch, result)) {
	f.trace.parent = parent
	got := f.failed(login, 0, errGoexit)
	defer f.cancel()
	defer func() {
		if value := recover(); value != nil {
			got = f.failed(login, 0, errPanic(value))
		}
		defer finish(f, got)         // when its span has ended: the program may end then
		defer func() { recover() }() // of telemetry
		f.endSpan(ctx, got)
	}()
	got = f.get(ctx)
}

// get gets a token from the Store or the partner.
func (f *fetch) get(ctx context.Context) result {
	store := f.account.Store
	if store == nil {
		return f.fromPartner(ctx)
	}
	f.vault = &vault{store: store, key: f.account.key, failed: func(err error) {
		f.traced(ctx, fromStore)
		f.trace.span.AddEvent("partnerauth.store.failed", trace.WithAttributes(semconv.ErrorTypeKey.String(errorType(err))))
	}}
	return f.throughStore(ctx)
}

// throughStore gets a token from the Store, or else from the partner while other
// processes wait for it there. A Store that fails, or whose lock is stuck, is passed
// over.
func (f *fetch) throughStore(ctx context.Context) result {
	for {
		if got, ok := f.stored(ctx, f.plan.refreshes != nil); ok {
			return got
		}
		lock, ok := f.vault.tryLock(ctx)
		switch {
		case lock != nil:
			return f.locked(ctx, lock)
		case !ok && ctx.Err() == nil || time.Since(f.began) > f.lockTime():
			return f.fromPartner(ctx)
		case f.account.savesBeforeExit() && f.plan.renews != nil && !f.isWanted(): // another process renews it
			return result{err: f.failed(refresh, 0, errRenewedElsewhere).err, sentNothing: true}
		}
		if !sleep(ctx, 20*time.Millisecond+rand.N(180*time.Millisecond)) {
			return f.failed(login, 0, ctx.Err())
		}
	}
}

// lockTime returns how long the lock of another process is waited for. That of a
// program may be stopped for ever, and whoever runs the next one waits for it.
func (f *fetch) lockTime() time.Duration {
	if f.account.savesBeforeExit() {
		return 2 * time.Second
	}
	return wireLimit
}

var errRenewedElsewhere = errors.New("another process renews the token")

// locked gets a token under the Store's lock, and saves it.
func (f *fetch) locked(ctx context.Context, lock Lock) result {
	defer f.vault.unlock(ctx, lock)
	if got, ok := f.stored(ctx, f.plan.refreshes != nil); ok { // since then
		return got
	}
	got := f.fromPartner(ctx)
	f.saving.Store(got.lease) // a rejection may overtake it while it is saved
	if ctx.Err() == nil {
		f.save(ctx, lock, &got)
	}
	return got
}

// stored returns what the Store has, if it is of use: a token that is neither the one to
// be renewed nor one that was rejected, or a refusal of the same request. A refusal is
// of no use for a refresh: the session may go on all the same.
func (f *fetch) stored(ctx context.Context, forRefresh bool) (result, bool) {
	if f.vault == nil {
		return result{}, false
	}
	r, left, ok := f.vault.load(ctx)
	switch {
	case !ok || r.Refused && forRefresh:
		return result{}, false
	case r.Refused:
		return f.refusedElsewhere(ctx, r, left)
	case !sendable(r.Token) || left < minLifetime || r.Token == f.plan.renews.text() || f.known.forbids(r.Token):
		return result{}, false
	}
	now := time.Now()
	issued := now.Add(min(0, left-r.Lifetime))
	token := &oauth2.Token{AccessToken: r.Token, TokenType: r.Type, RefreshToken: r.Refresh}
	l := newLease(token, max(r.Lifetime, left), issued, now)
	l.issued, l.fromStore = issued, true
	return result{lease: l, from: fromStore}, true
}

// refusedElsewhere returns the refusal of the same request to another process.
func (f *fetch) refusedElsewhere(ctx context.Context, r record, left time.Duration) (result, bool) {
	now := time.Now()
	if f.plan.refusal.holds(now) && !f.plan.refusal.mayAsk(f.began) {
		return f.held(now), string(r.Digest) == f.plan.refusal.record // as this process knows
	}
	req, digest, _, err := f.build(ctx, login)
	if err != nil {
		return result{}, false
	}
	closeBody(req.Body)
	known := digest == f.plan.refusal.digest && string(r.Digest) == f.plan.refusal.record // PBKDF2 takes its time
	if !known && !r.of(digest) {
		return result{}, false
	}
	if f.plan.refusal.holds(now) && digest == f.plan.refusal.digest {
		got := f.held(now)
		got.refusal.record = string(r.Digest)
		return got, true
	}
	if r.Count > 0 {
		left -= countTime // in which it is only counted
	}
	if left = min(left, refusalTimes[len(refusalTimes)-1]*3/2); left <= 0 {
		f.plan.refusal.count = max(f.plan.refusal.count, min(r.Count, len(refusalTimes)))
		return result{}, false
	}
	got := f.refused(login, &http.Response{StatusCode: r.Status}, "", r.Wrong)
	got.err.RetryAfter = left
	got.refusal = refusal{err: got.err, count: min(max(r.Count, 1), len(refusalTimes)), until: now.Add(left), digest: digest, record: string(r.Digest)}
	return got, true
}

// save puts the result into the Store: a token, or a refusal for as long as that is to
// be remembered.
func (f *fetch) save(ctx context.Context, lock Lock, got *result) {
	switch {
	case got.lease != nil && got.from != fromStore:
		good := time.Until(got.lease.ends)
		t := got.lease.token
		f.vault.save(ctx, lock, record{Token: t.AccessToken, Type: t.TokenType, Refresh: t.RefreshToken, Lifetime: good}, good)
	case got.lease == nil && !got.sentNothing && got.err.isRefusal():
		r := record{Refused: true, Wrong: errors.Is(got.err, ErrCredentials), Status: got.err.StatusCode, Count: got.refusal.count}
		r.setDigest(got.refusal.digest)
		got.refusal.record = string(r.Digest)
		f.vault.save(ctx, lock, r, got.err.RetryAfter+countTime)
	}
}

// fromPartner gets a token from the partner: by refresh, and where that was no use by
// login.
func (f *fetch) fromPartner(ctx context.Context) result {
	forgetRefresh := false
	if f.plan.refreshes != nil {
		got := f.try(ctx, refresh)
		if got.lease != nil || ctx.Err() != nil {
			return got
		}
		wait := got.err.RetryAfter // which counts for a login as well
		if wait > 0 && (!f.isWanted() || wait > maxUnavailable || !sleep(ctx, wait)) {
			return got
		}
		forgetRefresh = got.err.isRefusal()
		if got, ok := f.stored(ctx, false); ok { // what was no use for a refresh
			return got
		}
	}
	got := f.try(ctx, login)
	got.forgetRefresh = forgetRefresh
	return got
}

// try repeats one operation while that may help and somebody waits for it: after a
// while for network errors and 5xx, after the pause that the partner asked for after a
// 429.
func (f *fetch) try(ctx context.Context, op string) result {
	tries, pauses, frozen := 0, 0, 0
	for {
		got := f.exchange(ctx, op, tries+pauses+frozen)
		if !got.again || ctx.Err() != nil {
			return got
		}
		wait := max(got.err.RetryAfter, backoff(tries+pauses, 250*time.Millisecond, time.Second))
		switch {
		case got.frozen:
			frozen++
			wait = 0
		case got.err.StatusCode == http.StatusTooManyRequests:
			pauses++
		default:
			tries++
		}
		over := tries == maxTries || pauses > maxPauses || frozen > maxTries || f.left(op) <= 0
		if over || !got.frozen && !f.isWanted() || !sleep(ctx, wait) {
			return got
		}
	}
}

// sleep waits for d, and reports whether ctx went on for that long.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
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
func (f *fetch) build(ctx context.Context, op string) (*http.Request, requestDigest, *origin, error) {
	account := f.account
	req, err := bounded(ctx, wireLimit, discardRequest, func(ctx context.Context) (*http.Request, error) {
		if op == refresh {
			return account.Refresh(ctx, f.plan.refreshes)
		}
		return account.SignIn(ctx)
	})
	if err != nil {
		return nil, requestDigest{}, nil, err
	}
	digest, to, err := prepare(req)
	return req, digest, to, err
}

// discardRequest closes the body of a request that is not sent.
func discardRequest(req *http.Request, _ error) {
	if req != nil {
		closeBody(req.Body)
	}
}

// exchange is one try of an operation: a request is built and sent, and its answer
// read.
func (f *fetch) exchange(ctx context.Context, op string, resend int) result {
	if op == login && f.plan.refusal.holds(f.began) && !f.plan.refusal.mayAsk(f.began) {
		return f.held(time.Now()) // there is a Store, which was asked
	}
	req, digest, to, err := f.build(ctx, op)
	now := time.Now()
	switch {
	case err != nil:
		return result{err: &AuthError{Provider: f.account.Name, Op: "config", At: now, Err: err}}
	case op == login && f.plan.refusal.holds(now):
		if got, ok := f.checkRefusal(ctx, now, digest); !ok {
			closeBody(req.Body)
			return got
		}
	}
	spanned := f.traced(ctx, op)
	a := &attempt{
		sender: f.way, origin: to, endpoint: newEndpoint(to.host, to.portNumber(), f.sender.telemetry.provider), body: req.Body,
		template: templateOf(req.Context()), forToken: true, resend: resend, mostPause: f.plan.renews != nil && !f.isWanted(),
	}
	if a.permit, err = f.acquire(spanned); err != nil {
		closeBody(req.Body)
		got := f.failed(op, 0, err)
		got.sentNothing = true
		return got
	}
	if op == refresh && f.plan.renews != nil && !f.plan.renews.good(time.Now()) && f.plan.refreshes.RefreshToken == "" {
		closeBody(req.Body)
		f.sender.giveBack(a.permit)
		return f.failed(op, 0, errors.New("the token ended before its turn came"))
	}
	return f.send(spanned, op, req, digest, a)
}

// checkRefusal reports whether a sign-in request may be sent although one was refused:
// it is another one, and SignIn returns the same again.
func (f *fetch) checkRefusal(ctx context.Context, now time.Time, digest requestDigest) (result, bool) {
	if digest == f.plan.refusal.digest {
		return f.held(now), false
	}
	again, second, _, err := f.build(ctx, login)
	if err == nil {
		closeBody(again.Body)
	}
	if err == nil && second == digest {
		return result{}, true
	}
	got := f.held(now)
	got.refusal.varies = true
	return got, false
}

// held returns the refusal that holds.
func (f *fetch) held(now time.Time) result {
	return result{err: f.plan.refusal.err.again(now, f.plan.refusal.until), sentNothing: true}
}

// acquire waits for a permit. A renewal that nobody waits for lets callers go first,
// until one of them would find the token ended.
func (f *fetch) acquire(ctx context.Context) (permit, error) {
	f.queued.Store(true)
	defer f.queued.Store(false)
	q := f.sender.queue
	if f.isLate() {
		if p, ok := f.sender.tryAcquire(ctx, time.Now(), q.newTicket(forToken)); ok {
			return p, nil
		}
	}
	p, _, err := f.sender.acquire(ctx, false, func() (permit, error) { return f.inTurn(ctx) })
	return p, err
}

// inTurn waits for a permit behind all callers, and before them when f is late.
func (f *fetch) inTurn(ctx context.Context) (permit, error) {
	if !f.isLate() {
		if p, late, err := f.patiently(ctx); !late || ctx.Err() != nil {
			return p, err
		}
	}
	q := f.sender.queue
	return q.acquire(ctx, q.newTicket(forToken), nil)
}

// isLate reports whether callers wait for f, or will before it is their turn.
func (f *fetch) isLate() bool {
	return f.plan.renews == nil || f.isWanted() || f.sender.queue.lastWait(time.Now()) >= time.Until(f.plan.renews.ends)
}

// patiently waits behind all callers until f is late, which it reports. It waits once and
// not again and again, since a Limiter that is not a Quota would have to begin anew each
// time.
func (f *fetch) patiently(ctx context.Context) (p permit, late bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.wanted, cancel)()
	go func() {
		defer cancel()
		defer func() { recover() }() // of Estimate, which f's own goroutine will meet as well
		for !f.isLate() && sleep(ctx, max(time.Millisecond, min(time.Second, time.Until(f.plan.renews.ends)/8))) {
		}
	}()
	q := f.sender.queue
	p, err = q.acquire(ctx, q.newTicket(forLater), nil)
	return p, err != nil && ctx.Err() != nil, err
}

// send sends the request and reads its answer.
func (f *fetch) send(ctx context.Context, op string, req *http.Request, digest requestDigest, a *attempt) result {
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
	if err != nil && (resp == nil || resp.StatusCode/100 == 2) { // a refusal needs no body
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		got := f.failed(op, 0, withText(err, networkText(err)))
		if got.again, got.frozen = !errors.Is(err, errOwnBase), took > limit+frozenTime; !got.frozen {
			f.used += took
		}
		return got
	}
	f.used += took
	return f.read(op, resp, body, digest, sent, received, a.pause)
}

// read makes a lease of an answer, or an error that says what is wrong with it.
func (f *fetch) read(op string, resp *http.Response, body []byte, digest requestDigest, sent, received time.Time, pause time.Duration) result {
	status := resp.StatusCode
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")) // a byte order mark, which RFC 8259 lets us ignore
	switch {
	case status >= 300 && status < 400:
		return f.unusable(op, resp, errors.New("a redirect, which is not followed"))
	case status < 200 || status > 299:
		return f.rejected(op, resp, body, digest, received, pause)
	case len(body) > maxAnswer:
		return f.unusable(op, resp, errors.New("the answer is larger than 1 MiB"))
	}
	token, err := f.readToken(resp, body)
	if errors.Is(err, ErrCredentials) {
		got := f.refused(op, resp, err.Error(), true)
		return f.remembered(got, op, digest)
	}
	if err != nil {
		return f.unusable(op, resp, err)
	}
	lifetime, before := f.lifetime(token, resp.Header, sent), f.known.before(token.AccessToken, f.plan.renews)
	if before != nil && sent.Add(lifetime).Sub(before.ends) < 2*lostToDate {
		lifetime -= lostToDate // nobody extends it, so it will be used to its end
	}
	l := newLease(token, lifetime, sent, received)
	if l.expiredOnArrival && before != nil {
		got := f.unusable(op, resp, errors.New("the token has expired"))
		got.again, got.err.RetryAfter = true, max(got.err.RetryAfter, lostToDate) // the partner will notice
		return got
	}
	return result{lease: l, from: op}
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
	case read == nil:
		return nil, errors.New("no token")
	}
	token := *read
	if scheme, rest, ok := strings.Cut(token.AccessToken, " "); ok && strings.EqualFold(scheme, "Bearer") {
		token.AccessToken = strings.TrimSpace(rest)
	}
	switch {
	case f.account.Refresh == nil:
		token.RefreshToken = "" // it is of no use
	case token.RefreshToken == "" && f.plan.refreshes != nil:
		token.RefreshToken = f.plan.refreshes.RefreshToken
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

// lifetime returns how long a token lives by its answer, or else by the provider's
// default.
func (f *fetch) lifetime(token *oauth2.Token, header http.Header, sent time.Time) time.Duration {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		date = time.Time{}
	}
	if lifetime, ok := lifetimeOf(token, date, sent); ok {
		return lifetime
	}
	return f.account.lifetime
}

// rejected returns the result of an answer of status 4xx or 5xx.
func (f *fetch) rejected(op string, resp *http.Response, body []byte, digest requestDigest, now time.Time, pause time.Duration) result {
	status := resp.StatusCode
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly:
		got := f.unusable(op, resp, nil)
		got.again = got.err.RetryAfter <= maxUnavailable
		return got
	case http.StatusTooManyRequests:
		got := f.unusable(op, resp, nil)
		got.again, got.err.RetryAfter = true, pause
		return got
	}
	word := errorWord(body)
	refusal := status < 500 && !isHTML(resp, body) && (status == http.StatusUnauthorized || json.Valid(body) || isJSON(resp))
	_, limited := retryAfter(resp.Header, now)
	if limited && (status == http.StatusForbidden || status == http.StatusBadRequest) {
		refusal = false // it is a limit
	}
	var got result
	if refusal {
		got = f.refused(op, resp, word, isWrong(status, word))
	} else {
		got = f.unusable(op, resp, nil)
	}
	got = f.remembered(got, op, digest)
	got.again = status >= 500 && got.err.RetryAfter <= maxUnavailable
	return got
}

// remembered returns got with the refusal that it is, if it is one of a login.
func (f *fetch) remembered(got result, op string, digest requestDigest) result {
	if op == login && got.err.isRefusal() {
		got.refusal = f.plan.refusal.with(got.err, digest)
	}
	return got
}

func isJSON(resp *http.Response) bool {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return kind == "application/json" || strings.HasSuffix(kind, "+json")
}

// isHTML reports whether an answer is a page, as proxies and firewalls write it.
func isHTML(resp *http.Response, body []byte) bool {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return kind == "text/html" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
}

// refused returns the result of a refusal. The partner's page may say what the status
// means.
func (f *fetch) refused(op string, resp *http.Response, why string, wrong bool) result {
	reason := statusText(resp.StatusCode)
	if hint := f.account.Hints[resp.StatusCode]; why == "" {
		why = hint
	}
	if why != "" {
		reason += ": " + why
	}
	e := &answerError{reason: reason, refusal: true, answer: kept(resp, why)}
	if wrong {
		e.cause = ErrCredentials
	}
	return f.answeredWith(op, resp, e)
}

// unusable returns the result of an answer that is neither a token nor a refusal.
func (f *fetch) unusable(op string, resp *http.Response, err error) result {
	e := &answerError{reason: statusText(resp.StatusCode), cause: err, answer: kept(resp, "")}
	if err != nil {
		e.reason += ": " + err.Error()
	}
	return f.answeredWith(op, resp, e)
}

// answeredWith returns the result of an answer. The next request is not sent sooner than
// it asks for.
func (f *fetch) answeredWith(op string, resp *http.Response, e *answerError) result {
	got := f.failed(op, resp.StatusCode, e)
	got.err.RetryAfter, _ = retryAfter(resp.Header, got.err.At)
	return got
}

func (f *fetch) failed(op string, status int, err error) result {
	return result{from: op, err: &AuthError{Provider: f.account.Name, Op: op, StatusCode: status, At: time.Now(), Err: err}}
}

// maxID is the longest X-Request-Id that is kept, if it is one of hexadecimal digits.
const maxID = 64

// kept returns the little of an answer that helps to find out what went wrong.
func kept(resp *http.Response, word string) *oauth2.RetrieveError {
	header := http.Header{}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		header.Set("Date", date.UTC().Format(http.TimeFormat))
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		header.Set("Content-Type", named(kind, "application/json", "application/problem+json", "text/html", "text/plain"))
	}
	if id := resp.Header.Get("X-Request-Id"); len(id) <= maxID && strings.Trim(id, "0123456789abcdefABCDEF-") == "" {
		header.Set("X-Request-Id", id)
	}
	e := &oauth2.RetrieveError{Response: &http.Response{
		Status: statusText(resp.StatusCode), StatusCode: resp.StatusCode,
		Proto: resp.Proto, ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
		Header: header, Body: http.NoBody,
	}}
	if _, ok := errorWords[word]; ok {
		e.ErrorCode = word
	}
	return e
}

// traced returns ctx with the span of the fetch, which it makes if there is none yet: a
// fetch that sends nothing has none.
func (f *fetch) traced(ctx context.Context, op string) context.Context {
	t := &f.trace
	if t.span == nil {
		parent := trace.ContextWithSpanContext(ctx, t.parent)
		_, t.span = f.sender.telemetry.startFetch(parent, f.began, op, f.plan.trigger, f.plan.renews != nil)
		place := t.span.SpanContext()
		t.context.Store(&place)
	}
	return trace.ContextWithSpan(ctx, t.span)
}

// endSpan ends the span of the fetch, if it did anything.
func (f *fetch) endSpan(ctx context.Context, got result) {
	if got.sentNothing && f.trace.span == nil {
		return
	}
	f.traced(ctx, got.from)
	failed := failure{}
	if got.err != nil {
		failed = failure{errorType(got.err), description(got.err)}
	}
	f.sender.telemetry.endFetch(f.trace.span, got.from, f.plan.trigger, failed)
	if !got.sentNothing {
		f.sender.telemetry.metrics.recordFetch(ctx, time.Since(f.began), got.from, f.plan.trigger, failed.kind)
	}
}

// spanContext returns that of f's span, as far as there is one.
func (f *fetch) spanContext() trace.SpanContext {
	if place := f.trace.context.Load(); place != nil {
		return *place
	}
	return trace.SpanContext{}
}

// A setback is why fetches on one way have failed since the last success.
type setback struct {
	err     *AuthError
	count   int
	until   time.Time // no renewal starts before
	callers time.Time // no fetch that callers wait for starts before
}

// with returns the setback after another failure.
func (b *setback) with(err *AuthError, renewal bool) *setback {
	next := &setback{err: err, count: 1}
	if b != nil {
		next.count = b.count + 1
	}
	err.RetryAfter = max(err.RetryAfter, backoff(next.count-1, 500*time.Millisecond, 30*time.Second))
	next.until = err.At.Add(err.RetryAfter)
	next.callers = next.until
	switch {
	case renewal && err.StatusCode == http.StatusTooManyRequests: // callers wait for the queue, for a window at most
		next.until = err.At.Add(err.RetryAfter << min(next.count-1, 4)) // each pauses them again
		next.callers = err.At
	case renewal && err.StatusCode == http.StatusOK: // they may find the token replaced
		next.callers = err.At
	}
	return next
}

// A refusal is what the partner's considered answers to credentials have led to.
type refusal struct {
	err    *AuthError // nil: there was none
	count  int
	until  time.Time     // the same request is not sent before
	digest requestDigest // of the request that was refused
	record string        // what a Store keeps of the digest, as far as that is known
	varies bool          // SignIn returns another request each time, so time alone counts
	asked  time.Time     // when SignIn was last asked for another request
}

// askEvery is how often SignIn is asked for another request while a refusal holds.
const askEvery = time.Second

// refusalTimes are how long refused credentials are not sent again, the last for all
// that follow: partners lock accounts, for the process with the new password as well
// as for the one with the old. That is at most 10 requests in the first hour and about
// 100 a day.
var refusalTimes = [...]time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 15 * time.Minute,
}

func (r *refusal) holds(now time.Time) bool { return r.err != nil && now.Before(r.until) }

// mayAsk reports whether SignIn may be asked for another request.
func (r *refusal) mayAsk(now time.Time) bool { return !r.varies && now.Sub(r.asked) >= askEvery }

// with returns the refusal after another one.
func (r refusal) with(err *AuthError, digest requestDigest) refusal {
	wait := refusalTimes[min(r.count, len(refusalTimes)-1)]
	err.RetryAfter = max(err.RetryAfter, wait+rand.N(wait/2))
	return refusal{err: err, count: r.count + 1, until: err.At.Add(err.RetryAfter), digest: digest, varies: r.varies}
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
