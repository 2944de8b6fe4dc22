package faults

import (
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"go.uber.org/goleak"
)

var long = flag.Bool("long", false, "run limiters and faults as long as they are in life: 14 minutes")

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests wait most of their time, and each other's waits need not add up.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	// toxiproxy's own: what a connection still sends after it has ended one way waits for ever.
	const toxiproxy = "github.com/Shopify/toxiproxy/v2"
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(toxiproxy+"/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction(toxiproxy+".(*ToxicLink).read"))
}

// eventually polls a condition for as long as it may take, and reports whether it came true.
func eventually(patience time.Duration, condition func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// freeAddress is one on loopback where nobody listens. Somebody else could take it before it is used, but rarely does.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// publicDir is a directory of the test's own that the user can read whom a server started by root becomes.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// write makes a file of a template, and returns its path.
func write(t *testing.T, dir, name, text string, data any) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := template.Must(template.New(name).Parse(text)).Execute(f, data); err != nil {
		t.Fatal(err)
	}
	return path
}

// binary finds a program, or fails with the package that has it: a test that is skipped proves nothing.
func binary(t *testing.T, debian, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin"} { // not on every user's PATH
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: apt-get install %s, or run ./install in internal/faults", name, debian)
	return ""
}

// start runs a server in the foreground until the test ends, and returns its pid when it listens.
func start(t *testing.T, dir, address, path string, args ...string) int {
	t.Helper()
	out, err := os.Create(filepath.Join(dir, "output")) // a file needs no goroutine to copy
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Errorf("%s did not end", filepath.Base(path))
			cmd.Process.Kill()
			<-gone
		}
	})
	up := eventually(20*time.Second, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if !up {
		text, _ := os.ReadFile(out.Name())
		t.Fatalf("%s does not listen on %s:\n%s", strings.Join(cmd.Args, " "), address, text)
	}
	return cmd.Process.Pid
}
