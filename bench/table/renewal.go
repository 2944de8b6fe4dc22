package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/partnerauth/partnerauth/bench"
)

// prepareRenewals gets the peers that renew no sooner than after a while their
// first tokens, so that the while passes during the benchmarks.
func prepareRenewals(rounds int) (map[string][]*bench.RenewalRun, error) {
	prepared := map[string][]*bench.RenewalRun{}
	for _, p := range bench.Peers {
		for p.Settle > 0 && len(prepared[p.Name]) < rounds {
			r, err := bench.PrepareRenewal(p, true)
			if err != nil {
				return nil, err
			}
			prepared[p.Name] = append(prepared[p.Name], r)
		}
	}
	return prepared, nil
}

func printRenewals(w io.Writer, prepared map[string][]*bench.RenewalRun, rounds, calls int) error {
	fmt.Fprintf(w, "### The slowest of %d calls while a token is renewed, which takes 300 ms\n\n", calls)
	row(w, "peer", "no renewal", "renewal", "calls delayed")
	row(w, "---", "--:", "--:", "--:")
	for _, p := range bench.Peers {
		if !p.Renews {
			continue
		}
		fmt.Fprintf(os.Stderr, "renewal: %s\n", p.Name)
		without, err := measureRenewals(p, false, rounds, nil, calls)
		if err != nil {
			return err
		}
		with, err := measureRenewals(p, true, rounds, prepared[p.Name], calls)
		if err != nil {
			return err
		}
		title := p.Name
		if title == bench.Ours {
			title = "**" + title + "**"
		}
		row(w, title, milliseconds(without.Slowest), milliseconds(with.Slowest), fmt.Sprint(with.Delayed))
	}
	fmt.Fprintln(w)
	return nil
}

// measureRenewals is the quietest of some measurements. What the renewal costs is
// in all of them, what else the machine had to do is not.
func measureRenewals(p bench.Peer, renew bool, rounds int, prepared []*bench.RenewalRun, calls int) (bench.Renewal, error) {
	all := make([]bench.Renewal, rounds)
	for i := range all {
		var run *bench.RenewalRun
		var err error
		if i < len(prepared) {
			run = prepared[i]
		} else if run, err = bench.PrepareRenewal(p, renew); err != nil {
			return bench.Renewal{}, err
		}
		if all[i], err = run.Measure(calls); err != nil {
			return bench.Renewal{}, err
		}
	}
	return slices.MinFunc(all, func(a, b bench.Renewal) int { return cmp.Compare(a.Slowest, b.Slowest) }), nil
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
