// Command fleet shows what several processes with one account do to the partner's quota and its sessions, with Redis
// between them and without:
//
//	go run -C examples/fleet .
//
// Worker processes ask without a pause, in two ways at once, each with a partner of its own: with a quota and a token
// that all share on Redis, and with those of the process alone. In the middle the partners revoke all tokens, and one
// process is killed. What is drawn at the end is what the partners counted.
//
// Redis is REDIS_URL, such as redis://127.0.0.1:6379/0, where some keys stay for an hour at most. If that is not set, a
// redis-server is started for the time being.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// The partner's quota, scaled down from 100 a minute.
const (
	limit  = 100
	window = 3 * time.Second
)

func main() {
	logging.Disable() // what is wrong with Redis is told by errors
	if os.Getenv(workerVariable) != "" {
		work(os.Stdin)
		return
	}
	workers := flag.Int("workers", 4, "processes, 2 to 20")
	seconds := flag.Int("seconds", 12, "how long they work, at least 4")
	flag.Parse()
	if *workers < 2 || *workers > 20 || *seconds < 4 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	counts, err := run(ctx, os.Stdout, *workers, time.Duration(*seconds)*time.Second)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "fleet: interrupted; all that was started has ended")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
	draw(os.Stdout, counts)
}

// run is the whole play. What it starts has ended when it returns.
func run(ctx context.Context, w io.Writer, workers int, during time.Duration) (counts [2]count, err error) {
	fmt.Fprintf(w, "%d processes, hungry for %s; the partner allows %d requests in any %s\n",
		workers, span(during), limit, span(window))
	redisURL, end, err := findRedis(ctx, w)
	defer end()
	if err != nil {
		return counts, err
	}

	// A new account and tokens of a short life leave nothing behind in a Redis that is somebody's own.
	j := job{Redis: redisURL, Account: "fleet-" + rand.Text() + "@example.com", Key: make([]byte, 32)}
	rand.Read(j.Key)
	var partners [2]*partnertest.NowPost
	for way := range partners {
		partners[way] = partnertest.StartNowPost(partnertest.Options{Email: j.Account, Limit: limit, Window: window,
			Latency: 20 * time.Millisecond, Lifetime: 2*during + time.Minute})
		defer partners[way].Close()
		j.Partners[way] = partners[way].URL
	}

	fleet, err := startFleet(workers, j)
	began := time.Now()
	defer kill(fleet)
	if err != nil {
		return counts, err
	}
	victim := len(fleet) / 2
	for _, act := range []struct {
		after time.Duration
		text  string
		do    func()
	}{
		{during / 3, "R  the partner revokes all tokens", func() { partners[shared].RevokeAll(); partners[alone].RevokeAll() }},
		{during / 2, fmt.Sprintf("K  worker %d is killed, pid %d", victim+1, fleet[victim].Process.Pid), func() { kill(fleet[victim : victim+1]) }},
		{during, "the end\n", func() { kill(fleet) }},
	} {
		select {
		case <-time.After(time.Until(began.Add(act.after))):
		case <-ctx.Done():
			return counts, ctx.Err()
		}
		act.do()
		fmt.Fprintf(w, "%4.1f s  %s\n", time.Since(began).Seconds(), act.text)
	}
	for way, p := range partners {
		counts[way] = newCount(p, workers, began)
		counts[way].during, counts[way].revoked, counts[way].killed, counts[way].victim = during, during/3, during/2, victim
	}
	return counts, nil
}

var errNoRedis = errors.New(`there is no Redis. Install redis-server or valkey-server ("apt-get install redis-server",
"brew install redis"), or set REDIS_URL to one that you have, such as redis://127.0.0.1:6379/0`)

// findRedis returns the URL of REDIS_URL's Redis or of one that it starts; end ends that.
func findRedis(ctx context.Context, w io.Writer) (at string, end func(), err error) {
	end = func() {}
	if at = os.Getenv("REDIS_URL"); at == "" {
		if at, end, err = startRedis(); err != nil {
			return "", end, err
		}
	}
	o, err := redis.ParseURL(at)
	if parse, ok := errors.AsType[*url.Error](err); ok {
		err = parse.Err // without the URL, which may have a password
	}
	if err != nil {
		return "", end, fmt.Errorf("REDIS_URL: %w", err)
	}
	client := redis.NewClient(o)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return "", end, fmt.Errorf("no Redis at %s: %w", o.Addr, err)
	}
	fmt.Fprintf(w, "Redis at %s\n\n", o.Addr)
	return at, end, nil
}

// startRedis starts a redis-server on a free port of loopback, with a directory of its own.
func startRedis() (at string, end func(), err error) {
	end = func() {}
	program, err := exec.LookPath("redis-server")
	if err != nil {
		program, err = exec.LookPath("valkey-server")
	}
	if err != nil {
		return "", end, errNoRedis
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", end, err
	}
	l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dir, err := os.MkdirTemp("", "fleet-redis-")
	if err != nil {
		return "", end, err
	}
	cmd := exec.Command(program, "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "")
	end = func() {
		kill([]*exec.Cmd{cmd}) // it has nothing to save
		os.RemoveAll(dir)
	}
	if err := cmd.Start(); err != nil {
		return "", end, err
	}
	for range 100 {
		var c net.Conn
		if c, err = net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "redis://" + l.Addr().String(), end, err
}
