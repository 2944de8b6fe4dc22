package partnerredis

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// nodeTimeout is after how long a Cluster or a Sentinel gives up a master.
const nodeTimeout = 1500 * time.Millisecond

// afterPromotion is what may pass after a replica was promoted until grants go on:
// a try, and a window where the replica was behind.
const afterPromotion = window + 2*time.Second

// testSlot is the one of the key {test}.
const testSlot = 6918

// A cluster is a Redis Cluster of three masters with a replica each.
type cluster struct {
	t     *testing.T
	nodes []*server
	names map[int]string // by port
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, names: map[int]string{}}
	ctx := context.Background()
	for range 6 {
		node := startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", fmt.Sprint(nodeTimeout.Milliseconds()),
			"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
		c.nodes = append(c.nodes, node)
	}
	for i, node := range c.nodes {
		client := node.client()
		defer client.Close()
		name, err := client.Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			t.Fatal(err)
		}
		c.names[node.port] = name
		if i < 3 {
			err = client.ClusterAddSlotsRange(ctx, i*16384/3, (i+1)*16384/3-1).Err()
		}
		if err == nil {
			err = client.ClusterMeet(ctx, "127.0.0.1", fmt.Sprint(c.nodes[0].port)).Err()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, node := range c.nodes[3:] {
		client := node.client()
		defer client.Close()
		until(t, 20*time.Second, "the replica knows its master", func() bool {
			return client.ClusterReplicate(ctx, c.names[c.nodes[i].port]).Err() == nil
		})
	}
	c.settled()
	return c
}

// settled waits until all nodes agree, and each master has its replica in step.
func (c *cluster) settled() {
	c.t.Helper()
	ctx := context.Background()
	until(c.t, 60*time.Second, "the cluster is up", func() bool {
		views := map[string]bool{}
		for _, node := range c.nodes {
			client := node.client()
			defer client.Close()
			list := client.ClusterNodes(ctx).Val()
			info := client.Info(ctx, "replication").Val()
			ranges := owners(client)
			for _, r := range ranges {
				if len(r.nodes) != 2 {
					return false
				}
			}
			if len(ranges) == 0 || !strings.Contains(client.ClusterInfo(ctx).Val(), "cluster_state:ok") ||
				strings.Contains(list, "fail") || strings.Count(list, "slave") != 3 ||
				!strings.Contains(info, "connected_slaves:1") && !strings.Contains(info, "master_link_status:up") {
				return false
			}
			views[fmt.Sprint(ranges)] = true
		}
		return len(views) == 1
	})
}

// owned is a range of slots with the addresses of its master and its replicas.
type owned struct {
	first, last int
	nodes       []string
}

// owners are the ranges of slots, as a node sees them.
func owners(client *redis.Client) (ranges []owned) {
	list, _ := client.Do(context.Background(), "CLUSTER", "SLOTS").Slice()
	for _, item := range list {
		r := item.([]any)
		o := owned{first: int(r[0].(int64)), last: int(r[1].(int64))}
		for _, n := range r[2:] {
			o.nodes = append(o.nodes, fmt.Sprintf("%v:%v", n.([]any)[0], n.([]any)[1]))
		}
		ranges = append(ranges, o)
	}
	slices.SortFunc(ranges, func(a, b owned) int { return a.first - b.first })
	return ranges
}

func (c *cluster) addrs() (addrs []string) {
	for _, node := range c.nodes {
		addrs = append(addrs, node.addr())
	}
	return addrs
}

// find returns the master of the test's keys, and its replica.
func (c *cluster) find() (master, replica *server) {
	c.t.Helper()
	until(c.t, 10*time.Second, "the slot has a master and a replica", func() bool {
		for _, n := range c.nodes {
			client := n.client()
			defer client.Close()
			for _, o := range owners(client) {
				if o.first <= testSlot && testSlot <= o.last && len(o.nodes) == 2 {
					master, replica = c.node(o.nodes[0]), c.node(o.nodes[1])
					return master != nil && replica != nil
				}
			}
		}
		return false
	})
	return master, replica
}

func (c *cluster) node(addr string) *server {
	for _, n := range c.nodes {
		if n.addr() == addr {
			return n
		}
	}
	return nil
}

// lose takes the master of the test's keys away, and waits for the next one.
func (c *cluster) lose(how func(*server)) {
	old, replica := c.find()
	how(old)
	client := replica.client()
	defer client.Close()
	until(c.t, 20*time.Second, "the replica is master", func() bool {
		return strings.Contains(client.Info(context.Background(), "replication").Val(), "role:master")
	})
}

