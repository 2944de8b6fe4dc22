package partnerredis

import (
	"context"
	_ "embed"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed grant.lua
var grantSource string

var grantScript = redis.NewScript(grantSource)

const (
	// answerHead is how many numbers precede the waits in an answer. If an
	// answer has lateAnswer numbers, the script has done nothing: see grant.lua.
	answerHead = 9
	lateAnswer = 2

	over = -1 // a place that is free by now, of which Redis need not hear
)

// A call is one run of the script, or two if the first was long on its way.
type call struct {
	ctx      context.Context // whose values the client sees: those of the caller that asks
	id       string          // to ask with; permit n but the first is id.n
	want     int             // permits
	patience time.Duration
	reports  []*permit
	lesson   lesson
	good     int64
	began    time.Time
	sent     time.Time     // or the second run was
	rejoins  bool          // it makes the others wait for reports
	done     chan struct{} // closed when it has its answer, or is given up
	over     bool          // it is
	tooLate  time.Duration // the wait, beyond patience

	// What is told as it was when the call was sent.
	seen          int64
	heard, got    time.Time
	proof         int64
	proofID       string
	pause         time.Time
	mine          int
	soonest       time.Duration
	left          []time.Duration // until the places of the reports are free; 0: they were not sent
	checked, most int64           // TIME at a run that did nothing, and the most that the script's clock was then
}

func (c *call) permitID(n int) string {
	if n == 0 {
		return c.id
	}
	return c.id + "." + strconv.Itoa(n)
}

// ask asks for permits for those who wait, with the ticket if there is one.
func (q *Quota) ask(now time.Time, c *caller) chan struct{} {
	id := q.ticket
	if id == "" {
		id = q.newID()
	}
	patience := left(c.ctx)
	if c.waiting > 1 { // the ticket is of use to the others
		patience = maxPatience
	}
	q.ticket = ""
	q.asking = q.start(now, &call{ctx: context.WithoutCancel(c.ctx), id: id,
		want: min(max(c.waiting, 1), mostAtOnce), patience: min(patience, maxPatience)})
	c.asked = q.asking
	return q.asking.done
}

// tell sends Redis at once the reports that cannot wait.
func (q *Quota) tell(now time.Time) {
	if q.telling == nil && (q.trouble == nil || !now.Before(q.retry)) {
		q.telling = q.start(now, &call{ctx: context.Background()})
	}
}

func (q *Quota) start(now time.Time, c *call) *call {
	c.reports, c.lesson, c.good, c.began, c.sent, c.done = q.reports, q.lesson, q.good, now, now, make(chan struct{})
	c.seen, c.heard, c.got, c.pause = q.seen, q.heard, q.got, q.pause
	if q.trouble != nil && q.Replicas > 0 { // the others have to report first what they sent meanwhile
		c.rejoins = true
		if until := now.Add(rejoinTime); until.After(c.pause) {
			c.pause = until
		}
	}
	if q.proof != nil && !q.proof.unsent {
		c.proof, c.proofID = q.proof.granted, q.proof.id
	}
	q.forget(now)
	c.mine, c.soonest = len(q.own), q.set.window+q.set.guard // until one of its own places is free
	if c.mine <= mostCounted {
		var soonest time.Duration
		c.mine, soonest = q.busy(now)
		c.soonest = min(soonest, c.soonest)
	}
	c.mine += len(q.granted)
	c.left = make([]time.Duration, len(c.reports))
	for i, p := range c.reports {
		p.reported, p.told = false, true
		if c.left[i] = q.taken(p, now); c.left[i] <= 0 && !p.unsent {
			c.left[i] = over
		}
	}
	q.reports, q.lesson, q.good, q.urgent = nil, lesson{}, 0, false
	go q.run(c)
	return c
}

// args are those of the script, of which durations are told as they are now.
func (q *Quota) args(c *call, now time.Time) []any {
	s, age := &q.set, now.Sub(c.began)
	least := now.Sub(c.got)
	if least > 3*s.window { // clocks drift
		least = 0
	}
	args := make([]any, 0, 21+2*len(c.reports))
	args = append(args, s.requests, micros(s.window), micros(s.guard), micros(s.lag), s.burst,
		c.seen, micros(now.Sub(c.heard)), c.proof, micros(max(0, c.pause.Sub(now))), c.lesson.refused, c.lesson.refusals,
		micros(max(0, c.patience-age)), c.want, c.mine, micros(max(0, c.soonest-age)), micros(least), c.good,
		c.checked, c.most, c.proofID, c.id)
	for i, p := range c.reports {
		if left := c.left[i]; left == 0 {
			args = append(args, p.id, 0)
		} else if left > age {
			args = append(args, p.id, micros(left-age))
		}
	}
	return args
}

func micros(d time.Duration) int64 { return int64((d + time.Microsecond - 1) / time.Microsecond) }

// run is given up by its caller after a second. The client goes on for longer: its
// time-outs need not be those of a context, and it says what is wrong with Redis
// only when it has tried all it can.
func (q *Quota) run(c *call) {
	ctx, cancel := context.WithTimeout(c.ctx, clientTime)
	defer cancel()
	slow := time.AfterFunc(callTime, func() { q.fail(c, errSlow) })
	defer slow.Stop()
	answer, err := q.scripts.run(ctx, grantScript, q.set.keys, q.args(c, c.began)...).Int64Slice()
	if err == nil && len(answer) == lateAnswer && slow.Stop() {
		slow.Reset(callTime)
		c.sent = time.Now()
		c.checked, c.most = answer[1], min(answer[0], c.seen+micros(c.sent.Sub(c.heard)))
		answer, err = q.scripts.run(ctx, grantScript, q.set.keys, q.args(c, c.sent)...).Int64Slice()
	}
	switch {
	case err != nil:
		q.fail(c, err)
	case len(answer) == lateAnswer: // nobody waits for it any more
		q.back()
	case len(answer) < answerHead:
		q.fail(c, errAnswer)
	default:
		q.answered(c, answer)
	}
}

// fail ends a call without an answer. It may be told twice: the client says what
// is wrong after q has given up.
func (q *Quota) fail(c *call, err error) {
	q.failed(c, diagnose(err), time.Now())
	q.reachable.record(c.ctx, false)
}

func (q *Quota) failed(c *call, t *trouble, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !c.over && q.trouble == nil {
		q.since, q.first = now, q.firstShare(now)
	}
	q.note(now, t, c.over)
	if c.over {
		return
	}
	q.retry, q.waits = now.Add(retryEvery), nil
	if t.kind == moving {
		q.retry = now.Add(retryMoving)
	}
	for _, p := range c.reports {
		p.told = false
		q.report(p, p.due)
	}
	for i := range c.want { // it may have run nevertheless
		q.report(&permit{q: q, id: c.permitID(i), unsent: true}, false)
	}
	q.learn(c.lesson)
	q.good = max(q.good, c.good)
	q.arm()
	q.end(c)
}

// note remembers a trouble. A time-out (late) says less than a trouble that was known
// before, and nothing if other callers have reached Redis since.
func (q *Quota) note(now time.Time, t *trouble, late bool) {
	if t.kind == demoted && (q.heard.IsZero() || now.Sub(q.since) > failoverTime) {
		t.kind = refusing
	}
	switch {
	case q.trouble == nil && late:
	case q.trouble == nil, t.cause != errSlow, q.trouble.kind != away:
		q.trouble = t
	}
}

// firstShare is what this process may send in the first window without Redis.
func (q *Quota) firstShare(now time.Time) int {
	if q.Replicas == 0 {
		return 0
	}
	open := q.open
	if now.Sub(q.heard) > q.set.window {
		open = q.set.requests
	}
	busy, _ := q.busy(now)
	return busy + open/q.Replicas
}

// back lets the next caller ask at once: Redis is there again.
func (q *Quota) back() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retry = time.Now()
}

