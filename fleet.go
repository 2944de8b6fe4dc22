package partnerauth

import (
	"context"
	"time"
)

// A PermitLimiter is a [Limiter] that learns what becomes of its permits, and can
// so be as strict as a [Quota]. The Quota of module partnerredis is one, which
// several processes share. Safe for concurrent use.
type PermitLimiter interface {
	Limiter
	// Permit waits like Wait. waiting is how many requests of this process wait,
	// this one included. An error that is ErrRateLimited goes to the caller as it
	// is, and should tell RetryAfter.
	Permit(ctx context.Context, waiting int) (Permit, error)
	// Estimate tells, without asking anybody, how long the n-th request from now
	// has to wait at least; 1 is the next.
	Estimate(n int) time.Duration
	// Period is how long everybody pauses after a 429 that names no time: the
	// window.
	Period() time.Duration
}

// A Permit is leave to send one request. One of its methods is called, once;
// neither may block.
type Permit interface {
	// Settle tells that the headers are in now: the status, 0 if the request was
	// given up or broke, and the pause that the answer asks of everybody, 0 for
	// none.
	Settle(status int, pause time.Duration)
	// Return tells that the request was not sent.
	Return()
}

// A Store keeps the tokens of accounts where other processes find them: module
// partnerredis has one for a fleet, partnerfile one for command-line programs.
// Safe for concurrent use. Records are opaque and secret.
//
// A Store that fails is never an error of a call: the process signs in as if it
// had none.
type Store interface {
	// Load returns the record saved under key and how long it is still good for;
	// nil if there is none.
	Load(ctx context.Context, key string) (record []byte, left time.Duration, err error)
	// TryLock takes the lock of key, without waiting; a nil Lock and no error tell
	// that somebody else has it.
	TryLock(ctx context.Context, key string) (Lock, error)
}

// A Lock is leave to replace one record. It ends with Unlock, or some seconds
// after its process has died.
type Lock interface {
	// Save replaces the record for as long as it is good, and fails if the lock
	// was lost.
	Save(ctx context.Context, record []byte, good time.Duration) error
	Unlock(ctx context.Context) error
}
