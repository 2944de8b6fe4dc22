package partnerredis

import (
	"crypto/rand"
	"math"
	"math/bits"
	"strconv"
	"time"
)

// books are what a process knows: what Redis told it, and its own permits.
type books struct {
	prefix string // of this process's ids
	ids    int64

	heard time.Time       // when the call of the last answer was sent
	got   time.Time       // when the answer was there
	seen  int64           // Redis's clock in it
	open  int             // requests that might be sent then
	waits []time.Duration // from then until more may be: 1, 2, 4, …, without those that are open
	pause time.Time       // until when everybody pauses, here or by Redis

	ticket string        // id of the place in the fleet's queue
	turn   time.Time     // when to ask again
	linger time.Duration // after that, more places become free at once

	asking  *call // for permits
	telling *call // without asking for any
	granted []*permit

	trouble *trouble  // what is wrong with Redis; nil: nothing
	since   time.Time // it is
	first   int       // requests of this process that may count at the server in the first window of that
	retry   time.Time // when one caller tries again

	own      []*permit // whose places may be taken, in the order granted
	proof    *permit   // the last one from Redis
	reports  []*permit // of which Redis is to hear
	sweeping bool      // there is a timer for sweep
	urgent   bool      // there is a pause that Redis is to hear of at once

	share float64 // of the full pace, by Redis's last answer; 0: there was none
	burst int     // likewise

	lesson     lesson    // not told yet
	good       int64     // when the youngest permit that was answered well was granted, by Redis's clock; 0: told
	took       time.Time // the last permit
	sickSince  time.Time // the first of sick
	well, sick int       // answers of this burst, and those of 503
}

// A lesson is how many permits were refused, and when the youngest of them was
// granted, by Redis's clock: negative if all were refused by 503.
type lesson struct{ refused, refusals int64 }

func (b *books) learn(l lesson) {
	if b.lesson.refused <= 0 && l.refused <= 0 {
		b.lesson.refused = min(b.lesson.refused, l.refused)
	} else {
		b.lesson.refused = max(b.lesson.refused, l.refused)
	}
	b.lesson.refusals += l.refusals
}

// judge learns from an answer: from a 429, and from a burst of 503 among others, as
// an nginx answers. Two kinds of refusal say nothing about bursts and pace: one
// that names a longer pause than a window, and one of a request that was sent when
// the window was full by Redis's books.
func (q *Quota) judge(now time.Time, p *permit, status int, pause time.Duration) {
	switch {
	case p.granted == 0 || status == 0:
	case status == 429 && (q.FixedRate || p.full || pause > q.set.window+longPause):
	case status == 429:
		q.learn(lesson{p.granted, 1})
		q.urgent = true
	case status == 503:
		if !q.FixedRate && pause <= 0 {
			q.judgeSick(now, p)
		}
	default:
		q.well++
		q.good = max(q.good, p.granted)
	}
}

func (q *Quota) judgeSick(now time.Time, p *permit) {
	if now.Sub(q.sickSince) > q.set.window/10 {
		q.sickSince, q.sick = now, 0
	}
	if q.sick++; q.sick < sickBurst || q.well == 0 || p.full {
		return
	}
	refusals := int64(1)
	if q.sick == sickBurst {
		refusals = sickBurst
	}
	q.learn(lesson{-p.granted, refusals})
	q.urgent = true
}

// A permit is a partnerauth.Permit.
type permit struct {
	q       *Quota
	id      string
	granted int64     // by Redis's clock; 0: not by Redis
	asked   time.Time // before it was granted
	handed  time.Time // after it was
	full    bool      // with it the window was, the guard not counted

	free     time.Time // when its place is, of one that is settled
	unsent   bool
	told     bool // Redis knows that it is late
	reported bool // it is among the reports
	due      bool // Redis has to hear of it even if nobody asks for a permit
}

// newID makes a prefix that no other process has.
func newID() string { return rand.Text()[:12] + "-" }

func (b *books) newID() string {
	b.ids++
	return b.prefix + strconv.FormatInt(b.ids, 36)
}

// take is a permit that is there: the second of a call or one whose caller gave
// up, while it is fresh, or one of this process's own while Redis is away.
func (q *Quota) take(now time.Time) *permit {
	for len(q.granted) > 0 {
		p := q.granted[0]
		q.granted = q.granted[1:]
		if now.Sub(p.handed) <= q.set.lag && !q.pause.After(now) {
			p.handed = now
			if now.Sub(q.took) > q.set.guard {
				q.well, q.sick = 0, 0
			}
			q.took = now
			q.own = append(q.own, p)
			q.arm()
			return p
		}
		q.report(p, true).unsent = true
	}
	if q.trouble == nil || q.Replicas == 0 || q.ownTurn(now) > 0 {
		return nil
	}
	p := &permit{q: q, id: q.newID(), asked: now, handed: now}
	q.own = append(q.own, p)
	q.arm()
	return p
}

