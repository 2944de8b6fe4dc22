package partnerredis

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/redis/go-redis/v9"
)

const (
	lockTime  = 4 * time.Second // that a lock outlives its process
	lockRenew = time.Second

	plain, sealed = 0, 1 // how a record begins
	keyIDSize     = 4    // what tells keys apart: the first bytes of their SHA-256
)

var (
	loadScript   = redis.NewScript(`return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}`)
	lockScript   = redis.NewScript(`return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0`)
	renewScript  = redis.NewScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0`)
	unlockScript = redis.NewScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0`)
	saveScript   = redis.NewScript(`
		if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
		redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
		return 1`)
)

var errLockLost = errors.New("partnerredis: the lock was lost")

// A Store is a [partnerauth.Store] on Redis or Valkey: one account's token serves
// all processes that share it, and one of them signs in. Safe for concurrent use.
type Store struct {
	scripts *scripts
	keys    []sealKey // none: plain text
}

var _ partnerauth.Store = (*Store)(nil)

// A sealKey seals records so that Redis, its files and its replicas hold none
// that can be read.
type sealKey struct {
	id   [keyIDSize]byte
	aead cipher.AEAD
}

// NewStore encrypts with AES-256-GCM: the first key seals, all open, so that keys
// can be rotated: deploy the new one as second, then as first, and drop the old
// when the tokens of that time are over. What none of them opens counts as absent.
// Each has 32 bytes; none, or another length, is an error.
func NewStore(client redis.Scripter, keys ...[]byte) (*Store, error) {
	s := &Store{scripts: &scripts{client: client}}
	if len(keys) == 0 {
		return nil, errors.New("partnerredis: NewStore needs a key")
	}
	for i, key := range keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("partnerredis: key %d of NewStore has %d bytes, want 32", i+1, len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		k := sealKey{}
		if k.aead, err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, err
		}
		hash := sha256.Sum256(key)
		copy(k.id[:], hash[:])
		s.keys = append(s.keys, k)
	}
	return s, nil
}

// NewPlaintextStore lets everybody who can read Redis read the tokens.
func NewPlaintextStore(client redis.Scripter) *Store {
	return &Store{scripts: &scripts{client: client}}
}

// String hides the keys.
func (s *Store) String() string { return "partnerredis.Store" }

func tokenKey(key string) string { return "partnerauth:{" + key + "}:token" }
func lockKey(key string) string  { return "partnerauth:{" + key + "}:lock" }

func (s *Store) run(ctx context.Context, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	if s.scripts == nil || s.scripts.client == nil {
		cmd := redis.NewCmd(ctx)
		cmd.SetErr(errors.New("partnerredis: the Store's client is nil"))
		return cmd
	}
	return s.scripts.run(ctx, script, keys, args...)
}

// Load implements partnerauth.Store.
func (s *Store) Load(ctx context.Context, key string) ([]byte, time.Duration, error) {
	answer, err := s.run(ctx, loadScript, []string{tokenKey(key)}).Slice()
	if err != nil || len(answer) != 2 {
		return nil, 0, err
	}
	data, _ := answer[0].(string)
	ms, _ := answer[1].(int64)
	record := s.open(key, []byte(data))
	if record == nil || ms <= 0 {
		return nil, 0, nil
	}
	return record, time.Duration(ms) * time.Millisecond, nil
}

// TryLock implements partnerauth.Store. The lock is renewed until Unlock.
func (s *Store) TryLock(ctx context.Context, key string) (partnerauth.Lock, error) {
	l := &lock{s: s, key: key, owner: rand.Text()}
	got, err := s.run(ctx, lockScript, []string{lockKey(key)}, l.owner, lockTime.Milliseconds()).Int()
	if err != nil || got == 0 {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewal = time.AfterFunc(lockRenew, l.renew)
	return l, nil
}

type lock struct {
	s          *Store
	key, owner string

	mu      sync.Mutex
	renewal *time.Timer // nil: unlocked
}

func (l *lock) renew() {
	ctx, cancel := context.WithTimeout(context.Background(), lockRenew)
	defer cancel()
	kept, err := l.s.run(ctx, renewScript, []string{lockKey(l.key)}, l.owner, lockTime.Milliseconds()).Int()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.renewal != nil && (err != nil || kept == 1) {
		l.renewal.Reset(lockRenew)
	}
}

// Save implements partnerauth.Lock.
func (l *lock) Save(ctx context.Context, record []byte, good time.Duration) error {
	saved, err := l.s.run(ctx, saveScript, []string{lockKey(l.key), tokenKey(l.key)},
		l.owner, l.s.seal(l.key, record), max(1, good.Milliseconds())).Int()
	if err == nil && saved == 0 {
		return errLockLost
	}
	return err
}

// Unlock implements partnerauth.Lock.
func (l *lock) Unlock(ctx context.Context) error {
	l.mu.Lock()
	if l.renewal != nil {
		l.renewal.Stop()
		l.renewal = nil
	}
	l.mu.Unlock()
	return l.s.run(ctx, unlockScript, []string{lockKey(l.key)}, l.owner).Err()
}

// seal binds the record to its key, so that none can be put in another's place.
func (s *Store) seal(key string, record []byte) []byte {
	if len(s.keys) == 0 {
		return append([]byte{plain}, record...)
	}
	k := s.keys[0]
	return k.aead.Seal(append([]byte{sealed}, k.id[:]...), nil, record, []byte(key))
}

func (s *Store) open(key string, data []byte) []byte {
	if len(s.keys) == 0 {
		if len(data) > 0 && data[0] == plain {
			return data[1:]
		}
		return nil
	}
	if len(data) < 1+keyIDSize || data[0] != sealed {
		return nil
	}
	for _, k := range s.keys {
		if [keyIDSize]byte(data[1:]) == k.id {
			if record, err := k.aead.Open(nil, nil, data[1+keyIDSize:], []byte(key)); err == nil {
				return record
			}
		}
	}
	return nil
}
