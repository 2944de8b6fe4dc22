package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/partnerauth/partnerauth"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
)

// orderDeadline is how long a customer waits at the till.
const orderDeadline = 10 * time.Second

type service struct {
	*telemetry
	url      string
	rt       *partnerauth.Transport
	client   *http.Client // uses rt
	orders   sync.Map     // order by PartnerOrderID; replace it by your database
	draining atomic.Bool
}

// newService returns a service for an account. It completes rt, which carries all requests to the partner.
func newService(account partnerauth.NowPost, rt *partnerauth.Transport, t *telemetry) *service {
	rt.Source = account.TokenSource()
	rt.TracerProvider, rt.MeterProvider, rt.Propagator = t.tracers, t.meters, propagation.TraceContext{}
	return &service{telemetry: t, url: account.BaseURL, rt: rt, client: &http.Client{Transport: rt}}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {}) // a restart does not help when the partner is down
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.metrics)
	mux.Handle("POST /orders", otelhttp.NewHandler(http.HandlerFunc(s.post), "POST /orders",
		otelhttp.WithTracerProvider(s.tracers), otelhttp.WithMeterProvider(s.meters), otelhttp.WithPropagators(s.rt.Propagator)))
	return mux
}

// ready answers a readiness probe. Probes every second are fine: with a token SignIn sends nothing, and after a failed
// login it returns the same error until the next login is due.
func (s *service) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 900*time.Millisecond) // Kubernetes' probes time out after a second
	defer cancel()
	if s.draining.Load() {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	} else if err := s.rt.SignIn(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable) // the text of an AuthError has no secret in it
	}
}

// post places an order once, however often the shop sends it, since the partner does not recognise duplicates.
func (s *service) post(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), orderDeadline)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	var o order
	if err != nil || json.Unmarshal(body, &o) != nil || o.PartnerOrderID == "" {
		http.Error(w, "the body is not an order", http.StatusBadRequest)
		return
	}
	o = order{PartnerOrderID: o.PartnerOrderID, Status: "unknown", since: time.Now()}
	if known, ok := s.orders.LoadOrStore(o.PartnerOrderID, o); ok {
		answer(w, http.StatusOK, known)
		return
	}
	// The Transport can read a bytes.Reader again, and so retry the request after a 401 or a 429.
	err = s.call(ctx, "POST", "/api/v1/orders", "", bytes.NewReader(body), &struct{ Data *order }{&o})
	refused, _ := errors.AsType[statusError](err) // the zero value for any other error
	again, later := retryAfter(err)
	switch {
	case err == nil:
		s.orders.Store(o.PartnerOrderID, o)
		s.log.InfoContext(ctx, "placed", "order", o.PartnerOrderID, "id", o.ID)
		answer(w, http.StatusCreated, o)
	case later:
		s.orders.Delete(o.PartnerOrderID)
		s.log.WarnContext(ctx, "not placed yet", "order", o.PartnerOrderID, "error", err)
		w.Header().Set("Retry-After", again)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case refused.code/100 == 4:
		s.orders.Delete(o.PartnerOrderID)
		s.log.WarnContext(ctx, "refused", "order", o.PartnerOrderID, "error", err)
		http.Error(w, err.Error(), http.StatusBadGateway)
	default: // the partner may have the order or not; reconciliation finds out
		s.log.WarnContext(ctx, "perhaps placed", "order", o.PartnerOrderID, "error", err)
		answer(w, http.StatusAccepted, o)
	}
}

// retryAfter reports whether the partner has not carried a call out because there was no token or no turn for it, and
// returns when to try again, as a Retry-After header.
func retryAfter(err error) (value string, ok bool) {
	if status, is := errors.AsType[statusError](err); is && status.code == http.StatusTooManyRequests {
		return cmp.Or(status.retryAfter, "60"), true
	}
	var after time.Duration
	if auth, is := errors.AsType[*partnerauth.AuthError](err); is { // no token
		after, ok = auth.RetryAfter, true
	}
	// No turn within the deadline: a *partnerauth.RateLimitError, or the error of a Limiter that several processes share.
	var queue interface{ RetryAfter() time.Duration }
	if errors.As(err, &queue) {
		after, ok = max(after, queue.RetryAfter()), true
	}
	// The header has whole seconds. Rounding down would make the shop come back too early.
	return strconv.Itoa(max(1, int(math.Ceil(after.Seconds())))), ok
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone can send the order again
}
