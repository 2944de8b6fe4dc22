package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// The stand-ins' quotas are small, so that a few calls exhaust them and the wait
// is short. latency makes requests long enough to be visible.
const (
	nowPostLimit = 7
	ndovuLimit   = 5
	window       = 2 * time.Second
	latency      = 40 * time.Millisecond
)

const (
	ordersPath = "/api/v1/orders"
	orderPath  = "/api/v1/orders/{id}"
	plansPath  = "/api/v3/partners/{shortName}/plans"
)

const order = `{
	"partner_order_id": "quickstart-1",
	"pudo_point_id": "PUDO-7",
	"customer": {"name": "Asha", "email": "asha@example.com", "phone": "+254700000000"},
	"items": [{"name": "Kettle", "qty": 1, "price": 24.5, "weight_kg": 1.2}]
}`

// standIns shows everything: a login, a revoked token, the quota.
func (p *program) standIns(ctx context.Context) error {
	p.printf("partnerauth at work, with stand-ins for both partners in this process. Their\n"+
		"quotas are small: a few requests in %v instead of 100 in a minute.\n\n%s", window, legend)
	nowPost := partnertest.StartNowPost(partnertest.Options{Limit: nowPostLimit, Window: window, Latency: latency})
	defer nowPost.Close()
	ndovu := partnertest.StartNdovu(partnertest.Options{Limit: ndovuLimit, Window: window, Latency: latency})
	defer ndovu.Close()

	if err := p.orders(ctx, nowPost); err != nil {
		return err
	}
	if err := p.plans(ctx, ndovu); err != nil {
		return err
	}

	p.printf("What the stand-ins counted     requests   most in %v   logins   401s   429s\n", window)
	p.summary("NowPost", nowPostLimit, nowPost.Server)
	p.summary("Ndovu", ndovuLimit, ndovu.Server)
	p.printf("\nTo call a real partner, set NOWPOST_EMAIL and NOWPOST_PASSWORD, or\n" +
		"NDOVU_CLIENT_ID, NDOVU_CLIENT_SECRET and NDOVU_BASE_URL. To send the spans to a\n" +
		"collector: go run -C examples ./collector\n")
	return nil
}

func (p *program) summary(name string, limit int, s *partnertest.Server) {
	p.printf("  %-28s %8d %12s %8d %6d %6d\n", name, s.Count("", ""), fmt.Sprintf("%d of %d", s.Peak(), limit),
		s.Logins(), s.Status(http.StatusUnauthorized), s.Status(http.StatusTooManyRequests))
}

func (p *program) orders(ctx context.Context, server *partnertest.NowPost) error {
	p.heading("NowPost: %d requests in %v", nowPostLimit, window)
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: server.URL}
	api := p.partner(server.URL, account.TokenSource(), &partnerauth.Quota{Requests: nowPostLimit, Window: window})

	answer, err := api.call(ctx, http.MethodPost, ordersPath, ordersPath, order)
	if err != nil {
		return err
	}
	var created struct{ Data struct{ ID string } }
	if err := json.Unmarshal(answer, &created); err != nil {
		return fmt.Errorf("answer to an order: %w", err)
	}
	mine := ordersPath + "/" + created.Data.ID
	if _, err := api.call(ctx, http.MethodGet, mine, orderPath, ""); err != nil {
		return err
	}
	if _, err := api.call(ctx, http.MethodGet, ordersPath, ordersPath, ""); err != nil {
		return err
	}
	p.revoke(server.Server)
	if _, err := api.call(ctx, http.MethodGet, mine, orderPath, ""); err != nil {
		return err
	}
	_, err = api.call(ctx, http.MethodGet, ordersPath, ordersPath, "")
	return err
}

// plans ends with everything in one call: after the 401 and the login, the quota
// is exhausted.
func (p *program) plans(ctx context.Context, server *partnertest.Ndovu) error {
	p.heading("Ndovu: %d requests in %v", ndovuLimit, window)
	account := partnerauth.Ndovu{
		ClientID: partnertest.ClientID, ClientSecret: partnertest.ClientSecret, BaseURL: server.URL,
	}
	api := p.partner(server.URL, account.TokenSource(), &partnerauth.Quota{Requests: ndovuLimit, Window: window})

	const mine = "/api/v3/partners/acme/plans"
	if _, err := api.call(ctx, http.MethodGet, mine, plansPath, ""); err != nil {
		return err
	}
	if _, err := api.call(ctx, http.MethodGet, mine+"?currency=KES", plansPath, ""); err != nil {
		return err
	}
	p.revoke(server.Server)
	_, err := api.call(ctx, http.MethodGet, mine, plansPath, "")
	return err
}

func (p *program) revoke(server *partnertest.Server) {
	server.RevokeAll()
	p.printf("%s\n\n", p.paint(yellow, "    - - - the partner revokes every token; nobody tells the client - - -"))
}