func (q *Quota) answered(c *call, answer []int64) {
	q.grant(c, answer, time.Now())
	q.reachable.record(c.ctx, true)
}

func (q *Quota) grant(c *call, answer []int64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.rejoins || q.Replicas == 0 {
		q.trouble = nil
	} else if q.trouble != nil {
		q.retry = now
	}
	seen := answer[0]
	if seen >= q.seen {
		q.seen, q.heard, q.got = seen, c.sent, now
	}
	if pause := now.Add(time.Duration(answer[1]) * time.Microsecond); answer[1] > 0 && pause.After(q.pause) {
		q.pause = pause
	}
	if c.over { // what it was granted is given back
		return
	}
	granted, wait, room := int(answer[2]), time.Duration(answer[3])*time.Microsecond, int(answer[6])
	for i := range granted {
		p := &permit{q: q, id: c.permitID(i), granted: seen, asked: c.sent, handed: now, full: i+1 >= room}
		q.granted, q.proof = append(q.granted, p), p
	}
	switch {
	case wait > c.patience:
		c.tooLate = wait
	case wait > 0:
		q.ticket, q.turn = c.permitID(granted), now.Add(wait)
		q.linger = time.Duration(answer[4]) * time.Microsecond
	}
	q.open, q.share, q.burst, q.waits = int(answer[5]), float64(answer[7])/1e6, int(answer[8]), q.waits[:0]
	for _, wait := range answer[answerHead:] {
		q.waits = append(q.waits, time.Duration(wait)*time.Microsecond)
	}
	q.arm()
	q.end(c)
	if q.urgent {
		q.tell(now)
	}
}

// end lets those go on who wait for c.
func (q *Quota) end(c *call) {
	if c.over = true; q.asking == c {
		q.asking = nil
	} else if q.telling == c {
		q.telling = nil
	}
	close(c.done)
}
