package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/partnerauth/partnerauth"
)

// An order is what the service knows of an order.
type order struct {
	PartnerOrderID string    `json:"partner_order_id"`
	ID             string    `json:"id,omitempty"` // at the partner
	TrackingCode   string    `json:"tracking_code,omitempty"`
	Status         string    `json:"status"`
	since          time.Time // when it was sent
}

// reconcile asks the partner about each order, with low priority: interactive calls go first. If a check fails, the next
// round repeats it.
func (s *service) reconcile(ctx context.Context) {
	ctx, span := s.tracers.Tracer("service").Start(partnerauth.WithLowPriority(ctx), "reconcile")
	defer span.End()
	for _, o := range s.orders.Range {
		if err := s.check(ctx, o.(order)); err != nil {
			s.log.WarnContext(ctx, "not reconciled", "order", o.(order).PartnerOrderID, "error", err)
		}
	}
	s.log.InfoContext(ctx, "reconciled")
}

func (s *service) check(ctx context.Context, o order) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // a call of low priority may wait long for its turn
	defer cancel()
	var found struct{ Data struct{ Orders []order } }
	query := "?pageSize=100&search=" + url.QueryEscape(o.PartnerOrderID)
	if err := s.call(ctx, "GET", "/api/v1/orders", query, nil, &found); err != nil {
		return err
	}
	for _, f := range found.Data.Orders {
		if f.PartnerOrderID == o.PartnerOrderID {
			s.orders.Store(o.PartnerOrderID, f)
			return nil
		}
	}
	if time.Since(o.since) > 2*orderDeadline { // it is no longer under way: the partner has not got it
		s.orders.Delete(o.PartnerOrderID)
	}
	return nil
}

// A statusError is an answer that is not 2xx.
type statusError struct {
	code       int
	retryAfter string // its header of that name
}

func (e statusError) Error() string { return "the partner answered " + strconv.Itoa(e.code) }

// call makes one call to the partner and decodes its answer into out. Every call needs a deadline in ctx.
func (s *service) call(ctx context.Context, method, path, query string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(partnerauth.WithURLTemplate(ctx, path), method, s.url+path+query, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return statusError{resp.StatusCode, resp.Header.Get("Retry-After")}
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out)
}
