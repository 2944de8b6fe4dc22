package bench

import (
	"testing"
	"testing/synctest"
	"time"
)

// In virtual time it is exact what a renewal costs the slowest call. oauth2
// holds a mutex meanwhile, which virtual time does not get past.
func TestRenewal(t *testing.T) {
	const calls = 10_000
	for _, test := range []struct {
		peer    string
		slowest time.Duration
		delayed int
	}{
		{"azcore", baseLatency + renewalTime, 1},
		{"httptransport", baseLatency, 0},
		{Ours, baseLatency, 0},
	} {
		for _, renew := range []bool{false, true} {
			want := Renewal{Slowest: baseLatency}
			if renew {
				want = Renewal{Slowest: test.slowest, Delayed: test.delayed, Fetches: 1}
			}
			synctest.Test(t, func(t *testing.T) {
				run, err := PrepareRenewal(ByName(test.peer), renew)
				if err != nil {
					t.Fatal(err)
				}
				got, err := run.Measure(calls)
				if err != nil {
					t.Fatal(err)
				}
				if got != want {
					t.Errorf("%s, renewal %v: got %+v, want %+v", test.peer, renew, got, want)
				}
			})
		}
	}
}

func TestAdded(t *testing.T) {
	loopback := StartLoopback()
	defer loopback.Close()
	standIn, err := StartStandIn()
	if err != nil {
		t.Fatal(err)
	}
	defer standIn.Close()
	for _, server := range []*Server{loopback, standIn} {
		for _, http2 := range []bool{false, true} {
			got, err := MeasureAdded([]Peer{ByName(Stack), ByName(Ours)}, Unset, server, http2, 20)
			if err != nil {
				t.Fatal(err)
			}
			if got.Bare <= 0 || len(got.More) != 2 {
				t.Errorf("got %+v, want the time of a bare call and two differences", got)
			}
		}
	}
}
