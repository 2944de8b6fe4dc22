// Command standin serves stand-ins for NowPost and Ndovu on loopback, so that a
// program in any language can be tried against them:
//
//	go run -C partnertest ./cmd/standin
//
// It prints the environment for partnerauth.NowPostFromEnv and NdovuFromEnv as
// lines to paste into a shell, and how to revoke tokens, make requests fail and
// read the counts over http while it runs. An interrupt ends it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	var o partnertest.Options
	flags := flag.NewFlagSet("standin", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned; once is enough
	nowPostAddr := flags.String("nowpost", "127.0.0.1:0", "where NowPost listens; port 0 is a free one")
	ndovuAddr := flags.String("ndovu", "127.0.0.1:0", "where Ndovu listens")
	controlAddr := flags.String("control", "127.0.0.1:0", "where revoke, faults and counts are")
	flags.IntVar(&o.Limit, "limit", 100, "requests a window; negative: no quota")
	flags.DurationVar(&o.Window, "window", 0, "of the quota (default 1m)")
	flags.DurationVar(&o.Lifetime, "lifetime", 0, "of tokens (default 24h for NowPost, 1h for Ndovu)")
	flags.DurationVar(&o.Latency, "latency", 0, "of each answer")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(stdout)
		flags.Usage()
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}

	var listeners []net.Listener
	for _, addr := range []string{*nowPostAddr, *ndovuAddr, *controlAddr} {
		l, err := listen(addr)
		if err != nil {
			return err
		}
		defer l.Close()
		listeners = append(listeners, l)
	}
	o.Listener = listeners[0]
	nowPost := partnertest.StartNowPost(o)
	defer nowPost.Close()
	o.Listener = listeners[1]
	ndovu := partnertest.StartNdovu(o)
	defer ndovu.Close()
	servers := map[string]*partnertest.Server{"nowpost": nowPost.Server, "ndovu": ndovu.Server}
	controller := http.Server{Handler: control(servers)}
	go controller.Serve(listeners[2]) // until it is closed
	defer controller.Close()

	fmt.Fprintf(stdout, `# Stand-ins for both partners. Paste these lines where your program runs:
export NOWPOST_EMAIL=%s
export NOWPOST_PASSWORD=%s
export NOWPOST_BASE_URL=%s
export NDOVU_CLIENT_ID=%s
export NDOVU_CLIENT_SECRET=%s
export NDOVU_BASE_URL=%s
# While it runs, for nowpost and for ndovu:
#   curl -X POST http://%[7]s/nowpost/revoke     every token is refused from now on
#   curl -X POST http://%[7]s/nowpost/faults -d '{"Status":503,"Times":3}'
#   curl -X DELETE http://%[7]s/nowpost/faults
#   curl http://%[7]s/nowpost/counts
# Ctrl-C ends it.
`, quote(partnertest.Email), quote(partnertest.Password), nowPost.URL,
		quote(partnertest.ClientID), quote(partnertest.ClientSecret), ndovu.URL, listeners[2].Addr())
	<-ctx.Done()
	fmt.Fprintf(stdout, "# NowPost: requests %d, logins %d; Ndovu: requests %d, logins %d\n",
		nowPost.Count("", ""), nowPost.Logins(), ndovu.Count("", ""), ndovu.Logins())
	return nil
}

// listen listens on loopback and nowhere else: the credentials are known to all.
func listen(addr string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%s is not loopback", addr)
	}
	return net.ListenTCP("tcp", tcp)
}

// quote makes a word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// control is what a tester does to the servers, which they do not count.
func control(servers map[string]*partnertest.Server) http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, do func(s *partnertest.Server, w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if s := servers[r.PathValue("partner")]; s != nil {
				do(s, w, r)
				return
			}
			http.NotFound(w, r)
		})
	}
	on("POST /{partner}/revoke", func(s *partnertest.Server, w http.ResponseWriter, r *http.Request) {
		s.RevokeAll()
	})
	on("POST /{partner}/faults", func(s *partnertest.Server, w http.ResponseWriter, r *http.Request) {
		var f partnertest.Fault // with the field names of partnertest.Fault, Delay in nanoseconds
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.Inject(f)
	})
	on("DELETE /{partner}/faults", func(s *partnertest.Server, w http.ResponseWriter, r *http.Request) {
		s.ClearFaults()
		s.Release()
	})
	on("GET /{partner}/counts", func(s *partnertest.Server, w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]int{
			"requests": s.Count("", ""), "logins": s.Logins(), "refreshes": s.Refreshes(), "peak": s.Peak(),
			"401": s.Status(http.StatusUnauthorized), "429": s.Status(http.StatusTooManyRequests),
		})
	})
	return mux
}
