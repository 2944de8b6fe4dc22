package partnerredis

import (
	"flag"
	"testing"
	"time"
)

var long = flag.Bool("long", false, "windows of a minute, and all that takes long")

const window = 3 * time.Second

// hungry runs so many processes of 20 hungry goroutines each and tells what the
// partner counted, and how many scripts a grant took.
func hungry(t *testing.T, s *server, p *partner, n int, j job, during func(fleet)) (count, report, float64) {
	t.Helper()
	if j.Redis == nil {
		j.Redis = []string{s.addr()}
	}
	j.Partner, j.Name, j.Requests, j.Window = p.URL, "test", p.limit, p.window
	if j.Hungry == 0 {
		j.Hungry = 20
	}
	f := startFleet(t, n, j)
	before := 0
	if during == nil {
		before = s.scripts()
	}
	f.go_()
	if during != nil {
		during(f)
	}
	r := f.wait()
	c := p.result(n, j.For)
	perGrant := 0.0
	if during == nil {
		perGrant = float64(s.scripts()-before) / float64(c.total)
	}
	t.Logf("%v; %.2f scripts a grant; %+v", c, perGrant, r)
	if r.Goroutines > 2 && j.Master == "" { // of net/http, on their way out; a sentinel's client has its own
		t.Errorf("%d goroutines left", r.Goroutines)
	}
	return c, r, perGrant
}

func TestFleet(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		n    int
		late float64
		job  job
	}{
		{name: "8 processes", n: 8},
		{name: "20 processes", n: 20},
		{name: "late answers", n: 8, late: 0.25},
		{name: "callers give up", n: 4, job: job{Hungry: 50, Giving: 300 * time.Millisecond}},
		{name: "short deadlines", n: 4, job: job{Hungry: 20, Timeout: 200 * time.Millisecond}},
	}
	for _, server := range servers {
		for _, test := range tests {
			t.Run(server+"/"+test.name, func(t *testing.T) {
				if !*long && (test.job.Timeout > 0 || server != servers[0] && (test.job.Hungry > 0 || test.late > 0)) {
					t.Skip("-long")
				}
				t.Parallel()
				s := startProgram(t, server)
				p := newPartner(t, 100, window)
				p.late = test.late
				test.job.For = 3 * window
				if *long {
					p.window = time.Minute
					test.job.For = 3 * p.window
				}
				c, _, perGrant := hungry(t, s, p, test.n, test.job, nil)
				if c.refused > 0 || c.fullest > 100 {
					t.Errorf("got %d refused, %d in the fullest window, want 0 and at most 100", c.refused, c.fullest)
				}
				if perGrant > 1 {
					t.Errorf("got %.2f scripts a grant, want at most 1", perGrant)
				}
				if test.late > 0 {
					return
				}
				if c.used < 0.9 { // 95 on a quiet machine
					t.Errorf("got %.1f %% used, want 90", 100*c.used)
				}
				if test.job.Hungry == 0 && c.least < 0.4 { // 0.8 on a quiet machine
					t.Errorf("got %.2f of the mean for the least served, want 0.4", c.least)
				}
			})
		}
	}
}
