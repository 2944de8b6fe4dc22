package partnerauth

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// When the only slot of a window is free again, by what became of its request.
func TestSlotIsFreeAgain(t *testing.T) {
	const short = 200 * time.Millisecond // has a guard of 10 ms
	const between = 65 * time.Second
	for _, c := range []struct {
		name    string
		window  time.Duration
		outcome outcome
		looked  time.Duration // somebody asks for a slot then; 0: nobody
		after   time.Duration // when the permit ends
		want    time.Duration
	}{
		{name: "answered", window: time.Minute, outcome: answered, after: 10 * time.Second, want: 71 * time.Second},
		{name: "refused", window: time.Minute, outcome: throttled, after: 10 * time.Second, want: 71 * time.Second},
		{name: "answered late", window: time.Minute, outcome: answered, after: 70 * time.Second, want: 121 * time.Second},
		{name: "late, looked", window: time.Minute, outcome: answered, looked: between, after: 70 * time.Second, want: 121 * time.Second},
		{name: "too late", window: time.Minute, outcome: answered, looked: 130 * time.Second,
			after: 131 * time.Second, want: 131 * time.Second},
		{name: "given up", window: time.Minute, outcome: unanswered, after: 10 * time.Second, want: 71 * time.Second},
		{name: "given up late", window: time.Minute, outcome: unanswered, after: 70 * time.Second, want: 121 * time.Second},
		{name: "given up, short window", window: short, outcome: unanswered,
			after: 10 * time.Millisecond, want: 2*short + 10*time.Millisecond},
		{name: "given up, window of 4 s", window: 4 * time.Second, outcome: unanswered, after: time.Second, want: 6 * time.Second},
		{name: "by hand", window: time.Minute, outcome: byHand, want: 61 * time.Second},
		{name: "by hand, short window", window: short, outcome: byHand, want: short + time.Second},
		{name: "by hand, short window, looked", window: short, outcome: byHand, looked: 2 * short,
			after: 3 * short, want: 4*short + time.Second},
		{name: "unused", window: time.Minute, outcome: unused, after: 10 * time.Second, want: 10 * time.Second},
		{name: "unused late, looked", window: time.Minute, outcome: unused, looked: between,
			after: 70 * time.Second, want: 70 * time.Second},
	} {
		w := newWindow(1, c.window, 1, true)
		p := w.take(w.start, false)
		if c.looked > 0 {
			w.ready(w.start.Add(c.looked), false)
		}
		w.release(w.start.Add(c.after), p, c.outcome, 0, true)
		if got := c.after + w.ready(w.start.Add(c.after), false); got != c.want {
			t.Errorf("%s: free after %v, want %v", c.name, got, c.want)
		}
	}
}

// What low priority leaves to others.
func TestReserve(t *testing.T) {
	const interval, again = 600 * time.Millisecond, 10 * time.Minute
	for _, c := range []struct {
		name   string
		quota  int
		others []time.Duration // when they took a slot each
		at     time.Duration
		want   time.Duration
	}{
		{name: "nobody else", quota: 100, want: 0},
		{name: "others have just begun", quota: 100, others: []time.Duration{0, 0, 0}, at: time.Millisecond, want: interval},
		{name: "others send little", quota: 100, others: []time.Duration{0, 10 * time.Second}, at: 20 * time.Second, want: 0},
		{name: "others send much", quota: 100, others: at(40, 0), at: 20 * time.Second, want: interval},
		{name: "and for a window by now", quota: 100, others: at(40, 0), at: time.Minute, want: 0},
		{name: "others have begun again", quota: 100, others: append(at(1, 0), at(40, again)...), at: again + time.Second, want: interval},
		{name: "a tenth is left", quota: 100, others: at(90, 0), at: time.Minute, want: interval},
		{name: "one more", quota: 100, others: at(89, 0), at: time.Minute, want: 0},
		{name: "one of two is left", quota: 2, others: at(1, 0), at: time.Minute, want: time.Second},
		{name: "none of one can be left", quota: 1, at: time.Minute, want: 0},
	} {
		w := newWindow(c.quota, time.Minute, c.quota, false)
		for _, at := range c.others {
			w.release(w.start.Add(at), w.take(w.start.Add(at), false), answered, 0, false)
		}
		if got := w.ready(w.start.Add(c.at), true); got != c.want {
			t.Errorf("%s: low priority waits for %v, want %v", c.name, got, c.want)
		}
	}
	w := newWindow(100, time.Minute, 100, false)
	w.take(w.start, true)
	if got := w.ready(w.start, true); got != interval {
		t.Errorf("after one of low priority the next waits for %v, want %v", got, interval)
	}
}

// at is so many times the same time.
func at(n int, t time.Duration) []time.Duration { return slices.Repeat([]time.Duration{t}, n) }

