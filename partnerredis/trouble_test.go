package partnerredis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// said is an error of a server, as the client makes it.
type said string

func (s said) Error() string { return string(s) }
func (said) RedisError()     {}

// A failing client answers with an error.
type failing struct {
	redis.Scripter
	err     error
	calls   atomic.Int64
	reloads atomic.Int64
}

func (f *failing) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	f.calls.Add(1)
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(f.err)
	return cmd
}

func (f *failing) ReloadState(context.Context) { f.reloads.Add(1) }

const secretText = "s3cret-of-the-server"

// TestDiagnosis has errors read as what they are. Nothing that a server says is
// repeated but its error's class.
func TestDiagnosis(t *testing.T) {
	tests := []struct {
		err  error
		want string // begins the text
		word string // is in it
		once bool   // it is told at once, with 10 s to wait
		look bool   // a Cluster's client is told to look for new masters
	}{
		{said("WRONGPASS invalid " + secretText), "Redis refuses: the user name or the password is wrong", "WRONGPASS", true, false},
		{said("NOAUTH Authentication required."), "Redis refuses: a password is required", "NOAUTH", true, false},
		{said("NOPERM User " + secretText), "Redis refuses: the user may not run", "NOPERM", true, false},
		{said("ERR The user executing the script can't run this command or subcommand script: " + secretText), "Redis refuses: ", "NOPERM", true, false},
		{said("OOM command not allowed " + secretText), "Redis refuses: its memory is full", "OOM", true, false},
		{said("ERR Error running script (call to " + secretText + "): @user_script: 3: -OOM command not allowed"), "Redis refuses: ", "OOM", true, false},
		{said("MISCONF Redis is configured to save"), "Redis refuses: it cannot save", "MISCONF", true, false},
		{said("READONLY You can't write"), "Redis refuses: the server is a replica", "READONLY", true, false},
		{said("MOVED 6918 10.0.0.1:" + secretText), "Redis refuses: another node of the Cluster", "MOVED", true, false},
		{said("CROSSSLOT Keys"), "Redis refuses: the keys are in different slots", "CROSSSLOT", true, false},
		{said("ERR unknown command 'evalsha', with args beginning with: " + secretText), "Redis refuses: it does not run scripts", "unknown command", true, false},
		{said("ERR " + secretText), "Redis refuses: it answers with an error of its own", "", true, false},
		{said("X" + secretText), "Redis refuses: it answers with an error of its own", "", true, false},
		{redis.ErrClosed, "Redis refuses: the client is closed", "", true, false},
		{said("TRYAGAIN Multiple keys request"), "Redis is not ready: the slot is moving", "TRYAGAIN", false, false},
		{said("LOADING Redis is loading"), "Redis is away: it is loading", "LOADING", false, false},
		{said("BUSY Redis is busy"), "Redis is away: it is busy", "BUSY", false, false},
		{said("CLUSTERDOWN Hash slot not served"), "Redis is away: the Cluster is down", "CLUSTERDOWN", false, false},
		{said("MASTERDOWN Link with MASTER is down"), "Redis is away: ", "MASTERDOWN", false, false},
		{said("ERR max number of clients reached"), "Redis is away: it has no room", "max number of clients", false, false},
		{&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}, "Redis is away: dial tcp: connection refused", "", false, true},
		{fmt.Errorf("the node 10.0.0.1: %w", context.DeadlineExceeded), "Redis is away: no answer in time", "", false, true},
		{redis.ErrPoolTimeout, "Redis is away: no connection of the pool is free", "", false, true},
		{fmt.Errorf("redis: can't parse reply %q", secretText), "Redis is away: the client failed (", "", false, true},
	}
	for _, test := range tests {
		t.Run(strings.ReplaceAll(test.err.Error(), " ", "_"), func(t *testing.T) {
			t.Parallel()
			client := &failing{err: test.err}
			q := &Quota{Client: client, Name: "test", Window: window}
			time4 := 400 * time.Millisecond
			if test.once {
				time4 = 10 * time.Second
			}
			ctx, cancel := context.WithTimeout(context.Background(), time4)
			defer cancel()
			start := time.Now()
			_, err := q.Permit(ctx, 1)
			if took := time.Since(start); test.once && took > time.Second {
				t.Errorf("told after %v, want at once", took)
			}
			want := "partnerredis: rate limited: " + test.want
			if !isRefusal(err) || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), test.word) || ctx.Err() != nil {
				t.Errorf("got %v, want a refusal that begins with %q and names %q, before the deadline", err, want, test.word)
			}
			if strings.Contains(err.Error(), secretText) || !errors.Is(err, test.err) {
				t.Errorf("got %q, want the cause behind it and nothing of the server's text in it", err)
			}
			if got := client.reloads.Load() > 0; got != test.look && test.word != "CLUSTERDOWN" {
				t.Errorf("the client was told to look for new masters: %v, want %v", got, test.look)
			}
		})
	}
}

