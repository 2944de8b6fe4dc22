package partnerredis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed grant.lua
var grantSource string

var grantScript = redis.NewScript(grantSource)

var errSlow = errors.New("no answer within a second")

// A call is one run of the script.
type call struct {
	ids      []string // asked for
	patience time.Duration
	reports  []*permit
	lesson   lesson
	sent     time.Time
	rejoins  bool          // it tells the others to wait for reports
	done     chan struct{} // closed when it has its answer, or is given up
	over     bool          // it is
	tooLate  time.Duration // the wait, beyond patience
}

// ask asks for a permit, with the ticket if there is one, and for the next one if
// more wait.
func (q *Quota) ask(now time.Time, c *caller) chan struct{} {
	ids := []string{q.ticket}
	if q.ticket == "" {
		ids[0] = q.newID()
	}
	patience := left(c.ctx)
	if c.waiting > 1 { // the ticket is of use to them
		ids = append(ids, q.newID())
		patience = math.MaxInt64
	}
	q.ticket = ""
	q.asking = q.start(now, ids, patience)
	c.asked = q.asking
	return q.asking.done
}

// tell tells Redis at once what it has to hear.
func (q *Quota) tell(now time.Time) {
	if q.telling == nil && (q.away == nil || !now.Before(q.retry)) {
		q.telling = q.start(now, nil, 0)
	}
}

func (q *Quota) start(now time.Time, ids []string, patience time.Duration) *call {
	c := &call{ids: ids, patience: min(patience, maxWindow*1000), reports: q.reports, lesson: q.lesson, sent: now, done: make(chan struct{})}
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
	args := make([]any, 0, 14+len(ids)+2*len(q.reports))
	args = append(args, s.requests, micros(s.window), micros(s.guard), micros(s.lag), s.burst,
		q.seen, micros(now.Sub(q.heard)), proof, micros(pause), c.lesson.refused, c.lesson.refusals, micros(c.patience), len(ids), proofID)
	for _, id := range ids {
		args = append(args, id)
	}
	for _, p := range q.reports {
		p.reported = false
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
	if err == nil && len(answer) < 3+len(c.ids) {
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
		q.report(p, p.due)
	}
	for _, id := range c.ids { // it may have run nevertheless
		q.report(&permit{q: q, id: id, unsent: true}, false)
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
		q.seen, q.heard = seen, c.sent
	}
	if pause := now.Add(time.Duration(answer[1]) * time.Microsecond); answer[1] > 0 && pause.After(q.pause) {
		q.pause = pause
	}
	if c.over { // what it was granted is given back
		return
	}
	answer = answer[2:]
	for i, id := range c.ids {
		switch wait := time.Duration(answer[i]) * time.Microsecond; {
		case wait == 0:
			p := &permit{q: q, id: id, granted: seen, asked: c.sent, handed: now}
			q.granted, q.proof = append(q.granted, p), p
		case wait > 0 && wait <= c.patience:
			q.ticket, q.turn = id, now.Add(wait)
		case wait > 0:
			c.tooLate = wait
		}
	}
	q.open, q.waits = int(answer[len(c.ids)]), q.waits[:0]
	for _, wait := range answer[len(c.ids)+1:] {
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
