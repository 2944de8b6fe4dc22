// Command quickstart calls both partners through partnerauth and draws the spans
// of each call: the login, the wait for the quota, a 401 and the recovery from it.
//
//	go run -C examples ./quickstart
//
// The partners are stand-ins in the same process. With NOWPOST_EMAIL and
// NOWPOST_PASSWORD, or NDOVU_CLIENT_ID, NDOVU_CLIENT_SECRET and NDOVU_BASE_URL
// in the environment, it makes one GET request to the real API instead, for the
// path that -path names.
//
// The picture fits a terminal of 80 columns, and its bars grow and shrink with the
// terminal, or with COLUMNS. NO_COLOR turns the colors off.
//
// It sends no spans anywhere; examples/collector does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/partnerauth/partnerauth"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned, and printed once
	path := flags.String("path", "", "what to GET from the real API, such as /api/v1/orders?page=2; by\n"+
		"default NowPost's orders, or Ndovu's plans with the client id as short name")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	accounts, err := accountsFrom(getenv)
	switch {
	case err != nil:
		return err
	case *path == "":
	case len(accounts) != 1:
		return fmt.Errorf("-path is for one real partner; the environment has credentials for %d", len(accounts))
	case !strings.HasPrefix(*path, "/"):
		return errors.New("-path must start with a slash")
	default:
		accounts[0].path, accounts[0].template = *path, ""
	}

	p := &program{observer: observe(), screen: screenOf(stdout, getenv), out: stdout}
	if len(accounts) == 0 {
		return p.standIns(ctx)
	}
	p.printf(legend)
	for _, a := range accounts {
		p.heading("%s", a.name)
		if _, err := p.partner(a.baseURL, a.source, nil).call(ctx, http.MethodGet, a.path, a.template, ""); err != nil {
			return err
		}
	}
	return nil
}

const usage = `quickstart calls both partners through partnerauth and draws what happens in
each call: a login, a token that is revoked and replaced, a wait for the quota.
The partners are stand-ins in this process. It takes about five seconds.

With NOWPOST_EMAIL and NOWPOST_PASSWORD, or with NDOVU_CLIENT_ID,
NDOVU_CLIENT_SECRET and NDOVU_BASE_URL, in the environment, it makes one GET
request to the real API instead.

COLUMNS sets the width of the picture. NO_COLOR turns the colors off.

Usage: quickstart [-path PATH]
`

// An account is what a call to a real partner needs.
type account struct {
	name, baseURL  string
	source         *partnerauth.Source
	path, template string
}

// accountsFrom reads the accounts from the environment. Most programs use
// partnerauth.NowPostFromEnv and NdovuFromEnv for that; here tests replace getenv.
func accountsFrom(getenv func(string) string) ([]account, error) {
	nowPost, err := complete(getenv, "NOWPOST_EMAIL", "NOWPOST_PASSWORD")
	if err != nil {
		return nil, err
	}
	ndovu, err := complete(getenv, "NDOVU_CLIENT_ID", "NDOVU_CLIENT_SECRET", "NDOVU_BASE_URL")
	if err != nil {
		return nil, err
	}
	var found []account
	if nowPost {
		base := getenv("NOWPOST_BASE_URL")
		if base == "" {
			base = partnerauth.NowPostBaseURL
		}
		c := partnerauth.NowPost{Email: getenv("NOWPOST_EMAIL"), Password: getenv("NOWPOST_PASSWORD"), BaseURL: base}
		found = append(found, account{"NowPost", base, c.TokenSource(), ordersPath, ordersPath})
	}
	if ndovu {
		id, base := getenv("NDOVU_CLIENT_ID"), getenv("NDOVU_BASE_URL")
		c := partnerauth.Ndovu{ClientID: id, ClientSecret: getenv("NDOVU_CLIENT_SECRET"), BaseURL: base}
		plans := strings.Replace(plansPath, "{shortName}", url.PathEscape(id), 1)
		found = append(found, account{"Ndovu", base, c.TokenSource(), plans, plansPath})
	}
	return found, nil
}

// complete reports whether all variables are set. If only some are, it returns an
// error.
func complete(getenv func(string) string, names ...string) (bool, error) {
	var set, missing []string
	for _, name := range names {
		if getenv(name) == "" {
			missing = append(missing, name)
		} else {
			set = append(set, name)
		}
	}
	if len(set) > 0 && len(missing) > 0 {
		return false, fmt.Errorf("the environment has %s without %s", set[0], strings.Join(missing, " and "))
	}
	return len(set) > 0, nil
}

// A program is what its calls share.
type program struct {
	*observer
	screen
	out   io.Writer
	calls int
}

func (p *program) printf(format string, args ...any) { fmt.Fprintf(p.out, format, args...) }

func (p *program) heading(format string, args ...any) {
	p.printf("%s\n\n", p.paint(bold, fmt.Sprintf(format, args...)))
}

// A partner is an http.Client that speaks to one partner.
type partner struct {
	*program
	baseURL string
	client  http.Client
}

// partner makes a client. Most programs set the Source only; this one needs a
// smaller quota for the stand-ins and the spans for the picture.
func (p *program) partner(baseURL string, source *partnerauth.Source, quota *partnerauth.Quota) *partner {
	transport := &partnerauth.Transport{Source: source, TracerProvider: p.traces}
	if quota != nil {
		transport.Limiter = quota
	}
	return &partner{p, strings.TrimRight(baseURL, "/"), http.Client{Transport: transport, Timeout: time.Minute}}
}

// call makes one call, draws it, and returns the body of the answer. Tokens, the
// quota and retries are the Transport's business. A path without a template stays
// out of span names, where values do not belong.
func (p *partner) call(ctx context.Context, method, path, template, body string) ([]byte, error) {
	name, _, _ := strings.Cut(path, "?")
	if template != "" {
		name, ctx = template, partnerauth.WithURLTemplate(ctx, template)
	}
	status, answer, err := p.do(ctx, method, p.baseURL+path, body)
	if with, ok := errors.AsType[*url.Error](err); ok {
		err = with.Err // without the URL, whose query may be confidential
	}
	p.calls++
	p.draw(p.out, p.calls, method+" "+name, status, p.take())
	return answer, err
}

func (p *partner) do(ctx context.Context, method, url, body string) (status string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "ERR", nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "ERR", nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode), answer, err
}
