package partnerredis

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// A meter notes what a gauge is set to.
type meter struct {
	mu   sync.Mutex
	seen []string
}

func (m *meter) provider() metric.MeterProvider { return meterProvider{m: m} }

type meterProvider struct {
	noop.MeterProvider
	m *meter
}

func (p meterProvider) Meter(string, ...metric.MeterOption) metric.Meter { return namedMeter{m: p.m} }

type namedMeter struct {
	noop.Meter
	m *meter
}

func (n namedMeter) Int64Gauge(name string, _ ...metric.Int64GaugeOption) (metric.Int64Gauge, error) {
	return namedGauge{name: name, m: n.m}, nil
}

type namedGauge struct {
	noop.Int64Gauge
	name string
	m    *meter
}

func (g namedGauge) Record(_ context.Context, n int64, options ...metric.RecordOption) {
	set := metric.NewRecordConfig(options).Attributes()
	name, _ := set.Value("partnerauth.rate_limit.name")
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	g.m.seen = append(g.m.seen, fmt.Sprintf("%s{%s} %d", g.name, name.AsString(), n))
}

func (m *meter) last() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) == 0 {
		return ""
	}
	return m.seen[len(m.seen)-1]
}

// TestReachable has the gauge say whether Redis is there, with Replicas as well.
func TestReachable(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	m := new(meter)
	q := newQuota(t, s)
	q.MeterProvider, q.Replicas = m.provider(), 2
	ctx := context.Background()
	for _, step := range []struct {
		do   func()
		want int
	}{{func() {}, 1}, {s.kill, 0}, {s.start, 1}} {
		step.do()
		want := fmt.Sprintf("partnerauth.rate_limit.shared.reachable{test} %d", step.want)
		until(t, 10*time.Second, want, func() bool {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			grant(short, q)
			return m.last() == want
		})
	}
}

// A watching client notes the contexts that it is called with.
type watching struct {
	redis.Scripter
	mu   sync.Mutex
	seen []any
	dead int
}

type spanKey struct{}

func (w *watching) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	w.mu.Lock()
	w.seen = append(w.seen, ctx.Value(spanKey{}))
	w.mu.Unlock()
	pass(50 * time.Millisecond)
	w.mu.Lock()
	if ctx.Err() != nil {
		w.dead++
	}
	w.mu.Unlock()
	return w.Scripter.EvalSha(ctx, sha, keys, args...)
}

// TestSpan has the client called with the values of the caller that asks, such as
// its span, and not with its end.
func TestSpan(t *testing.T) {
	t.Parallel()
	q := newQuota(t, startServer(t))
	w := &watching{Scripter: q.Client}
	q.Client = w
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), spanKey{}, "span"))
	time.AfterFunc(20*time.Millisecond, cancel)
	q.Permit(ctx, 1)
	until(t, time.Second, "it has been called", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.seen) == 1 && w.seen[0] == "span"
	})
	pass(100 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead > 0 {
		t.Error("the script's context has ended with the caller's")
	}
}
