package partnerauth

import (
	"slices"
	"time"
)

const (
	// maxGuard is added to the window. Servers that count in whole seconds or
	// whose clock is slow refuse a request that comes after exactly one window.
	maxGuard = time.Second

	// maxLookback is how many of those ahead an estimate looks at one by one.
	maxLookback = 256
)

// A slidingWindow is the pacer of a Quota. It has one slot for each request that
// the server accepts in a window. A request takes one: it is in flight until its
// answer is in, and then busy until the server has stopped counting it. Times are
// durations since start.
type slidingWindow struct {
	requests int
	window   time.Duration
	guard    time.Duration // how much longer than a window a slot stays busy
	start    time.Time
	pace     *pace

	inFlight []time.Duration // sorted: when the requests were sent
	busy     []time.Duration // sorted: when the slots are free again, some of them by now

	lowNext time.Duration // when the next call of low priority may go

	// Calls of others, with no gap of a window between them.
	others      int
	first, last time.Duration
}

func newWindow(requests int, window time.Duration, burst int, fixedRate bool) *slidingWindow {
	return &slidingWindow{
		requests: requests, window: window, guard: min(maxGuard, window/20), start: time.Now(),
		pace: newPace(requests, window, burst, fixedRate),
	}
}

func (w *slidingWindow) ready(now time.Time, low bool) time.Duration {
	since := now.Sub(w.start)
	w.pace.recover(now)
	var wait time.Duration
	if low {
		// The reserve shrinks with time, so a wait for it ends soon.
		wait = max(w.lowNext-since, min(w.untilFree(since, w.reserve(since)), w.interval()))
	} else if wait = w.untilFree(since, 0); wait > 0 {
		w.pace.hold(now, wait)
	}
	return max(wait, w.pace.wait(now, 0, 1))
}

func (w *slidingWindow) interval() time.Duration { return w.window / time.Duration(w.requests) }

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
	if i := reserve - w.vacant(since, reserve+1); i >= 0 {
		return w.untilTaken(since, w.sooner(since), i)
	}
	return 0
}

// sooner returns how many busy slots are free before any that is in flight.
func (w *slidingWindow) sooner(since time.Duration) int {
	n, _ := slices.BinarySearch(w.busy, since+w.window+w.guard)
	return n
}

// untilTaken returns how long it takes until the i-th of the taken slots is free,
// counted from 0. Those in flight are answered now at the earliest.
func (w *slidingWindow) untilTaken(since time.Duration, sooner, i int) time.Duration {
	switch {
	case i < sooner:
		return w.busy[i] - since
	case i < sooner+len(w.inFlight):
		return w.window + w.guard
	}
	return w.busy[i-len(w.inFlight)] - since
}

// estimate counts whole rounds of all slots, since each is free again after a
// window at the earliest, and then the slots of the last round. Those ahead wait
// for a slot and then for the pace, so each of them may be what delays k.
func (w *slidingWindow) estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration {
	if low {
		k += w.tenth()
	}
	since, rounds, last := now.Sub(w.start), (k-1)/w.requests, (k-1)%w.requests
	last -= w.vacant(since, last+1)
	first := last
	if rounds == 0 && w.pace.bucket != nil {
		first -= maxLookback
	}
	wait, sooner, tokens := pause, w.sooner(since), max(1, w.pace.tokens(now.Add(pause)))
	perToken := float64(w.pace.time(now, maxLookback)) / maxLookback
	for i := max(0, first); i <= last; i++ {
		behind := time.Duration(max(0, float64(last-i+1)-tokens) * perToken)
		wait = max(wait, w.untilTaken(since, sooner, i)+behind)
	}
	wait += time.Duration(min(float64(rounds)*float64(w.window+w.guard), float64(never/4)))
	return max(wait, w.pace.wait(now, pause, k))
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
func (w *slidingWindow) latest(sent time.Duration) time.Duration { return sent + 2*w.window + w.guard }

func (w *slidingWindow) take(now time.Time, low bool) permit {
	since := now.Sub(w.start)
	switch {
	case low:
		w.lowNext = since + w.interval()
	case w.others == 0 || since-w.last > w.window:
		w.others, w.first, w.last = 1, since, since
	default:
		w.others, w.last = w.others+1, since
	}
	w.pace.spend(now, 1)
	w.inFlight = insert(w.inFlight, since)
	return permit{at: now, low: low, full: w.full(since), pace: w.pace.share(now)}
}

// full reports whether all slots are taken, the guard not counted.
func (w *slidingWindow) full(since time.Duration) bool {
	taken := len(w.inFlight) + len(w.busy)
	if taken < w.requests {
		return false
	}
	over, _ := slices.BinarySearch(w.busy, since+w.guard+1)
	return taken-over >= w.requests
}

func (w *slidingWindow) release(now time.Time, p permit, o outcome, named time.Duration, isNamed bool) verdict {
	since, sent := now.Sub(w.start), p.at.Sub(w.start)
	w.vacate(sent)
	switch o {
	case unused:
		w.pace.spend(now, -1)
		if !p.low {
			w.others--
		}
	case byHand: // it may be sent up to a second from now, which may be more than a window
		w.busy = insert(w.busy, since+w.window+maxGuard)
	case unanswered: // it may still be on its way
		w.busy = insert(w.busy, min(since+w.window+maxGuard, w.latest(sent)))
	default:
		w.busy = insert(w.busy, min(since+w.window+w.guard, w.latest(sent)))
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
