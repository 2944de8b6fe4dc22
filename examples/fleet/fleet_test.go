package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var seconds = flag.Int("seconds", 4, "how long the processes work")

// TestMain is also the main function of the workers.
func TestMain(m *testing.M) {
	if os.Getenv(workerVariable) != "" {
		work(os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func TestFleet(t *testing.T) {
	var out bytes.Buffer
	const workers = 4
	counts, err := run(t.Context(), &out, workers, time.Duration(*seconds)*time.Second)
	if errors.Is(err, errNoRedis) {
		t.Skip("no redis-server here: partnerredis/install installs it")
	}
	if err != nil {
		t.Fatal(err)
	}
	draw(&out, counts)
	t.Logf("\n%s", &out)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("got a line of %d columns, want at most 80: %s", n, line)
		}
	}
	// The killed process may have had requests under way, of which nobody knows any more.
	if c := counts[shared]; c.peak() > limit*108/100 || c.peak() < limit/2 || c.code429 > 0 || c.logins < 1 || c.logins > 3 {
		t.Errorf("with Redis: got %d in a window, %d 429s, %d logins, want %d at most, none, 1 to 3", c.peak(), c.code429, c.logins, limit)
	}
	// In so short a time, who comes late asks once, finds the quota used, and may not have signed in at the end.
	if c := counts[alone]; c.peak() <= counts[shared].peak() || c.peak() <= limit || c.code429 == 0 {
		t.Errorf("without: got %d in a window, %d 429s, want more than with Redis", c.peak(), c.code429)
	}
	if a, s := counts[alone].logins, counts[shared].logins; *seconds >= 12 && a <= s {
		t.Errorf("got %d logins without Redis and %d with it, want more without", a, s)
	}
}
