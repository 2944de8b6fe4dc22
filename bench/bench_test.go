package bench

import (
	"context"
	"runtime"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// BenchmarkCall is one call: in memory in every mode, over loopback TLS without
// telemetry and with all of it.
func BenchmarkCall(b *testing.B) {
	b.Run("base=memory", func(b *testing.B) { benchmarkModes(b, AllModes, Setup{Base: Memory{}, Target: Target}) })

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
			name := "otel=" + string(mode) + "/peer=" + p.Name
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

// BenchmarkWait is a permit that is there.
func BenchmarkWait(b *testing.B) {
	for _, peer := range []struct {
		name    string
		limiter partnerauth.Limiter
	}{
		{"rate", rate.NewLimiter(plenty/rate.Limit(plentyTime.Seconds()), plenty)},
		{Ours, &partnerauth.Quota{Requests: plenty, Window: plentyTime}},
	} {
		benchmarkBoth(b, peer.name, func() error { return peer.limiter.Wait(context.Background()) })
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
