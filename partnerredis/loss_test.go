package partnerredis

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// most is how many requests in one window are borne where Redis loses what it
// knew; those that were under way just then.
const most = 108

// TestLoss does to Redis what can be done to it while eight processes are hungry.
func TestLoss(t *testing.T) {
	t.Parallel()
	do := func(t *testing.T, s *server, args ...any) {
		t.Helper()
		c := s.client()
		defer c.Close()
		if err := c.Do(context.Background(), args...).Err(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	tests := []struct {
		name   string
		short  bool    // part of the CI
		late   float64 // so that requests are spread
		args   []string
		at     time.Duration // 0: just after a burst
		during func(*testing.T, *server)
		most   int
		gap    time.Duration // longest time without a request
		used   float64
	}{
		{"FLUSHALL", true, 0, nil, 300 * time.Millisecond,
			func(t *testing.T, s *server) { do(t, s, "FLUSHALL") }, most, 2*window + time.Second, 0},
		{"FLUSHALL before a turn", false, 0, nil, 3 * time.Second,
			func(t *testing.T, s *server) { do(t, s, "FLUSHALL") }, most, 2*window + time.Second, 0},
		{"FLUSHALL in the middle", true, 0.25, nil, 2*window + 500*time.Millisecond,
			func(t *testing.T, s *server) { do(t, s, "FLUSHALL") }, most, 2*window + time.Second, 0},
		{"SCRIPT FLUSH", false, 0, nil, 300 * time.Millisecond,
			func(t *testing.T, s *server) { do(t, s, "SCRIPT", "FLUSH") }, 100, window + 500*time.Millisecond, 0.95},
		{"kill -9 and empty restart", true, 0, nil, 300 * time.Millisecond,
			func(t *testing.T, s *server) { s.kill(); s.start() }, most, 2*window + time.Second, 0},
		{"SHUTDOWN and AOF restart", true, 0, []string{"--appendonly", "yes", "--appendfsync", "always"}, 2 * time.Second,
			func(t *testing.T, s *server) { s.shutdown(); s.start() }, 100, window + 1500*time.Millisecond, 0.9},
		{"CLIENT PAUSE for 2 s", false, 0, nil, 2500 * time.Millisecond,
			func(t *testing.T, s *server) { do(t, s, "CLIENT", "PAUSE", 2000, "ALL") }, 100, 5*time.Second + time.Second, 0.7},
		{"DEBUG SLEEP 2", false, 0, nil, 2500 * time.Millisecond,
			func(t *testing.T, s *server) { do(t, s, "DEBUG", "SLEEP", 2) }, 100, 5*time.Second + time.Second, 0.7},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !test.short && !*long {
				t.Skip("-long")
			}
			t.Parallel()
			s, p := startServer(t, test.args...), newPartner(t, 100, window)
			p.late = test.late
			c, _, _ := hungry(t, s, p, 8, job{For: 5 * window}, func(fleet) {
				pass(test.at)
				test.during(t, s)
			})
			c.check(t, test.most, test.gap, test.used)
		})
	}
}

func (c count) check(t *testing.T, most int, gap time.Duration, used float64) {
	t.Helper()
	if c.fullest > most || c.longest > gap || c.used < used {
		t.Errorf("got %v, want at most %d in a window, a gap of %v and %.0f %% used", c, most, gap, 100*used)
	}
}

// TestFailover moves all processes to a replica that is behind.
func TestFailover(t *testing.T) {
	t.Parallel()
	for _, behind := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
		t.Run(behind.String(), func(t *testing.T) {
			if behind != time.Second && !*long {
				t.Skip("-long")
			}
			t.Parallel()
			master, replica := startServer(t), startServer(t)
			m, r := master.client(), replica.client()
			defer m.Close()
			defer r.Close()
			ctx := context.Background()
			r.ReplicaOf(ctx, "127.0.0.1", fmt.Sprint(master.port))
			until(t, 10*time.Second, "the replica is in step", func() bool {
				return strings.Contains(r.Info(ctx, "replication").Val(), "master_link_status:up")
			})
			w := newWire(t, master.addr())
			p := newPartner(t, 100, window)
			c, _, _ := hungry(t, master, p, 8, job{Redis: []string{w.addr()}, For: 5 * window}, func(fleet) {
				until(t, 3*window, "half of the second burst", func() bool { return p.total() > 150 })
				r.ReplicaOf(ctx, "NO", "ONE")
				if behind > 0 {
					drop(t, r, behind)
				}
				w.cut()
				master.kill()
				w.to = replica.addr()
				w.mend(t)
			})
			c.check(t, most, 2*window+time.Second, 0)
		})
	}
}

// drop takes the permits of the last so long from a server, as if it had never
// heard of them.
func drop(t *testing.T, r *redis.Client, behind time.Duration) {
	err := r.Eval(context.Background(), `
		local now = tonumber(redis.call('HGET', KEYS[1], 'now')) - ARGV[1]
		redis.call('HSET', KEYS[1], 'now', now)
		return redis.call('ZREMRANGEBYSCORE', KEYS[2], now + ARGV[2], '+inf')`,
		[]string{"partnerauth:{test}:state", "partnerauth:{test}:places"},
		behind.Microseconds(), (window + window/20).Microseconds()).Err()
	if err != nil {
		t.Error(err)
	}
}

// A stepped client is one of a Redis whose clock is off. It lets the script see
// another TIME; what a Redis forgets when its clock goes ahead is the test's to do.
type stepped struct {
	redis.Scripter
	by *atomic.Int64 // seconds
}

