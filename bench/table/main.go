// Table prints, as Markdown, what a call costs through partnerauth and through
// what a team would otherwise use, all measured in this run: the benchmarks,
// what a caller feels of a renewal, and what is added to a call over TLS.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

func main() {
	short := flag.Bool("short", false, "only see that everything works: each benchmark runs once, and there are no ratios")
	rounds := flag.Int("count", 25, "rounds of all benchmarks; ratios are made within a round")
	benchtime := flag.String("benchtime", "20ms", "of each benchmark in a round")
	file := flag.String("w", "", "file to write the tables to, after its mark")
	flag.Parse()
	p := plan{rounds: *rounds, benchtime: *benchtime, renewals: 3, calls: 10_000, pairs: 4000}
	if *short {
		p = plan{short: true, rounds: 1, benchtime: "1x", pairs: 20} // no renewals: they take their time
	}
	var tables bytes.Buffer
	err := p.run(io.MultiWriter(os.Stdout, &tables))
	if err == nil && *file != "" {
		err = put(*file, tables.Bytes())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

// put writes the tables into a file, in place of what stands after its mark.
func put(file string, tables []byte) error {
	const mark = "<!-- written by table -w -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, _, found := bytes.Cut(text, []byte(mark))
	if !found {
		return fmt.Errorf("%s has no line %s", file, mark)
	}
	return os.WriteFile(file, slices.Concat(head, []byte(mark+"\n"), bytes.TrimSpace(tables), []byte("\n")), 0o644)
}

// A plan is how much to measure.
type plan struct {
	short     bool   // too little to compare
	rounds    int    // of all benchmarks
	benchtime string // of each
	renewals  int    // of each peer's token; 0: none
	calls     int    // while one is renewed
	pairs     int    // of calls over TLS
}

func (p plan) run(w io.Writer) error {
	prepared, err := prepareRenewals(p.renewals)
	if err != nil {
		return err
	}
	output, err := p.benchmark()
	if err != nil {
		return err
	}
	all, err := parse(output)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s, %s/%s, GOMAXPROCS %d, %d rounds of %s.\n\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), p.rounds, p.benchtime)
	if p.short {
		fmt.Fprint(w, "No ratios: each benchmark ran once, for one call, which says nothing about the next.\n\n")
	}
	all.print(w)
	if p.renewals > 0 {
		if err := printRenewals(w, prepared, p.renewals, p.calls); err != nil {
			return err
		}
	}
	return printAdded(w, p.pairs, !p.short)
}

// benchmark runs the benchmarks round by round, rather than each of them several
// times on end, so that what is compared was measured at about the same time.
func (p plan) benchmark() ([]byte, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "bench.test")
	build := exec.Command("go", "test", "-c", "-o", binary, "github.com/partnerauth/partnerauth/bench")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the benchmarks: %w", err)
	}
	var all bytes.Buffer
	for round := range p.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, p.rounds)
		run := exec.Command(binary, "-test.run=^$", "-test.bench=.", "-test.benchtime="+p.benchtime)
		run.Dir, run.Stdout, run.Stderr = dir, &all, os.Stderr
		if err := run.Run(); err != nil {
			return nil, fmt.Errorf("running the benchmarks: %w\n%s", err, all.Bytes())
		}
	}
	return all.Bytes(), nil
}