// ownTurn is when this process may send without Redis: less than its share of its
// own permits count at the server. The others may have had more than theirs, so in
// the first window it sends no more than its share of what was left.
func (q *Quota) ownTurn(now time.Time) time.Duration {
	if q.pause.After(now) {
		return q.pause.Sub(now)
	}
	share, over := q.set.requests/q.Replicas, q.since.Add(q.set.window+q.set.guard).Sub(now)
	busy, soonest := q.busy(now)
	switch {
	case busy >= share:
		return soonest
	case busy >= q.first && over > 0:
		return min(soonest, over)
	}
	return 0
}

// busy is how many of this process's permits count at the server, and for how
// long all of them do.
func (q *Quota) busy(now time.Time) (n int, soonest time.Duration) {
	q.forget(now)
	soonest = math.MaxInt64
	for _, p := range q.own {
		if left := q.taken(p, now); left > 0 {
			n, soonest = n+1, min(soonest, left)
		}
	}
	return n, soonest
}

// taken is how long the place of p is.
func (q *Quota) taken(p *permit, now time.Time) time.Duration {
	switch {
	case p.unsent:
		return 0
	case p.free.IsZero():
		return p.handed.Add(2*q.set.window + q.set.guard).Sub(now)
	}
	return p.free.Sub(now)
}

func (q *Quota) forget(now time.Time) {
	for len(q.own) > 0 && q.taken(q.own[0], now) <= 0 {
		q.own[0] = nil
		q.own = q.own[1:]
	}
}

func (b *books) report(p *permit, due bool) *permit {
	if p.due = due; !p.reported {
		p.reported = true
		b.reports = append(b.reports, p)
	}
	return p
}

// Settle implements partnerauth.Permit. An answer soon after the grant needs no
// word to Redis, though it lets the place go a little sooner.
func (p *permit) Settle(status int, pause time.Duration) {
	q := p.q
	q.mu.Lock()
	defer q.mu.Unlock()
	now, guard := time.Now(), q.set.guard
	if status == 0 { // it may still be on its way
		guard = maxGuard
	}
	latest := p.handed.Add(2*q.set.window + q.set.guard)
	if p.free = now.Add(q.set.window + guard); p.free.After(latest) {
		p.free = latest
	}
	q.report(p, !p.told && (status == 0 || now.Sub(p.asked) > q.set.lag))
	if until := now.Add(pause); pause > 0 && until.After(q.pause) {
		q.pause, q.urgent = until, true
	}
	q.judge(now, p, status, pause)
	q.arm()
	if q.urgent {
		q.tell(now)
	}
}

// Return implements partnerauth.Permit.
func (p *permit) Return() {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	p.unsent = true
	p.q.waits = nil
	p.q.report(p, true)
	p.q.arm()
}

// arm sees to it that what Redis has to hear is told in half a window, which is
// long before it would give the place again. Most of it goes along with the next
// question until then.
func (q *Quota) arm() {
	if !q.sweeping {
		q.sweeping = true
		time.AfterFunc(q.set.window/4, q.sweep)
	}
}

func (q *Quota) sweep() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sweeping = false
	now := time.Now()
	q.forget(now)
	for len(q.granted) > 0 && now.Sub(q.granted[0].handed) > q.set.lag {
		q.report(q.granted[0], true).unsent = true
		q.granted = q.granted[1:]
	}
	out, tell := q.unanswered(now) || len(q.granted) > 0, false
	for _, p := range q.reports {
		if age := now.Sub(p.asked); p.due && age < 2*q.set.window {
			out = true
			tell = tell || p.unsent || age > q.set.window/4
		}
	}
	if tell {
		q.tell(now)
	}
	if out {
		q.arm()
	}
}

// unanswered reports those that are out for longer than lag, and whether any is
// out.
func (q *Quota) unanswered(now time.Time) (out bool) {
	for _, p := range q.own {
		if p.free.IsZero() && !p.unsent && !p.told {
			out = true
			if now.Sub(p.asked) > q.set.lag {
				q.report(p, true)
			}
		}
	}
	return out
}

// estimate counts whole rounds of all places, since each serves again after a
// window at the earliest. What Redis said a quarter of a window ago may have
// become better by what others have told it.
func (q *Quota) estimate(now time.Time, n int) time.Duration {
	pause := max(0, q.pause.Sub(now))
	if n -= len(q.granted); n < 1 || q.trouble != nil || len(q.waits) == 0 || now.Sub(q.heard) > q.set.window/4 {
		return pause
	}
	rounds, n := (n-1)/q.set.requests, (n-1)%q.set.requests+1
	wait := time.Duration(rounds) * (q.set.window + q.set.guard)
	if i := bits.Len(uint(n)) - 1 - bits.Len(uint(q.open)); n > q.open && i >= 0 {
		wait += q.waits[min(i, len(q.waits)-1)]
	}
	return max(pause, wait-now.Sub(q.heard))
}
