package main

import (
	"flag"
	"testing"
	"testing/synctest"
)

var svg = flag.String("svg", "", "file to draw the picture to")

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
	if *svg == "" {
		return
	}
	if err := draw(*svg, counts); err != nil {
		t.Fatal(err)
	}
}
