package partnerauth

import (
	"math"
	"testing"
	"time"
)

// A burstOf is so many requests at once, which are answered after a tenth of a
// second: the last ones as refusals, the others with 200.
type burstOf struct {
	at       time.Duration
	requests int
	refused  int // with 429
	sick     int // with 503
	named    time.Duration
}

// play lets w send a burst and returns the verdict on its last answer.
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
		o, named := answered, time.Duration(0)
		switch left := b.requests - i; {
		case left <= b.refused:
			o, named = throttled, b.named
		case left <= b.sick:
			o = overloaded
		}
		v = w.release(sent.Add(100*time.Millisecond+time.Duration(i)), p, o, named, named > 0)
	}
	return v
}

// What each answer teaches, and on which side of its bounds.
func TestVerdicts(t *testing.T) {
	const interval, burst, single = 600 * time.Millisecond, "burst_refused", "single_refused"
	refused, served := burstOf{requests: 1, refused: 1}, burstOf{at: time.Second, requests: 1}
	for _, c := range []struct {
		name   string
		fixed  bool
		before []burstOf
		last   burstOf
		want   verdict
	}{
		{name: "served", last: burstOf{requests: 50}, want: verdict{pace: 1, burst: 100}},
		{name: "last of a burst", last: burstOf{requests: 10, refused: 1},
			want: verdict{pause: interval, pace: 0.96, burst: 9, reason: burst}},
		{name: "what was borne before counts", before: []burstOf{{requests: 30}}, last: burstOf{at: time.Minute, requests: 10, refused: 1},
			want: verdict{pause: interval, pace: 0.96, burst: 30, reason: burst}},
		{name: "all of a burst", last: burstOf{requests: 10, refused: 10},
			want: verdict{pause: interval, pace: 0.96, burst: 100}},
		{name: "all, after a smaller one", before: []burstOf{{requests: 4}}, last: burstOf{at: time.Minute, requests: 10, refused: 10},
			want: verdict{pause: interval, pace: 0.96, burst: 4}},
		{name: "but not before the last burst that was refused",
			before: []burstOf{{requests: 30}, {at: time.Minute, requests: 20, refused: 1}, {at: 80 * time.Second, requests: 1}},
			last:   burstOf{at: 90 * time.Second, requests: 10, refused: 1},
			want:   verdict{pause: interval, pace: 0.96, burst: 9, reason: burst}},
		{name: "two are a burst", last: burstOf{requests: 2, refused: 1},
			want: verdict{pause: interval, pace: 0.96, burst: 1, reason: burst}},
		{name: "one is none", last: refused,
			want: verdict{pause: interval, pace: 0.96, burst: 100, reason: single}},
		{name: "one again, and nothing was served", before: []burstOf{refused}, last: burstOf{at: time.Second, requests: 1, refused: 1},
			want: verdict{pause: 2 * interval, pace: 0.96, burst: 100}},
		{name: "one again, soon", before: []burstOf{refused, served}, last: burstOf{at: 5999 * time.Millisecond, requests: 1, refused: 1},
			want: verdict{pause: interval, pace: 0.96 * 0.88, burst: 100, reason: single}},
		{name: "one again, later", before: []burstOf{refused, served}, last: burstOf{at: 6 * time.Second, requests: 1, refused: 1},
			want: verdict{pause: interval, pace: 0.96 * 0.96, burst: 100, reason: single}},
		{name: "pause of a window and two seconds", last: burstOf{requests: 1, refused: 1, named: 62 * time.Second},
			want: verdict{pace: 0.96, burst: 100, reason: single}},
		{name: "longer pause", last: burstOf{requests: 1, refused: 1, named: 62*time.Second + 1},
			want: verdict{pace: 1, burst: 100}},
		{name: "last request of a full window", before: []burstOf{{requests: 99}}, last: burstOf{at: time.Second, requests: 1, refused: 1},
			want: verdict{pause: time.Minute, pace: 1, burst: 100}},
		{name: "the guard does not make a window full", before: []burstOf{{requests: 99}},
			last: burstOf{at: time.Minute + 200*time.Millisecond, requests: 1, refused: 1},
			want: verdict{pause: interval, pace: 0.96, burst: 100, reason: single}},
		{name: "fixed rate", fixed: true, last: burstOf{requests: 10, refused: 1},
			want: verdict{pause: interval, pace: 1, burst: 100}},
		{name: "two answers of 503", last: burstOf{requests: 10, sick: 2}, want: verdict{pace: 1, burst: 100}},
		{name: "three", last: burstOf{requests: 10, sick: 3}, want: verdict{pace: 1, burst: 7, reason: "unavailable"}},
		{name: "three, and then one refused", before: []burstOf{{requests: 10, sick: 3}},
			last: burstOf{at: time.Minute, requests: 1, refused: 1},
			want: verdict{pause: 2 * interval, pace: 1, burst: 14}},
		{name: "nothing but 503", last: burstOf{requests: 3, sick: 3}, want: verdict{pace: 1, burst: 100}},
		{name: "three within a tenth of a window", before: []burstOf{{requests: 40, sick: 2}},
			last: burstOf{at: 5999 * time.Millisecond, requests: 5, sick: 1},
			want: verdict{pace: 1, burst: 40, reason: "unavailable"}},
		{name: "three that are further apart", before: []burstOf{{requests: 40, sick: 2}},
			last: burstOf{at: 6001 * time.Millisecond, requests: 5, sick: 1},
			want: verdict{pace: 1, burst: 100}},
	} {
		w := newWindow(100, time.Minute, 100, c.fixed)
		for _, b := range c.before {
			b.play(t, w)
		}
		got := c.last.play(t, w)
		if math.Abs(got.pace-c.want.pace) < 0.0005 { // it is regained by the moment
			got.pace = c.want.pace
		}
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
	before := w.release(now.Add(1), refused, throttled, time.Second, true)
	after := w.release(now.Add(2), served, answered, 0, false)
	if before.burst != 100 || after.burst != 1 || !after.slower {
		t.Errorf("burst is %d before one was served and %d after, want 100 and 1; slower: %t", before.burst, after.burst, after.slower)
	}
}

// After a refusal one request goes at a time, until one is served or the rate is fixed.
func TestSingleFileAfterARefusal(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		w := newWindow(100, time.Minute, 100, fixed)
		burstOf{requests: 50, refused: 50, named: time.Second}.play(t, w)
		now := w.start.Add(time.Minute)
		first := w.take(now, false)
		before := w.ready(now, false)
		w.release(now.Add(1), first, answered, 0, false)
		if after := w.ready(now.Add(1), false); (before == 600*time.Millisecond) == fixed || after > 0 {
			t.Errorf("fixed %t: the second waits for %v, and when the first is served for %v", fixed, before, after)
		}
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
		burstOf{requests: 1, refused: 1, named: time.Second}.play(t, w)
		now := w.start.Add(c.windows * time.Minute)
		if c.waits {
			w.pace.held = now
		}
		w.ready(now, false)
		if got := !w.pace.limited(); got != c.want {
			t.Errorf("%s: forgotten: %t, want %t", c.name, got, c.want)
		}
	}
}
