package bench

import (
	"net/http"
	"slices"
	"time"
)

// Added is how long one call takes without anything and what each of the others
// add to it, over the same connection: medians.
type Added struct {
	Bare time.Duration
	More []time.Duration // of each peer
}

// MeasureAdded makes rounds of one call each: bare, with the token put in by
// hand, and through each of the peers, in changing order.
func MeasureAdded(peers []Peer, mode Mode, s *Server, http2 bool, rounds int) (Added, error) {
	base := s.Transport(http2)
	defer base.CloseIdleConnections()
	setup := Setup{
		Base: base, Target: s.URL, Telemetry: NewTelemetry(mode),
		Grants: func() Grant { return Grant{s.Token, 24 * time.Hour} },
	}
	calls := make([]Call, 1+len(peers))
	for i, p := range append([]Peer{ByName(Bare)}, peers...) {
		call, err := p.New(setup)
		if err != nil {
			return Added{}, err
		}
		calls[i] = call
	}
	req, signed := NewRequest(s.URL), NewRequest(s.URL)
	signed.Header.Set("Authorization", "Bearer "+s.Token)
	took := make([][]time.Duration, len(calls)) // of bare, then what each adds in the same round
	for round := range rounds {
		this := make([]time.Duration, len(calls))
		for i := range calls {
			i = (i + round) % len(calls)
			r := req
			if i == 0 {
				r = signed
			}
			var err error
			if this[i], err = timed(calls[i], r); err != nil {
				return Added{}, err
			}
		}
		took[0] = append(took[0], this[0])
		for i := 1; i < len(calls); i++ {
			took[i] = append(took[i], this[i]-this[0])
		}
	}
	added := Added{Bare: median(took[0])}
	for _, more := range took[1:] {
		added.More = append(added.More, median(more))
	}
	return added, nil
}

func timed(call Call, req *http.Request) (time.Duration, error) {
	start := time.Now()
	err := Do(call, req)
	return time.Since(start), err
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
