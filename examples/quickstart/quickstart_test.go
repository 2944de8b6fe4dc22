package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// TestMain lets a test run main itself, for its exit status.
func TestMain(m *testing.M) {
	if os.Getenv("QUICKSTART_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// start runs the program in an environment of nothing but vars, which are
// name=value.
func start(t *testing.T, args []string, vars ...string) (stdout string, err error) {
	t.Helper()
	env := map[string]string{}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	var out bytes.Buffer
	err = run(t.Context(), args, func(name string) string { return env[name] }, &out)
	return out.String(), err
}

func TestStandIns(t *testing.T) {
	began := time.Now()
	got, err := start(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v, want less than 10 s", d)
	}
	const (
		took  = ` +[\d.]+m?s +` // under load, a bar may begin a cell later
		after = ` after [\d.]+m?s\n`
	)
	for _, want := range []string{
		// signing in
		`(?m)^ 1  POST /api/v1/orders: 201` + after + `    signed in
 nowpost call` + took + `─+
 ├─ partnerauth\.token\.fetch login` + took + `─+
 │  └─ POST.* +200` + took + `█+
 └─ POST /api/v1/orders +201` + took + `█+$`,
		// 401, signing in again, 200
		`(?m)nobody tells the client - - -

 4  GET /api/v1/orders/\{id\}: 200` + after + `    401 → signed in again
 nowpost call` + took + `─+
 ├─ GET /api/v1/orders/\{id\} +401` + took + `×+
 ├─ partnerauth\.token\.fetch login` + took + `─+
 │  └─ POST.* +200` + took + `█+
 └─ GET /api/v1/orders/\{id\} +200` + took + `█+$`,
		// the quota
		`(?m)^ 5  GET /api/v1/orders: 200` + after + `    waited [\d.]+m?s
 nowpost call` + took + `─+
 ├─ partnerauth\.rate_limit\.wait` + took + `░+
 └─ GET /api/v1/orders +200` + took + `█+$`,
		// the other partner, and everything in one call
		`(?m)^ 6  GET /api/v3/partners/\{shortName\}/plans: 200` + after + `    signed in$`,
		`(?m)^ 7  GET /api/v3/partners/\{shortName\}/plans: 200` + after + `    still signed in$`,
		`(?m)^ 8  GET /api/v3/partners/\{shortName\}/plans: 200` + after + `    401 → signed in again → waited [\d.]+m?s$`,
		`(?m)^ └─ GET /api/v3/partners/\{shortName\}/plans 200`,
		// what the servers say
		`(?m)429s
  NowPost +8 +7 of 7 +2 +1 +0
  Ndovu +6 +5 of 5 +2 +1 +0$`,
	} {
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("got\n%s\nwant a match of\n%s", got, want)
		}
	}
	fits(t, got, 79) // some terminals wrap a line that fills them
	if strings.Contains(got, "\x1b") {
		t.Error("there are colors in what is not shown on a terminal")
	}
	harmless(t, got)
}

// fits checks that no line is longer than columns.
func fits(t *testing.T, text string, columns int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns {
			t.Errorf("got a line of %d columns, want %d at most: %q", n, columns, line)
		}
	}
}

// harmless checks that text has no secret and no token in it.
func harmless(t *testing.T, text string) {
	t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte(partnertest.ClientID + ":" + partnertest.ClientSecret))
	for _, secret := range []string{partnertest.Password, partnertest.ClientSecret, basic, "eyJhbGciOi", "Bearer"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the output:\n%s", secret, text)
		}
	}
}

func nowPostEnv(server *partnertest.NowPost) []string {
	return []string{
		"NOWPOST_EMAIL=" + partnertest.Email, "NOWPOST_PASSWORD=" + partnertest.Password,
		"NOWPOST_BASE_URL=" + server.URL,
	}
}

func ndovuEnv(server *partnertest.Ndovu) []string {
	return []string{
		"NDOVU_CLIENT_ID=" + partnertest.ClientID, "NDOVU_CLIENT_SECRET=" + partnertest.ClientSecret,
		"NDOVU_BASE_URL=" + server.URL + "/",
	}
}

