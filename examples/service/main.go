// Command service is what a shop runs between its own systems and NowPost: orders come in over HTTP, are placed with the
// partner, and are reconciled with it every quarter of an hour. It is a template to start from.
//
//	NOWPOST_EMAIL=… NOWPOST_PASSWORD_FILE=/etc/nowpost/password go run .
//
//	POST /orders   places an order, or tells what became of it
//	GET  /livez    the process is alive: restart it if not
//	GET  /readyz   it is signed in with the partner: send it no requests if not
//	GET  /metrics  for Prometheus
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
	drain = 5 * time.Second  // from "not ready" until no request is accepted: load balancers have to notice
	grace = 20 * time.Second // for those under way; with drain, less than terminationGracePeriodSeconds
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

// passwordFile reads the password before each login. Kubernetes rewrites the files of a mounted secret, so a password
// that was rotated needs no restart.
func passwordFile(name string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		b, err := os.ReadFile(name)
		return strings.TrimRight(string(b), "\r\n"), err
	}
}

// run serves until ctx ends, and then lets what is under way come to its end.
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
