package partnerredis

import (
	"context"
	"math"
	"testing"
	"time"
)

// BenchmarkPermit compares a grant with a PING in the same run: the least of
// several rounds of both, since other programs disturb.
func BenchmarkPermit(b *testing.B) {
	for _, program := range programs() {
		b.Run(program, func(b *testing.B) {
			s := startProgram(b, program)
			client := s.client()
			defer client.Close()
			q := &Quota{Client: client, Name: "bench", Requests: maxRequests, Window: time.Minute}
			b.ReportAllocs()
			for b.Loop() {
				if err := grant(context.Background(), q); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(pings(b, s), "PINGs/grant")
		})
	}
}

func grant(ctx context.Context, q *Quota) error {
	p, err := q.Permit(ctx, 1)
	if err == nil {
		p.Settle(200, 0)
	}
	return err
}

// pings is how many PINGs a grant costs.
func pings(tb testing.TB, s *server) float64 {
	client := s.client()
	defer client.Close()
	q := &Quota{Client: client, Name: "pings"}
	q.Requests = maxRequests
	ctx := context.Background()
	least := func(f func() error) float64 {
		least := time.Duration(math.MaxInt64)
		for range 10 {
			start := time.Now()
			for range 200 {
				if err := f(); err != nil {
					tb.Fatal(err)
				}
			}
			least = min(least, time.Since(start))
		}
		return float64(least)
	}
	ping := func() error { return client.Ping(ctx).Err() }
	return least(func() error { return grant(ctx, q) }) / min(least(ping), least(ping))
}

func TestCost(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector slows the client and not the server")
	}
	for _, program := range programs() {
		got := pings(t, startProgram(t, program))
		for range 2 {
			if got > 4 {
				got = min(got, pings(t, startProgram(t, program)))
			}
		}
		t.Logf("%s: a grant costs %.2f PINGs", program, got)
		if got > 4 {
			t.Errorf("%s: a grant costs %.2f PINGs, want at most 4", program, got)
		}
	}
}
