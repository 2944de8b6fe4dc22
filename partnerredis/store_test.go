package partnerredis

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func mustStore(t *testing.T, client redis.Scripter, keys ...[]byte) *Store {
	t.Helper()
	s, err := NewStore(client, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func save(t *testing.T, s *Store, record string, good time.Duration) {
	t.Helper()
	ctx := context.Background()
	lock, err := s.TryLock(ctx, "nowpost-1")
	if err != nil || lock == nil {
		t.Fatalf("TryLock: %v, %v", lock, err)
	}
	if err := lock.Save(ctx, []byte(record), good); err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

func load(t *testing.T, s *Store) string {
	t.Helper()
	record, left, err := s.Load(context.Background(), "nowpost-1")
	if err != nil || record == nil && left != 0 {
		t.Errorf("Load: %q, %v, %v", record, left, err)
	}
	return string(record)
}

// testStore is what has to hold on one server and on a cluster alike.
func testStore(t *testing.T, client redis.Scripter) {
	ctx := context.Background()
	s := mustStore(t, client, key(1))
	if got := load(t, s); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
	save(t, s, "token-1", time.Minute)
	if _, left, _ := s.Load(ctx, "nowpost-1"); left < 59*time.Second || left > time.Minute {
		t.Errorf("got %v left, want a minute", left)
	}
	if got, _, _ := s.Load(ctx, "nowpost-2"); got != nil {
		t.Errorf("got %q under another key", got)
	}

	first, err := s.TryLock(ctx, "nowpost-1")
	if err != nil || first == nil {
		t.Fatalf("TryLock: %v, %v", first, err)
	}
	if second, err := s.TryLock(ctx, "nowpost-1"); second != nil || err != nil {
		t.Errorf("got %v, %v while it is locked", second, err)
	}
	first.Unlock(ctx)
	second, err := s.TryLock(ctx, "nowpost-1")
	if err != nil || second == nil {
		t.Fatalf("TryLock: %v, %v", second, err)
	}
	if err := first.Save(ctx, []byte("late"), time.Minute); err == nil {
		t.Error("a lost lock saved")
	}
	first.Unlock(ctx) // ends nobody else's
	if third, _ := s.TryLock(ctx, "nowpost-1"); third != nil {
		t.Error("somebody else's lock was given back")
	}
	second.Unlock(ctx)
	if got := load(t, s); got != "token-1" {
		t.Errorf("got %q, want token-1", got)
	}
}

func TestStore(t *testing.T) {
	for _, name := range servers {
		t.Run(name, func(t *testing.T) {
			s := startProgram(t, name)
			client := s.client()
			defer client.Close()
			testStore(t, client)
		})
	}
}

func TestStoreKeys(t *testing.T) {
	client := startServer(t).client()
	defer client.Close()
	old, both, turned, next := mustStore(t, client, key(1)), mustStore(t, client, key(1), key(2)),
		mustStore(t, client, key(2), key(1)), mustStore(t, client, key(2))
	steps := []struct {
		name    string
		saves   *Store
		read    []*Store
		refused []*Store
	}{
		{"old", old, []*Store{old, both, turned}, []*Store{next, NewPlaintextStore(client)}},
		{"new as second", both, []*Store{old, both, turned}, []*Store{next}},
		{"new as first", turned, []*Store{both, turned, next}, []*Store{old}},
		{"plain text", NewPlaintextStore(client), []*Store{NewPlaintextStore(client)}, []*Store{old, both}},
	}
	for _, step := range steps {
		save(t, step.saves, "token of "+step.name, time.Minute)
		for i, s := range step.read {
			if got := load(t, s); got != "token of "+step.name {
				t.Errorf("%s: store %d got %q", step.name, i, got)
			}
		}
		for i, s := range step.refused {
			if got := load(t, s); got != "" {
				t.Errorf("%s: store %d with a wrong key got %q", step.name, i, got)
			}
		}
	}

	// A record in another's place is none.
	ctx := context.Background()
	save(t, old, "token", time.Minute)
	client.Copy(ctx, tokenKey("nowpost-1"), tokenKey("other"), 0, true)
	if got, _, err := old.Load(ctx, "other"); got != nil || err != nil {
		t.Errorf("got %q, %v under another key", got, err)
	}
	client.Set(ctx, tokenKey("nowpost-1"), "\x01abc", time.Minute)
	if got := load(t, old); got != "" {
		t.Errorf("got %q of half a record", got)
	}

	for _, keys := range [][][]byte{nil, {make([]byte, 16)}, {key(1), nil}} {
		if _, err := NewStore(client, keys...); err == nil {
			t.Errorf("keys of %d: no error", len(keys))
		}
	}
	if _, _, err := NewPlaintextStore(nil).Load(ctx, "k"); err == nil {
		t.Error("no client: no error")
	}
}

// TestStoreSecrecy searches what lies in Redis and on its disk.
func TestStoreSecrecy(t *testing.T) {
	s := startServer(t, "--appendonly", "yes", "--appendfsync", "always")
	client := s.client()
	defer client.Close()
	secret := strings.Repeat("k", 32)
	store := mustStore(t, client, []byte(secret))
	save(t, store, `{"access_token":"eyJhbGciOi"}`, time.Minute)
	all := s.contents()
	if !bytes.Contains(all, []byte("nowpost-1")) {
		t.Error("nothing was saved")
	}
	for _, text := range []string{"eyJhbGciOi", "access_token", secret} {
		if bytes.Contains(all, []byte(text)) {
			t.Errorf("%q lies there", text)
		}
	}
	for _, printed := range []string{fmt.Sprintf("%v %+v %s", store, store, store), fmt.Sprintf("%#v %#v", store, *store)} {
		if strings.Contains(printed, secret) || strings.Contains(printed, "107, 107") || strings.Contains(printed, "0x6b, 0x6b") {
			t.Errorf("a Store prints its key: %s", printed)
		}
	}
}

// TestLockHolder kills -9 the process that holds a lock, and keeps one for longer
// than a lock lasts.
func TestLockHolder(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	client := s.client()
	defer client.Close()
	store := NewPlaintextStore(client)
	ctx := context.Background()
	w := startWorker(t, job{Redis: []string{s.addr()}, Lock: "nowpost-1"})
	if got := w.line(); got != "locked true <nil>" {
		t.Fatalf("the holder said %q", got)
	}
	for end := time.Now().Add(lockTime + 500*time.Millisecond); time.Now().Before(end); pass(100 * time.Millisecond) {
		if lock, _ := store.TryLock(ctx, "nowpost-1"); lock != nil {
			t.Fatal("the lock was not renewed")
		}
	}
	w.kill()
	start := time.Now()
	until(t, lockTime+500*time.Millisecond, "the lock of a dead process ends", func() bool {
		lock, err := store.TryLock(ctx, "nowpost-1")
		if err != nil {
			t.Error(err)
		}
		if lock == nil {
			return false
		}
		lock.Unlock(ctx)
		return true
	})
	t.Logf("the lock ended %v after its process", time.Since(start).Round(time.Millisecond))
}
