package partnerfile

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const holderVariable = "PARTNERFILE_HOLDER"

// TestMain is also the main function of the processes that the tests start.
func TestMain(m *testing.M) {
	if dir := os.Getenv(holderVariable); dir != "" {
		s, err := New(dir)
		if err != nil {
			panic(err)
		}
		lock, err := s.TryLock(context.Background(), "key")
		fmt.Println("locked", lock != nil, err)
		select {}
	}
	os.Exit(m.Run())
}

func mustStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func save(t *testing.T, s *Store, key, record string, good time.Duration) {
	t.Helper()
	ctx := context.Background()
	lock, err := s.TryLock(ctx, key)
	if err != nil || lock == nil {
		t.Fatalf("TryLock: %v, %v", lock, err)
	}
	if err := lock.Save(ctx, []byte(record), good); err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(ctx); err != nil {
		t.Error(err)
	}
	if err := lock.Save(ctx, nil, good); err == nil {
		t.Error("a lock that was given back saved")
	}
}

func load(t *testing.T, s *Store, key string) (string, time.Duration) {
	t.Helper()
	record, left, err := s.Load(context.Background(), key)
	if err != nil {
		t.Error(err)
	}
	return string(record), left
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	s := mustStore(t, dir)
	for _, key := range []string{"nowpost-1", "../../etc/a key", ".."} {
		if got, left := load(t, s, key); got != "" || left != 0 {
			t.Errorf("%s: got %q, %v, want nothing", key, got, left)
		}
		save(t, s, key, "token-1", time.Hour)
		save(t, s, key, "token of "+key, time.Hour)
		if got, left := load(t, mustStore(t, dir), key); got != "token of "+key || left < time.Hour-time.Minute || left > time.Hour {
			t.Errorf("%s: got %q, %v", key, got, left)
		}
		save(t, s, key, "old", -time.Second)
		if got, left := load(t, s, key); got != "" || left != 0 {
			t.Errorf("%s: got %q, %v of one that is over", key, got, left)
		}
	}
	save(t, s, "key", "token-secret", time.Hour)
	if err := os.WriteFile(s.path("half", ".token"), []byte(`{"expires":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := load(t, s, "half"); got != "" {
		t.Errorf("got %q of half a file", got)
	}

	files, _ := os.ReadDir(dir)
	for _, file := range files {
		info, _ := file.Info()
		if info.Mode().Perm() != 0o600 || strings.HasSuffix(file.Name(), ".new") {
			t.Errorf("%s has mode %v", file.Name(), info.Mode())
		}
		data, _ := os.ReadFile(filepath.Join(dir, file.Name()))
		if bytes.Contains(data, []byte("token-secret")) {
			t.Errorf("%s shows the token to grep", file.Name())
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v", info.Mode())
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		os.Chmod(s.path("key", ".token"), mode)
		if record, _, err := s.Load(context.Background(), "key"); err == nil || record != nil {
			t.Errorf("mode %v: got %q, no error", mode, record)
		}
	}
	save(t, s, "key", "again", time.Hour) // replaces it by one that is for the owner only
	if got, _ := load(t, s, "key"); got != "again" {
		t.Errorf("got %q, want the new record", got)
	}
}

func TestNew(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	s := mustStore(t, "")
	if cache, _ := os.UserCacheDir(); s.dir != filepath.Join(cache, "partnerauth") {
		t.Errorf("got %s", s.dir)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if _, err := New(file); err == nil {
		t.Error("a file as directory: no error")
	}
}

// TestReaders finds no half of a record while it is replaced.
func TestReaders(t *testing.T) {
	s := mustStore(t, t.TempDir())
	save(t, s, "key", strings.Repeat("0", 10000), time.Hour)
	done := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, _ := load(t, s, "key"); len(got) != 10000 || strings.Trim(got, got[:1]) != "" {
					t.Errorf("got %d bytes", len(got))
					return
				}
			}
		})
	}
	for i := range 100 {
		save(t, s, "key", strings.Repeat(fmt.Sprint(i%10), 10000), time.Hour)
	}
	close(done)
	all.Wait()
}

// TestHolder kills -9 the process that holds a lock.
func TestHolder(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderVariable+"="+dir)
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if got, _ := bufio.NewReader(out).ReadString('\n'); got != "locked true <nil>\n" {
		t.Fatalf("the holder said %q", got)
	}
	s := mustStore(t, dir)
	if lock, err := s.TryLock(context.Background(), "key"); lock != nil || err != nil {
		t.Errorf("got %v, %v while it is locked", lock, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	save(t, s, "key", "token", time.Hour)
	if lock, err := s.TryLock(context.Background(), "key"); lock == nil || err != nil {
		t.Errorf("got %v, %v, want the lock", lock, err)
	} else if second, err := mustStore(t, dir).TryLock(context.Background(), "key"); second != nil || err != nil {
		t.Errorf("got %v, %v in the same process", second, err)
	}
}

// TestUnwritable has directories that cannot be written to, the last one not even
// by root.
func TestUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	dirs := []string{file, filepath.Join(file, "below")}
	if os.Getuid() != 0 && runtime.GOOS != "windows" {
		dirs = append(dirs, closed, filepath.Join(closed, "below"))
	}
	if runtime.GOOS == "linux" {
		dirs = append(dirs, "/proc/self/fd")
	}
	for _, dir := range dirs {
		if s, err := New(dir); err == nil || s != nil || !strings.HasPrefix(err.Error(), "partnerfile: ") {
			t.Errorf("%s: got %v, %v, want an error of partnerfile", dir, s, err)
		}
	}
	dir := t.TempDir()
	mustStore(t, dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("New left %v, %v behind", left, err)
	}
}
