// Package partnerfile keeps the tokens of package partnerauth in files, for
// command-line and cron programs: the next run goes on with the token of the last
// one, and runs at the same time sign in once.
//
//	store, err := partnerfile.New("")
//	…
//	client := partnerauth.NowPost{Email: …, Password: …, Store: store}.Client()
//
// The files are for their owner only: tokens lie in them readable, base64 at
// most. For processes on more than one machine there is partnerredis.
package partnerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/partnerauth/partnerauth"
)

// maxRecord is what is read of a file: far more than a token is.
const maxRecord = 1 << 20

var errUnlocked = errors.New("partnerfile: the lock was given back")

// A Store is a [partnerauth.Store] of files in one directory. Safe for concurrent
// use, by any number of processes of one machine.
type Store struct{ dir string }

var _ partnerauth.Store = (*Store)(nil)

// New keeps records in dir, which it creates if need be; "" is partnerauth in the
// user's cache directory. Files have mode 0600 and are replaced by rename, so
// that a reader never sees half of one. Locks are flock's: they end with their
// process, however it ends. A process that is stopped (Ctrl-Z) keeps its lock;
// the others wait for it for two seconds and then sign in without the Store.
//
// A directory that New cannot write to is an error, since the errors of a Store
// itself are not: every run would sign in, and nobody would know why.
func New(dir string) (*Store, error) {
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("partnerfile: %w", err)
		}
		dir = filepath.Join(cache, "partnerauth")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("partnerfile: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return nil, fmt.Errorf("partnerfile: cannot write to the directory: %w", err)
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return nil, fmt.Errorf("partnerfile: cannot write to the directory: %w", err)
	}
	return &Store{dir}, nil
}

// content is what a file holds. A program that starts later has no other clock
// than the machine's.
type content struct {
	Expires time.Time `json:"expires"`
	Record  []byte    `json:"record"`
}

func (s *Store) path(key, ending string) string {
	return filepath.Join(s.dir, url.PathEscape(key)+ending)
}

// Load implements partnerauth.Store. A file that others may read or write is an
// error; one that makes no sense counts as absent.
func (s *Store) Load(_ context.Context, key string) ([]byte, time.Duration, error) {
	file, err := os.Open(s.path(key, ".token"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, fmt.Errorf("partnerfile: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("partnerfile: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, 0, fmt.Errorf("partnerfile: %s has mode %#o: others may use it; want 0600", file.Name(), mode)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxRecord))
	if err != nil {
		return nil, 0, fmt.Errorf("partnerfile: %w", err)
	}
	var c content
	left := time.Duration(0)
	if json.Unmarshal(data, &c) == nil {
		left = time.Until(c.Expires)
	}
	if left <= 0 || len(c.Record) == 0 {
		return nil, 0, nil
	}
	return c.Record, left, nil
}

// SavesBeforeExit returns true: a program that ends at once has to wait for the token
// that it renews, or nobody would save it.
func (s *Store) SavesBeforeExit() bool { return true }

// TryLock implements partnerauth.Store. The lock is the open file's: the file
// stays, and is none.
func (s *Store) TryLock(_ context.Context, key string) (partnerauth.Lock, error) {
	file := flock.New(s.path(key, ".lock"), flock.SetPermissions(0o600))
	locked, err := file.TryLock()
	if err != nil {
		return nil, fmt.Errorf("partnerfile: %w", err)
	}
	if !locked {
		return nil, nil
	}
	return &lock{path: s.path(key, ".token"), file: file}, nil
}

type lock struct {
	path string

	mu   sync.Mutex
	file *flock.Flock // nil: unlocked
}

// Save implements partnerauth.Lock.
func (l *lock) Save(_ context.Context, record []byte, good time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errUnlocked
	}
	data, err := json.Marshal(content{time.Now().Add(good), record})
	if err != nil {
		return fmt.Errorf("partnerfile: %w", err)
	}
	if err := replace(l.path, data); err != nil {
		return fmt.Errorf("partnerfile: %w", err)
	}
	return nil
}

// replace writes a file beside path and renames it. Whoever was killed halfway
// has left no more than one such file.
func replace(path string, data []byte) error {
	os.Remove(path + ".new")
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

// Unlock implements partnerauth.Lock.
func (l *lock) Unlock(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}
