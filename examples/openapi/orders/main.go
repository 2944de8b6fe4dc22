// Orders creates NowPost orders from a CSV sheet, each of them once. In the directory examples:
//
//	go run ./openapi/orders [flags] [sheet.csv]
//
// With NOWPOST_EMAIL and NOWPOST_PASSWORD in the environment it talks to NowPost. Without them it talks to a stand-in
// in its own process, which revokes tokens and turns requests away on the way, and takes a sheet of 150 orders that it
// brings along.
//
// The first line of the sheet names the columns: partner_order_id, pudo_point_id, name, email, phone, item, qty, price
// and weight_kg. Each further line is one order of one item. A line that is no order is reported and left out.
//
// What was done is in a journal beside the sheet, a JSON line for each step, tracking codes included. The same
// command again goes on where the last run stopped, however it stopped: orders whose answer was lost are looked up at
// the partner by their partner_order_id before anything is sent again. Ctrl-C finishes what is on the wire and prints
// what is left; a second Ctrl-C ends the program at once. A lock beside the journal turns away a second run at the same
// time; its file stays there.
//
// It exits with 0 when each line of the sheet has its order, 1 when some have not, 2 when it could not go on.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
	"github.com/partnerauth/partnerauth/examples/openapi/urltemplate"
	"golang.org/x/term"
)

//go:embed sample.csv
var sample []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is not for us
	p := program{
		out: os.Stdout, errOut: os.Stderr,
		terminal: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("TERM") != "dumb",
		settle:   5 * time.Second, backoff: 500 * time.Millisecond,
		base: http.DefaultTransport,
	}
	os.Exit(p.run(ctx, os.Args[1:]))
}

// program is main with all that tests need to turn.
type program struct {
	out, errOut     io.Writer
	terminal        bool
	settle, backoff time.Duration
	base            http.RoundTripper
	quota           partnerauth.Limiter // nil: partnerauth's own
}

func (p program) run(ctx context.Context, args []string) (exit int) {
	flags := flag.NewFlagSet("orders", flag.ContinueOnError)
	flags.SetOutput(p.errOut)
	workers := flags.Int("workers", 8, "how many orders to create at once")
	check := flags.Bool("check", false, "look each order up before creating it, as after the loss of the journal")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	job, err := p.prepare(flags.Args())
	if err != nil {
		return p.fail(err)
	}
	defer job.close()
	if *workers < 1 {
		return p.fail(errors.New("-workers must be 1 or more"))
	}

	rows, bad, err := readSheet(bytes.NewReader(job.sheet))
	if err != nil {
		return p.fail(fmt.Errorf("%s: %w", job.name, err))
	}
	for _, b := range bad {
		fmt.Fprintf(p.errOut, "line %d: %v\n", b.line, b.err)
	}
	journal, err := openJournal(job.journal)
	if err != nil {
		return p.fail(err)
	}
	defer journal.Close()
	api, err := p.client(job.account)
	if err != nil {
		return p.fail(err)
	}

	show := newDisplay(p.out, p.errOut, p.terminal, len(rows))
	im := &importer{
		api: api, journal: journal, display: show,
		workers: *workers, check: *check, settle: p.settle, backoff: p.backoff,
	}
	count, err := im.run(ctx, rows)
	show.close()

	fmt.Fprintf(p.out, "%d orders: %d created now, %d before, %d refused, %d in doubt, %d left; %d bad lines\n",
		len(rows), count[made], count[existing], count[failed], count[doubtful], count[left], len(bad))
	if count[left]+count[doubtful] > 0 && !job.standIn {
		fmt.Fprintln(p.out, "Run the same command again: it goes on from here, and asks the partner about those in doubt.")
	}
	job.epilogue(p.out)
	switch {
	case err != nil:
		return p.fail(err)
	case count[made]+count[existing] < len(rows) || len(bad) > 0:
		return 1
	}
	return 0
}

// job is what to do, and where.
type job struct {
	name     string // of the sheet
	sheet    []byte
	journal  string // path
	account  partnerauth.NowPost
	standIn  bool
	epilogue func(io.Writer)
	close    func()
}

func (p *program) prepare(args []string) (*job, error) {
	if len(args) > 1 {
		return nil, errors.New("one sheet at a time")
	}
	j := &job{name: "sample.csv", sheet: sample, epilogue: func(io.Writer) {}, close: func() {}}
	if len(args) == 1 {
		j.name = args[0]
		var err error
		if j.sheet, err = os.ReadFile(j.name); err != nil {
			return nil, err
		}
	}
	if os.Getenv("NOWPOST_EMAIL") == "" && os.Getenv("NOWPOST_PASSWORD") == "" {
		return j, p.useStandIn(j)
	}

	account, err := partnerauth.NowPostFromEnv()
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return nil, errors.New("which sheet? The sample is for the stand-in")
	}
	j.account = account
	// What one installation of the partner has, another has not.
	base, err := url.Parse(baseURL(account))
	if err != nil {
		return nil, fmt.Errorf("NOWPOST_BASE_URL: %w", err)
	}
	host := strings.ReplaceAll(base.Host, ":", "_")
	j.journal = filepath.Join(filepath.Dir(j.name), filepath.Base(j.name)+"."+host+".journal")
	return j, nil
}

// client is all that the generated client needs to know of signing in, pacing, and tracing.
func (p program) client(account partnerauth.NowPost) (*nowpost.ClientWithResponses, error) {
	document, err := openapi.NowPost()
	if err != nil {
		return nil, err
	}
	named, err := urltemplate.New(document, baseURL(account), &partnerauth.Transport{
		Source:  account.TokenSource(),
		Base:    wire{base: p.base, timeout: 30 * time.Second},
		Limiter: p.quota,
	})
	if err != nil {
		return nil, err
	}
	return nowpost.NewClientWithResponses(baseURL(account), nowpost.WithHTTPClient(&http.Client{Transport: named}))
}

func baseURL(account partnerauth.NowPost) string {
	if account.BaseURL == "" {
		return partnerauth.NowPostBaseURL
	}
	return account.BaseURL
}

// fail prints what stopped the program, and what to check.
func (p program) fail(err error) int {
	shown := err
	if auth, ok := errors.AsType[*partnerauth.AuthError](err); ok {
		shown = auth // without the request it happened to
	}
	fmt.Fprintf(p.errOut, "orders: %v\n", shown)
	refused, _ := errors.AsType[statusError](err)
	switch {
	case errors.Is(err, partnerauth.ErrCredentials):
		fmt.Fprintln(p.errOut, "NowPost refuses the login. Check NOWPOST_EMAIL and NOWPOST_PASSWORD, and that they belong to NOWPOST_BASE_URL.")
	case refused.status == http.StatusForbidden:
		fmt.Fprintln(p.errOut, "The login is good, but NowPost does not let this account create orders. Ask NowPost to permit it.")
	}
	return 2
}
