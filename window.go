package partnerauth

import (
	"context"
	"math"
	"slices"
	"time"
)

// maxLookback is how many of those ahead an estimate looks at one by one.
const maxLookback = 256

// A slidingWindow is the pacer of a Quota. It has one slot for each request that
// the server accepts in a window. A request takes one: it is in flight until its
// answer is in, and then busy until the server has stopped counting it. Times are
// durations since start.
type slidingWindow struct {
	limits
	start time.Time
	pace  pace

	inFlight []time.Duration // sorted: when the requests were sent
	busy     []time.Duration // sorted: when the slots are free again, some of them by now

	lowNext time.Duration // when the next call of low priority may go

	// Calls of others, with no gap of a window between them.
	others      int
	first, last time.Duration
}

func newWindow(requests int, window time.Duration, burst int, fixedRate bool) *slidingWindow {
	l, now := limits{requests, window, burst, fixedRate}, time.Now()
	return &slidingWindow{limits: l, start: now, pace: pace{limits: l, tokens: float64(burst), most: burst, filled: now}}
}

func (w *slidingWindow) ready(now time.Time, low bool) time.Duration {
	since := now.Sub(w.start)
	w.pace.fill(now)
	w.pace.most = w.pace.size(now)
	var wait time.Duration
	if low {
		// The reserve shrinks with time, so a wait for it ends soon.
		wait = max(w.lowNext-since, min(w.untilFree(since, w.reserve(since)), w.interval()))
	} else {
		wait = w.untilFree(since, 0)
		w.pace.held = now.Add(wait)
	}
	return max(wait, w.pace.wait(now))
}

// Nobody has to be asked, and nothing is granted before somebody takes it.

func (*slidingWindow) ask(*waiter, int)              {}
func (*slidingWindow) idle()                         {}
func (*slidingWindow) trouble(context.Context) error { return nil }

func (w *slidingWindow) interval() time.Duration {
	return w.window / time.Duration(w.requests)
}

// tenth returns how many slots low priority always leaves to others.
func (w *slidingWindow) tenth() int { return min(max(1, w.requests/10), w.requests-1) }

// reserve returns how many slots a call of low priority leaves to others now: a
// tenth, and while they have sent for less than a window, as many as they will
// take in the rest of it if they go on like that.
func (w *slidingWindow) reserve(since time.Duration) int {
	reserve := w.tenth()
	if age := since - w.first; age < w.window {
		reserve += int(float64(w.others) * (float64(w.window)/float64(max(age, w.window/1000)) - 1))
	}
	return min(reserve, w.requests-1)
}

// vacant returns how many slots are free. It looks for those that have become
// free only where fewer than want would be, since it moves all others then.
func (w *slidingWindow) vacant(since time.Duration, want int) int {
	if n := w.requests - len(w.inFlight) - len(w.busy); n >= want {
		return n
	}
	w.expire(since)
	return w.requests - len(w.inFlight) - len(w.busy)
}

// untilFree returns how long it takes until there is a slot for one who leaves so
// many to others.
func (w *slidingWindow) untilFree(since time.Duration, reserve int) time.Duration {
	return w.untilTaken(since, reserve-w.vacant(since, reserve+1))
}

// untilTaken returns how long it takes until the i-th of the taken slots is free,
// counted from 0; 0 if i is negative. Those in flight are answered now at the earliest.
func (w *slidingWindow) untilTaken(since time.Duration, i int) time.Duration {
	if i < 0 {
		return 0
	}
	sooner, _ := slices.BinarySearch(w.busy, since+w.round())
	switch {
	case i < sooner:
		return w.busy[i] - since
	case i < sooner+len(w.inFlight):
		return w.round()
	}
	return w.busy[i-len(w.inFlight)] - since
}

