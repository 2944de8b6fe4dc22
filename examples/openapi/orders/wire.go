package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// wire is the last hop before the network, below partnerauth's queue and its retries. What has come this far is
// finished, even when the program is told to stop meanwhile; what still waits above for its turn is given up at once
// and is certain not to have been sent. And it notes what became of a creation, so that nobody has to guess from an
// error whether there may be an order.
type wire struct {
	base    http.RoundTripper
	timeout time.Duration // for the whole exchange; the caller's own deadline ends with its context
}

// What a fate can be besides the status of the last answer.
const (
	unsent     = 0
	unanswered = -1
)

// fate is what became of the newest attempt to create an order.
type fate struct{ atomic.Int32 }

type fateKey struct{}

func withFate(ctx context.Context) (context.Context, *fate) {
	f := new(fate)
	return context.WithValue(ctx, fateKey{}, f), f
}

func (w wire) RoundTrip(req *http.Request) (*http.Response, error) {
	note := func(int32) {}
	// Token requests may be made under the same context.
	if f, ok := req.Context().Value(fateKey{}).(*fate); ok && req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/orders") {
		note = f.Store
	}
	if err := req.Context().Err(); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), w.timeout)
	defer cancel()

	note(unanswered)
	resp, err := w.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	// Read here, because the timeout ends with this call.
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	resp.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	note(int32(resp.StatusCode))
	return resp, nil
}