func (s stepped) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	source := strings.Replace(grantSource, "local time = redis.call('TIME')\n",
		fmt.Sprintf("local time = redis.call('TIME')\ntime[1] = time[1] + (%d)\n", s.by.Load()), 1)
	if source == grantSource {
		panic("the script has no clock")
	}
	return s.Eval(ctx, source, keys, args...)
}

// TestTimeSteps lets Redis's clock go wrong, and back, under four hungry quotas.
func TestTimeSteps(t *testing.T) {
	t.Parallel()
	s, p := startServer(t), newPartner(t, 100, window)
	steps := []struct {
		by   int64
		lose bool // the keys, since they are over by the new clock
	}{{3600, true}, {0, false}, {-3600, false}, {0, true}, {2, false}, {0, false}, {-2, false}, {0, false}, {6, false}, {0, false}}
	if !*long {
		steps = steps[:2]
	}
	by := new(atomic.Int64)
	j := job{Partner: p.URL, Name: "test", Requests: 100, Window: window, Hungry: 20, For: time.Duration(len(steps)+1) * 4 * time.Second}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			client := s.client()
			defer client.Close()
			j.run(&Quota{Client: stepped{client, by}, Name: j.Name, Requests: j.Requests, Window: j.Window})
		})
	}
	client := s.client()
	defer client.Close()
	for _, step := range steps {
		pass(4 * time.Second)
		by.Store(step.by)
		if step.lose {
			client.FlushAll(context.Background())
		}
	}
	all.Wait()
	c := p.result(0, j.For)
	t.Log(c)
	c.check(t, most, 2*window+time.Second, 0)
}

// TestKilledProcess ends one of four with permits and a ticket. Of late answers,
// those of the last half window are not told yet.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		late float64
		most int
		used float64
	}{
		{"answers in time", 0, 100, 0.95},
		{"late answers", 0.25, most, 0.9},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, p := startServer(t), newPartner(t, 100, window)
			p.late = test.late
			c, _, _ := hungry(t, s, p, 4, job{For: 4 * window}, func(f fleet) {
				until(t, 2*window, "half of a burst", func() bool { return p.total() > 150 })
				f[0].kill()
				f[0].out.Reset(strings.NewReader("{}\n"))
				f[0] = &worker{t: t, out: f[0].out}
			})
			if c.fullest > test.most || c.used < test.used {
				t.Errorf("got %v, want at most %d in a window and %.0f %% used", c, test.most, 100*test.used)
			}
		})
	}
}

// TestEviction takes one key after the other from a process that is alone: nothing
// is given twice.
func TestEviction(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"state", "places", "queue"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			q := newQuota(t, s)
			q.Requests = 5
			ctx, cancel := context.WithTimeout(context.Background(), window-time.Second)
			defer cancel()
			for range 5 {
				if err := grant(ctx, q); err != nil {
					t.Fatal(err)
				}
			}
			tellNow(t, q)    // else its reports would be as good,
			pass(window / 3) // and its own estimate would refuse
			client := s.client()
			defer client.Close()
			if n, err := client.Del(ctx, "partnerauth:{test}:"+key).Result(); n != 1 || err != nil {
				t.Fatalf("deleted %d, %v", n, err)
			}
			if err := grant(ctx, q); !isRefusal(err) {
				t.Errorf("got %v for the sixth of 5 requests, want a refusal", err)
			}
			enough, cancel := context.WithTimeout(context.Background(), 2*window)
			defer cancel()
			if err := grant(enough, q); err != nil {
				t.Errorf("got %v a window later", err)
			}
		})
	}
}

// setUsers makes the users that doc.go describes, for a quota of that name.
func setUsers(t *testing.T, admin *redis.Client, name string, more ...any) {
	t.Helper()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, permission := range more {
		if !strings.Contains(string(doc), permission.(string)) {
			t.Errorf("doc.go does not name %v", permission)
		}
	}
	users := 0
	for line := range strings.Lines(string(doc)) {
		if words := strings.Fields(line); len(words) > 3 && words[1] == "user" {
			users++
			args := []any{"acl", "setuser"}
			for _, word := range words[2:] {
				args = append(args, strings.NewReplacer(">…", ">secret", "nowpost", name).Replace(word))
			}
			if err := admin.Do(context.Background(), append(args, more...)...).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if users != 2 {
		t.Fatalf("got %d users in doc.go, want 2", users)
	}
}

// TestACL has a user who may do what doc.go says and no more.
func TestACL(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	admin := s.client()
	defer admin.Close()
	ctx := context.Background()
	setUsers(t, admin, "nowpost", "+hello", "+ping", "+client")
	client := redis.NewClient(&redis.Options{Addr: s.addr(), Username: "quota", Password: "secret"})
	defer client.Close()
	q := &Quota{Client: client, Name: "nowpost", Window: time.Second, Requests: 2}
	for _, status := range []int{200, 200, 200, 200, 429, 429, 429, 429} {
		p, err := q.Permit(ctx, 4)
		if err != nil {
			t.Fatal(err)
		}
		p.Settle(status, time.Millisecond)
	}
	p, err := q.Permit(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	p.Return()
	if err := grant(ctx, q); err != nil {
		t.Fatal(err)
	}
	other := &Quota{Client: client, Name: "other", Window: time.Second}
	if err := grant(ctx, other); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("got %v for the keys of another quota, want that it has no permission", err)
	}
	client2 := redis.NewClient(&redis.Options{Addr: s.addr(), Username: "token", Password: "secret"})
	defer client2.Close()
	testStore(t, client2)
}
