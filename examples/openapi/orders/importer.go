package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
)

// importer creates the orders of a sheet, each once.
type importer struct {
	api     *nowpost.ClientWithResponses
	journal *journal
	display *display
	workers int
	check   bool          // ask the partner about each order first, as after the loss of the journal
	settle  time.Duration // how long a request whose answer was lost may still be at work on the partner's side
	backoff time.Duration // before the second attempt; it doubles
}

// attempts is how often one order is tried. partnerauth has retried each of them by itself where it could.
const attempts = 8

// outcome is what became of a row in this run.
type outcome int

const (
	left     outcome = iota // not tried, or certain not to exist: the next run's
	made                    // created now
	existing                // created by an earlier run
	failed                  // the partner refuses it
	doubtful                // may exist: the next run asks
	outcomes
)

// tally counts rows by outcome.
type tally [outcomes]int

// run creates the orders. When ctx ends it starts no more, finishes what is on the wire, and returns what it has. The
// error is what made it stop early, if that was not ctx.
func (im *importer) run(ctx context.Context, rows []row) (tally, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	queue := make(chan row)
	var (
		mu     sync.Mutex
		count  tally
		halted error
		wg     sync.WaitGroup
	)
	for range im.workers {
		wg.Go(func() {
			for r := range queue {
				o, err := im.order(ctx, r)
				if err != nil {
					stop(err)
				}
				mu.Lock()
				count[o]++
				if halted == nil {
					halted = err
				}
				mu.Unlock()
			}
		})
	}
	for _, r := range rows {
		queue <- r // once ctx is over the workers hand all that follow back as left
	}
	close(queue)
	wg.Wait()
	return count, halted
}

// order brings one row to its outcome. The error is one that all rows would meet.
func (im *importer) order(ctx context.Context, r row) (outcome, error) {
	id := r.order.PartnerOrderID
	before := im.journal.state(id)
	if before == created {
		im.display.step()
		return existing, nil
	}
	if before == sending || im.check {
		if o, known, err := im.resolve(ctx, r, existing); known {
			return o, err
		}
	}
	var last error
	for attempt := range attempts {
		if attempt > 0 {
			im.wait(ctx, im.backoff<<(attempt-1))
		}
		if ctx.Err() != nil {
			return left, nil
		}
		if err := im.journal.write(entry{PartnerOrderID: id, State: sending}); err != nil {
			return left, err
		}
		order, existence, err := im.create(ctx, r)
		if order != nil {
			return im.settled(r, made, order)
		}
		if existence == sending {
			im.wait(ctx, im.settle)
			if o, known, err := im.resolve(ctx, r, made); known {
				return o, err
			}
		}
		if err := im.journal.write(entry{PartnerOrderID: id, State: notCreated}); err != nil {
			return left, err
		}
		if fatal(err) {
			return left, err
		}
		if refused, ok := errors.AsType[statusError](err); ok && refused.final() {
			im.display.problem(r.line, id, err)
			return failed, nil
		}
		last = err
	}
	err := fmt.Errorf("after %d attempts: %w", attempts, last)
	if _, ok := errors.AsType[*partnerauth.AuthError](last); ok {
		return left, err // nobody can sign in
	}
	im.display.problem(r.line, id, err)
	return failed, nil
}

// resolve asks the partner whether an order in doubt exists. It reports false when it does not, and otherwise the
// row's outcome: found, if it exists.
func (im *importer) resolve(ctx context.Context, r row, found outcome) (o outcome, known bool, err error) {
	id := r.order.PartnerOrderID
	var last error
	for attempt := range attempts {
		if attempt > 0 {
			im.wait(ctx, im.backoff<<(attempt-1))
		}
		if ctx.Err() != nil {
			return doubtful, true, nil
		}
		order, err := im.find(ctx, id)
		switch {
		case errors.Is(err, errUnsure):
			im.display.problem(r.line, id, err)
			return doubtful, true, nil
		case fatal(err):
			return doubtful, true, err
		case err != nil:
			last = err
		case order == nil:
			return left, false, nil
		default:
			o, err := im.settled(r, found, order)
			return o, true, err
		}
	}
	return doubtful, true, fmt.Errorf("cannot find out whether %s exists, after %d attempts: %w", id, attempts, last)
}

