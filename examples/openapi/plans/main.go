// Plans lists Ndovu's investment plans, by default those in shillings and those in dollars. In the directory examples:
//
//	go run ./openapi/plans [-currency KES,USD] [-partner acme]
//
// With NDOVU_CLIENT_ID, NDOVU_CLIENT_SECRET and NDOVU_BASE_URL in the environment it talks to Ndovu, and takes the
// partner's short name from NDOVU_SHORT_NAME or from -partner. Without them it talks to a stand-in in its own process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/ndovu"
	"github.com/partnerauth/partnerauth/examples/openapi/urltemplate"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr, http.DefaultTransport))
}

func run(ctx context.Context, args []string, out, errOut io.Writer, base http.RoundTripper) (exit int) {
	flags := flag.NewFlagSet("plans", flag.ContinueOnError)
	flags.SetOutput(errOut)
	currencies := flags.String("currency", "KES,USD", "`currencies` to list, with commas between")
	shortName := flags.String("partner", os.Getenv("NDOVU_SHORT_NAME"), "the partner's short `name`")
	if err := flags.Parse(args); err != nil {
		return 2
	}

	var account partnerauth.Ndovu
	if os.Getenv("NDOVU_CLIENT_ID") == "" && os.Getenv("NDOVU_CLIENT_SECRET") == "" {
		partner := partnertest.StartNdovu(partnertest.Options{})
		defer partner.Close()
		fmt.Fprintln(errOut, "No NDOVU_CLIENT_ID and NDOVU_CLIENT_SECRET: a stand-in answers.")
		account = partnerauth.Ndovu{ClientID: partnertest.ClientID, ClientSecret: partnertest.ClientSecret, BaseURL: partner.URL}
		if *shortName == "" {
			*shortName = "acme"
		}
	} else {
		var err error
		if account, err = partnerauth.NdovuFromEnv(); err != nil {
			return fail(errOut, err)
		}
	}
	if *shortName == "" {
		return fail(errOut, errors.New("which partner? Set NDOVU_SHORT_NAME or -partner"))
	}

	api, err := client(account, base)
	if err != nil {
		return fail(errOut, err)
	}
	plans, err := list(ctx, api, *shortName, strings.Split(*currencies, ","))
	if err != nil {
		return fail(errOut, err)
	}
	if err := table(out, plans); err != nil {
		return fail(errOut, err)
	}
	return 0
}

// client is all that the generated client needs to know of signing in, pacing, and tracing.
func client(account partnerauth.Ndovu, base http.RoundTripper) (*ndovu.ClientWithResponses, error) {
	document, err := openapi.Ndovu()
	if err != nil {
		return nil, err
	}
	named, err := urltemplate.New(document, account.BaseURL, &partnerauth.Transport{Source: account.TokenSource(), Base: base})
	if err != nil {
		return nil, err
	}
	return ndovu.NewClientWithResponses(account.BaseURL, ndovu.WithHTTPClient(&http.Client{Transport: named}))
}

// list asks for all currencies at once: they share the Transport, so one login serves them. The plans come back in the
// order of the currencies.
func list(ctx context.Context, api *ndovu.ClientWithResponses, shortName string, currencies []string) ([]ndovu.Plan, error) {
	found := make([][]ndovu.Plan, len(currencies))
	errs := make([]error, len(currencies))
	var wg sync.WaitGroup
	for i, currency := range currencies {
		currency = strings.ToUpper(strings.TrimSpace(currency))
		wg.Go(func() {
			resp, err := api.ListPlansWithResponse(ctx, shortName, &ndovu.ListPlansParams{Currency: &currency})
			switch {
			case err != nil:
				errs[i] = err
			case resp.JSON200 == nil: // a status is no error to a generated client
				errs[i] = statusError{currency, resp.StatusCode()}
			default:
				found[i] = resp.JSON200.Data.Plans
			}
		})
	}
	wg.Wait()
	var all []ndovu.Plan
	for i, err := range errs {
		if err != nil {
			return nil, err
		}
		all = append(all, found[i]...)
	}
	return all, nil
}

type statusError struct {
	currency string
	status   int
}

func (e statusError) Error() string {
	return fmt.Sprintf("plans in %s: %d %s", e.currency, e.status, http.StatusText(e.status))
}

func table(out io.Writer, plans []ndovu.Plan) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tPLAN\tTYPE\tCURRENCY\tFROM\t1 YEAR\t5 YEARS\tTENOR")
	for _, p := range plans {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.ID, p.Name, text(p.FundType), p.Currency,
			least(p), percent(p.Performance1), percent(p.Performance5), text(p.Tenor))
	}
	return w.Flush()
}

func least(p ndovu.Plan) string {
	if p.MinInvestableAmounts == nil {
		return "-"
	}
	amount, ok := (*p.MinInvestableAmounts)[p.Currency]
	if !ok {
		return "-"
	}
	return strconv.FormatFloat(amount, 'f', -1, 64)
}

func percent(p *float64) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", *p)
}

func text(s *string) string {
	if s == nil || *s == "" {
		return "-"
	}
	return *s
}

// fail prints what stopped the program, and what to check.
func fail(errOut io.Writer, err error) int {
	shown := err
	if auth, ok := errors.AsType[*partnerauth.AuthError](err); ok {
		shown = auth // without the request it happened to
	}
	fmt.Fprintf(errOut, "plans: %v\n", shown)
	refused, _ := errors.AsType[statusError](err)
	switch {
	case errors.Is(err, partnerauth.ErrCredentials):
		fmt.Fprintln(errOut, "Ndovu refuses the client. Check NDOVU_CLIENT_ID, and that NDOVU_CLIENT_SECRET is the raw secret of the onboarding mail, neither hashed nor encoded.")
	case refused.status == http.StatusForbidden:
		fmt.Fprintln(errOut, "Ndovu lists a partner's own plans only. Check the short name in the onboarding mail.")
	}
	return 1
}
