package partnerredis

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

const workerVariable = "PARTNERREDIS_WORKER"

// TestMain is also the main function of the processes that the tests start.
func TestMain(m *testing.M) {
	if job := os.Getenv(workerVariable); job != "" {
		work(job)
		return
	}
	redis.SetLogger(silent{})
	flag.Set("test.parallel", "4") // most of the time they wait for a window
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(plainDir)
		os.Exit(code)
	}))
}

var plainDir string

// program is this one without the race detector, by which figures are measured.
var program = sync.OnceValues(func() (path string, err error) {
	if !raceEnabled {
		return os.Args[0], nil
	}
	if plainDir, err = os.MkdirTemp("", "partnerredis-"); err != nil {
		return "", err
	}
	path = filepath.Join(plainDir, "worker")
	if out, err := exec.Command("go", "test", "-c", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// A job is what a process does.
type job struct {
	Redis    []string // address; with Master the sentinels'; more than one: a cluster
	Master   string
	User     string // as which to ask Redis
	Partner  string
	Name     string
	Requests int
	Window   time.Duration
	Replicas int
	Hungry   int           // goroutines
	Giving   time.Duration // callers give up, after up to so long
	Timeout  time.Duration // of each caller, 0: none
	For      time.Duration
	Lock     string // a key to lock, and hold
	Account  string // URL of a NowPost to sign in at and ask
	Password string
}

// A report is what became of it.
type report struct {
	Sent, Refused429, Failed, GaveUp int
	Refused401                       int
	Overdue                          time.Duration // most that a caller came back after its deadline
	Error                            string        // the last one
	Goroutines                       int           // left at the end
}

func (j job) client() redis.UniversalClient {
	o := &redis.UniversalOptions{Addrs: j.Redis, MasterName: j.Master, DisableIdentity: true}
	if j.User != "" {
		o.Username, o.Password, o.ReadOnly = j.User, "secret", len(j.Redis) > 1
	}
	return redis.NewUniversalClient(o)
}

func work(text string) {
	redis.SetLogger(silent{})
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		panic(err)
	}
	client := j.client()
	if j.Lock != "" {
		lock, err := NewPlaintextStore(client).TryLock(context.Background(), j.Lock)
		fmt.Println("locked", lock != nil, err)
		select {}
	}
	if j.Account != "" {
		j.account(client)
		return
	}
	q := &Quota{Client: client, Name: j.Name, Requests: j.Requests, Window: j.Window, Replicas: j.Replicas}
	redis.NewScript("return 1").Run(context.Background(), client, []string{"partnerauth:{test}:state"}) // nobody is late for the first burst by its dialing
	idle := runtime.NumGoroutine()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n') // all start together
	r := j.run(q)
	until := time.Now().Add(2 * time.Second)
	for r.Goroutines = runtime.NumGoroutine() - idle; r.Goroutines > 0 && time.Now().Before(until); r.Goroutines = runtime.NumGoroutine() - idle {
		<-time.After(10 * time.Millisecond)
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

func (j job) run(q *Quota) (r report) {
	end, cancel := context.WithCancel(context.Background())
	time.AfterFunc(j.For, cancel)
	line := newLine(q)
	transport := &http.Transport{MaxIdleConnsPerHost: j.Hungry}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range j.Hungry {
		all.Go(func() {
			for n := 0; end.Err() == nil; n++ {
				ctx, cancel := end, context.CancelFunc(func() {})
				switch {
				case j.Giving > 0:
					ctx, cancel = context.WithCancel(end)
					time.AfterFunc(time.Duration(i*37+n*101)*time.Millisecond%j.Giving, cancel)
				case j.Timeout > 0:
					ctx, cancel = context.WithTimeout(end, j.Timeout)
				}
				p, err := line.permit(ctx)
				deadline, limited := ctx.Deadline()
				overdue := time.Since(deadline)
				gaveUp := ctx.Err() != nil
				cancel()
				status := 0
				if err == nil {
					status = j.send(client, p)
				}
				mu.Lock()
				switch {
				case err == nil:
					r.Sent++
					if status == 429 {
						r.Refused429++
					}
				case gaveUp:
					r.GaveUp++
				default:
					r.Failed++
					r.Error = err.Error()
				}
				if err != nil && limited {
					r.Overdue = max(r.Overdue, overdue)
				}
				mu.Unlock()
				if err != nil && !gaveUp {
					select {
					case <-end.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		})
	}
	all.Wait()
	return r
}

// account has goroutines that ask with the token that all processes share.
func (j job) account(redis redis.Scripter) {
	store, err := NewStore(redis, key(1))
	if err != nil {
		panic(err)
	}
	base := &http.Transport{MaxIdleConnsPerHost: j.Hungry}
	client := &http.Client{Transport: &partnerauth.Transport{
		Source:  partnerauth.NowPost{Email: partnertest.Email, Password: j.Password, BaseURL: j.Account, Store: store}.TokenSource(),
		Limiter: &partnerauth.Quota{Requests: maxRequests},
		Base:    named{base},
	}}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	end := time.Now().Add(j.For)
	var r report
	var mu sync.Mutex
	var all sync.WaitGroup
	for range j.Hungry {
		all.Go(func() {
			for ; time.Now().Before(end); pass(20 * time.Millisecond) {
				resp, err := client.Get(j.Account + "/api/v1/orders")
				mu.Lock()
				r.Sent++
				if err != nil {
					r.Failed++
					r.Error = err.Error()
				} else if resp.StatusCode == 401 {
					r.Refused401++
				}
				mu.Unlock()
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(r)
}

// named tells the partner which process it is that asks.
type named struct{ base http.RoundTripper }

func (n named) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Worker", fmt.Sprint(os.Getpid()))
	return n.base.RoundTrip(req)
}

func (j job) send(client *http.Client, p partnerauth.Permit) int {
	req, _ := http.NewRequest("GET", j.Partner, nil)
	req.Header.Set("Worker", fmt.Sprint(os.Getpid()))
	resp, err := client.Do(req)
	if err != nil {
		p.Settle(0, 0)
		return 0
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	pause, _ := time.ParseDuration(resp.Header.Get("Pause"))
	p.Settle(resp.StatusCode, pause)
	return resp.StatusCode
}

// A line is what the root does before a PermitLimiter: callers in order, of which
// the head alone asks.
type line struct {
	q       *Quota
	head    chan struct{}
	waiting atomic.Int64
}

func newLine(q *Quota) *line { return &line{q: q, head: make(chan struct{}, 1)} }

func (l *line) permit(ctx context.Context) (partnerauth.Permit, error) {
	defer l.waiting.Add(-1)
	l.waiting.Add(1)
	select {
	case l.head <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-l.head }()
	return l.q.Permit(ctx, int(l.waiting.Load()))
}

// A worker is a process that does a job.
type worker struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func startWorker(t testing.TB, j job) *worker {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{t: t, cmd: exec.Command(path)}
	w.cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = endWithTest()
	w.stdin, _ = w.cmd.StdinPipe()
	out, _ := w.cmd.StdoutPipe()
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.kill)
	return w
}

func (w *worker) line() string {
	s, _ := w.out.ReadString('\n')
	return strings.TrimSpace(s)
}

func (w *worker) kill() {
	w.cmd.Process.Kill()
	w.cmd.Wait()
}

func (w *worker) report() (r report) {
	w.t.Helper()
	if text := w.line(); json.Unmarshal([]byte(text), &r) != nil {
		w.t.Errorf("a worker said %q", text)
	}
	return r
}

// A fleet is processes with the same job.
type fleet []*worker

func startFleet(t testing.TB, n int, j job) (f fleet) {
	t.Helper()
	for range n {
		f = append(f, startWorker(t, j))
	}
	for _, w := range f {
		if got := w.line(); got != "ready" {
			t.Fatalf("a worker said %q", got)
		}
	}
	return f
}

func (f fleet) go_() {
	for _, w := range f {
		io.WriteString(w.stdin, "\n")
	}
}

func (f fleet) wait() (sum report) {
	for _, w := range f {
		r := w.report()
		sum.Sent += r.Sent
		sum.Refused429 += r.Refused429
		sum.Refused401 += r.Refused401
		sum.Failed += r.Failed
		sum.GaveUp += r.GaveUp
		sum.Overdue = max(sum.Overdue, r.Overdue)
		sum.Goroutines = max(sum.Goroutines, r.Goroutines)
		if r.Error != "" {
			sum.Error = r.Error
		}
	}
	return sum
}

func isRefusal(err error) bool {
	var r interface{ RetryAfter() time.Duration }
	return errors.Is(err, partnerauth.ErrRateLimited) && errors.Is(err, context.DeadlineExceeded) && errors.As(err, &r)
}
