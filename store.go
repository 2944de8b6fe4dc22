package partnerauth

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
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
	Salt     []byte        `json:"salt,omitempty"`
	Digest   []byte        `json:"digest,omitempty"` // of the request that was refused
	Count    int           `json:"count,omitempty"`  // of refusals so far
}

// A requestDigest identifies a token request that was refused, without keeping the
// secret in it.
type requestDigest [sha256.Size]byte

// of reports whether r is the refusal of the request with that digest.
func (r *record) of(digest requestDigest) bool {
	return subtle.ConstantTimeCompare(saltedDigest(digest, r.Salt), r.Digest) == 1
}

// setDigest makes r the refusal of the request with that digest.
func (r *record) setDigest(digest requestDigest) {
	r.Salt = make([]byte, 16)
	rand.Read(r.Salt)
	r.Digest = saltedDigest(digest, r.Salt)
}

func saltedDigest(digest requestDigest, salt []byte) []byte {
	hash, _ := pbkdf2.Key(sha256.New, string(digest[:]), salt, digestRounds, 16)
	return hash
}

// storeKey returns the key of an account's record. One Store serves all accounts.
func storeKey(provider, baseURL, account string) string {
	sum := sha256.Sum256([]byte(provider + "\n" + strings.TrimRight(baseURL, "/") + "\n" + account))
	return provider + "-" + hex.EncodeToString(sum[:12])
}

// A vault is one account's record in a Store, for one fetch. Each operation has
// three seconds, whatever the Store's code does. After a failure the Store is not
// asked again.
type vault struct {
	store  Store
	key    string
	failed func(error) // called with the first failure
	broken bool
}

// load returns the record and how long it is good for; false if there is none.
func (v *vault) load(ctx context.Context) (r record, left time.Duration, ok bool) {
	if v.broken {
		return record{}, 0, false
	}
	type loaded struct {
		record []byte
		left   time.Duration
	}
	got, err := bounded(ctx, storeTime, nil, func(ctx context.Context) (loaded, error) {
		sealed, left, err := v.store.Load(ctx, v.key)
		return loaded{sealed, left}, err
	})
	if v.note(ctx, err); err != nil || got.left <= 0 || json.Unmarshal(got.record, &r) != nil {
		return record{}, 0, false
	}
	return r, got.left, true
}

// tryLock returns the lock, nil if somebody else has it. It reports false if the
// Store failed. A lock that comes too late is given back.
func (v *vault) tryLock(ctx context.Context) (lock Lock, ok bool) {
	if v.broken {
		return nil, false
	}
	giveBack := func(late Lock, err error) {
		if err == nil && late != nil {
			v.unlock(ctx, late)
		}
	}
	lock, err := bounded(ctx, storeTime, giveBack, func(ctx context.Context) (Lock, error) { return v.store.TryLock(ctx, v.key) })
	v.note(ctx, err)
	return lock, err == nil
}

func (v *vault) unlock(ctx context.Context, lock Lock) {
	_, err := bounded(context.WithoutCancel(ctx), storeTime, nil, func(ctx context.Context) (any, error) { return nil, lock.Unlock(ctx) })
	v.note(ctx, err)
}

func (v *vault) save(ctx context.Context, lock Lock, r record, good time.Duration) {
	encoded, _ := json.Marshal(r)
	_, err := bounded(context.WithoutCancel(ctx), storeTime, nil, func(ctx context.Context) (any, error) { return nil, lock.Save(ctx, encoded, good) })
	v.note(ctx, err)
}

// note remembers a failure of the Store, unless it came of the end of ctx.
func (v *vault) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !v.broken {
		v.broken = true
		v.failed(err)
	}
}

// bounded runs foreign code for at most limit, whatever it does. A result that comes
// later goes to late, if there is one.
func bounded[T any](ctx context.Context, limit time.Duration, late func(T, error), do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return beside(ctx, late, do)
}

// beside runs foreign code in a goroutine of its own until ctx ends. A panic in it is
// an error.
func beside[T any](ctx context.Context, late func(T, error), do func(context.Context) (T, error)) (T, error) {
	type result struct {
		got T
		err error
	}
	done, gone := make(chan result), make(chan struct{})
	go func() {
		r := result{err: errGoexit}
		defer func() {
			if value := recover(); value != nil {
				r.err = errPanic(value)
			}
			select {
			case done <- r:
			case <-gone:
				if late != nil {
					defer func() { recover() }() // nobody is left to receive the panic
					late(r.got, r.err)
				}
			}
		}()
		r.got, r.err = do(ctx)
	}()
	select {
	case r := <-done:
		return r.got, r.err
	case <-ctx.Done():
		close(gone)
		var none T
		return none, ctx.Err()
	}
}
