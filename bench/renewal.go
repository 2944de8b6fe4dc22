package bench

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// callers is how many goroutines call at once where more than one does.
const callers = 8

// What a caller feels of a renewal is measured on a Base that takes so long,
// while the token endpoint takes so long.
const (
	baseLatency = time.Millisecond
	renewalTime = 300 * time.Millisecond

	// The token is to be renewed after renewAfter, or by ours up to 13 % later. The
	// calls begin a little before that.
	renewAfter = 2250 * time.Millisecond
	headStart  = 250 * time.Millisecond
)

// A Renewal is what became of calls during which a token was renewed.
type Renewal struct {
	Slowest time.Duration
	Delayed int // calls that took half of the renewal or longer
	Fetches int // token requests during the calls
}

// A RenewalRun is a peer with its first token, and calls to come.
type RenewalRun struct {
	peer    Peer
	renew   bool
	call    Call
	fetches atomic.Int32
	begin   time.Time // when calls may begin
}

// PrepareRenewal gets a peer its first token. If renew is set, that comes due a
// little after the first call of Measure.
func PrepareRenewal(p Peer, renew bool) (*RenewalRun, error) {
	r := &RenewalRun{peer: p, renew: renew}
	var err error
	r.call, err = p.New(Setup{Base: Memory{Latency: baseLatency}, Target: Target, Grants: r.grant})
	if err != nil {
		return nil, err
	}
	if err := Do(r.call, NewRequest(Target)); err != nil {
		return nil, err
	}
	r.begin = time.Now()
	if renew {
		r.begin = r.begin.Add(max(renewAfter-headStart, p.Settle))
	}
	return r, nil
}

func (r *RenewalRun) grant() Grant {
	n := r.fetches.Add(1)
	if n == 1 && r.renew {
		return Grant{Token, renewAfter}
	} else if n > 1 {
		time.Sleep(renewalTime)
	}
	return Grant{Token + "2", 24 * time.Hour}
}

// Measure waits for the time to begin and makes the calls.
func (r *RenewalRun) Measure(calls int) (Renewal, error) {
	time.Sleep(time.Until(r.begin))
	before := r.fetches.Load()
	took, err := callAll(r.call, NewRequest(Target), calls)
	if err != nil {
		return Renewal{}, err
	}
	got := Renewal{Slowest: slices.Max(took), Fetches: int(r.fetches.Load() - before)}
	for _, d := range took {
		if d >= renewalTime/2 {
			got.Delayed++
		}
	}
	want := 0
	if r.renew {
		want = 1
	}
	if got.Fetches != want {
		return got, fmt.Errorf("%s: got %d token requests during the calls, want %d", r.peer.Name, got.Fetches, want)
	}
	return got, nil
}

// callAll makes n calls like req, and returns how long each took. The callers
// share them.
func callAll(call Call, req *http.Request, n int) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, callers)
	for range callers {
		wg.Go(func() {
			req := req.Clone(req.Context())
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				start := time.Now()
				if err := Do(call, req); err != nil {
					failures <- err
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	close(failures)
	return took, <-failures
}
