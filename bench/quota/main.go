// Quota draws two pictures. quota.svg shows how many requests a server counts in
// the last minute when 50 goroutines always have another one to send: through
// partnerauth, and through rate.Limiter as it is commonly set. quota-light.svg
// shows what one stray 429 costs a service far below its limit. The minutes pass
// in virtual time, which only tests have, so it runs them.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

func main() {
	out := flag.String("o", filepath.Join("..", "docs"), "directory to draw to")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "quota:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	path, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	test := exec.Command("go", "test", "-count=1", "-v", "-run=Picture$",
		"github.com/partnerauth/partnerauth/bench/quota", "-to="+path)
	test.Stdout, test.Stderr = os.Stdout, os.Stderr
	return test.Run()
}
