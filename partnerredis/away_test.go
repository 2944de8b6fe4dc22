package partnerredis

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestAway takes Redis away from four hungry processes.
func TestAway(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		short    bool
		replicas int
		timeout  time.Duration
		during   func(*testing.T, *server)
		used     float64
	}{
		{"cut, Replicas 4", true, 4, 0, func(t *testing.T, s *server) {
			pass(window)
			s.kill()
			pass(3 * window)
			s.start()
		}, 0.6},
		{"cut twice, Replicas 4", false, 4, 0, func(t *testing.T, s *server) {
			for range 2 {
				pass(window)
				s.kill()
				pass(window)
				s.start()
			}
		}, 0.6},
		{"never there, Replicas 4", false, 4, 0, func(t *testing.T, s *server) { s.kill() }, 0.6},
		{"stalled for 2 s, deadlines of 1 s", false, 0, time.Second, func(t *testing.T, s *server) {
			pass(time.Second)
			s.client().Do(context.Background(), "DEBUG", "SLEEP", 2)
		}, 0.6},
		{"stopped, deadlines of 2 s", false, 0, 2 * time.Second, func(t *testing.T, s *server) {
			pass(time.Second)
			stop(t, s)
			pass(2 * window)
			goOn(t, s)
		}, 0},
		{"stopped, Replicas 4, deadlines of 2 s", false, 4, 2 * time.Second, func(t *testing.T, s *server) {
			pass(time.Second)
			stop(t, s)
			pass(3 * window)
			goOn(t, s)
		}, 0.6},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !test.short && !*long {
				t.Skip("-long")
			}
			t.Parallel()
			s, p := startServer(t), newPartner(t, 100, window)
			c, r, _ := hungry(t, s, p, 4, job{Replicas: test.replicas, Timeout: test.timeout, For: 6 * window},
				func(fleet) { test.during(t, s) })
			if c.refused > 0 || c.used < test.used || r.Overdue > time.Second {
				t.Errorf("got %v, %v overdue; want 0 refused, %.0f %% used, at most 1 s overdue", c, r.Overdue, 100*test.used)
			}
			if test.replicas == 0 && test.used == 0 && !strings.Contains(r.Error, "Redis is away: ") {
				t.Logf("the last error was %q", r.Error)
			}
		})
	}
}

// TestAwayError has no Redis: callers wait within their deadlines, up to a
// window, and then are told at once.
func TestAwayError(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", DisableIdentity: true})
	defer client.Close()
	q := &Quota{Client: client, Name: "test", Window: window}
	check := func(ctx context.Context, least, most time.Duration) {
		t.Helper()
		start := time.Now()
		_, err := q.Permit(ctx, 1)
		took := time.Since(start)
		var op *net.OpError
		if !isRefusal(err) || !errors.As(err, &op) || !strings.Contains(err.Error(), "Redis is away: ") || ctx.Err() != nil {
			t.Errorf("got %v, want a refusal that names the cause before the deadline", err)
		}
		if took < least || took > most+2*time.Second { // on a busy machine
			t.Errorf("refused after %v, want %v to %v", took, least, most)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2900*time.Millisecond)
	defer cancel()
	check(ctx, 2800*time.Millisecond, 2900*time.Millisecond)
	check(context.Background(), window-2*time.Second, window+100*time.Millisecond)
	check(context.Background(), 0, 600*time.Millisecond)
	check(context.Background(), 0, 600*time.Millisecond)
	if got := q.Estimate(100); got != 0 {
		t.Errorf("got an estimate of %v while Redis is away, want none", got)
	}
}

// A mute server takes connections and says nothing.
func TestMute(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	client := redis.NewClient(&redis.Options{Addr: l.Addr().String(), MaxRetries: -1, ReadTimeout: 3 * time.Second})
	defer client.Close()
	q := &Quota{Client: client, Name: "test", Window: window}
	ctx, cancel := context.WithTimeout(context.Background(), 2900*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = q.Permit(ctx, 1)
	if took := time.Since(start); !isRefusal(err) || !errors.Is(err, errSlow) || took > 10*time.Second {
		t.Errorf("got %v after %v, want that Redis is away", err, took)
	}
	early, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	start = time.Now()
	_, err = q.Permit(early, 1)
	if took := time.Since(start); !errors.Is(err, context.Canceled) || took > time.Second {
		t.Errorf("got %v after %v, want that it was cancelled", err, took)
	}
	until(t, 5*time.Second, "the client has given up", func() bool { return client.PoolStats().TotalConns == client.PoolStats().IdleConns })
}

// A client that panics is an error.
type panicking struct{ redis.Scripter }

func TestPanic(t *testing.T) {
	q := &Quota{Client: panicking{}, Name: "test", Window: 100 * time.Millisecond}
	if _, err := q.Permit(context.Background(), 1); !isRefusal(err) || !strings.Contains(err.Error(), "panic") {
		t.Errorf("got %v, want an error that tells of a panic", err)
	}
}