// An estimate is what comes if nobody leaves and every answer takes no time, and
// never more than that.
func TestEstimateComesTrue(t *testing.T) {
	const pause = 10 * time.Second
	for _, c := range []struct {
		name     string
		requests int
		burst    int
		taken    int  // slots, a second after each other before now
		lesson   bool // one more slot, and a refusal
		pause    time.Duration
		waiting  int
	}{
		{name: "idle", requests: 10, burst: 10, waiting: 35},
		{name: "paused", requests: 10, burst: 10, pause: pause, waiting: 35},
		{name: "slots taken", requests: 10, burst: 10, taken: 7, waiting: 35},
		{name: "slots taken, paused", requests: 10, burst: 10, taken: 7, pause: pause, waiting: 35},
		{name: "burst", requests: 10, burst: 3, waiting: 9},
		{name: "burst, paused", requests: 10, burst: 3, taken: 3, pause: pause, waiting: 7},
		{name: "burst, slots taken", requests: 10, burst: 3, taken: 7, waiting: 7},
		{name: "burst, slots taken, paused", requests: 10, burst: 9, taken: 10, pause: 3 * pause, waiting: 5},
		{name: "refused", requests: 100, burst: 100, taken: 5, lesson: true, waiting: 90},
		{name: "refused, paused", requests: 100, burst: 100, taken: 5, lesson: true, pause: pause, waiting: 90},
		{name: "refused, slots taken, paused", requests: 4, burst: 4, taken: 3, lesson: true, pause: 3 * pause, waiting: 4},
		{name: "refused, many wait", requests: 100, burst: 100, lesson: true, waiting: 3000},
	} {
		w := newWindow(c.requests, time.Minute, c.burst, false)
		now := w.start
		for range c.taken {
			now = now.Add(time.Second)
			for w.ready(now, false) > 0 {
				now = now.Add(time.Second)
			}
			w.release(now, w.take(now, false), answered, 0, false)
		}
		if c.lesson {
			now = now.Add(time.Second)
			w.release(now, w.take(now, false), throttled, time.Second, true)
		}
		var estimates []time.Duration
		for k := range c.waiting {
			estimates = append(estimates, w.estimate(now, c.pause, k+1, false))
		}
		began := now
		now = now.Add(c.pause)
		for k, estimate := range estimates {
			for wait := w.ready(now, false); wait > 0; wait = w.ready(now, false) {
				now = now.Add(wait)
			}
			w.release(now, w.take(now, false), answered, 0, false)
			got := now.Sub(began)
			// The pace comes back meanwhile, which is reckoned to the last one's advantage.
			if off := got - estimate; off < -time.Microsecond || off > got/50+time.Microsecond {
				t.Errorf("%s: number %d went after %v, %v was estimated", c.name, k+1, got, estimate)
				break
			}
		}
	}
}

// Answers that are not in yet come now at the earliest.
func TestEstimateWithRequestsInFlight(t *testing.T) {
	w := newWindow(3, 4*time.Second, 3, false)
	a, b, c := w.take(w.start, false), w.take(w.start, false), w.take(w.start, false)
	now := w.start.Add(2 * time.Second)
	w.release(now, a, byHand, 0, false)
	w.release(w.start.Add(time.Second), b, answered, 0, false)
	for k, want := range []time.Duration{3200 * time.Millisecond, 4200 * time.Millisecond, 5 * time.Second} {
		if got := w.estimate(now, 0, k+1, false); got != want {
			t.Errorf("number %d waits for %v, want %v", k+1, got, want)
		}
	}
	w.release(now.Add(time.Second), c, answered, 0, false)
	if got := w.estimate(now.Add(time.Second), 0, 3, false); got != 4200*time.Millisecond {
		t.Errorf("the last waits for %v after the answer, want 4.2 s", got)
	}
	w = newWindow(1, time.Minute, 1, true)
	w.take(w.start, false)
	if got := w.estimate(w.start.Add(70*time.Second), 0, 1, false); got != 51*time.Second {
		t.Errorf("behind a request that hangs for 70 s, the next waits for %v, want 51 s", got)
	}
}

// Low priority leaves slots to others, but no tokens, and has those that came meanwhile.
func TestEstimateOfLowPriority(t *testing.T) {
	w := newWindow(100, time.Minute, 1, false)
	for k, want := range []time.Duration{0, 600 * time.Millisecond, 1200 * time.Millisecond} {
		if got := w.estimate(w.start, 0, k+1, true).Round(time.Microsecond); got != want {
			t.Errorf("number %d waits for %v, want %v", k+1, got, want)
		}
	}
	w = newWindow(10, time.Minute, 10, false)
	for range 10 {
		w.release(w.start, w.take(w.start, false), answered, 0, false)
	}
	w.pace.lost, w.pace.slowed = 0.5, w.start
	if got := w.estimate(w.start, 0, 2, true); got != 61*time.Second {
		t.Errorf("at half the pace, the second waits for %v, want 61 s", got)
	}
}

// A permit that is given back is there for somebody else.
func TestUnusedBurst(t *testing.T) {
	w := newWindow(100, time.Minute, 1, false)
	w.release(w.start, w.take(w.start, false), unused, 0, false)
	if got := w.ready(w.start, false); got != 0 {
		t.Errorf("the next waits for %v", got)
	}
}

// Slots are counted and freed in whichever order the answers come in.
func TestSlotsInAnyOrder(t *testing.T) {
	const requests = 1000
	forward, backward := make([]int, requests), make([]int, requests)
	for i := range requests {
		forward[i], backward[i] = i, requests-1-i
	}
	for name, order := range map[string][]int{"forward": forward, "backward": backward, "random": rand.Perm(requests)} {
		w := newWindow(requests, time.Minute, requests, false)
		now, permits := w.start, make([]permit, requests)
		for i := range permits {
			now = now.Add(time.Millisecond)
			permits[i] = w.take(now, false)
		}
		for n, i := range order {
			now = now.Add(time.Millisecond)
			w.release(now, permits[i], answered, 0, false)
			if got := len(w.inFlight) + len(w.busy); len(w.inFlight) != requests-1-n || got != requests {
				t.Fatalf("%s: %d in flight and %d slots taken after %d answers", name, len(w.inFlight), got, n+1)
			}
		}
		for k := range requests {
			want := time.Minute + time.Second - time.Duration(requests-1-k)*time.Millisecond
			if got := w.estimate(now, 0, k+1, false); got != want {
				t.Fatalf("%s: number %d waits for %v, want %v", name, k+1, got, want)
			}
		}
	}
}
