package main

import (
	"flag"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/partnerauth/partnerauth"
)

var out = flag.String("to", "", "directory to draw the pictures to")

func TestPicture(t *testing.T) {
	counts := make([][]step, len(clients))
	for i, c := range clients {
		synctest.Test(t, func(t *testing.T) {
			arrivals := c.simulate()
			counts[i] = count(arrivals)
			inTime := 0
			for _, at := range arrivals {
				if at <= duration {
					inTime++
				}
			}
			aMinute := float64(inTime) / duration.Minutes()
			most := peak(counts[i])
			t.Logf("%-40s %5.1f a minute, at most %d in any", c.name, aMinute, most)
			if c.ours && (most > limit || aMinute < 97) {
				t.Errorf("%s: got %.1f requests a minute and %d in one, want 97 at least and %d at most", c.name, aMinute, most, limit)
			}
		})
	}
	if worst := peak(counts[0]); worst < 3*limit/2 {
		t.Errorf("got at most %d in a minute for a full bucket, want far more than %d", worst, limit)
	}
	if *out == "" {
		return
	}
	if err := draw(filepath.Join(*out, "quota.svg"), counts); err != nil {
		t.Fatal(err)
	}
}

func TestLightPicture(t *testing.T) {
	var now []float64
	for _, burst := range []int{0, 10} {
		synctest.Test(t, func(t *testing.T) { now = longestCalls(&partnerauth.Quota{Burst: burst}) })
		if most := slices.Max(now); most > 1 {
			t.Errorf("Burst %d: a call took %.2f s, want a second at most", burst, most)
		}
		if most := slices.Max(now[stray/lightCalls+1:]); most > 0.05 {
			t.Errorf("Burst %d: from the minute after the 429 on a call took %.2f s, want 0.05 s at most", burst, most)
		}
	}
	if *out == "" {
		return
	}
	if err := drawLight(filepath.Join(*out, "quota-light.svg"), now); err != nil {
		t.Fatal(err)
	}
}
