package partnerauth

import (
	"testing"
	"time"
)

// A burstOf is so many requests at once, which are answered after a tenth of a
// second: the first ones as refusals says, the rest with 200.
type burstOf struct {
	at       time.Duration
	requests int
	refused  int
	outcome  outcome
	named    time.Duration // 0: none
	last     bool          // the last ones are refused, and not the first
}

// play lets w send a burst and returns the verdict on its last refusal, or on
// its last answer if there is none.
func (b burstOf) play(t *testing.T, w *slidingWindow) (v verdict) {
	t.Helper()
	sent := w.start.Add(b.at)
	var permits []permit
	for range b.requests {
		if wait := w.ready(sent, false); wait > 0 {
			t.Fatalf("the request at %v has to wait for %v", b.at, wait)
		}
		permits = append(permits, w.take(sent, false))
	}
	for i, p := range permits {
		now := sent.Add(100*time.Millisecond + time.Duration(i))
		o, named := answered, time.Duration(0)
		if i < b.refused && !b.last || i >= b.requests-b.refused && b.last {
			o, named = b.outcome, b.named
		}
		if got := w.release(now, p, o, named, named > 0); o != answered || b.refused == 0 {
			v = got
		}
	}
	return v
}

// What each answer teaches, and on which side of its bounds.
func TestVerdicts(t *testing.T) {
	const interval = 600 * time.Millisecond
	for _, c := range []struct {
		name   string
		fixed  bool
		before []burstOf
		last   burstOf
		want   verdict
	}{
		{
			name: "served",
			last: burstOf{requests: 50},
			want: verdict{pace: 1, burst: 100},
		}, {
			name: "first refusal of a burst",
			last: burstOf{requests: 10, refused: 1, outcome: throttled},
			want: verdict{pause: interval, pace: 0.96, burst: 100, reason: "burst_refused"},
		}, {
			name: "last answer of a burst, refused",
			last: burstOf{requests: 10, refused: 1, outcome: throttled, last: true},
			want: verdict{pause: interval, pace: 0.96, burst: 9, reason: "burst_refused"},
		}, {
			name:   "what was borne before counts",
			before: []burstOf{{requests: 30}},
			last:   burstOf{at: time.Minute, requests: 10, refused: 1, outcome: throttled, last: true},
			want:   verdict{pause: interval, pace: 0.96, burst: 30, reason: "burst_refused"},
		}, {
			name: "all of a burst",
			last: burstOf{requests: 10, refused: 10, outcome: throttled},
			want: verdict{pause: interval, pace: 0.96, burst: 100},
		}, {
			name:   "all of a burst, after a smaller one was borne",
			before: []burstOf{{requests: 4}},
			last:   burstOf{at: time.Minute, requests: 10, refused: 10, outcome: throttled},
			want:   verdict{pause: interval, pace: 0.96, burst: 4},
		}, {
			name:   "but not before the last burst that was refused",
			before: []burstOf{{requests: 30}, {at: time.Minute, requests: 20, refused: 1, outcome: throttled, last: true}},
			last:   burstOf{at: 90 * time.Second, requests: 10, refused: 1, outcome: throttled, last: true},
			want:   verdict{pause: interval, pace: 0.96, burst: 9, reason: "burst_refused"},
		}, {
			name: "two are a burst",
			last: burstOf{requests: 2, refused: 1, outcome: throttled, last: true},
			want: verdict{pause: interval, pace: 0.96, burst: 1, reason: "burst_refused"},
		}, {
			name: "one is none",
			last: burstOf{requests: 1, refused: 1, outcome: throttled},
			want: verdict{pause: interval, pace: 0.96, burst: 100, reason: "single_refused"},
		}, {
			name:   "one again, and nothing was served",
			before: []burstOf{{requests: 1, refused: 1, outcome: throttled}},
			last:   burstOf{at: time.Second, requests: 1, refused: 1, outcome: throttled},
			want:   verdict{pause: 2 * interval, pace: 0.96, burst: 100},
		}, {
			name:   "one again, soon",
			before: []burstOf{{requests: 1, refused: 1, outcome: throttled}, {at: time.Second, requests: 1}},
			last:   burstOf{at: 5999 * time.Millisecond, requests: 1, refused: 1, outcome: throttled},
			want:   verdict{pause: interval, pace: 0.96 * 0.88, burst: 100, reason: "single_refused"},
		}, {
			name:   "one again, later",
			before: []burstOf{{requests: 1, refused: 1, outcome: throttled}, {at: time.Second, requests: 1}},
			last:   burstOf{at: 6 * time.Second, requests: 1, refused: 1, outcome: throttled},
			want:   verdict{pause: interval, pace: 0.96 * 0.96, burst: 100, reason: "single_refused"},
		}, {
			name: "pause of a window and two seconds",
			last: burstOf{requests: 1, refused: 1, outcome: throttled, named: 62 * time.Second},
			want: verdict{pace: 0.96, burst: 100, reason: "single_refused"},
		}, {
			name: "longer pause",
			last: burstOf{requests: 1, refused: 1, outcome: throttled, named: 62*time.Second + 1},
			want: verdict{pace: 1, burst: 100},
		}, {
			name:   "last request of a full window",
			before: []burstOf{{requests: 99}},
			last:   burstOf{at: time.Second, requests: 1, refused: 1, outcome: throttled},
			want:   verdict{pause: time.Minute, pace: 1, burst: 100},
		}, {
			name:   "the guard does not make a window full",
			before: []burstOf{{requests: 99}},
			last:   burstOf{at: time.Minute + 200*time.Millisecond, requests: 1, refused: 1, outcome: throttled},
			want:   verdict{pause: interval, pace: 0.96, burst: 100, reason: "single_refused"},
		}, {
			name:  "fixed rate",
			fixed: true,
			last:  burstOf{requests: 10, refused: 1, outcome: throttled, last: true},
			want:  verdict{pause: interval, pace: 1, burst: 100},
		}, {
			name: "two answers of 503",
			last: burstOf{requests: 10, refused: 2, outcome: overloaded, last: true},
			want: verdict{pace: 1, burst: 100},
		}, {
			name: "three",
			last: burstOf{requests: 10, refused: 3, outcome: overloaded, last: true},
			want: verdict{pace: 1, burst: 7, reason: "unavailable"},
		}, {
			name: "nothing but 503",
			last: burstOf{requests: 3, refused: 3, outcome: overloaded},
			want: verdict{pace: 1, burst: 100},
		}, {
			name:   "three within a tenth of a window",
			before: []burstOf{{requests: 40, refused: 2, outcome: overloaded}},
			last:   burstOf{at: 5999 * time.Millisecond, requests: 5, refused: 1, outcome: overloaded, last: true},
			want:   verdict{pace: 1, burst: 40, reason: "unavailable"},
		}, {
			name:   "three that are further apart",
			before: []burstOf{{requests: 40, refused: 2, outcome: overloaded}},
			last:   burstOf{at: 6 * time.Second, requests: 5, refused: 1, outcome: overloaded, last: true},
			want:   verdict{pace: 1, burst: 100},
		},
	} {
		w := newWindow(100, time.Minute, 100, c.fixed)
		for _, b := range c.before {
			b.play(t, w)
		}
		got := c.last.play(t, w)
		got.pace = float64(int(got.pace*1000+0.5)) / 1000
		c.want.pace = float64(int(c.want.pace*1000+0.5)) / 1000
		c.want.slower = c.want.reason != ""
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

// A late answer to a burst that was refused may show that less was borne.
func TestLateAnswerLowersTheBurst(t *testing.T) {
	w := newWindow(100, time.Minute, 100, false)
	now := w.start
	refused, served := w.take(now, false), w.take(now, false)
	v := w.release(now.Add(1), refused, throttled, time.Second, true)
	if v.burst != 100 {
		t.Errorf("burst is %d while nothing has been served, want 100", v.burst)
	}
	v = w.release(now.Add(2), served, answered, 0, false)
	if v.burst != 1 || !v.slower {
		t.Errorf("burst is %d after one was served, want 1; slower %t", v.burst, v.slower)
	}
}

// When everything has been regained, nothing limits bursts and pace any more, but
// not before nobody has waited for as long as a full burst takes to earn.
func TestLessonIsForgotten(t *testing.T) {
	for _, c := range []struct {
		name    string
		windows time.Duration
		waits   bool // somebody waits all the time
		want    bool
	}{
		{name: "too early", windows: 39},
		{name: "in time", windows: 41, want: true},
		{name: "while somebody waits", windows: 41, waits: true},
	} {
		w := newWindow(100, time.Minute, 100, false)
		w.release(w.start.Add(1), w.take(w.start, false), throttled, time.Second, true)
		if c.waits {
			w.pace.held = w.start.Add(c.windows * time.Minute)
		}
		w.ready(w.start.Add(c.windows*time.Minute), false)
		if got := !w.pace.limited(); got != c.want {
			t.Errorf("%s: forgotten: %t, want %t", c.name, got, c.want)
		}
	}
}
