package partnerredis

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startSentinels starts a master with a replica, and three Sentinels that watch it
// by the name of partner.
func startSentinels(t *testing.T) (master *server, addrs []string) {
	t.Helper()
	ctx := context.Background()
	master = startServer(t)
	replica := startServer(t, "--replicaof", fmt.Sprintf("127.0.0.1 %d", master.port), "--repl-diskless-sync-delay", "0")
	r := replica.client()
	defer r.Close()
	until(t, 10*time.Second, "the replica is in step", func() bool {
		return strings.Contains(r.Info(ctx, "replication").Val(), "master_link_status:up")
	})
	for range 3 {
		s := &server{t: t, program: master.program, dir: t.TempDir(), port: freePort(t)}
		config := filepath.Join(s.dir, "sentinel.conf")
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nsentinel monitor partner 127.0.0.1 %d 2\n"+
			"sentinel down-after-milliseconds partner %d\nsentinel failover-timeout partner 3000\n",
			s.port, s.dir, master.port, nodeTimeout.Milliseconds())
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.startArgs(config, "--sentinel")
		t.Cleanup(s.kill)
		addrs = append(addrs, s.addr())
		c := s.client()
		defer c.Close()
		defer until(t, 15*time.Second, "the Sentinels know each other and the replica", func() bool {
			return strings.Contains(c.Info(ctx, "sentinel").Val(), "slaves=1,sentinels=3")
		})
	}
	return master, addrs
}

// TestSentinel takes the master from a fleet that finds it by Sentinels.
func TestSentinel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(*testing.T, *server)
	}{
		{"kill -9 of the master", func(_ *testing.T, master *server) { master.kill() }},
		{"the master freezes", stop},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			master, sentinels := startSentinels(t)
			p := newPartner(t, 100, window)
			disturbed(t, p, job{Redis: sentinels, Master: "partner"}, func() { test.do(t, master) }, 10*time.Second, 0.3) // 3 s and 0.8 on a quiet machine
		})
	}
}
