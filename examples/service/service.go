package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/partnerauth/partnerauth"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
)

const orderDeadline = 10 * time.Second // somebody waits at the till

type service struct {
	*telemetry
	url      string
	rt       *partnerauth.Transport
	client   *http.Client // of rt
	orders   sync.Map     // of order by PartnerOrderID: your database
	draining atomic.Bool
}

// newService makes one for an account, whose requests go by rt.
func newService(account partnerauth.NowPost, rt *partnerauth.Transport, t *telemetry) *service {
	rt.Source = account.TokenSource()
	rt.TracerProvider, rt.MeterProvider, rt.Propagator = t.tracers, t.meters, propagation.TraceContext{}
	return &service{telemetry: t, url: account.BaseURL, rt: rt, client: &http.Client{Transport: rt}}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {}) // a restart would cure no partner
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.metrics)
	mux.Handle("POST /orders", otelhttp.NewHandler(http.HandlerFunc(s.post), "POST /orders",
		otelhttp.WithTracerProvider(s.tracers), otelhttp.WithMeterProvider(s.meters), otelhttp.WithPropagators(s.rt.Propagator)))
	return mux
}

// ready may be asked every second: with a token it costs nothing, and a login that failed is not repeated at once.
func (s *service) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 900*time.Millisecond) // Kubernetes waits a second
	defer cancel()
	if s.draining.Load() {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	} else if err := s.rt.SignIn(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable) // there is no secret in it
	}
}

// post places an order once, however often it is sent: the partner would take it for another one.
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
	// A bytes.Reader can be read again, should the request have to be sent once more.
	err = s.call(ctx, "POST", "/api/v1/orders", "", bytes.NewReader(body), &struct{ Data *order }{&o})
	refused, _ := errors.AsType[statusError](err) // 0 if not
	after, unsent := notSent(err)
	switch {
	case err == nil:
		s.orders.Store(o.PartnerOrderID, o)
		s.log.InfoContext(ctx, "placed", "order", o.PartnerOrderID, "id", o.ID)
		answer(w, http.StatusCreated, o)
	case unsent || refused/100 == 4:
		s.orders.Delete(o.PartnerOrderID)
		s.log.WarnContext(ctx, "not placed", "order", o.PartnerOrderID, "error", err)
		status := http.StatusBadGateway
		if unsent {
			status = http.StatusServiceUnavailable
			w.Header().Set("Retry-After", strconv.Itoa(int(after.Seconds())+1))
		}
		http.Error(w, err.Error(), status)
	default: // the partner may have it or not: reconciliation finds out
		s.log.WarnContext(ctx, "perhaps placed", "order", o.PartnerOrderID, "error", err)
		answer(w, http.StatusAccepted, o)
	}
}

// notSent reports whether an error means that the partner has not seen the call, and when another may do better.
func notSent(err error) (after time.Duration, unsent bool) {
	if auth, ok := errors.AsType[*partnerauth.AuthError](err); ok {
		return auth.RetryAfter, true
	}
	var queue interface{ RetryAfter() time.Duration } // ErrRateLimited
	if errors.As(err, &queue) {
		return queue.RetryAfter(), true
	}
	return 0, false
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever does not listen any more can ask again
}
