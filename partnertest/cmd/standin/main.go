// Command standin serves stand-ins for NowPost and Ndovu on loopback, so that you
// can try a program in any language against them:
//
//	go run github.com/partnerauth/partnerauth/partnertest/cmd/standin
//
// It prints the account as environment variables to paste into a shell, and runs
// until it is interrupted. The flags, which -h lists, set the quota, the lifetime
// of tokens, the latency and the addresses.
//
// # Control
//
// While it runs, it is controlled over HTTP, at the address that it prints or
// that -control sets. All of this works for ndovu as well:
//
//	POST   /nowpost/revoke   every token issued so far is answered 401
//	POST   /nowpost/faults   add a fault, as JSON
//	DELETE /nowpost/faults   end all faults, and answer the requests that they hold
//	GET    /nowpost/counts   requests, logins, refreshes, answers 401 and 429, and
//	                         peak, the most requests in one window; as JSON
//
// # Faults
//
// The next three requests for orders are answered 503, the first of them after
// two seconds:
//
//	curl http://127.0.0.1:PORT/nowpost/faults -d '{"path":"/api/v1/orders","times":1,"status":503,"delay":"2s"}'
//	curl http://127.0.0.1:PORT/nowpost/faults -d '{"path":"/api/v1/orders","times":2,"status":503}'
//
// A request meets at most one fault: the oldest that matches it and is due. These
// fields say which requests a fault hits:
//
//	"method"  such as "POST"; absent: any
//	"path"    exact, or a prefix if it ends in '*': "/api/v1/*"; absent: any
//	"times"   how many requests; absent: all, until DELETE
//	"rate"    the share of the matching requests, evenly spread: 0.25 is every fourth
//
// and these what happens to them:
//
//	"delay"   a duration such as "2s" or "1m30s", before anything else happens
//	"hang"    true: the request is held until DELETE
//	"reset"   true: the connection is reset; the request is not carried out
//	"status"  the answer instead of the normal one
//	"header"  of that answer, or added to the normal one: {"Retry-After":"30"}
//	"body"    of that answer, as a string; absent: an HTML page, as servers send it
//	"cut"     true: the answer breaks off in the middle of its body
//	"huge"    the size of a JSON answer with forged tokens, in bytes
//
// A fault with an unknown field or value is answered 400. A path that is not one
// of the stand-in's endpoints is answered 404, with a list of those there are.
package main

import (
	"context"
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
	nowPostAddr := flags.String("nowpost", "127.0.0.1:0", "address for NowPost; port 0 is a free one")
	ndovuAddr := flags.String("ndovu", "127.0.0.1:0", "address for Ndovu")
	controlAddr := flags.String("control", "127.0.0.1:0", "address for control over HTTP: revoke, faults, counts")
	flags.IntVar(&o.Limit, "limit", 100, "requests in a window; negative: no quota")
	flags.DurationVar(&o.Window, "window", 0, "window of the quota (default 1m)")
	flags.DurationVar(&o.Lifetime, "lifetime", 0, "lifetime of tokens (default 24h for NowPost, 1h for Ndovu)")
	flags.DurationVar(&o.Latency, "latency", 0, "latency of each answer")
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
#   curl -X POST http://%[7]s/nowpost/revoke
#   curl http://%[7]s/nowpost/faults -d '{"status":503,"times":3}'
#   curl http://%[7]s/nowpost/faults -d '{"path":"/api/v1/*","delay":"2s"}'
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

// listen listens on loopback only, since everybody knows the credentials.
func listen(addr string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address", addr)
	}
	return net.ListenTCP("tcp", tcp)
}

// quote returns s as one word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