// TestRefusing asks real servers that will never run the script.
func TestRefusing(t *testing.T) {
	t.Parallel()
	s, other := startServer(t), startServer(t)
	admin := s.client()
	defer admin.Close()
	ctx := context.Background()
	for _, args := range [][]any{
		{"acl", "setuser", "poor", "on", ">secret", "~*", "+eval", "+evalsha", "+time", "+hello", "+ping", "+client"},
		{"acl", "setuser", "rich", "on", ">secret", "~*", "+@all"},
	} {
		if err := admin.Do(ctx, args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	replica := other.client()
	defer replica.Close()
	if err := replica.ReplicaOf(ctx, "127.0.0.1", fmt.Sprint(s.port)).Err(); err != nil {
		t.Fatal(err)
	}
	node := startServer(t, "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
	tests := []struct {
		word    string
		options redis.Options
		before  func()
	}{
		{"WRONGPASS", redis.Options{Addr: s.addr(), Username: "rich", Password: "wrong"}, nil},
		{"NOPERM", redis.Options{Addr: s.addr(), Username: "poor", Password: "secret"}, nil},
		{"READONLY", redis.Options{Addr: other.addr()}, nil},
		{"CLUSTERDOWN", redis.Options{Addr: node.addr()}, nil},
		{"OOM", redis.Options{Addr: s.addr()}, func() { admin.ConfigSet(ctx, "maxmemory", "1") }},
		{"NOAUTH", redis.Options{Addr: s.addr()}, func() { admin.ConfigSet(ctx, "requirepass", "secret") }},
	}
	for _, test := range tests {
		if test.before != nil {
			test.before()
		}
		test.options.DisableIdentity = true
		client := redis.NewClient(&test.options)
		q := &Quota{Client: client, Name: "test", Window: window}
		limit := 10 * time.Second
		if test.word == "CLUSTERDOWN" { // which may end
			limit = 2 * time.Second
		}
		within, cancel := context.WithTimeout(ctx, limit)
		start := time.Now()
		_, err := q.Permit(within, 1)
		if took := time.Since(start); !isRefusal(err) || !strings.Contains(err.Error(), test.word) || took > 2*time.Second {
			t.Errorf("%s: got %v after %v, want it at once", test.word, err, took)
		}
		cancel()
		client.Close()
	}
}

// TestTold has everybody told what is wrong: callers behind the head, those whose
// context has ended, and those of a process that goes on without Redis.
func TestTold(t *testing.T) {
	t.Parallel()
	cut := &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	told := func(t *testing.T, err error) {
		t.Helper()
		if !isRefusal(err) || !errors.Is(err, cut) || !strings.Contains(err.Error(), "Redis is away: ") {
			t.Errorf("got %v, want that Redis is away, and why", err)
		}
	}
	for _, replicas := range []int{0, 50} {
		t.Run(fmt.Sprintf("Replicas %d", replicas), func(t *testing.T) {
			t.Parallel()
			q := &Quota{Client: &failing{err: cut}, Name: "test", Window: time.Minute, Replicas: replicas}
			ended, cancel := context.WithCancelCause(context.Background())
			why := errors.New("changed my mind")
			cancel(why)
			if _, err := q.Permit(ended, 1); !errors.Is(err, context.Canceled) || !errors.Is(err, why) || isRefusal(err) {
				t.Errorf("got %v before anything was asked, want that the context was cancelled, and why", err)
			}
			ctx, cancel2 := context.WithTimeout(context.Background(), 700*time.Millisecond)
			defer cancel2()
			var all sync.WaitGroup
			for range 5 {
				all.Go(func() {
					for { // a share is 2 requests
						if _, err := q.Permit(ctx, 1); err != nil {
							told(t, err)
							return
						}
					}
				})
			}
			all.Wait()
			if ctx.Err() != nil {
				t.Error("they were told after their deadline")
			}
			start := time.Now()
			_, err := q.Permit(ended, 1)
			told(t, err)
			if took := time.Since(start); took > 100*time.Millisecond || !errors.Is(err, context.Canceled) || !errors.Is(err, why) {
				t.Errorf("got %v after %v, want at once why the context was cancelled as well", err, took)
			}
			past, cancel3 := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
			defer cancel3()
			_, err = q.Permit(past, 1)
			told(t, err)
		})
	}
}

// TestToldBehind has a caller behind one with more time.
func TestToldBehind(t *testing.T) {
	t.Parallel()
	q := &Quota{Client: &failing{err: net.ErrClosed}, Name: "test", Window: time.Minute}
	long, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { q.Permit(long, 1) })
	until(t, time.Second, "it is known that Redis is away", q.troubled)
	short, cancel2 := context.WithTimeout(long, time.Second)
	defer cancel2()
	_, err := q.Permit(short, 1)
	if !isRefusal(err) || !errors.Is(err, net.ErrClosed) || short.Err() != nil {
		t.Errorf("got %v, want that Redis is away, before the deadline", err)
	}
	cancel()
	all.Wait()
}

// TestFailoverIsNoMistake lets a client that has worked meet a replica for a while.
func TestFailoverIsNoMistake(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	q := newQuota(t, s)
	if err := grant(context.Background(), q); err != nil {
		t.Fatal(err)
	}
	client := s.client()
	defer client.Close()
	client.ReplicaOf(context.Background(), "127.0.0.1", "1")
	time.AfterFunc(time.Second, func() { client.ReplicaOf(context.Background(), "NO", "ONE") })
	ctx, cancel := context.WithTimeout(context.Background(), 2*window)
	defer cancel()
	if err := grant(ctx, q); err != nil {
		t.Errorf("got %v, want to wait for the end of the failover", err)
	}
}

// TestLooks bounds how often a client is told to look for new masters.
func TestLooks(t *testing.T) {
	t.Parallel()
	client := &failing{err: &net.OpError{Op: "read", Err: errors.New("reset")}}
	s := &scripts{client: client}
	for range 100 {
		s.run(context.Background(), grantScript, nil)
	}
	until(t, 5*time.Second, "it has looked again", func() bool { return client.reloads.Load() == 2 })
	pass(2 * reloadEvery)
	if got := client.reloads.Load(); got > 3 {
		t.Errorf("it was told %d times, want at most 3", got)
	}
}

// TestLate has a question on its way for longer than the guard: the script does
// nothing, and is asked again.
func TestLate(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	q := newQuota(t, s)
	late := &delayed{Scripter: q.Client}
	q.Client = late
	ctx := context.Background()
	if err := grant(ctx, q); err != nil {
		t.Fatal(err)
	}
	client := s.client()
	defer client.Close()
	ahead := func() float64 { // of the clock that the script goes by
		t.Helper()
		v, err := client.HGet(ctx, "partnerauth:{test}:state", "offset").Float64()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := ahead()
	late.by = 600 * time.Millisecond
	calls := late.calls
	if err := grant(ctx, q); err != nil {
		t.Fatal(err)
	}
	if got := late.calls - calls; got != 2 {
		t.Errorf("got %d questions, want 2", got)
	}
	if got := ahead(); got != before {
		t.Errorf("the clock was put by %v µs", got-before)
	}
}

// A delayed client holds every other question back.
type delayed struct {
	redis.Scripter
	by    time.Duration
	calls int
}

func (d *delayed) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if d.calls++; d.by > 0 && d.calls%2 == 0 {
		pass(d.by)
	}
	return d.Scripter.EvalSha(ctx, sha, keys, args...)
}
