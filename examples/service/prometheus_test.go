package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/partnertest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// docs has the dashboard and the alert rules in the repository of partnerauth.
const docs = "../../docs"

// needDocs skips a test in a copy of this directory, where the docs are missing. You can delete this file there.
func needDocs(t *testing.T) {
	if _, err := os.Stat(filepath.Join(docs, "alerts.yml")); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the dashboard and the alert rules are in the repository of partnerauth only")
	}
}

// TestDashboardAndAlerts scrapes the service with a real Prometheus, while everything happens that docs/dashboard.json
// shows and docs/alerts.yml watches for. Each of their queries has to find something.
func TestDashboardAndAlerts(t *testing.T) {
	needDocs(t)
	partner := partnertest.NowPost(t, partnertest.Options{Limit: -1, Lifetime: 4 * time.Second, Latency: 5 * time.Millisecond})
	file, rotate := mountSecret(t, partnertest.Password)
	tel, err := newTelemetry(io.Discard)
	check(t, err)
	s := newService(partnerauth.NowPost{Email: partnertest.Email, PasswordFunc: passwordFile(file), BaseURL: partner.URL},
		&partnerauth.Transport{Base: partner, Limiter: &partnerauth.Quota{Requests: 20, Window: time.Second}}, tel)

	p := startPrometheus(t, startService(t, s))
	loseRedis(t, tel)
	misbehave(t, s, partner, rotate)

	t.Run("dashboard", func(t *testing.T) {
		queries := dashboardQueries(t)
		if len(queries) < 40 {
			t.Errorf("%d queries in the dashboard, want them all", len(queries))
		}
		for _, q := range queries {
			if n, err := p.query(t, q); err != nil || n == 0 {
				t.Errorf("%s\n%d series, error %v", q, n, err)
			}
		}
	})
	t.Run("alerts", func(t *testing.T) { p.checkAlerts(t) })
}

// needsAnOutage lists the alerts that only an outage longer than a test would raise. Of these, each selector has to find
// something.
var needsAnOutage = []string{
	"PartnerauthNoCallSucceeds", "PartnerauthQueueWaitHigh", "PartnerauthTokensRejected", "PartnerauthSlowedWhileQuiet",
}

// loseRedis records what partnerredis does when Redis is away. The service does without it.
func loseRedis(t *testing.T, tel *telemetry) {
	const name, nameKey = "partnerauth.rate_limit.shared.reachable", "partnerauth.rate_limit.name"
	source, err := os.ReadFile("../../partnerredis/telemetry.go")
	check(t, err)
	for _, s := range []string{name, nameKey, `metric.WithUnit("1")`} {
		if !strings.Contains(string(source), s) {
			t.Errorf("partnerredis does not have %s any more", s)
		}
	}
	gauge, err := tel.meters.Meter("github.com/partnerauth/partnerauth/partnerredis").Int64Gauge(name, metric.WithUnit("1"))
	check(t, err)
	gauge.Record(t.Context(), 0, metric.WithAttributes(attribute.String(nameKey, "nowpost")))
}

// startService runs s until the test ends, and returns its address.
func startService(t *testing.T, s *service) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// misbehave lets everything happen that the dashboard and the alerts are about.
func misbehave(t *testing.T, s *service, partner *partnertest.NowPostStandIn, rotate func(string)) {
	orders := func(n int, from string) {
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { post(t, s.handler(), fmt.Sprint(from, i)) })
		}
		all.Wait()
	}
	orders(10, "well")
	s.reconcile(t.Context())
	partner.RevokeAll() // 401, resend, login
	orders(5, "revoked")
	partner.Inject(partnertest.Fault{Path: ordersPath, Status: 500, Times: 3})
	partner.Inject(partnertest.Fault{Path: ordersPath, Reset: true, Times: 2})
	orders(10, "faults")
	for i := range 3 { // each lowers the pace
		partner.Inject(partnertest.Fault{Path: ordersPath, Status: 429, Times: 1})
		orders(1, fmt.Sprint("limited", i))
		time.Sleep(200 * time.Millisecond)
	}
	var burst sync.WaitGroup
	for range 3 { // a counter has to be scraped before it increases
		for range 50 { // more than have a turn within the deadline
			burst.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_ = s.call(ctx, "GET", ordersPath, "", nil, new(any))
			})
		}
		time.Sleep(2 * scrapeInterval)
	}
	burst.Wait()
	for i := range 20 { // the tokens end, and are renewed
		orders(1, fmt.Sprint("renewed", i))
		time.Sleep(200 * time.Millisecond)
	}
	partner.Inject(partnertest.Fault{Path: "/api/v1/auth/*", Status: 503})
	partner.RevokeAll()
	for i := range 10 {
		orders(1, fmt.Sprint("no login", i))
		time.Sleep(200 * time.Millisecond)
	}
	partner.ClearFaults()
	rotate("wrong")
	refused, before := 0, partner.Count("POST", loginPath)
	for end := time.Now().Add(30 * time.Second); refused < 10 && time.Now().Before(end); {
		orders(1, fmt.Sprint("refused", refused))
		if time.Sleep(200 * time.Millisecond); partner.Count("POST", loginPath) > before { // not held back by the outage any more
			refused++
		}
	}
	rotate(partnertest.Password)
	orders(5, "well again")
	time.Sleep(2 * scrapeInterval)
}

