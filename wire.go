package partnerauth

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A wire is the way to the partner for all requests of an account, token
// requests included: the queue for the quota, the RoundTripper, and telemetry.
type wire struct {
	base  http.RoundTripper
	queue *queue // nil: a Source without a Transport has no quota
	*telemetry
}

// An attempt is one request on its way: its permit and the copy that is sent.
// It is one allocation, made anew for a retry since the Base may hold on to it.
type attempt struct {
	permit        permit
	origin        *origin
	authorization []string // for the copy; shared, so never appended to
	template      string
	resend        int
	waited        time.Duration // for the permit
	pause         time.Duration // that the answer asked of everybody

	copy    http.Request
	body    body // without a ReadCloser: there is none
	carrier carrier
}

// admit waits for a's permit and returns how long that took.
func (w *wire) admit(ctx context.Context, a *attempt) (time.Duration, error) {
	if w.queue == nil {
		return 0, nil
	}
	turn, err := w.queue.join(ctx, &a.permit)
	if turn == nil {
		w.recordWait(ctx, time.Time{}, 0, err)
	} else {
		w.addQueued(ctx, 1)
		err = turn.wait()
		w.addQueued(ctx, -1)
		a.waited = time.Since(turn.since)
		w.recordWait(ctx, turn.since, a.waited, err)
	}
	if err == nil {
		w.recordPace(ctx, a.permit.pace)
	}
	return a.waited, err
}

// send sends a copy of req under a's permit and settles the permit when the
// headers are in. The answer's body is the caller's.
func (w *wire) send(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	ctx, span := w.startAttempt(ctx, req, a)
	sent := a.permit.sent
	if w.queue == nil {
		sent = time.Now()
	}
	a.prepare(ctx, req)
	w.propagator.Inject(ctx, &a.carrier)
	resp, err := w.base.RoundTrip(&a.copy)
	now := time.Now()
	switch {
	case err != nil && resp != nil && resp.Body != nil:
		resp.Body.Close()
		resp = nil
	case err == nil && resp == nil:
		err = errors.New("partnerauth: Base returned neither a response nor an error")
	case err == nil && resp.Body == nil:
		resp.Body = http.NoBody
	}
	w.settle(ctx, now, a, resp)
	w.endAttempt(ctx, span, now.Sub(sent), req, a, resp, err)
	if err != nil {
		a.body.Close()
		return nil, withoutSecrets(err, strings.TrimPrefix(a.copy.Header.Get("Authorization"), "Bearer "))
	}
	resp.Request = req // and not the copy, which has the token in it
	return resp, nil
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
	switch {
	case a.body.ReadCloser == nil:
	case reflect.TypeOf(a.body.ReadCloser) == nopCloser:
		a.copy.Body = a.body.ReadCloser
	default:
		a.copy.Body = &a.body
	}
	a.copy.Header, a.carrier.Header = header, header
}

// settle tells the queue that a's answer is in. A 429 or a 503 may ask to be
// left alone: then everybody is.
func (w *wire) settle(ctx context.Context, now time.Time, a *attempt, resp *http.Response) {
	if resp != nil {
		a.pause = w.pauseFor(resp)
	}
	if w.queue == nil {
		return
	}
	if a.pause > 0 {
		w.queue.pause(a.pause)
	}
	if resp != nil && resp.StatusCode == http.StatusTooManyRequests {
		w.recordPace(ctx, w.queue.lesson(&a.permit))
	}
	w.queue.settle(now, &a.permit, resp == nil)
}

// giveBack returns the permit of an a that is not sent.
func (w *wire) giveBack(a *attempt) {
	if w.queue != nil {
		w.queue.giveBack(&a.permit)
	}
}

// pauseFor reads how long resp asks to wait: 429 always does, 503 if it says so.
func (w *wire) pauseFor(resp *http.Response) time.Duration {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
	default:
		return 0
	}
	pause, ok := pauseOf(resp.StatusCode, resp.Header, time.Now())
	switch {
	case ok || resp.StatusCode == http.StatusServiceUnavailable:
		return pause
	case w.queue == nil:
		return defaultWindow
	}
	return min(w.queue.window, maxPause)
}

// A body closes once, whoever closes it first: the Base, or we where a Base
// that failed did not.
type body struct {
	io.ReadCloser
	closed atomic.Bool
}

func (b *body) Close() error {
	if b.ReadCloser == nil || b.closed.Swap(true) {
		return nil
	}
	return b.ReadCloser.Close()
}

// nopCloser is the type of body that http.NewRequest makes of readers in memory.
// It needs no closing, and net/http sends what it recognises in fewer writes.
var nopCloser = reflect.TypeOf(io.NopCloser(strings.NewReader("")))

// maxDrain and drainTime bound what is read of an answer that nobody will see,
// so that its connection can be used again.
const (
	maxDrain  = 64 << 10
	drainTime = time.Second
)

// discard drains and closes a rejected answer.
func discard(resp *http.Response) {
	late := time.AfterFunc(drainTime, func() { resp.Body.Close() })
	io.CopyN(io.Discard, resp.Body, maxDrain)
	late.Stop()
	resp.Body.Close()
}
