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
	defer time.AfterFunc(callTime, func() { s.look(true) }).Stop()
	cmd := s.contained(ctx, script, keys, args)
	if err := cmd.Err(); err != nil && diagnose(err).network() {
		s.look(false)
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
func (s *scripts) look(frozen bool) {
	if client, ok := s.client.(interface{ ReloadState(context.Context) }); ok {
		s.reload(client, frozen)
		time.AfterFunc(reloadEvery, func() { s.reload(client, frozen) })
	}
}

// reload goes a second way if a node is frozen. ReloadState asks any node, one at
// a time, and if it comes upon the frozen one, it waits for five seconds and takes
// no further wish meanwhile. ForEachMaster looks as well, each time anew.
func (s *scripts) reload(client interface{ ReloadState(context.Context) }, frozen bool) {
	now := time.Now().UnixNano()
	last := s.reloaded.Load()
	if now-last < int64(reloadEvery) && now >= last || !s.reloaded.CompareAndSwap(last, now) {
		return
	}
	client.ReloadState(context.Background())
	if cluster, ok := client.(*redis.ClusterClient); ok && frozen {
		go cluster.ForEachMaster(context.Background(), func(context.Context, *redis.Client) error { return nil })
	}
}
