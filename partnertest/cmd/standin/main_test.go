package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth"
)

// start runs the program until the test ends and returns what it has printed
// when it is ready.
func start(t *testing.T, args ...string) (printed string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, args, in)
		in.CloseWithError(errors.New("the program has ended"))
		ended <- err
	}()
	lines := bufio.NewReader(out)
	t.Cleanup(func() {
		cancel()
		last, _ := lines.ReadString('\n')
		if err := <-ended; err != nil || !strings.HasPrefix(last, "# NowPost: requests ") {
			t.Errorf("got %q and error %v at the end, want what was asked", last, err)
		}
	})
	for !strings.Contains(printed, "Ctrl-C") {
		line, err := lines.ReadString('\n')
		if printed += line; err != nil {
			t.Fatalf("got %q and error %v", printed, err)
		}
	}
	return printed
}

// TestPaste lets a shell read what was printed, and signs in with what it then
// has in its environment.
func TestPaste(t *testing.T) {
	printed := start(t)
	env, err := exec.Command("sh", "-c", printed+"env").Output()
	if err != nil {
		t.Skip("no shell here:", err)
	}
	for line := range strings.Lines(string(env)) {
		if name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "="); strings.HasPrefix(name, "NOWPOST_") || strings.HasPrefix(name, "NDOVU_") {
			t.Setenv(name, value)
		}
	}
	shop, err := partnerauth.NowPostFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	plans, err := partnerauth.NdovuFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	orders := shop.Client()
	get(t, orders, shop.BaseURL+"/api/v1/orders", 200)
	get(t, plans.Client(), plans.BaseURL+"/api/v3/partners/acme/plans", 200)

	_, rest, _ := strings.Cut(printed, "curl -X POST ")
	at, _, _ := strings.Cut(rest, "/nowpost/revoke")
	send(t, "POST", at+"/nowpost/revoke", "", 200)
	get(t, orders, shop.BaseURL+"/api/v1/orders", 200)
	send(t, "POST", at+"/nowpost/faults", `{"Status":503,"Path":"/api/v1/orders"}`, 200)
	get(t, orders, shop.BaseURL+"/api/v1/orders", 503)
	send(t, "DELETE", at+"/nowpost/faults", "", 200)
	get(t, orders, shop.BaseURL+"/api/v1/orders", 200)
	want := `{"401":1,"429":0,"logins":2,"peak":7,"refreshes":0,"requests":7}` + "\n"
	if got := send(t, "GET", at+"/nowpost/counts", "", 200); got != want {
		t.Errorf("got counts %s, want %s", got, want)
	}
}

func get(t *testing.T, client *http.Client, url string, want int) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		t.Errorf("GET %s: got %s, want %d", url, resp.Status, want)
	}
}

func send(t *testing.T, method, url, body string, want int) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Errorf("%s %s: got %s %s and error %v, want %d", method, url, resp.Status, answer, err, want)
	}
	return string(answer)
}

func TestFlags(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct{ arg, want string }{
		{"-nowpost=" + taken.Addr().String(), "in use"},
		{"-ndovu=:8080", "not a loopback"},
		{"-control=0.0.0.0:0", "not a loopback"},
		{"-limit=x", "limit"},
		{"x", `"x"`},
	} {
		if err := run(t.Context(), []string{test.arg}, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want one with %q", test.arg, err, test.want)
		}
	}
	var help strings.Builder
	if err := run(t.Context(), []string{"-h"}, &help); err != nil || !strings.Contains(help.String(), "-lifetime") {
		t.Errorf("got %q and error %v, want the usage", help.String(), err)
	}
	printed := start(t, "-nowpost=127.0.0.1:0", "-limit=1", "-window=10s")
	_, rest, _ := strings.Cut(printed, "NOWPOST_BASE_URL=")
	url, _, _ := strings.Cut(rest, "\n")
	get(t, http.DefaultClient, url+"/api/v1/orders", 401)
	get(t, http.DefaultClient, url+"/api/v1/orders", 429)
}
