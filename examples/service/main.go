// Command service is a service between a shop's own systems and NowPost. It accepts orders over HTTP, places them with
// the partner, and reconciles them every 15 minutes.
//
// It is a template: copy this directory, give it a go.mod of its own, and change what you like. Its tests come along and
// need nothing but the module partnertest.
//
//	NOWPOST_EMAIL=… NOWPOST_PASSWORD_FILE=/etc/nowpost/password go run .
//
//	POST /orders   places an order, or returns its status if it was placed before
//	GET  /livez    answers 200 while the process works; otherwise restart it
//	GET  /readyz   answers 200 while it is signed in with the partner; otherwise send it no requests
//	GET  /metrics  metrics for Prometheus
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/partnerauth/partnerauth"
)

const (
	// drain passes between "not ready" and the last request that is accepted, so that load balancers notice.
	drain = 5 * time.Second
	// grace is the time for requests that are under way. With drain it must be less than Kubernetes'
	// terminationGracePeriodSeconds, which is 30 by default.
	grace = 20 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx); err != nil {
		log.Fatal(err)
	}
}

func start(ctx context.Context) error {
	t, err := newTelemetry(os.Stderr)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("LISTEN"), ":8080"))
	if err != nil {
		return err
	}
	account := partnerauth.NowPost{
		Email:        os.Getenv("NOWPOST_EMAIL"),
		PasswordFunc: passwordFile(cmp.Or(os.Getenv("NOWPOST_PASSWORD_FILE"), "/etc/nowpost/password")),
		BaseURL:      cmp.Or(os.Getenv("NOWPOST_BASE_URL"), partnerauth.NowPostBaseURL),
	}
	return newService(account, &partnerauth.Transport{}, t).run(ctx, listener)
}

// passwordFile returns a PasswordFunc that reads a file before each login. Kubernetes rewrites the files of a mounted
// secret, so the service picks up a new password without a restart.
func passwordFile(name string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		b, err := os.ReadFile(name)
		return strings.TrimRight(string(b), "\r\n"), err
	}
}

// run serves until ctx ends, then finishes the requests that are under way.
func (s *service) run(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:      s.handler(),
		ReadTimeout:  10 * time.Second, // the headers included
		WriteTimeout: orderDeadline + 10*time.Second,
	}
	var jobs sync.WaitGroup
	jobs.Go(func() {
		for {
			select {
			case <-time.After(15 * time.Minute):
				s.reconcile(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	s.log.Info("listening", "address", listener.Addr().String())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}

	s.log.Info("shutting down")
	s.draining.Store(true) // on /readyz
	time.Sleep(drain)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := server.Shutdown(last)
	jobs.Wait()
	return errors.Join(err, s.tracers.Shutdown(last))
}
