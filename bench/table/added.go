package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/partnerauth/partnerauth/bench"
)

// printAdded prints what is added to a call with a kept connection, as the
// median of the differences between calls made one after the other.
func printAdded(w io.Writer, pairs int, ratios bool) error {
	loopback := bench.StartLoopback()
	defer loopback.Close()
	standIn, err := bench.StartStandIn()
	if err != nil {
		return err
	}
	defer standIn.Close()
	peers := []bench.Peer{bench.ByName(bench.Stack), bench.ByName(bench.Ours)}
	fmt.Fprintf(w, "### Added to a call over loopback TLS, median of %d paired calls\n\n", pairs)
	row(w, "server", "", "otel", "bare", "stack adds", "**partnerauth** adds")
	row(w, "---", "---", "---", "--:", "--:", "--:")
	for _, server := range []struct {
		name string
		*bench.Server
	}{{"stand-in partner", standIn}, {"answers at once", loopback}} {
		for _, http2 := range []bool{false, true} {
			proto := "HTTP/1.1"
			if http2 {
				proto = "HTTP/2"
			}
			for _, mode := range []bench.Mode{bench.Unset, bench.Metrics} {
				fmt.Fprintf(os.Stderr, "added: %s, %s, %s\n", server.name, proto, mode)
				got, err := bench.MeasureAdded(peers, mode, server.Server, http2, pairs)
				if err != nil {
					return err
				}
				cells := []string{server.name, proto, string(mode), microseconds(got.Bare)}
				for _, more := range got.More {
					cell := microseconds(more)
					if ratios {
						cell += share(more, got.Bare)
					}
					cells = append(cells, cell)
				}
				row(w, cells...)
			}
		}
	}
	fmt.Fprintln(w)
	return nil
}

func share(more, of time.Duration) string {
	return fmt.Sprintf(", %.1f %%", 100*float64(more)/float64(of))
}

func microseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
}
