package partnerauth

import (
	"cmp"
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

// A slidingWindow is the pacer of a Quota. It has as many slots as the server
// accepts requests in a window. A request takes one: it is in flight until its
// answer is in, and then busy until the server has stopped counting it.
type slidingWindow struct {
	requests int
	window   time.Duration
	guard    time.Duration // how long a slot stays busy beyond the window
	start    time.Time     // slots count from it
	pace     *pace

	inFlight []slot // sorted; at is when the request was sent
	busy     []slot // sorted; at is when the slot is free again, which may have passed

	lows        int           // slots that low priority holds
	lowNext     time.Duration // when the next call of low priority may go
	othersSince time.Duration // when the others began to send
	othersLast  time.Duration // when they last did
}

// A slot is one of the requests that a window has room for.
type slot struct {
	at  time.Duration
	low bool // held by a call of low priority
}

func (s slot) compare(t slot) int {
	if s.at != t.at || s.low == t.low {
		return cmp.Compare(s.at, t.at)
	}
	if s.low {
		return 1
	}
	return -1
}

func newWindow(requests int, window time.Duration, burst int, fixedRate bool) *slidingWindow {
	return &slidingWindow{
		requests: requests, window: window, guard: min(maxGuard, window/20), start: time.Now(), othersLast: -never / 2,
		pace: newPace(requests, window, burst, fixedRate),
	}
}

func (w *slidingWindow) ready(now time.Time, low bool) time.Duration {
	w.pace.recover(now)
	since := now.Sub(w.start)
	if low {
		wait := w.untilSlot(since, w.reserve(since))
		// The reserve shrinks with time, so look at it again soon.
		return max(min(wait, w.interval()), w.lowNext-since, w.pace.untilToken(now))
	}
	wait := w.untilSlot(since, 0)
	if wait > 0 {
		w.pace.hold(now, wait)
	}
	return max(wait, w.pace.untilToken(now))
}

func (w *slidingWindow) interval() time.Duration { return w.window / time.Duration(w.requests) }

// tenth returns how many slots low priority always leaves to others.
func (w *slidingWindow) tenth() int { return min(max(1, w.requests/10), w.requests-1) }

// reserve returns how many slots a call of low priority leaves to others now: a
// tenth, and in their first window what they will need for the rest of it if
// they go on as they began.
func (w *slidingWindow) reserve(since time.Duration) int {
	w.expire(since)
	reserve := w.tenth()
	others := len(w.inFlight) + len(w.busy) - w.lows
	if age := since - w.othersSince; others > 0 && age < w.window {
		reserve += int(float64(others) * (float64(w.window)/float64(max(age, w.window/1000)) - 1))
	}
	return min(reserve, w.requests-1)
}

// untilSlot returns how long it takes until a slot is free behind so many others
// that want one, where they all fit into the window.
func (w *slidingWindow) untilSlot(since time.Duration, ahead int) time.Duration {
	vacant := w.requests - len(w.inFlight) - len(w.busy)
	if ahead < vacant {
		return 0
	}
	w.expire(since) // only now, since it moves all slots
	vacant = w.requests - len(w.inFlight) - len(w.busy)
	if ahead < vacant {
		return 0
	}
	return w.untilFree(since, w.sooner(since), ahead-vacant)
}

// sooner returns how many busy slots are free before any that is in flight.
func (w *slidingWindow) sooner(since time.Duration) int {
	i, _ := slices.BinarySearchFunc(w.busy, slot{at: since + w.window + w.guard}, slot.compare)
	return i
}

// untilFree returns how long it takes until the i-th taken slot is free, 0 being
// the first. Answers that are not in yet come now at the earliest.
func (w *slidingWindow) untilFree(since time.Duration, sooner, i int) time.Duration {
	switch {
	case i < sooner:
		return w.busy[i].at - since
	case i < sooner+len(w.inFlight):
		return w.window + w.guard
	}
	return w.busy[i-len(w.inFlight)].at - since
}

// estimate counts whole rounds of all slots, since each is free again after a
// window at the earliest, and then one slot of the last round.
func (w *slidingWindow) estimate(now time.Time, pause time.Duration, k int, low bool) time.Duration {
	since := now.Sub(w.start)
	w.expire(since)
	if low {
		k += w.tenth()
	}
	rounds, ahead := (k-1)/w.requests, (k-1)%w.requests
	wait := max(pause, w.untilSlot(since, ahead))
	if rounds == 0 {
		wait = max(wait, w.inTurn(now, since, pause, ahead))
	}
	wait += time.Duration(min(float64(rounds)*float64(w.window+w.guard), float64(never/4)))
	return max(wait, w.pace.estimate(now, pause, k))
}

// inTurn returns how long the last of so many has to wait where each waits for a
// slot of its own and then for a token.
func (w *slidingWindow) inTurn(now time.Time, since, pause time.Duration, ahead int) (wait time.Duration) {
	if w.pace.bucket == nil {
		return 0
	}
	tokens := max(1, w.pace.bucket.TokensAt(now.Add(pause)))
	sooner, last := w.sooner(since), ahead-(w.requests-len(w.inFlight)-len(w.busy))
	for i := max(0, last-maxLookback); i < last; i++ {
		short := float64(last-i) + 1 - tokens
		wait = max(wait, w.untilFree(since, sooner, i)+w.pace.time(now, short))
	}
	return wait
}

// expire frees the slots whose time has come. A request that has had no answer
// for a window counts as answered then, or hung calls would use up the quota.
func (w *slidingWindow) expire(since time.Duration) {
	late := 0
	for late < len(w.inFlight) && w.inFlight[late].at <= since-w.window {
		s := w.inFlight[late]
		w.busy = insert(w.busy, slot{w.latest(s.at), s.low})
		late++
	}
	w.inFlight = slices.Delete(w.inFlight, 0, late)
	free := 0
	for free < len(w.busy) && w.busy[free].at <= since {
		if w.busy[free].low {
			w.lows--
		}
		free++
	}
	w.busy = slices.Delete(w.busy, 0, free)
}

// latest returns when the slot of a request that was sent then is free, with or
// without an answer.
func (w *slidingWindow) latest(sent time.Duration) time.Duration { return sent + 2*w.window + w.guard }

func (w *slidingWindow) take(now time.Time, low bool) permit {
	since := now.Sub(w.start)
	if low {
		w.lows++
		w.lowNext = since + w.interval()
	} else {
		if since-w.othersLast > w.window {
			w.othersSince = since
		}
		w.othersLast = since
	}
	w.pace.spend(now)
	w.inFlight = insert(w.inFlight, slot{since, low})
	return permit{at: now, low: low, pace: w.pace.share(), full: w.full(since)}
}

// full reports whether all slots are taken, the guard not counted.
func (w *slidingWindow) full(since time.Duration) bool {
	if len(w.inFlight)+len(w.busy) < w.requests {
		return false
	}
	over, _ := slices.BinarySearchFunc(w.busy, slot{at: since + w.guard + 1}, slot.compare)
	return len(w.inFlight)+len(w.busy)-over >= w.requests
}

func (w *slidingWindow) release(now time.Time, p permit, o outcome, named time.Duration, isNamed bool) verdict {
	since, sent := now.Sub(w.start), p.at.Sub(w.start)
	w.vacate(slot{sent, p.low})
	until := since
	switch o {
	case unused:
		w.pace.giveBack(now)
	case byHand: // it may be sent up to a second from now, which may be more than a window
		until = since + w.window + maxGuard
	case unanswered: // it may still be on its way
		until = min(since+w.window+maxGuard, w.latest(sent))
	default:
		until = min(since+w.window+w.guard, w.latest(sent))
	}
	if until > since {
		w.busy = insert(w.busy, slot{until, p.low})
		if p.low {
			w.lows++
		}
	}
	return w.pace.learn(now, p, o, named, isNamed)
}

// vacate removes the slot of a request that was sent then, unless it has expired.
func (w *slidingWindow) vacate(s slot) {
	i, found := slices.BinarySearchFunc(w.inFlight, s, slot.compare)
	if found {
		w.inFlight = remove(w.inFlight, i)
	} else if i, found = slices.BinarySearchFunc(w.busy, slot{w.latest(s.at), s.low}, slot.compare); found {
		w.busy = remove(w.busy, i)
	}
	if found && s.low {
		w.lows--
	}
}

// insert adds s behind its equals, which is nearly always the end.
func insert(slots []slot, s slot) []slot {
	i := len(slots)
	if i > 0 && slots[i-1].compare(s) > 0 {
		i, _ = slices.BinarySearchFunc(slots, s, slot.compare)
	}
	return slices.Insert(slots, i, s)
}

// remove moves the shorter part, so that the answers to ten thousand requests
// cost little in any order. Where there are few, it keeps the slice's capacity.
func remove(slots []slot, i int) []slot {
	if len(slots) > 64 && i < len(slots)/2 {
		copy(slots[1:i+1], slots[:i])
		return slots[1:]
	}
	return slices.Delete(slots, i, i+1)
}
