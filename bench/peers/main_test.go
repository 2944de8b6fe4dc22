package main

import (
	"os"
	"strings"
	"testing"
)

// docs/peers.md shows what the probes find out.
func TestTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/peers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(page), begins)
	shown, _, found := strings.Cut(shown, ends)
	if !found {
		t.Fatalf("docs/peers.md has no lines %s and %s", strings.TrimSpace(begins), strings.TrimSpace(ends))
	}
	got, want := strings.Split(table(t), "\n"), strings.Split(shown, "\n")
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d: found out\n%s\ndocs/peers.md has\n%s", i+1, g, w)
		}
	}
	if t.Failed() {
		t.Log("go run -C bench/peers . -w ../../docs/peers.md")
	}
}
