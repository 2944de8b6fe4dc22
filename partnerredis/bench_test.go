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
	for _, name := range servers {
		b.Run(name, func(b *testing.B) {
			s := startProgram(b, name)
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
	q := &Quota{Client: client, Name: newID(), Requests: maxRequests}
	ctx := context.Background()
	time200 := func(f func() error) float64 {
		start := time.Now()
		for range 200 {
			if err := f(); err != nil {
				tb.Fatal(err)
			}
		}
		return float64(time.Since(start))
	}
	grants, pings := math.Inf(1), math.Inf(1)
	for range 10 {
		grants = min(grants, time200(func() error { return grant(ctx, q) }))
		pings = min(pings, time200(func() error { return client.Ping(ctx).Err() }))
	}
	return grants / pings
}
