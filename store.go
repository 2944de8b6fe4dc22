package partnerauth

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const (
	fromStore = "store" // how a token is fetched that another process has fetched
	storeTime = 3 * time.Second
	hashRound = 10_000 // of a refused secret; a Store may be read by others
	// countTime is how much longer a refusal stays there than it holds, so that
	// the next one, of a cron job perhaps, is remembered for longer.
	countTime = time.Hour
)

// A record is what a Store keeps of an account: a token, or the credentials that
// were refused.
type record struct {
	Token    string        `json:"token,omitempty"`
	Lifetime time.Duration `json:"lifetime,omitempty"` // the whole of it
	Status   int           `json:"status,omitempty"`   // with which the secret was refused
	Salt     []byte        `json:"salt,omitempty"`
	Hash     []byte        `json:"hash,omitempty"`
	Count    int           `json:"count,omitempty"` // of refusals so far
}

// storeKey is the key of an account's record. One Store serves all accounts.
func storeKey(provider, baseURL, user string) string {
	sum := sha256.Sum256([]byte(provider + "\n" + strings.TrimRight(baseURL, "/") + "\n" + user))
	return provider + "-" + hex.EncodeToString(sum[:12])
}

func hashOf(secret string, salt []byte) []byte {
	hash, _ := pbkdf2.Key(sha256.New, secret, salt, hashRound, 16)
	return hash
}

// throughStore gets a token from the Store, or else by get while other processes wait
// for it there. A Store that fails, or whose lock is stuck, is passed over.
func (f *fetch) throughStore() fetched {
	for began := time.Now(); ; {
		if got, ok := f.stored(); ok {
			return got
		}
		lock, err := f.lock()
		switch {
		case lock != nil:
			return f.locked(lock)
		case err != nil || time.Since(began) > wireLimit:
			return f.get()
		}
		select {
		case <-time.After(20*time.Millisecond + mathrand.N(180*time.Millisecond)):
		case <-f.ctx.Done():
			return f.failed(0, f.ctx.Err())
		}
	}
}

// lock takes the Store's lock, nil if somebody else has it. One that comes when
// f has stopped waiting is given back, or nobody could sign in any more.
func (f *fetch) lock() (Lock, error) {
	var lock Lock
	var decided atomic.Bool // whether it came in time
	_, err := within3s(f.ctx, f, func(ctx context.Context) (any, error) {
		got, err := f.source.provider.store.TryLock(ctx, f.source.provider.key)
		if err != nil || got == nil {
			return nil, err
		}
		if lock = got; decided.Swap(true) {
			f.unlock(got)
		}
		return nil, nil
	})
	if err != nil && !decided.Swap(true) {
		return nil, err
	}
	return lock, nil
}

func (f *fetch) unlock(lock Lock) {
	within3s(context.WithoutCancel(f.ctx), f, func(ctx context.Context) (any, error) { return nil, lock.Unlock(ctx) })
}

// locked gets a token under the lock, and saves it.
func (f *fetch) locked(lock Lock) fetched {
	defer f.unlock(lock)
	if got, ok := f.stored(); ok { // since then
		return got
	}
	got := f.get()
	if f.ctx.Err() == nil {
		f.save(lock, got)
	}
	if f.ctx.Err() != nil && got.lease != nil { // a rejection has overtaken it
		f.source.overtaken.Store(got.lease)
	}
	return got
}

// within3s gives the Store its time, and makes its failure an event of the fetch.
func within3s[T any](ctx context.Context, f *fetch, ask func(context.Context) (T, error)) (T, error) {
	got, err := bounded(ctx, storeTime, ask)
	if err != nil && f.ctx.Err() == nil {
		trace.SpanFromContext(f.ctx).AddEvent("partnerauth.store.failed", trace.WithAttributes(semconv.ErrorTypeKey.String(typeOf(err))))
	}
	return got, err
}

// stored is what the Store has, if it is of use: a token that is neither the one
// to be renewed nor the one that was rejected, or a refusal of the same secret.
func (f *fetch) stored() (fetched, bool) {
	p, source := f.source.provider, f.source
	if p.store == nil {
		return fetched{}, false
	}
	var left time.Duration
	sealed, err := within3s(f.ctx, f, func(ctx context.Context) (sealed []byte, err error) {
		sealed, left, err = p.store.Load(ctx, p.key)
		return sealed, err
	})
	var r record
	if err != nil || left <= 0 || json.Unmarshal(sealed, &r) != nil {
		return fetched{}, false
	}
	if r.Status != 0 && f.op == refresh {
		return fetched{}, false // the session may go on all the same
	}
	if r.Status != 0 {
		return f.refusedElsewhere(r, left)
	}
	outdated := source.last401.Load().has(r.Token) || source.overtaken.Load().has(r.Token) || f.renews.has(r.Token)
	if outdated || !sendable(r.Token) || left < leastLeft {
		return fetched{}, false
	}
	now := time.Now()
	f.op = fromStore
	return fetched{lease: newLease(r.Token, max(r.Lifetime, left), now.Add(min(0, left-r.Lifetime)), now)}, true
}

// refusedElsewhere is the refusal of the same secret to another process.
func (f *fetch) refusedElsewhere(r record, left time.Duration) (fetched, bool) {
	secret, err := f.asked()
	switch {
	case err != nil:
		return fetched{}, false
	case f.refusals.holds(secret): // as this process knows
		f.idle = true
		return fetched{err: f.refusals.err}, true
	case subtle.ConstantTimeCompare(hashOf(secret, r.Salt), r.Hash) == 0:
		return fetched{}, false
	}
	f.refusals.count = max(f.refusals.count, min(max(r.Count, 1), len(refusals)))
	if r.Count > 0 {
		left -= countTime // in which it is only counted
	}
	if left = min(left, refusals[len(refusals)-1]*3/2); left <= 0 {
		return fetched{}, false
	}
	got := f.failed(r.Status, f.refusal(&http.Response{StatusCode: r.Status}, true))
	got.err.RetryAfter = left
	f.refusals = failures{got.err, f.refusals.count, time.Now().Add(left), secret}
	f.idle = true
	return got, true
}

// save puts what an exchange brought into the Store: a token, or that the secret
// was refused, for as long as that is to be remembered.
func (f *fetch) save(lock Lock, got fetched) {
	var r record
	var good time.Duration
	switch {
	case got.lease != nil && f.op != fromStore:
		good = time.Until(got.lease.ends)
		r = record{Token: got.lease.token.AccessToken, Lifetime: good}
	case got.err.refused() && got.err != f.refusals.err:
		f.refusals = f.refusals.with(got.err, f.secret)
		good = got.err.RetryAfter + countTime
		r = record{Status: got.err.StatusCode, Salt: make([]byte, 16), Count: f.refusals.count}
		rand.Read(r.Salt)
		r.Hash = hashOf(f.secret, r.Salt)
	default:
		return
	}
	sealed, _ := json.Marshal(r)
	within3s(context.WithoutCancel(f.ctx), f, func(ctx context.Context) (any, error) { return nil, lock.Save(ctx, sealed, good) })
}
