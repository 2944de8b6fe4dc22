package partnerauth

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
)

// A Store keeps the tokens of accounts where other processes find them: module
// partnerredis has one for a fleet, partnerfile one for command-line programs. Most
// programs use one of these and need not implement it. A Store must be safe for
// concurrent use. Records are opaque and secret.
//
// An error of a Store never fails a call: the process signs in as if it had no Store.
//
// A Store with a method SavesBeforeExit() bool that returns true serves programs
// that end at once: a token is then not renewed in the background, where the
// program would end before the new one is saved, but before the first call that
// finds it due.
type Store interface {
	// Load returns the record saved under key and how long it is still good for;
	// nil if there is none.
	Load(ctx context.Context, key string) (record []byte, left time.Duration, err error)
	// TryLock takes the lock of key, without waiting. It returns a nil Lock and no
	// error if somebody else has it.
	TryLock(ctx context.Context, key string) (Lock, error)
}

// A Lock allows its holder to replace one record. It ends with Unlock, or some
// seconds after its process has died.
type Lock interface {
	// Save replaces the record for as long as it is good. It fails if the lock was
	// lost.
	Save(ctx context.Context, record []byte, good time.Duration) error
	Unlock(ctx context.Context) error
}

const (
	// storeTime is how long each operation of a Store may take.
	storeTime = 3 * time.Second
	// digestRounds are those of PBKDF2. Others may be able to read a Store.
	digestRounds = 10_000
	// countTime is how much longer a refusal stays in a Store than it holds, so
	// that the next one, perhaps of a cron job, is remembered for longer.
	countTime = time.Hour
)

// A record is what a Store keeps of an account: a token, or that a sign-in request
// was refused.
type record struct {
	Token    string        `json:"token,omitempty"`
	Type     string        `json:"type,omitempty"`
	Refresh  string        `json:"refresh,omitempty"`
	Lifetime time.Duration `json:"lifetime,omitempty"` // the whole of it
	Refused  bool          `json:"refused,omitempty"`
	Wrong    bool          `json:"wrong,omitempty"` // the refusal is ErrCredentials
	Status   int           `json:"status,omitempty"`
	Digest   []byte        `json:"digest,omitempty"` // of the request that was refused
	Count    int           `json:"count,omitempty"`  // of refusals so far
}

// salted returns what a Store may keep of the digest of a request, which has a secret.
// The key of the record is the salt, since no two accounts have the same.
func salted(digest, key string) []byte {
	hash, _ := pbkdf2.Key(sha256.New, digest, []byte(key), digestRounds, 16)
	return hash
}

// storeKey returns the key of an account's record. One Store serves all accounts.
func storeKey(provider, baseURL, account string) string {
	sum := sha256.Sum256([]byte(provider + "\n" + strings.TrimRight(baseURL, "/") + "\n" + account))
	return provider + "-" + hex.EncodeToString(sum[:12])
}

// loadRecord returns the record and how long it is good for; the zero record if there is
// none that can be read, or no Store.
func loadRecord(ctx context.Context, store Store, key string) (record, time.Duration, error) {
	var encoded []byte
	var left time.Duration
	var r record
	if store == nil {
		return r, 0, nil
	}
	err := bounded(ctx, storeTime, nil, func(ctx context.Context) (err error) {
		encoded, left, err = store.Load(ctx, key)
		return err
	})
	if err != nil || left <= 0 || json.Unmarshal(encoded, &r) != nil {
		return record{}, 0, err
	}
	return r, left, nil
}

// lockRecord returns the lock; nil if somebody else has it, or there is no Store. A lock
// that comes too late is given back.
func lockRecord(ctx context.Context, store Store, key string) (Lock, error) {
	if store == nil {
		return nil, nil
	}
	var lock Lock
	giveBack := func(err error) {
		if err == nil && lock != nil {
			unlockRecord(ctx, lock)
		}
	}
	err := bounded(ctx, storeTime, giveBack, func(ctx context.Context) (err error) {
		lock, err = store.TryLock(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return lock, nil
}

func unlockRecord(ctx context.Context, lock Lock) error {
	return bounded(context.WithoutCancel(ctx), storeTime, nil, lock.Unlock)
}

func saveRecord(ctx context.Context, lock Lock, r record, good time.Duration) error {
	encoded, _ := json.Marshal(r)
	return bounded(context.WithoutCancel(ctx), storeTime, nil, func(ctx context.Context) error { return lock.Save(ctx, encoded, good) })
}

// bounded is beside for at most limit.
func bounded(ctx context.Context, limit time.Duration, late func(error), do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return beside(ctx, late, do)
}

// beside runs foreign code in a goroutine of its own until ctx ends. A panic in it is an
// error. What do has set may be read only if beside returns nil, since do may go on
// after an error; late, if there is one, is then called at its end.
func beside(ctx context.Context, late func(error), do func(context.Context) error) error {
	done := make(chan error)
	go func() {
		err := errGoexit
		defer func() {
			if value := recover(); value != nil {
				err = errPanic(value)
			}
			select {
			case done <- err:
			case <-ctx.Done():
				if late != nil {
					defer func() { recover() }() // nobody is left to receive the panic
					late(err)
				}
			}
		}()
		err = do(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