func TestRealAPI(t *testing.T) {
	nowPost := partnertest.StartNowPost(partnertest.Options{})
	defer nowPost.Close()
	ndovu := partnertest.StartNdovu(partnertest.Options{})
	defer ndovu.Close()
	for _, test := range []struct {
		name string
		args []string
		vars []string
		want []string // matches, in the output
		gets []string // paths that arrived
	}{{
		name: "NowPost",
		vars: nowPostEnv(nowPost),
		want: []string{`(?m)^ 1  GET /api/v1/orders: 200 .*\n    signed in$`, `└─ GET /api/v1/orders +200`},
		gets: []string{"/api/v1/orders"},
	}, {
		name: "Ndovu",
		vars: ndovuEnv(ndovu),
		want: []string{`(?m)^ 1  GET /api/v3/partners/\{shortName\}/plans: 200 .*\n    signed in$`},
		gets: []string{"/api/v3/partners/acme/plans"},
	}, {
		name: "both",
		vars: append(nowPostEnv(nowPost), ndovuEnv(ndovu)...),
		want: []string{`(?m)^ 1  GET /api/v1/orders`, `(?m)^ 2  GET /api/v3/partners`},
		gets: []string{"/api/v1/orders", "/api/v3/partners/acme/plans"},
	}, {
		name: "path",
		args: []string{"-path", "/api/v1/orders/ord_9?key=do-not-show"},
		vars: nowPostEnv(nowPost),
		want: []string{`(?m)^ 1  GET /api/v1/orders/ord_9: 404 .*\n    signed in → 404$`, `└─ GET +404 .* ×+`},
		gets: []string{"/api/v1/orders/ord_9"},
	}} {
		t.Run(test.name, func(t *testing.T) {
			before := len(nowPost.Requests()) + len(ndovu.Requests())
			got, err := start(t, test.args, test.vars...)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !regexp.MustCompile(want).MatchString(got) {
					t.Errorf("got\n%s\nwant a match of %s", got, want)
				}
			}
			for _, path := range test.gets {
				if nowPost.Count(http.MethodGet, path)+ndovu.Count(http.MethodGet, path) == 0 {
					t.Errorf("no GET %s arrived", path)
				}
			}
			// each GET and the login before it, and nothing else
			sent := len(nowPost.Requests()) + len(ndovu.Requests()) - before
			if sent != 2*len(test.gets) {
				t.Errorf("got %d requests, want %d", sent, 2*len(test.gets))
			}
			harmless(t, got)
			if strings.Contains(got, "do-not-show") {
				t.Errorf("the query is in the output:\n%s", got)
			}
		})
	}
}

func TestCallFails(t *testing.T) {
	server := partnertest.StartNowPost(partnertest.Options{Password: "another"})
	defer server.Close()
	got, err := start(t, []string{"-path", "/x?key=do-not-show"}, nowPostEnv(server)...)
	if !errors.Is(err, partnerauth.ErrCredentials) {
		t.Errorf("got error %v, want ErrCredentials", err)
	}
	if want := regexp.MustCompile(`(?m)^ 1  GET /x: ERR [\s\S]*└─ POST.* +401 .* ×+$`); !want.MatchString(got) {
		t.Errorf("got\n%s\nwant a match of %s", got, want)
	}
	text := got + err.Error()
	harmless(t, text)
	if strings.Contains(text, "do-not-show") {
		t.Errorf("the query is in the output:\n%s", text)
	}
}

func TestMistakes(t *testing.T) {
	account := []string{"NOWPOST_EMAIL=e", "NOWPOST_PASSWORD=p"}
	client := []string{"NDOVU_CLIENT_ID=i", "NDOVU_CLIENT_SECRET=s", "NDOVU_BASE_URL=https://ndovu.example"}
	for _, test := range []struct {
		name string
		args []string
		vars []string
		want string // in the error
	}{
		{"no password", nil, account[:1], "NOWPOST_EMAIL without NOWPOST_PASSWORD"},
		{"no e-mail", nil, account[1:], "NOWPOST_PASSWORD without NOWPOST_EMAIL"},
		{"empty password", nil, []string{account[0], "NOWPOST_PASSWORD="}, "without NOWPOST_PASSWORD"},
		{"no secret", nil, []string{client[0], client[2]}, "without NDOVU_CLIENT_SECRET"},
		{"no client id", nil, client[1:], "without NDOVU_CLIENT_ID"},
		{"no host", nil, client[:2], "without NDOVU_BASE_URL"},
		{"half beside a whole", nil, append(client[:1:1], account...), "without NDOVU_CLIENT_SECRET and NDOVU_BASE_URL"},
		{"plain http", nil, append(client[:2:2], "NDOVU_BASE_URL=http://ndovu.example"), "BaseURL"},
		{"path for nobody", []string{"-path", "/x"}, nil, "for 0"},
		{"path for two", []string{"-path", "/x"}, append(account[:2:2], client...), "for 2"},
		{"path that is another host", []string{"-path", "@x.example/"}, account, "slash"},
		{"argument", []string{"x"}, nil, `"x"`},
		{"flag", []string{"-x"}, nil, "-x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := start(t, test.args, test.vars...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	got, err := start(t, []string{"-h"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-path", "NO_COLOR", "COLUMNS", "NDOVU_BASE_URL", "a login, a token that is revoked"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want it to mention %q", got, want)
		}
	}
	fits(t, got, 80)
}

