package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// useStandIn lets a job run against a partner in this process, in fast motion and with the troubles of a bad day. Its
// journal is not kept: those orders do not exist.
func (p *program) useStandIn(j *job) error {
	dir, err := os.MkdirTemp("", "orders")
	if err != nil {
		return err
	}
	const requests, window = 100, 3 * time.Second
	p.quota = &partnerauth.Quota{Requests: requests, Window: window}
	partner := partnertest.StartNowPost(partnertest.Options{Limit: requests, Window: window})
	partner.Inject(partnertest.Fault{
		Method: http.MethodPost, Path: "/api/v1/orders", Rate: 0.05,
		Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	go revoke(ctx, partner, 50, 100)

	fmt.Fprintf(p.out, "No NOWPOST_EMAIL and NOWPOST_PASSWORD: a stand-in takes %s, %d requests in %v.\n", j.name, requests, window)
	j.standIn = true
	j.journal = filepath.Join(dir, "journal")
	j.account = partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	j.close = func() {
		cancel()
		partner.Close()
		os.RemoveAll(dir)
	}
	j.epilogue = func(out io.Writer) {
		fmt.Fprintf(out, "Underneath: %d requests, at most %d in any %v; %d logins after tokens were revoked under way; %d times 401, %d times 429.\n",
			partner.Count("", ""), partner.Peak(), window, partner.Logins(), partner.Status(401), partner.Status(429))
	}
	return nil
}

// revoke makes all tokens worthless when so many orders were asked for.
func revoke(ctx context.Context, partner *partnertest.NowPost, after ...int) {
	for _, n := range after {
		if partner.Await(ctx, func() bool { return partner.Count(http.MethodPost, "/api/v1/orders") >= n }) != nil {
			return
		}
		partner.RevokeAll()
	}
}
