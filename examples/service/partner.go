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

// An order is what both sides call it and what has become of it.
type order struct {
	PartnerOrderID string `json:"partner_order_id"`
	ID             string `json:"id,omitempty"` // the partner's
	TrackingCode   string `json:"tracking_code,omitempty"`
	Status         string `json:"status"`
	since          time.Time
}

// reconcile asks once about each order, when nobody else has anything to ask. What does not work now is for next time.
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
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // others go first, so this may take its time
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
	if time.Since(o.since) > 2*orderDeadline { // it cannot be under way
		s.orders.Delete(o.PartnerOrderID)
	}
	return nil
}

// A statusError is an answer that is none of those asked for.
type statusError int

func (e statusError) Error() string { return "the partner answers " + strconv.Itoa(int(e)) }

// call makes one call of the partner. The deadline is ctx's.
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
		return statusError(resp.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out)
}