func TestExitStatus(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"QUICKSTART_MAIN=1", "NOWPOST_EMAIL=e"}
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit status 1", err)
	}
	if want := "quickstart: the environment has NOWPOST_EMAIL without NOWPOST_PASSWORD\n"; !strings.HasPrefix(string(out), want) {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, nil, func(string) string { return "" }, io.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
}

// stub makes spans of one trace, with times in milliseconds.
func stub(id, parent byte, name string, from, to int, kv ...string) tracetest.SpanStub {
	context := func(id byte) oteltrace.SpanContext {
		if id == 0 {
			return oteltrace.SpanContext{}
		}
		return oteltrace.NewSpanContext(oteltrace.SpanContextConfig{TraceID: oteltrace.TraceID{1}, SpanID: oteltrace.SpanID{id}})
	}
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	s := tracetest.SpanStub{Name: name, SpanContext: context(id), Parent: context(parent), StartTime: at(from), EndTime: at(to)}
	for i := 0; i < len(kv); i += 2 {
		switch kv[i] {
		case "error":
			s.Status.Code = codes.Error
		case "kind":
			s.SpanKind = oteltrace.SpanKindClient
		default:
			s.Attributes = append(s.Attributes, attribute.String(kv[i], kv[i+1]))
		}
	}
	return s
}

const (
	status    = "http.response.status_code"
	operation = "partnerauth.token.operation"
	trigger   = "partnerauth.token.trigger"
	result    = "partnerauth.rate_limit.result"
)

func TestPicture(t *testing.T) {
	spans := tracetest.SpanStubs{ // in the order of their end
		stub(2, 1, "GET /a", 1000, 1100, "kind", "client", "error", "401", status, "401"),
		stub(4, 3, waitName, 1100, 1250, result, "acquired"),
		stub(5, 3, "POST", 1250, 1400, "kind", "client", status, "200"),
		stub(3, 1, fetchName, 1100, 1400, operation, "login", trigger, "unauthorized"),
		stub(6, 1, "GET /a", 1400, 3000, "kind", "client", status, "200"),
		stub(1, 0, "nowpost call", 1000, 3000),
	}.Snapshots()
	for _, test := range []struct {
		name   string
		screen screen
		want   string
	}{
		{name: "80 columns", screen: screen{columns: 80}, want: `
 7  GET /a: 200 after 2.00s
    401 → signed in again → waited 150ms
 nowpost call                                   2.00s  ────────────────────────
 ├─ GET /a                                 401  100ms  ×
 ├─ partnerauth.token.fetch login               300ms   ────
 │  ├─ partnerauth.rate_limit.wait              150ms   ░░
 │  └─ POST                                200  150ms     ██
 └─ GET /a                                 200  1.60s       ███████████████████

`},
		{name: "100 columns", screen: screen{columns: 100}, want: `
 7  GET /a: 200 after 2.00s
    401 → signed in again → waited 150ms
 nowpost call                                   2.00s  ────────────────────────────────────────────
 ├─ GET /a                                 401  100ms  ××
 ├─ partnerauth.token.fetch login               300ms    ───────
 │  ├─ partnerauth.rate_limit.wait              150ms    ░░░░
 │  └─ POST                                200  150ms        ███
 └─ GET /a                                 200  1.60s           ███████████████████████████████████

`},
		{name: "40 columns", screen: screen{columns: 40}, want: `
 7  GET /a: 200 after 2.00s
    401 → signed in again → waited 150…
 nowpost call           2.00s  ────────
 ├─ GET /a         401  100ms  ×
 ├─ partnerauth.t…      300ms  ──
 │  ├─ partneraut…      150ms  ░
 │  └─ POST        200  150ms   █
 └─ GET /a         200  1.60s    ██████

`},
		{name: "colors", screen: screen{columns: 40, color: true}, want: `
{1} 7  GET /a: 200 after 2.00s{0}
    401 → signed in again → waited 150…
 nowpost call           2.00s  {2}────────{0}
 ├─ GET /a         {31}401{0}  100ms  {31}×{0}
 ├─ partnerauth.t…      300ms  {2}──{0}
 │  ├─ partneraut…      150ms  {33}░{0}
 │  └─ POST        200  150ms   {32}█{0}
 └─ GET /a         200  1.60s    {32}██████{0}

`},
	} {
		var got strings.Builder
		test.screen.draw(&got, 7, "GET /a", "200", spans)
		shown := regexp.MustCompile(`\x1b\[(\d+)m`).ReplaceAllString("\n"+got.String(), "{$1}")
		if shown != test.want {
			t.Errorf("%s: got %s\nwant %s", test.name, shown, test.want)
		}
		if !test.screen.color {
			fits(t, shown, test.screen.columns-1)
		}
	}
}

