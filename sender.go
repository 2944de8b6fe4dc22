package partnerauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A sender is the way to the partner for all requests of an account, token
// requests included: the queue for the quota, the RoundTripper, and telemetry.
type sender struct {
	base  http.RoundTripper // nil: http.DefaultTransport
	queue *queue
	line  line // of callers, in the queue
	*telemetry

	trouble atomic.Bool // the last request found no connection, or lost it
}

// An attempt is one request on its way: its permit and the copy that is sent.
// It is one allocation, made anew for a retry since the Base may hold on to it.
type attempt struct {
	permit        permit
	origin        *origin
	authorization []string      // for the copy; shared, so never appended to
	body          io.ReadCloser // for the copy; nil: that of the request
	template      string
	tokenPath     string // of a token request, which metrics tell from other calls
	resend        int
	pause         time.Duration // that the answer asked of everybody
	left          bool          // where there was no answer: there may have been a request

	copy    http.Request
	carrier carrier
}

// admit waits until w, which has arrived, has its permit, and tells telemetry what
// it waited for and for how long.
func (s *sender) admit(ctx context.Context, w *waiter, ready bool) (p permit, waited time.Duration, err error) {
	told := false
	defer func() {
		if !told && !p.at.IsZero() { // telemetry has panicked
			s.queue.settle(time.Now(), p, unused, 0, 0)
		}
	}()
	p, granted := s.queue.enter(time.Now(), w, ready && ctx.Err() == nil)
	if granted {
		s.recordWait(ctx, w, 0, nil)
		s.recordPace(ctx, p.pace)
		told = true
		return p, 0, nil
	}
	waiting := *w // which is on the heap
	s.addQueued(ctx, 1)
	p, err = waiting.wait()
	s.addQueued(ctx, -1)
	if waiting.shares() {
		s.recordShared(ctx, &waiting)
	}
	*w = waiting
	if has[*AuthError](err) || err == errNoToken {
		return p, 0, err // before it came to waiting for a permit
	}
	waited = time.Since(w.since)
	s.recordWait(ctx, w, waited, err)
	if err == nil {
		s.recordPace(ctx, p.pace)
	}
	told = true
	return p, waited, err
}

// send sends a copy of req under a's permit and settles the permit when the
// headers are in. The answer's body is the caller's; that of req the Base's.
func (s *sender) send(ctx context.Context, req *http.Request, a *attempt) (resp *http.Response, err error) {
	span, err := noSpan, errAborted
	defer func() {
		now := time.Now()
		s.settle(ctx, now, a, resp, err)
		s.endAttempt(ctx, span, now.Sub(a.permit.at), req, a, resp, err)
		if err != nil {
			_, secret, _ := strings.Cut(a.copy.Header.Get("Authorization"), " ")
			err = withoutSecrets(err, secret)
		}
	}()
	ctx, span = s.startAttempt(ctx, req, a)
	inVain := func() bool { return false }
	if s.trouble.Load() {
		ctx, inVain = watched(ctx)
	}
	a.prepare(ctx, req)
	s.inject(ctx, &a.carrier)
	a.left = true
	resp, err = s.roundTripper().RoundTrip(&a.copy)
	if (err != nil) != s.trouble.Load() {
		s.trouble.Store(err != nil)
	}
	switch {
	case err != nil:
		if resp = nil; fromProxy(err) {
			err = fmt.Errorf("%w: %w", errProxy, err)
		}
		a.left = !neverLeft(err) && !inVain()
	case resp == nil:
		err = errors.New("partnerauth: Base returned neither a response nor an error")
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	if err == nil {
		resp.Request = req // and not the copy, which has the token in it
	}
	return resp, err
}

// watched is ctx with a watch for the connection, which reports whether a Base of
// net/http has sought one in vain. It costs something, and so is for times when
// requests fail: by its error a TLS handshake that is cut cannot be told from an
// answer that is.
func watched(ctx context.Context) (_ context.Context, inVain func() bool) {
	var sought, got atomic.Bool
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { sought.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}), func() bool { return sought.Load() && !got.Load() }
}

var errAborted = errors.New("partnerauth: Base has panicked or ended the goroutine")

// roundTripper is the Base, asked for at each request as net/http does.
func (s *sender) roundTripper() http.RoundTripper {
	if s.base == nil {
		return http.DefaultTransport
	}
	return s.base
}

// prepare makes the copy of req that is sent. It shares the values of the
// header, in lists that nobody can append to in place.
func (a *attempt) prepare(ctx context.Context, req *http.Request) {
	a.copy = *req.WithContext(ctx)
	header := maps.Clone(req.Header)
	if header == nil {
		header = http.Header{}
	}
	for key, values := range header {
		if cap(values) > len(values) {
			header[key] = slices.Clip(values)
		}
	}
	if a.authorization != nil {
		header["Authorization"] = a.authorization
	}
	if a.body != nil {
		a.copy.Body = a.body
	}
	a.copy.Header, a.carrier.Header = header, header
}

// settle tells the queue what became of a's permit. An answer may ask to be left
// alone: then everybody leaves it alone.
func (s *sender) settle(ctx context.Context, now time.Time, a *attempt, resp *http.Response, err error) {
	o, status, pause := answered, 0, time.Duration(0)
	switch {
	case err != nil && !a.left:
		o = unused
	case err != nil:
		o = unanswered
	default:
		var named bool
		status = resp.StatusCode
		pause, named = pauseOf(resp.StatusCode, resp.Header, now)
		switch {
		case resp.StatusCode == http.StatusTooManyRequests:
			if o = throttled; !named {
				pause = unnamed
			}
		case resp.StatusCode == http.StatusServiceUnavailable:
			if !named {
				o = overloaded
			}
		default: // nothing remains; the server counts what other programs send, too
			pause = min(pause, s.queue.window)
		}
	}
	var pace float64
	a.pause, pace = s.queue.settle(now, a.permit, o, status, pause)
	s.recordPace(ctx, pace)
}

// withSender lets a source of the user's own that wraps a Source send its token
// requests like those of a Source.
func withSender(ctx context.Context, s *sender) context.Context {
	return context.WithValue(ctx, senderKey, s)
}

func senderFrom(ctx context.Context) *sender {
	s, _ := ctx.Value(senderKey).(*sender)
	return s
}
