package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// BenchmarkCall is one call: in memory in every mode, over loopback TLS without
// telemetry and with all of it.
func BenchmarkCall(b *testing.B) {
	b.Run("base=memory", func(b *testing.B) { benchmarkModes(b, AllModes, Setup{Base: Memory{}, Target: Target}) })
	b.Run("base=minute", func(b *testing.B) {
		benchmarkMinute(b, []Mode{Unset, Metrics}, Setup{Base: Memory{}, Target: Target, Minute: true})
	})

	loopback := StartLoopback()
	defer loopback.Close()
	for _, name := range []string{"http1", "http2"} {
		base := loopback.Transport(name == "http2")
		defer base.CloseIdleConnections()
		if _, err := callAll(base.RoundTrip, NewRequest(loopback.URL), 500); err != nil { // opens the connections
			b.Fatal(err)
		}
		b.Run("base="+name, func(b *testing.B) {
			benchmarkModes(b, []Mode{Unset, Metrics}, Setup{Base: base, Target: loopback.URL})
		})
	}
}

func benchmarkModes(b *testing.B, modes []Mode, s Setup) {
	for _, mode := range modes {
		for _, p := range In(mode) {
			s.Telemetry = NewTelemetry(mode)
			call, err := p.New(s)
			if err != nil {
				b.Fatal(err)
			}
			if err := Do(call, NewRequest(s.Target)); err != nil {
				b.Fatal(err)
			}
			name := p.in(mode)
			b.Run(name+"/callers=1", func(b *testing.B) {
				b.ReportAllocs()
				req := NewRequest(s.Target)
				for b.Loop() {
					if err := Do(call, req); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(name+"/callers=8", func(b *testing.B) {
				parallel(b, func() func() error {
					req := NewRequest(s.Target)
					return func() error { return Do(call, req) }
				})
			})
		}
	}
}

// benchmarkMinute is a call with the quota that users have and places free. A
// peer's limiter lasts for 90 calls, so it is made anew for every 90.
func benchmarkMinute(b *testing.B, modes []Mode, s Setup) {
	for _, mode := range modes {
		s.Telemetry = NewTelemetry(mode)
		for _, p := range In(mode) {
			if p.Name != Bare && p.Name != Stack && p.Name != Ours {
				continue // no limiter, or not what ratios are made of
			}
			benchmarkFresh(b, p.in(mode), minuteCalls, func() (func() error, error) {
				call, err := p.New(s)
				if err != nil {
					return nil, err
				}
				req := NewRequest(s.Target)
				return func() error { return Do(call, req) }, nil
			})
		}
	}
}

func (p Peer) in(mode Mode) string { return "otel=" + string(mode) + "/peer=" + p.Name }

// benchmarkFresh measures what lasts for so many operations only. What prepare
// makes has done one before, and both are outside the measured time. So many are
// made at once that starting the callers counts for nothing.
func benchmarkFresh(b *testing.B, name string, lasts int, prepare func() (func() error, error)) {
	ready := make([]func() error, max(1, 1000/lasts))
	for _, n := range []int{1, callers} {
		b.Run(fmt.Sprintf("%s/callers=%d", name, n), func(b *testing.B) {
			b.ReportAllocs()
			for left := b.N; left > 0; left -= len(ready) * lasts {
				b.StopTimer()
				for i := range ready {
					var err error
					if ready[i], err = prepare(); err == nil {
						err = ready[i]()
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				total := min(left, len(ready)*lasts)
				if n == 1 {
					for i := range total {
						if err := ready[i/lasts](); err != nil {
							b.Fatal(err)
						}
					}
					continue
				}
				const share = 10 // taken at a time, so that sharing them out costs little
				var next atomic.Int64
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() {
						for from := int(next.Add(share)) - share; from < total; from = int(next.Add(share)) - share {
							for i := from; i < min(from+share, total); i++ {
								if err := ready[i/lasts](); err != nil {
									b.Error(err)
									return
								}
							}
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// parallel runs what prepare returns, for each of the callers its own.
func parallel(b *testing.B, prepare func() func() error) {
	b.ReportAllocs()
	b.SetParallelism((callers + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		do := prepare()
		for pb.Next() {
			if err := do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkToken is a look at a token that is fresh.
func BenchmarkToken(b *testing.B) {
	s := Setup{Target: Target}
	for _, peer := range []struct {
		name   string
		source oauth2.TokenSource
	}{
		{"oauth2", oauth2.ReuseTokenSource(nil, oauth2Source{s})},
		{Ours, NewSource(s)},
	} {
		token := func() error { _, err := peer.source.Token(); return err }
		benchmarkBoth(b, peer.name, token)
	}
}

// BenchmarkWait is a permit that is there: with the quota that users have, and
// with a large one of which thousands of places are in use.
func BenchmarkWait(b *testing.B) {
	for _, quota := range []struct {
		name  string
		lasts int
		setup Setup
	}{
		{"minute", minuteCalls, Setup{Minute: true}},
		{"plenty", 5000, Setup{}},
	} {
		wait := func(limiter func() partnerauth.Limiter) func() (func() error, error) {
			return func() (func() error, error) {
				l := limiter()
				return func() error { return l.Wait(context.Background()) }, nil
			}
		}
		name := "quota=" + quota.name + "/peer="
		benchmarkFresh(b, name+"rate", quota.lasts, wait(func() partnerauth.Limiter { return quota.setup.rateLimiter() }))
		benchmarkFresh(b, name+Ours, quota.lasts, wait(func() partnerauth.Limiter { return quota.setup.quota() }))
	}
}

func benchmarkBoth(b *testing.B, name string, do func() error) {
	if err := do(); err != nil {
		b.Fatal(err)
	}
	b.Run("peer="+name+"/callers=1", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := do(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("peer="+name+"/callers=8", func(b *testing.B) {
		parallel(b, func() func() error { return do })
	})
}
