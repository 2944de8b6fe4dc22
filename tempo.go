package partnerauth

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	lessonShare  = 0.96  // of the full pace is left after a burst was refused
	singleShare  = 0.95  // of the present one after a single request was
	hurriedShare = 0.85  // if that happens again within two windows
	bornShare    = 0.98  // of a pace that was refused is known to be borne
	leastShare   = 0.3   // is left after many
	recoverShare = 0.02  // comes back in a window, up to what is known to be borne
	creepShare   = 0.001 // comes back from there on: strict servers bear little more

	// singleFile is up to how many requests ahead of the pace a request was one
	// of a single file and not of a burst.
	singleFile = 2
	// sickBurst is how many answers of 503 among others teach a burst.
	sickBurst = 3
)

// A tempo is what a Quota adds to its window where a count is not enough: a burst
// smaller than the quota, and what refusals have taught it. Where neither is the
// case it has no limiter.
//
// A server that answers 429 although the quota was kept cares about bursts or
// pace. Smaller bursts would meet a second 429, so a lesson is single file at
// once, a little below full pace. Both come back slowly, and what was refused is
// remembered.
type tempo struct {
	limiter  *rate.Limiter
	requests int        // in a window: a burst that needs no limiter
	full     rate.Limit // requests a second that they come to
	window   time.Duration

	learnt time.Time // when the last lesson was; zero: nothing is to come back
	pace   climb     // as a share of full
	burst  climb
	share  float64 // what pace came to when last looked at
	again  int     // lessons since a request went well, for pause

	ahead   float64   // how many requests were sent ahead of the full pace
	counted time.Time // when ahead was
	well    int       // answers of this burst, beside
	sick    int       // those of 503
}

// A climb is a value that a lesson has lowered and that comes back with time.
type climb struct{ from, known, full float64 }

func (c climb) after(windows float64) float64 {
	fast := max(0, c.known-c.from) / (recoverShare * c.full) // windows that it climbs fast
	return min(c.full, c.from+c.full*(recoverShare*min(windows, fast)+creepShare*max(0, windows-fast)))
}

func newTempo(requests int, window time.Duration, burst int) *tempo {
	t := &tempo{requests: requests, full: rate.Limit(float64(requests) / window.Seconds()), window: window}
	t.pace, t.burst = climb{1, 1, 1}, climb{float64(burst), float64(burst), float64(burst)}
	t.apply(time.Time{})
	return t
}

// until tells how long it takes at least until k requests may have been sent, the
// first of them after a pause. Pace and burst come back meanwhile.
func (t *tempo) until(now time.Time, pause time.Duration, k int) time.Duration {
	if t.limiter == nil {
		return 0
	}
	wait := pause + untilTokens(t.limiter, now.Add(pause), k)
	perSecond, burst := t.at(now.Add(wait))
	ready := min(burst, t.limiter.TokensAt(now)+perSecond*pause.Seconds())
	return min(wait, pause+time.Duration(max(0, float64(k)-ready)/perSecond*float64(time.Second)))
}

// at is what pace, in requests a second, and burst will have come to.
func (t *tempo) at(when time.Time) (perSecond, burst float64) {
	windows := float64(when.Sub(t.learnt)) / float64(t.window)
	return float64(t.full) * t.pace.after(windows), t.burst.after(windows)
}

func (t *tempo) spend(now time.Time) {
	t.ahead = max(0, t.ahead-float64(t.full)*now.Sub(t.counted).Seconds())
	if t.counted = now; t.ahead == 0 {
		t.well, t.sick = 0, 0
	}
	t.ahead++
	if t.limiter != nil {
		t.limiter.ReserveN(now, 1)
	}
}

func (t *tempo) giveBack(now time.Time) {
	t.ahead--
	if t.limiter != nil {
		t.limiter.ReserveN(now, -1)
	}
}

// pause is how long to wait after a refusal where the window had room: one
// interval, doubling while that repeats, up to a window.
func (t *tempo) pause() time.Duration {
	interval := float64(t.window) / float64(t.requests)
	return time.Duration(min(float64(t.window), interval*math.Exp2(float64(t.again))))
}

// learn draws the lesson from what became of a request sent then. Those sent
// before the last lesson only tell how many of that burst were refused.
func (t *tempo) learn(now, sent time.Time, o outcome) {
	refused := o == throttled || o == overloaded
	switch {
	case !refused && o != answered:
	case !sent.After(t.learnt):
		if refused {
			t.burst.known = max(1, t.burst.known-1)
		}
	case o == answered:
		t.well++
		t.again = 0
	case o == overloaded:
		if t.sick++; t.sick >= sickBurst && t.well > 0 && t.ahead > singleFile {
			t.lesson(now, t.sick)
		}
	default:
		t.again++
		t.slow(now)
		t.lesson(now, 1)
	}
}

// slow lowers the pace.
func (t *tempo) slow(now time.Time) {
	soon := !t.learnt.IsZero() && now.Sub(t.learnt) < 2*t.window
	switch {
	case t.ahead > singleFile:
		t.pace.from, t.pace.known = min(t.share, lessonShare), min(t.pace.known, lessonShare)
		return
	case soon:
		t.pace.from = t.share * hurriedShare
	default:
		t.pace.from = t.share * singleShare
	}
	t.pace.from = max(leastShare, t.pace.from)
	t.pace.known = max(t.pace.from, t.share*bornShare)
}

// lesson ends the burst of which so many were refused.
func (t *tempo) lesson(now time.Time, refused int) {
	if t.ahead > singleFile {
		t.burst.known = max(1, min(t.burst.known, t.ahead-float64(refused)))
	}
	t.burst.from = 1
	t.learnt = now
	t.well, t.sick = 0, 0
	t.apply(now)
}

// recover gives back what the time since the last lesson is worth.
func (t *tempo) recover(now time.Time) {
	if !t.learnt.IsZero() {
		t.apply(now)
	}
}

// apply sets the limiter to pace and burst.
func (t *tempo) apply(now time.Time) {
	windows := float64(now.Sub(t.learnt)) / float64(t.window)
	burst := t.burst.after(windows)
	if t.share = t.pace.after(windows); t.share == 1 && burst == t.burst.full {
		t.learnt = time.Time{}
	}
	limit := t.full * rate.Limit(t.share)
	switch {
	case t.share == 1 && int(burst) == t.requests:
		t.limiter = nil
	case t.limiter == nil:
		t.limiter = rate.NewLimiter(limit, int(burst))
	default:
		t.limiter.SetLimitAt(now, limit)
		t.limiter.SetBurstAt(now, int(burst))
	}
}
