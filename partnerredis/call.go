package partnerredis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed grant.lua
var grantSource string

var grantScript = redis.NewScript(grantSource)

var errSlow = errors.New("no answer within a second")

// A call is one run of the script.
type call struct {
	id       string // to ask with; permit n but the first is id.n
	want     int    // permits
	patience time.Duration
	reports  []*permit
	lesson   lesson
	sent     time.Time
	rejoins  bool          // it tells the others to wait for reports
	done     chan struct{} // closed when it has its answer, or is given up
	over     bool          // it is
	tooLate  time.Duration // the wait, beyond patience
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
	q.asking = q.start(now, &call{id: id, want: min(max(c.waiting, 1), mostAtOnce), patience: min(patience, maxPatience)})
	c.asked = q.asking
	return q.asking.done
}

// tell tells Redis at once what it has to hear.
func (q *Quota) tell(now time.Time) {
	if q.telling == nil && (q.away == nil || !now.Before(q.retry)) {
		q.telling = q.start(now, new(call))
	}
}

func (q *Quota) start(now time.Time, c *call) *call {
	c.reports, c.lesson, c.sent, c.done = q.reports, q.lesson, now, make(chan struct{})
	pause := max(0, q.pause.Sub(now))
	if q.away != nil && q.Replicas > 0 { // the others have to report first what they sent meanwhile
		pause, c.rejoins = max(pause, rejoinTime), true
	}
	var proof int64
	var proofID string
	if q.proof != nil && !q.proof.unsent {
		proof, proofID = q.proof.granted, q.proof.id
	}
	s := &q.set
	q.forget(now)
	since, least := now.Sub(q.heard), now.Sub(q.got)
	if least > 3*s.window { // clocks drift
		least = 0
	}
	mine, soonest := len(q.own), s.window+s.guard // until one of its own places is free
	if mine <= mostCounted {
		mine, soonest = q.busy(now)
		soonest = min(soonest, s.window+s.guard)
	}
	args := make([]any, 0, 18+2*len(q.reports))
	args = append(args, s.requests, micros(s.window), micros(s.guard), micros(s.lag), s.burst,
		q.seen, micros(since), proof, micros(pause), c.lesson.refused, c.lesson.refusals,
		micros(c.patience), c.want, mine+len(q.granted), micros(soonest), micros(least), proofID, c.id)
	for _, p := range q.reports {
		p.reported, p.told = false, true
		if left := q.taken(p, now); left > 0 || p.unsent {
			args = append(args, p.id, micros(max(0, left)))
		}
	}
	q.reports, q.lesson, q.urgent = nil, lesson{}, false
	go q.run(c, args)
	return c
}

func micros(d time.Duration) int64 { return int64((d + time.Microsecond - 1) / time.Microsecond) }

// run is given up by its caller after a second. The client goes on for longer: its
// time-outs need not be those of a context, and it says what is wrong with Redis
// only when it has tried all it can.
func (q *Quota) run(c *call, args []any) {
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	defer time.AfterFunc(callTime, func() { q.fail(c, errSlow) }).Stop()
	answer, err := runScript(ctx, q.Client, grantScript, q.set.keys, args).Int64Slice()
	if err == nil && len(answer) < 6 {
		err = fmt.Errorf("an answer of %d numbers", len(answer))
	}
	if err != nil {
		q.fail(c, err)
		return
	}
	q.answered(c, answer)
}

// runScript runs a script; a panic in what a user put into the client is an error.
func runScript(ctx context.Context, client redis.Scripter, script *redis.Script, keys []string, args []any) (cmd *redis.Cmd) {
	defer func() {
		if r := recover(); r != nil {
			cmd = redis.NewCmd(ctx)
			cmd.SetErr(fmt.Errorf("the client panicked: %v", r))
		}
	}()
	return script.Run(ctx, client, keys, args...)
}

func (q *Quota) fail(c *call, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.over {
		if q.away != nil {
			q.away = err // which tells more
		}
		return
	}
	now := time.Now()
	if q.away == nil {
		q.since = now
		if open := q.open; q.Replicas > 0 {
			if now.Sub(q.heard) > q.set.window {
				open = q.set.requests
			}
			busy, _ := q.busy(now)
			q.first = busy + open/q.Replicas
		}
	}
	if q.away == nil || err != errSlow {
		q.away = err
	}
	q.retry, q.waits = now.Add(retryEvery), nil
	for _, p := range c.reports {
		p.told = false
		q.report(p, p.due)
	}
	for i := range c.want { // it may have run nevertheless
		q.report(&permit{q: q, id: c.permitID(i), unsent: true}, false)
	}
	q.learn(c.lesson)
	q.arm()
	q.end(c)
}

func (q *Quota) answered(c *call, answer []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if c.rejoins || q.Replicas == 0 {
		q.away = nil
	} else if q.away != nil {
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
	granted, wait := int(answer[2]), time.Duration(answer[3])*time.Microsecond
	for i := range granted {
		p := &permit{q: q, id: c.permitID(i), granted: seen, asked: c.sent, handed: now}
		q.granted, q.proof = append(q.granted, p), p
	}
	switch {
	case wait > c.patience:
		c.tooLate = wait
	case wait > 0:
		q.ticket, q.turn = c.permitID(granted), now.Add(wait)
		q.linger = time.Duration(answer[4]) * time.Microsecond
	}
	q.open, q.waits = int(answer[5]), q.waits[:0]
	for _, wait := range answer[6:] {
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
