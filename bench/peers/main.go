// Peers prints, as Markdown, what libraries do for a token: each cell is found
// out here and now, by a partner in the same process that misbehaves.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

const (
	begins = "<!-- peers -->\n"
	ends   = "<!-- /peers -->\n"
)

// Virtual time is to be had from package testing alone, so the probes run as a
// test, whose own output goes to where errors do.
func main() {
	file := flag.String("w", "", "file to write the table to, between its marks")
	stdout := os.Stdout
	os.Stdout = os.Stderr
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: "peers", F: func(t *testing.T) {
			text := table(t)
			if t.Failed() {
				return
			}
			io.WriteString(stdout, text)
			if *file != "" {
				if err := put(*file, text); err != nil {
					t.Error(err)
				}
			}
		},
	}}, nil, nil)
}

// table runs all probes.
func table(t *testing.T) string {
	klog.SetLogger(logr.Discard()) // client-go logs what is to be seen here
	began := time.Now()
	var b strings.Builder
	row := func(first string, cells []string) {
		fmt.Fprintf(&b, "| %s | %s |\n", first, strings.Join(cells, " | "))
	}
	names := make([]string, len(peers))
	for i, pr := range peers {
		names[i] = pr.name
	}
	row("", names)
	b.WriteString("|" + strings.Repeat("---|", len(peers)+1) + "\n")
	for _, p := range probes {
		cells := make([]string, len(peers))
		for i, pr := range peers {
			cells[i] = p.run(t, pr)
		}
		row(p.title, cells)
		fmt.Fprintf(os.Stderr, "%v: %s\n", time.Since(began).Round(time.Millisecond), p.title)
	}
	if footnote != "" {
		fmt.Fprintf(&b, "\n%s\n", footnote)
	}
	return b.String()
}

// put writes the table into a file.
func put(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, found := bytes.Cut(old, []byte(begins))
	_, tail, closed := bytes.Cut(rest, []byte(ends))
	if !found || !closed {
		return fmt.Errorf("%s has no lines %s and %s", file, strings.TrimSpace(begins), strings.TrimSpace(ends))
	}
	return os.WriteFile(file, slices.Concat(head, []byte(begins+text+ends), tail), 0o644)
}