// move moves the slot of the test's keys to another master, as redis-cli does,
// and holds still for so long between its steps.
func (c *cluster) move(pause time.Duration) {
	ctx := context.Background()
	from, _ := c.find()
	var to *server
	for _, node := range c.nodes {
		client := node.client()
		defer client.Close()
		if node != from && strings.Contains(client.Info(ctx, "replication").Val(), "role:master") {
			to = node
		}
	}
	source, target := from.client(), to.client()
	defer source.Close()
	defer target.Close()
	do := func(client *redis.Client, args ...any) {
		if err := client.Do(ctx, args...).Err(); err != nil {
			c.t.Errorf("%v: %v", args, err)
		}
	}
	const slot = testSlot
	until(c.t, 10*time.Second, "the target knows the source for a master", func() bool {
		return target.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.names[from.port]).Err() == nil
	})
	do(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.names[to.port])
	pass(pause)
	for _, key := range source.ClusterGetKeysInSlot(ctx, slot, 100).Val() {
		do(source, "MIGRATE", "127.0.0.1", to.port, key, 0, 1000)
		pass(pause / 20)
	}
	do(target, "CLUSTER", "SETSLOT", slot, "NODE", c.names[to.port])
	do(source, "CLUSTER", "SETSLOT", slot, "NODE", c.names[to.port])
}

// after is what the partner saw between two moments: the longest time without a
// request, and how much of the quota was used.
func (p *partner) after(from, to time.Time) (longest time.Duration, used float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, n := from, 0
	for _, at := range p.log {
		if at.After(from) && at.Before(to) {
			longest, last = max(longest, at.Sub(last)), at
			n++
		}
	}
	return max(longest, to.Sub(last)), float64(n) / (to.Sub(from).Seconds() / p.window.Seconds() * float64(p.limit))
}

// disturbed is a fleet of four hungry processes to which something is done in the
// midst of their second burst. gap is the longest time without a request, beside
// the time that do takes.
func disturbed(t *testing.T, p *partner, j job, do func(), gap time.Duration, used float64) {
	t.Helper()
	rest := 4 * window
	if *long {
		rest, used = 10*window, max(used, 0.8)
	}
	j.For = rest + 2*window
	var from, to time.Time
	got, _, _ := hungry(t, nil, p, 4, j, func(fleet) {
		to = time.Now().Add(j.For)
		until(t, 4*window, "the second burst", func() bool { return p.total() > 150 })
		from = time.Now()
		do()
		gap += time.Since(from)
	})
	longest, share := p.after(from, to)
	t.Logf("afterwards: longest gap %v, %.0f %% used", longest, 100*share)
	if got.refused > 0 || got.fullest > p.limit || longest > gap || share < used {
		t.Errorf("got %d refused, %d in a window, then a gap of %v and %.0f %% used; want 0, %d, at most %v and %.0f %%",
			got.refused, got.fullest, longest, 100*share, p.limit, gap, 100*used)
	}
}

// TestCluster has a fleet on one Cluster, to which things are done.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.addrs(), DisableIdentity: true})
	testStore(t, client)
	client.Close()

	tests := []struct {
		name string
		user string
		slow time.Duration // answers
		do   func()
		used float64 // of the quota afterwards
	}{
		{"kill -9 of the master", "", 0, func() { c.lose((*server).kill) }, 0.4},
		{"kill -9 of the master, slow answers", "", 400 * time.Millisecond, func() { c.lose((*server).kill) }, 0.4},
		{"the master freezes", "", 0, func() { c.lose(func(s *server) { stop(t, s) }) }, 0.4},
		{"failover on command, then a slot that moves slowly", "quota", 0, func() {
			_, replica := c.find()
			client := replica.client()
			defer client.Close()
			client.ClusterFailover(context.Background())
			until(t, 10*time.Second, "the replica is master", func() bool { m, _ := c.find(); return m == replica })
			c.move(3 * time.Second)
		}, 0.6},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c.t = t
			c.settled()
			for _, node := range c.nodes { // a restart has ended them
				admin := node.client()
				setUsers(t, admin, "test", "+hello", "+ping", "+client", "+cluster", "+command", "+asking", "+readonly")
				admin.Close()
			}
			p := newPartner(t, 100, window)
			p.slow = test.slow
			disturbed(t, p, job{Redis: c.addrs(), User: test.user}, test.do, afterPromotion, test.used)
			c.revive()
		})
	}
	t.Run("a quiet quota whose slot moves", func(t *testing.T) {
		c.t = t
		c.settled()
		c.quiet()
	})
}

// quiet has requests now and then while the slot moves: nobody waits, so that
// there would be no queue.
func (c *cluster) quiet() {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.addrs(), DisableIdentity: true})
	defer client.Close()
	q := &Quota{Client: client, Name: "test", Window: window}
	q.init()
	client.Del(context.Background(), q.set.keys...) // of the fleets before
	moving, moved := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for moving.Err() == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			if err := grant(ctx, q); err != nil {
				c.t.Error(err)
			}
			cancel()
			pass(100 * time.Millisecond)
		}
	})
	pass(500 * time.Millisecond)
	c.move(3 * time.Second)
	moved()
	all.Wait()
}

// revive brings back those that were killed or stopped.
func (c *cluster) revive() {
	for _, node := range c.nodes {
		if node.cmd == nil {
			node.start()
		} else {
			node.cmd.Process.Signal(thaw)
		}
	}
}
