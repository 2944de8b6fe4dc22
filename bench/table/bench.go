package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchunit"

	"github.com/partnerauth/partnerauth/bench"
)

const (
	seconds = "sec/op"
	bytesOp = "B/op"
	allocs  = "allocs/op"
)

// results are the values of each benchmark, one a round, by its name and unit.
type results map[string]map[string][]float64

// compares reports whether there is enough to make ratios of: from -short there
// is one value each, of one call that may have been the first of its kind.
func (all results) compares(name, to, unit string) bool {
	n := len(all[name][unit])
	return name != to && n > 1 && n == len(all[to][unit])
}

func parse(output []byte) (results, error) {
	all := results{}
	r := benchfmt.NewReader(bytes.NewReader(output), "go test -bench")
	for r.Scan() {
		switch rec := r.Result().(type) {
		case *benchfmt.SyntaxError:
			return nil, rec
		case *benchfmt.Result:
			base, parts := rec.Name.Parts()
			name := string(base)
			for _, part := range parts {
				if part[0] == '/' { // and not GOMAXPROCS
					name += string(part)
				}
			}
			if all[name] == nil {
				all[name] = map[string][]float64{}
			}
			for _, v := range rec.Values {
				all[name][v.Unit] = append(all[name][v.Unit], v.Value)
			}
		}
	}
	return all, r.Err()
}

func call(base string, mode bench.Mode, peer string, callers int) string {
	return fmt.Sprintf("Call/base=%s/otel=%s/peer=%s/callers=%d", base, mode, peer, callers)
}

func (all results) print(w io.Writer) {
	titles := map[string]string{
		"memory": "A call in memory", "minute": "A call in memory, with 100 a minute and places free",
		"http1": "A call over loopback TLS, HTTP/1.1", "http2": "A call over loopback TLS, HTTP/2",
	}
	for _, base := range []string{"memory", "minute", "http1", "http2"} {
		fmt.Fprintf(w, "### %s\n\n", titles[base])
		row(w, "otel", "peer", "1 caller", "÷ stack", "÷ bare", "8 callers", "÷ stack", "÷ bare", "8 ÷ 1", "B", "allocs", "÷ stack")
		row(w, "---", "---", "--:", "--:", "--:", "--:", "--:", "--:", "--:", "--:", "--:", "--:")
		for _, mode := range bench.AllModes {
			for _, p := range bench.In(mode) {
				all.printCall(w, base, mode, p.Name)
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "### A fresh token, and a permit that is there\n\n")
	row(w, "", "1 caller", "÷ peer", "8 callers", "÷ peer", "allocs")
	row(w, "---", "--:", "--:", "--:", "--:", "--:")
	for _, of := range []struct{ name, what, peer, ours string }{
		{"Token", "oauth2", "oauth2.ReuseTokenSource", "Source.Token"},
		{"Wait/quota=minute", "rate", "rate.Limiter.Wait, 100 a minute", "Quota.Wait, 100 a minute"},
		{"Wait/quota=plenty", "rate", "rate.Limiter.Wait, thousands in use", "Quota.Wait, thousands in use"},
	} {
		name := func(peer string, callers int) string {
			return fmt.Sprintf("%s/peer=%s/callers=%d", of.name, peer, callers)
		}
		for _, peer := range []string{of.what, bench.Ours} {
			title := of.peer
			if peer == bench.Ours {
				title = "**" + of.ours + "**"
			}
			one, eight := name(peer, 1), name(peer, 8)
			row(w, title,
				all.show(one, seconds), all.ratio(one, name(of.what, 1), seconds),
				all.show(eight, seconds), all.ratio(eight, name(of.what, 8), seconds),
				all.plain(one, allocs))
		}
	}
	fmt.Fprintln(w)
}

func (all results) printCall(w io.Writer, base string, mode bench.Mode, peer string) {
	one, eight := call(base, mode, peer, 1), call(base, mode, peer, 8)
	if all[one] == nil {
		return // not measured on this base
	}
	title := peer
	if peer == bench.Ours {
		title = "**" + peer + "**"
	}
	stack := func(callers int) string { return call(base, mode, bench.Stack, callers) }
	bare := func(callers int) string { return call(base, bench.Unset, bench.Bare, callers) }
	row(w, string(mode), title,
		all.show(one, seconds), all.ratio(one, stack(1), seconds), all.ratio(one, bare(1), seconds),
		all.show(eight, seconds), all.ratio(eight, stack(8), seconds), all.ratio(eight, bare(8), seconds),
		all.ratio(eight, one, seconds),
		all.plain(one, bytesOp), all.plain(one, allocs), all.ratio(one, stack(1), allocs))
}

func row(w io.Writer, cells ...string) {
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

func (all results) sample(name, unit string) *benchmath.Sample {
	return benchmath.NewSample(slices.Clone(all[name][unit]), &benchmath.DefaultThresholds)
}

// show is a median and how far its 95 % confidence interval reaches.
func (all results) show(name, unit string) string {
	s := benchmath.AssumeNothing.Summary(all.sample(name, unit), 0.95)
	return fmt.Sprintf("%ss ± %s", benchunit.Scale(s.Center, benchunit.Decimal), s.PctRangeString())
}

// plain is the median of what does not vary.
func (all results) plain(name, unit string) string {
	return fmt.Sprintf("%.0f", benchmath.AssumeNothing.Summary(all.sample(name, unit), 0.95).Center)
}

// ratio is the median of the ratios in each round, or "~" where the two may as
// well be the same.
func (all results) ratio(name, to, unit string) string {
	if !all.compares(name, to, unit) {
		return ""
	}
	values, others := all[name][unit], all[to][unit]
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / others[i]
	}
	center := benchmath.AssumeNothing.Summary(benchmath.NewSample(ratios, &benchmath.DefaultThresholds), 0.95).Center
	same := benchmath.AssumeNothing.Compare(all.sample(name, unit), all.sample(to, unit))
	if len(values) > 3 && same.P > same.Alpha {
		return fmt.Sprintf("%.2f ~", center)
	}
	return fmt.Sprintf("%.2f", center)
}
