package partnerredis

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A server is a redis-server (or valkey-server) of a test's own.
type server struct {
	t       testing.TB
	program string
	dir     string
	port    int
	args    []string
	env     []string
	cmd     *exec.Cmd
	log     *bytes.Buffer
}

// servers are the programs that tests run against. TEST_REDIS_SERVER names one
// more.
var servers = func() []string {
	names := []string{"redis-server", "valkey-server"}
	if other := os.Getenv("TEST_REDIS_SERVER"); other != "" {
		names = append(names, other)
	}
	return names
}()

func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if port < 55000 { // a cluster's bus is 10000 above it
			return port
		}
	}
	t.Fatal("no free port below 55000")
	return 0
}

// startServer starts one of any kind, on a free port of loopback with its files
// in a directory of the test's.
func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	for _, name := range servers {
		if _, err := exec.LookPath(name); err == nil {
			return startProgram(t, name, args...)
		}
	}
	t.Skip("no redis-server here: partnerredis/install installs it")
	return nil
}

// startProgram starts one of a kind that may be missing.
func startProgram(t testing.TB, name string, args ...string) *server {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here: partnerredis/install installs it where a package has it", name)
	}
	s := &server{t: t, program: path, dir: t.TempDir(), port: freePort(t), args: args}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	args := append([]string{"--port", fmt.Sprint(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--enable-debug-command", "yes"}, s.args...)
	s.startArgs(args...)
}

func (s *server) startArgs(args ...string) {
	s.t.Helper()
	s.log = new(bytes.Buffer)
	s.cmd = exec.Command(s.program, args...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.SysProcAttr = endWithTest()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	c := s.client()
	defer c.Close()
	until(s.t, 10*time.Second, "redis-server answers", func() bool { return c.Ping(context.Background()).Err() == nil })
}

// kill ends the server as kill -9 does.
func (s *server) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// shutdown ends the server as SHUTDOWN does.
func (s *server) shutdown() {
	c := s.client()
	defer c.Close()
	c.ShutdownNoSave(context.Background())
	s.cmd.Wait()
	s.cmd = nil
}

func (s *server) addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

func (s *server) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.addr(), DisableIdentity: true})
}

// scripts is how often a script has run.
func (s *server) scripts() (n int) {
	c := s.client()
	defer c.Close()
	stats, err := c.Info(context.Background(), "commandstats").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(stats) {
		var calls int
		if _, err := fmt.Sscanf(line, "cmdstat_evalsha:calls=%d,", &calls); err == nil {
			n += calls
		}
	}
	return n
}

// contents is all that lies in the server and in its files.
func (s *server) contents() (all []byte) {
	c := s.client()
	defer c.Close()
	ctx := context.Background()
	c.Save(ctx)
	for _, name := range c.Keys(ctx, "*").Val() {
		all = append(all, name+"\n"+c.Get(ctx, name).Val()+c.Dump(ctx, name).Val()...)
	}
	filepath.Walk(s.dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			data, _ := os.ReadFile(path)
			all = append(all, data...)
		}
		return nil
	})
	return all
}

// until waits for a condition.
func until(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

// pass waits until t is over.
func pass(d time.Duration) { <-time.After(d) }

// A wire is a proxy in front of a server that can be cut.
type wire struct {
	l     net.Listener
	to    string
	conns chan net.Conn
}

func newWire(t testing.TB, to string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l, to, make(chan net.Conn, 10000)}
	go w.serve(l)
	t.Cleanup(w.cut)
	return w
}

func (w *wire) serve(l net.Listener) {
	for {
		a, err := l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", w.to)
		if err != nil {
			a.Close()
			continue
		}
		w.conns <- a
		w.conns <- b
		go func() { io.Copy(a, b); a.Close() }()
		go func() { io.Copy(b, a); b.Close() }()
	}
}

func (w *wire) addr() string { return w.l.Addr().String() }

func (w *wire) cut() {
	w.l.Close()
	for {
		select {
		case c := <-w.conns:
			c.Close()
		default:
			return
		}
	}
}

func (w *wire) mend(t testing.TB) {
	l, err := net.Listen("tcp", w.addr())
	if err != nil {
		t.Fatal(err)
	}
	w.l = l
	go w.serve(l)
}

// stop lets the server hang, as a machine that is frozen does.
func stop(t *testing.T, s *server) {
	if err := s.cmd.Process.Signal(freeze); err != nil {
		t.Error(err)
	}
}

func goOn(t *testing.T, s *server) {
	if err := s.cmd.Process.Signal(thaw); err != nil {
		t.Error(err)
	}
}
