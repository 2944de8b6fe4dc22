package partnerauth_test

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
)

// underRace reports whether the race detector is on. It adds allocations of its
// own and lets sync.Pool forget at random, so that none can be counted.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}()

// abundance is a Quota that lets everybody go at once and still does its work.
func abundance() *partnerauth.Quota {
	return &partnerauth.Quota{Requests: 1_000_000, Window: time.Millisecond}
}

// cheapAnswer is what costs least to return.
func cheapAnswer(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}, nil
}

// signedIn is a Transport with a fresh token.
func signedIn(t testing.TB) *partnerauth.Transport {
	rt := &partnerauth.Transport{Source: new(partner).nowPost(), Base: roundTripFunc(cheapAnswer), Limiter: abundance()}
	if _, err := rt.Source.Token(); err != nil {
		t.Fatal(err)
	}
	return rt
}

func TestAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates, too")
	}
	rt, req := signedIn(t), newRequest(t, "GET", apiURL+"/orders", "")
	req.Header.Set("Accept", "application/json")
	source, quota := rt.Source.(*partnerauth.Source), abundance()
	for _, c := range []struct {
		name  string
		most  float64
		bytes uint64
		call  func()
	}{
		// the Base's answer included
		{"a call with otel's globals unset", 7, 1400, func() { rt.RoundTrip(req) }},
		{"Source.Token on a fresh token", 0, 0, func() { source.Token() }},
		{"Source.TokenContext on a fresh token", 0, 0, func() { source.TokenContext(t.Context()) }},
		{"Quota.Wait when nobody waits", 0, 200, func() { quota.Wait(t.Context()) }},
	} {
		n := testing.AllocsPerRun(1000, c.call)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 1000 {
			c.call()
		}
		runtime.ReadMemStats(&after)
		bytes := (after.TotalAlloc - before.TotalAlloc) / 1000
		errorIf(t, n > c.most || bytes > c.bytes,
			"%s makes %v allocations of %d B, want at most %v of %d B", c.name, n, bytes, c.most, c.bytes)
	}
}