const scrapeInterval = 250 * time.Millisecond

type prometheusServer struct{ url string }

// startPrometheus starts a Prometheus that scrapes target until the test ends.
func startPrometheus(t *testing.T, target string) prometheusServer {
	dir := t.TempDir()
	rules, err := filepath.Abs(filepath.Join(docs, "alerts.yml"))
	check(t, err)
	config := fmt.Sprintf(`global: {scrape_interval: %v, scrape_timeout: %[1]v, evaluation_interval: %[1]v}
rule_files: [%q]
scrape_configs: [{job_name: shop, static_configs: [{targets: [%q]}]}]
`, scrapeInterval, rules, target)
	check(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600))

	free, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := free.Addr().String()
	check(t, free.Close())
	log, err := os.Create(filepath.Join(dir, "log"))
	check(t, err)
	cmd := exec.Command(binary(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = log, log
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("prometheus: %s", b)
		}
	})
	p := prometheusServer{"http://" + address}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if n, err := p.query(t, `up{job="shop"} == 1`); err == nil && n == 1 {
			return p
		}
		if time.Now().After(end) {
			t.Fatal("prometheus has not scraped the service")
		}
	}
}

// binary finds a program of Debian's package prometheus. Without it the test fails, since a skipped one proves nothing.
func binary(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run ./install in examples/service", name)
	}
	return path
}

// get decodes the data of an answer of the HTTP API.
func (p prometheusServer) get(t *testing.T, path string, data any) error {
	req, err := http.NewRequestWithContext(t.Context(), "GET", p.url+path, nil)
	check(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w", body, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s", answer.Error)
	}
	return nil
}

// query returns how many series a query has in the last minutes, as a panel would show them, without those that are
// always NaN.
func (p prometheusServer) query(t *testing.T, q string) (int, error) {
	now := time.Now()
	form := url.Values{
		"query": {q}, "step": {"1"},
		"start": {fmt.Sprint(now.Add(-3 * time.Minute).Unix())}, "end": {fmt.Sprint(now.Unix() + 1)},
	}
	var data struct {
		Result []struct{ Values [][2]any }
	}
	err := p.get(t, "/api/v1/query_range?"+form.Encode(), &data)
	n := 0
	for _, series := range data.Result {
		if slices.ContainsFunc(series.Values, func(v [2]any) bool { return v[1] != "NaN" }) {
			n++
		}
	}
	return n, err
}

// checkAlerts checks the rules as Prometheus has evaluated them.
func (p prometheusServer) checkAlerts(t *testing.T) {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError string }
		}
	}
	check(t, p.get(t, "/api/v1/rules", &data))
	seen := 0
	for _, group := range data.Groups {
		for _, rule := range group.Rules {
			seen++
			if rule.Health != "ok" {
				t.Errorf("%s is %s: %s", rule.Name, rule.Health, rule.LastError)
			}
			if !slices.Contains(needsAnOutage, rule.Name) {
				if n, err := p.query(t, rule.Query); err != nil || n == 0 {
					t.Errorf("%s: %d series, error %v: %s", rule.Name, n, err, rule.Query)
				}
			}
			for _, s := range selectors(rule.Query) {
				if n, err := p.query(t, s); err != nil || n == 0 {
					t.Errorf("%s: %d series, error %v: %s", rule.Name, n, err, s)
				}
			}
		}
	}
	if seen < 9 {
		t.Errorf("%d alerts, want them all", seen)
	}
}

var selector = regexp.MustCompile(`\b[a-z]\w+_\w+(\{[^}]*\})?`)

// selectors are the series that a query reads: metrics have an underscore in their names and labels stand in braces or
// after by.
func selectors(query string) []string {
	query = regexp.MustCompile(`\bby \([^)]*\)|\b\w+\(`).ReplaceAllString(query, "")
	all := map[string]bool{}
	for _, s := range selector.FindAllString(query, -1) {
		all[s] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// dashboardQueries are those of the panels and of the variables, as Grafana would send them.
func dashboardQueries(t *testing.T) (queries []string) {
	b, err := os.ReadFile(filepath.Join(docs, "dashboard.json"))
	check(t, err)
	var dashboard struct {
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Type  string
				Query any // of a variable that is queried: an object with another query in it
			}
		}
	}
	check(t, json.Unmarshal(b, &dashboard))
	fill := strings.NewReplacer("$__rate_interval", "10s", "$job", ".*", "$instance", ".*", "$provider", ".*", "$limit", "100")
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another one", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x > 23 {
					t.Fatalf("panel %q lies on %q or beyond the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for _, target := range p.Targets {
			queries = append(queries, fill.Replace(target.Expr))
		}
	}
	values := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		inner, _ := v.Query.(map[string]any)
		query, _ := inner["query"].(string)
		m := values.FindStringSubmatch(query)
		if m == nil {
			t.Errorf("a variable's query: %v", v.Query)
			continue
		}
		queries = append(queries, fill.Replace(fmt.Sprintf("group by (%s) (%s)", m[2], m[1])))
	}
	return queries
}

func TestAlertRules(t *testing.T) {
	needDocs(t)
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), binary(t, "promtool"), args...)
		cmd.Dir = docs
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