// settled notes an order that exists.
func (im *importer) settled(r row, o outcome, order *nowpost.Order) (outcome, error) {
	e := entry{PartnerOrderID: r.order.PartnerOrderID, State: created, ID: order.ID}
	if order.TrackingCode != nil {
		e.TrackingCode = *order.TrackingCode
	}
	if err := im.journal.write(e); err != nil {
		return doubtful, err
	}
	im.display.created(r.line, e)
	return o, nil
}

// create asks for the order once. Without an order, the state says what is known of its existence: sending, when there
// may be one, or notCreated.
func (im *importer) create(ctx context.Context, r row) (*nowpost.Order, state, error) {
	ctx, fate := withFate(ctx)
	resp, err := im.api.CreateOrderWithResponse(ctx, r.order)
	if err != nil {
		switch fate.Load() {
		case unsent, http.StatusUnauthorized, http.StatusTooManyRequests:
			return nil, notCreated, err // it never got there, or was turned away at the door
		}
		return nil, sending, err
	}
	if resp.JSON2XX != nil && resp.JSON2XX.Data.ID != "" {
		return &resp.JSON2XX.Data, created, nil
	}
	refused := statusError{resp.StatusCode(), excerpt(resp.Body, resp.ContentType())}
	switch {
	case refused.status < 400, refused.status >= 500, refused.status == http.StatusRequestTimeout, refused.status == http.StatusConflict:
		return nil, sending, refused // a conflict may be with the order itself
	}
	return nil, notCreated, refused
}

// errUnsure means that a person has to look.
var errUnsure = errors.New("it may exist: the partner's list does not show the shop's own order ids; look for it by hand")

// find asks the partner for an order by the shop's own id. It returns nil when there is none.
func (im *importer) find(ctx context.Context, partnerOrderID string) (*nowpost.Order, error) {
	unsure := false
	for page := 1; ; page++ {
		resp, err := im.api.ListOrdersWithResponse(ctx, &nowpost.ListOrdersParams{Search: &partnerOrderID, Page: &page})
		if err != nil {
			return nil, err
		}
		if resp.JSON200 == nil {
			return nil, statusError{resp.StatusCode(), excerpt(resp.Body, resp.ContentType())}
		}
		for _, order := range resp.JSON200.Data.Orders {
			switch {
			case order.PartnerOrderID == nil:
				unsure = true
			case *order.PartnerOrderID == partnerOrderID: // a search may find more, such as A-1 in A-17
				return &order, nil
			}
		}
		if p := resp.JSON200.Data.Pagination; !p.HasNext || page >= p.TotalPages {
			break
		}
	}
	if unsure {
		return nil, errUnsure
	}
	return nil, nil
}

// wait lets d pass, a little more or less, or returns early when ctx ends.
func (im *importer) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(min(d, 30*time.Second) * time.Duration(80+rand.IntN(40)) / 100)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// statusError is an answer that is no order.
type statusError struct {
	status int
	text   string // what the partner said, if it is JSON
}

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s %s", e.status, http.StatusText(e.status), e.text))
}

// final reports whether the same request would be refused again. A 429 says to come back, and partnerauth holds the next
// request back for as long as the partner asked; after a 401 the next request has a new token.
func (e statusError) final() bool {
	switch e.status {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return e.status >= 400 && e.status < 500
}

// fatal reports whether each further row would meet the same error.
func fatal(err error) bool {
	if auth, ok := errors.AsType[*partnerauth.AuthError](err); ok && auth.Op == "config" {
		return true
	}
	if refused, ok := errors.AsType[statusError](err); ok && refused.status == http.StatusForbidden {
		return true // the account may not use the endpoint
	}
	return errors.Is(err, partnerauth.ErrCredentials) || errors.Is(err, partnerauth.ErrInsecureURL)
}

// excerpt is what can be shown of an answer's body: a line of JSON, never a proxy's page.
func excerpt(body []byte, contentType string) string {
	if !strings.Contains(contentType, "json") || len(body) > 300 {
		return ""
	}
	return strings.Join(strings.Fields(string(body)), " ")
}