// estimate counts whole rounds of all slots, since each is free again after a
// window at the earliest, and then the slots of the last round. Where the pace is
// limited, those ahead wait for a slot and then for a token, and tokens add up only
// before the first of them has to wait for a slot. For low priority only its own slot
// counts, since tokens add up while it waits.
func (w *slidingWindow) estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration {
	look, tokens, perToken, reserve := 1, math.Inf(1), 0.0, 0
	if low {
		reserve = w.tenth()
	}
	since, rounds, last := now.Sub(w.start), (k-1+reserve)/w.requests, (k-1+reserve)%w.requests
	if w.pace.limited() {
		then := now.Add(pause)
		tokens, perToken = w.pace.tokensAt(then), float64(w.pace.time(then, float64(k)))/float64(k)
		if !low {
			look = min(last+1, maxLookback)
		}
	}
	last -= w.vacant(since, last+1)
	wait := float64(pause) + max(0, float64(k-look)-tokens)*perToken
	tokens = max(0, tokens-float64(k-look))
	for i := last - look + 1; i <= last; i++ {
		slot := float64(max(pause, w.untilTaken(since, i))) + float64(rounds)*float64(w.round())
		if slot > wait {
			tokens = max(tokens, min(1, tokens+(slot-wait)/perToken))
			wait = slot
		}
		wait += max(0, 1-tokens) * perToken
		tokens = max(0, tokens-1)
	}
	return time.Duration(min(wait, float64(never/4)))
}

// expire frees the slots whose time has come. A request that has had no answer
// for a window counts as answered then, or hung calls would use up the quota.
func (w *slidingWindow) expire(since time.Duration) {
	late, _ := slices.BinarySearch(w.inFlight, since-w.window+1)
	for _, sent := range w.inFlight[:late] {
		w.busy = insert(w.busy, w.latest(sent))
	}
	w.inFlight = slices.Delete(w.inFlight, 0, late)
	over, _ := slices.BinarySearch(w.busy, since+1)
	w.busy = slices.Delete(w.busy, 0, over)
}

// latest returns when the slot of a request that was sent then is free, answered
// or not.
func (w *slidingWindow) latest(sent time.Duration) time.Duration {
	return sent + w.window + w.round()
}

func (w *slidingWindow) take(now time.Time, low bool) permit {
	since := now.Sub(w.start)
	if low {
		w.lowNext = since + w.interval()
	} else {
		if since-w.last > w.window {
			w.others, w.first = 0, since
		}
		w.others, w.last = w.others+1, since
	}
	w.pace.spend(now, 1)
	w.inFlight = insert(w.inFlight, since)
	return permit{at: now, full: w.full(since), pace: w.pace.share(now)}
}

// full reports whether all slots are taken, the guard not counted.
func (w *slidingWindow) full(since time.Duration) bool {
	if len(w.inFlight)+len(w.busy) < w.requests {
		return false
	}
	over, _ := slices.BinarySearch(w.busy, since+w.guard()+1)
	return len(w.inFlight)+len(w.busy)-over >= w.requests
}

func (w *slidingWindow) release(now time.Time, p permit, o outcome, named time.Duration, isNamed bool) verdict {
	since, sent := now.Sub(w.start), p.at.Sub(w.start)
	w.vacate(sent)
	switch o {
	case unused:
		w.pace.spend(now, -1)
	case byHand: // it may be sent up to a second from now, which may be more than a window
		w.busy = insert(w.busy, since+w.window+maxGuard)
	case unanswered: // it may still be on its way
		w.busy = insert(w.busy, min(since+w.window+maxGuard, w.latest(sent)))
	default:
		w.busy = insert(w.busy, min(since+w.round(), w.latest(sent)))
	}
	return w.pace.learn(now, p, o, named, isNamed)
}

// vacate frees the slot of a request that was sent then, unless it has expired.
func (w *slidingWindow) vacate(sent time.Duration) {
	if i, found := slices.BinarySearch(w.inFlight, sent); found {
		w.inFlight = remove(w.inFlight, i)
	} else if i, found := slices.BinarySearch(w.busy, w.latest(sent)); found {
		w.busy = remove(w.busy, i)
	}
}

// insert adds t behind its equals, which is nearly always at the end.
func insert(times []time.Duration, t time.Duration) []time.Duration {
	i := len(times)
	if i > 0 && times[i-1] > t {
		i, _ = slices.BinarySearch(times, t+1)
	}
	return slices.Insert(times, i, t)
}

// remove moves the shorter part, so that the answers to ten thousand requests
// cost little in any order. It keeps the capacity where there are few.
func remove(times []time.Duration, i int) []time.Duration {
	if len(times) > 64 && i < len(times)/2 {
		copy(times[1:i+1], times[:i])
		return times[1:]
	}
	return slices.Delete(times, i, i+1)
}