func TestScreen(t *testing.T) {
	for _, test := range []struct {
		name, columns string
		want          screen
	}{
		{name: "unknown", want: screen{columns: 80}},
		{name: "COLUMNS", columns: "100", want: screen{columns: 100}},
		{name: "too narrow", columns: "39", want: screen{columns: 40}},
		{name: "narrow", columns: "41", want: screen{columns: 41}},
		{name: "no number", columns: "wide", want: screen{columns: 80}},
		{name: "zero", columns: "0", want: screen{columns: 80}},
	} {
		got := screenOf(io.Discard, func(name string) string {
			if name == "COLUMNS" {
				return test.columns
			}
			return ""
		})
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err == nil {
		defer terminal.Close()
		for _, test := range []struct {
			variable string
			want     bool
		}{
			{variable: "", want: true},
			{variable: "NO_COLOR=1", want: false},
			{variable: "NO_COLOR=", want: true},
			{variable: "TERM=dumb", want: false},
			{variable: "TERM=xterm", want: true},
		} {
			name, value, _ := strings.Cut(test.variable, "=")
			got := screenOf(terminal, func(asked string) string {
				if asked == name {
					return value
				}
				return ""
			})
			if got.color != test.want {
				t.Errorf("a terminal with %q: got color %t, want %t", test.variable, got.color, test.want)
			}
		}
	}
	for columns := 40; columns < 200; columns++ {
		label, bar := (screen{columns: columns}).widths()
		if label > labelWidth || bar < minBar || bar > maxBar || label+rowRest+bar > columns-1 {
			t.Errorf("%d columns: got labels of %d and bars of %d", columns, label, bar)
		}
	}
}

func TestStory(t *testing.T) {
	call := stub(1, 0, "nowpost call", 0, 100)
	for _, test := range []struct {
		want  string
		spans []tracetest.SpanStub
	}{
		{"still signed in", []tracetest.SpanStub{stub(2, 1, "GET", 0, 9, "kind", "client", status, "200")}},
		{"ERR", []tracetest.SpanStub{stub(2, 1, "GET", 0, 9, "kind", "client", "error", "timeout")}},
		{"could not sign in → 401", []tracetest.SpanStub{
			stub(2, 1, fetchName, 0, 9, operation, "login", trigger, "missing", "error", "401"),
			stub(3, 2, "POST", 0, 9, "kind", "client", status, "401", "error", "401"),
		}},
		{"429 → waited 4ms", []tracetest.SpanStub{
			stub(2, 1, "GET", 0, 5, "kind", "client", status, "429", "error", "429"),
			stub(3, 1, waitName, 5, 9, result, "acquired"),
			stub(4, 1, "GET", 9, 12, "kind", "client", status, "200"),
		}},
	} {
		if got := newTree(append(tracetest.SpanStubs(test.spans), call).Snapshots()).story(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
