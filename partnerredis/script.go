package partnerredis

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// reloadEvery is how often a Cluster's client is told to look for new masters. It
// is a little less than what passes between two tries, so that one does not go to
// the master of old because the replica became one just after it was looked for.
const reloadEvery = retryEvery * 8 / 10

var errPanic = errors.New("the client panicked")

// scripts runs scripts. A Cluster's client learns of a failover when a node says
// so. One that is dead or frozen says nothing, and the client would go on asking
// it until it looks again, a minute later: so it is told to look.
type scripts struct {
	client   redis.Scripter
	reloaded atomic.Int64 // when, in nanoseconds of the wall clock
}

func (s *scripts) run(ctx context.Context, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	defer time.AfterFunc(callTime, s.look).Stop()
	cmd := s.contained(ctx, script, keys, args)
	if err := cmd.Err(); err != nil && diagnose(err).network() {
		s.look()
	}
	return cmd
}

// contained makes an error of a panic in what a user put into the client.
func (s *scripts) contained(ctx context.Context, script *redis.Script, keys []string, args []any) (cmd *redis.Cmd) {
	defer func() {
		if r := recover(); r != nil {
			cmd = redis.NewCmd(ctx)
			cmd.SetErr(fmt.Errorf("%w: %T", errPanic, r))
		}
	}()
	return script.Run(ctx, s.client, keys, args...)
}

// look has a Cluster's client look now and just before the next try.
func (s *scripts) look() {
	if client, ok := s.client.(interface{ ReloadState(context.Context) }); ok {
		s.reload(client)
		time.AfterFunc(reloadEvery, func() { s.reload(client) })
	}
}

func (s *scripts) reload(client interface{ ReloadState(context.Context) }) {
	now := time.Now().UnixNano()
	last := s.reloaded.Load()
	if (now-last >= int64(reloadEvery) || now < last) && s.reloaded.CompareAndSwap(last, now) {
		client.ReloadState(context.Background())
	}
}
