package partnerauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/partnerauth/partnerauth"
)

// queue500 lets 500 requests queue up, in the order of their paths, behind what
// a limiter lets through at once. It returns how many requests were sent before.
func queue500(t *testing.T, p *partner, rt *partnerauth.Transport, burst int) (*sync.WaitGroup, int) {
	for range burst + 1 { // and the login
		if len(p.seen()) < burst || burst == 1 {
			get(t, rt, "/")
		}
	}
	before := len(p.seen())
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() { get(t, rt, fmt.Sprintf("/%03d", i)) })
		synctest.Wait()
	}
	return &wg, before
}

// Callers go in the order of their arrival, and a token request with the next permit,
// whoever else waits. Across a wait for a token the order is approximate.
func TestQueueIsInOrder(t *testing.T) {
	t.Parallel()
	for _, l := range limiters {
		bubble(t, l.name, func(t *testing.T) {
			p := new(partner)
			rt := p.transport(l.make())
			wg, before := queue500(t, p, rt, l.burst)
			time.Sleep(90 * time.Second)
			source, since := reject(rt), time.Since(p.began)
			_, err := source.Token()
			must(t, err)
			wg.Wait()
			var arrived []string
			seen := p.seen()
			login := seen[before+slices.IndexFunc(seen[before:], func(a asked) bool { return a.op == "login" })].at
			for i, a := range seen {
				errorIf(t, a.at > since && a.at < login, "%s went %v before the login", a.path, login-a.at)
				// who goes in the instant of the login has waited for its token, with all the others
				if i >= before && a.at != login {
					arrived = append(arrived, fmt.Sprintf("%06d %s", a.at/time.Millisecond, a.path))
				}
			}
			slices.Sort(arrived) // by time, then path: what goes in one instant arrives in any order
			inOrder := slices.IsSortedFunc(arrived, func(a, b string) int { return strings.Compare(a[7:], b[7:]) })
			errorIf(t, !inOrder, "requests were not sent in order: %v", arrived)
			n := p.count("call 200") - (before - 1)
			errorIf(t, n != 500, "%d of those in the queue were served, want 500", n)
			errorIf(t, p.count("login") != 2, "%d logins, want 2", p.count("login"))
		})
	}
}

// A renewal that comes due while all callers queue is not forgotten.
func TestRenewalWhileAllQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &partner{lifetime: 4 * time.Minute}
		wg, _ := queue500(t, p, p.transport(rate.NewLimiter(100./60, 1)), 1)
		wg.Wait()
		for _, a := range p.seen() {
			errorIf(t, a.op == "refresh" && (a.at < 3*time.Minute || a.at > 4*time.Minute),
				"got a refresh after %v, want it in the last minute of the token", a.at)
		}
		errorIf(t, p.count("login") != 1 || p.count("call 401") != 0 || p.count("refresh") == 0,
			"got %s and %d rejections, want one login, a refresh and none", p.ops(), p.count("call 401"))
	})
}

// Whatever a waiter waits for, its change wakes it: a lost wake is a caller that
// hangs.
func TestWaitersAreWoken(t *testing.T) {
	const window, guard = time.Minute, time.Second
	for _, c := range []struct {
		name   string
		places int
		first  reply         // that a call sent at the start gets
		ahead  bool          // somebody waits ahead and leaves after 10 s
		want   time.Duration // when the waiter goes
	}{
		{name: "an answer frees its place a window later", places: 1, first: reply{status: 200, after: 10 * time.Second},
			want: 10*time.Second + window + guard},
		{name: "a request that fails, too", places: 1, first: reply{err: errTest, after: 10 * time.Second},
			want: 10*time.Second + window + guard},
		{name: "a request that never left", places: 1, first: reply{err: dialError("dial"), after: 10 * time.Second},
			want: 10 * time.Second},
		{name: "an answer that frees a later place", places: 2, first: reply{status: 200, after: 30 * time.Second}, want: window + guard},
		{name: "a pause", places: 2, first: reply{status: 503, header: headers("Retry-After: 100"), after: 10 * time.Second},
			want: 110*time.Second + rounded},
		{name: "whoever is ahead leaves", places: 1, first: reply{status: 200}, ahead: true, want: window + guard},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := (&partner{open: true}).on("/first", c.first)
			rt := p.custom(static("t"), &partnerauth.Quota{Requests: c.places, Window: window})
			began := time.Now()
			if c.places == 2 {
				get(t, rt, "/")
			}
			go try(t.Context(), rt, "/first")
			synctest.Wait()
			ahead, leave := context.WithCancel(t.Context())
			defer leave()
			if c.ahead {
				go try(ahead, rt, "/ahead")
				synctest.Wait()
				time.AfterFunc(10*time.Second, leave)
			}
			get(t, rt, "/waiter")
			got := time.Since(began)
			errorIf(t, got != c.want, "the waiter went after %v, want %v", got, c.want)
			time.Sleep(time.Hour)
		})
	}
	bubble(t, "whoever is first has lost its token", func(t *testing.T) {
		p, quota := new(partner), &partnerauth.Quota{Requests: 2, Window: window}
		one, two := p.transport(quota), (&partner{open: true}).custom(static("t"), quota)
		get(t, one, "/")
		wg := atOnce(1, func(int) { get(t, one, "/") })
		synctest.Wait()
		slow := p.transport(limiterFunc(func(ctx context.Context) error { return sleep(ctx, 3*time.Minute) }))
		slow.Source = one.Source
		time.AfterFunc(30*time.Second, func() { reject(one); slow.SignIn(t.Context()) })
		took := elapsed(func() { get(t, two, "/waiter") })
		errorIf(t, took != window+guard, "the second went after %v, want %v", took, window+guard)
		wg.Wait()
	})
}

// Whoever waits is told at once when its turn comes to be too late.
func TestWaitersAreTold(t *testing.T) {
	slow := readerFunc(func([]byte) (int, error) { time.Sleep(500 * time.Millisecond); return 0, io.EOF })
	for _, c := range []struct {
		name     string
		first    reply // that a call sent at the start gets after 10 s
		login    bool  // another Transport signs in then
		patience time.Duration
		want     time.Duration // when it is told
	}{
		{name: "a pause", first: reply{status: 503, header: headers("Retry-After: 100")}, patience: 90 * time.Second,
			want: 10 * time.Second},
		{name: "a request that comes back", first: reply{status: 429, header: headers("Retry-After: 1"), stream: io.NopCloser(slow)},
			patience: 2 * time.Minute, want: 10500 * time.Millisecond},
		{name: "a token request", first: reply{}, login: true, patience: 90 * time.Second, want: 10 * time.Second},
		{name: "somebody of another Transport ahead", first: reply{}, patience: 65 * time.Second,
			want: 4*time.Second + 1}, // the first has no answer yet
	} {
		bubble(t, c.name, func(t *testing.T) {
			c.first.after = 10 * time.Second
			quota := &partnerauth.Quota{Requests: 2}
			p := (&partner{open: true}).on("/first", c.first, reply{})
			one, two := p.custom(static("t"), quota), p.custom(static("t"), quota)
			get(t, one, "/")
			first := newRequest(t, "POST", apiURL+"/first", "body")
			if c.first.stream == nil {
				first.GetBody = nil
			}
			wg := atOnce(1, func(int) { status(t, one, first) })
			synctest.Wait()
			wg.Go(func() { get(t, one, "/ahead") })
			synctest.Wait()
			if c.login {
				time.AfterFunc(10*time.Second, func() { get(t, new(partner).transport(quota), "/") })
			}
			refused(t, deadline(t, c.patience), two, c.want)
			wg.Wait()
			time.Sleep(time.Hour)
		})
	}
	bubble(t, "a late answer to a refused volley", func(t *testing.T) { // which bore less than was thought
		p := (&partner{open: true}).on("/late", reply{after: 3 * time.Second}).
			on("/refused", reply{after: time.Millisecond, status: 429, header: headers("Retry-After: 9")}, reply{})
		rt := p.custom(static("t"), nil)
		wg := atOnce(1, func(int) { get(t, rt, "/late") })
		wg.Go(func() { get(t, rt, "/refused") })
		time.Sleep(2 * time.Millisecond)
		for range 10 {
			wg.Go(func() { get(t, rt, "/ahead") })
		}
		synctest.Wait()
		refused(t, deadline(t, 12*time.Second), rt, 3*time.Second-2*time.Millisecond)
		wg.Wait()
	})
	bubble(t, "tokens that do not add up while slots are awaited", func(t *testing.T) {
		p := (&partner{open: true}).on("/last", reply{after: 10 * time.Millisecond}).
			on("/refused", reply{after: time.Millisecond, status: 429, header: headers("Retry-After: 30")}, reply{})
		rt := p.custom(static("t"), &partnerauth.Quota{Requests: 4, Window: 40 * time.Second})
		atOnce(4, func(i int) { get(t, rt, []string{"/", "/last"}[i/3]) }).Wait()
		time.Sleep(41*time.Second - 9*time.Millisecond)
		wg := atOnce(1, func(int) { get(t, rt, "/refused") })
		synctest.Wait()
		for range 4 {
			wg.Go(func() { get(t, rt, "/") })
		}
		time.Sleep(2 * time.Millisecond)
		refused(t, deadline(t, 45*time.Second), rt, 0)
		wg.Wait()
	})
	bubble(t, "a login comes first", func(t *testing.T) {
		rt := new(partner).on("login", reply{after: 10 * time.Second}).transport(&partnerauth.Quota{Requests: 1})
		refused(t, deadline(t, 30*time.Second), rt, 10*time.Second)
		time.Sleep(time.Hour)
	})
}

// Whoever gives up costs the others nothing.
func TestGivingUpCostsNothing(t *testing.T) {
	t.Parallel()
	for _, l := range limiters {
		bubble(t, l.name, func(t *testing.T) {
			p := new(partner)
			rt := p.transport(l.make())
			const length = 10 * time.Minute
			began := time.Now()
			random := rand.New(rand.NewPCG(1, 2))
			var mu sync.Mutex
			atOnce(200, func(int) {
				for time.Since(began) < length {
					mu.Lock()
					patience := time.Duration(random.Int64N(int64(time.Minute)))
					mu.Unlock()
					// a cancellation, not a deadline, or it would be refused at once
					_, err := try(leaving(t, patience), rt, "/")
					limited := errors.Is(err, partnerauth.ErrRateLimited) // of which one who leaves is not told
					errorIf(t, err != nil && !errors.Is(err, context.Canceled) || limited, "got %v", err)
				}
			}).Wait()
			served := float64(p.count("call 200")) / length.Minutes()
			errorIf(t, served < 95, "served %.1f a minute, want 95", served)
		})
	}
}

// Who cannot go before its deadline is told so at once, and who can, goes.
func TestRefusedAtOnce(t *testing.T) {
	const year = 365 * 24 * time.Hour
	every30s := rate.Every(30 * time.Second)
	for _, c := range []struct {
		name    string
		limiter partnerauth.Limiter
		before  int // calls that use up what there is
		queued  int
		low     bool
		wait    time.Duration // that the refusal tells
	}{
		{name: "Quota", limiter: &partnerauth.Quota{}, before: 100, wait: 61 * time.Second},
		{name: "Quota, one round of others ahead", limiter: &partnerauth.Quota{}, before: 100, queued: 150, wait: 122 * time.Second},
		{name: "Quota, low priority", limiter: &partnerauth.Quota{}, before: 95, low: true, wait: 61 * time.Second},
		{name: "rate.Limiter", limiter: rate.NewLimiter(every30s, 1), before: 1, wait: 30 * time.Second},
		{name: "rate.Limiter, one ahead", limiter: rate.NewLimiter(every30s, 1), before: 1, queued: 1, wait: time.Minute},
		{name: "rate.Limiter that allows nothing", limiter: rate.NewLimiter(0, 2), before: 2, wait: year},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{open: true}
			rt := p.custom(static("t"), c.limiter)
			for range c.before {
				get(t, rt, "/")
			}
			waiting, leave := context.WithCancel(t.Context())
			wg := atOnce(c.queued, func(int) { try(waiting, rt, "/") })
			synctest.Wait()
			with := func(patience time.Duration) context.Context {
				if c.low {
					return partnerauth.WithLowPriority(deadline(t, patience))
				}
				return deadline(t, patience)
			}
			var err error
			took := elapsed(func() { err = p.sentNothing(t, with(c.wait-time.Second), rt) })
			told, ok := errors.AsType[interface {
				error
				RetryAfter() time.Duration
				Timeout() bool
			}](err)
			if !ok || !told.Timeout() || !errors.Is(err, partnerauth.ErrRateLimited) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v, want ErrRateLimited and a deadline exceeded", err)
			}
			errorIf(t, took > 0, "refused after %v, want at once", took)
			d := told.RetryAfter()
			errorIf(t, d < c.wait || d > c.wait+time.Second && c.wait < year, "told to wait %v, want %v", d, c.wait)
			if c.wait < year {
				_, err = try(with(c.wait+time.Second), rt, "/")
				errorIf(t, err != nil, "got %v with a deadline in time", err)
			}
			leave()
			wg.Wait()
		})
	}
	bubble(t, "who has to wait for a token", func(t *testing.T) {
		quota := &partnerauth.Quota{Requests: 1}
		quota.Wait(t.Context())
		refused(t, deadline(t, 30*time.Second), new(partner).transport(quota), 30*time.Second)
		time.Sleep(time.Hour) // for the login, which others may want
	})
}

func TestThousandOnAColdSource(t *testing.T) {
	t.Parallel()
	for _, l := range limiters {
		bubble(t, l.name, func(t *testing.T) {
			p := new(partner)
			rt := p.transport(l.make())
			atOnce(1000, func(int) { get(t, rt, "/") }).Wait()
			errorIf(t, p.count("login") != 1 || p.count("call 200") != 1000,
				"got %d logins and %d answers 200, want 1 and 1000", p.count("login"), p.count("call 200"))
		})
	}
}

func TestTokenThatEndsInTheQueueIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partner{lifetime: 20 * time.Second}
		rt := p.transport(&partnerauth.Quota{Requests: 2})
		get(t, rt, "/")
		time.Sleep(5 * time.Second)
		code := get(t, rt, "/")
		errorIf(t, code != 200 || p.count("call 401") != 0,
			"got %d and %d rejections, want 200 and a token replaced before it was sent", code, p.count("call 401"))
	})
}

// Order, cancellation and refusal with real goroutines, for the race detector.
func TestQueueRaces(t *testing.T) {
	t.Parallel()
	limiter := rate.NewLimiter(1000, 1)
	for _, l := range []partnerauth.Limiter{&partnerauth.Quota{Requests: 20, Window: 20 * time.Millisecond}, limiter,
		limiterFunc(limiter.Wait)} {
		p := new(partner)
		rt := p.transport(l)
		var served atomic.Int32
		atOnce(150, func(i int) {
			patience := time.Duration(i) * time.Millisecond / 10
			ctx := t.Context()
			switch i % 3 {
			case 1:
				ctx = deadline(t, patience)
			case 2:
				ctx = leaving(t, patience)
			}
			if _, err := try(ctx, rt, "/"); err == nil {
				served.Add(1)
			} else if i%3 == 0 {
				t.Error(err) // it had no reason to leave
			}
		}).Wait()
		n := int(served.Load())
		errorIf(t, n < 50 || n > p.count("call 200"), "%T: %d served, %d answered, want 50 served at least", l, n, p.count("call 200"))
	}
}

// Tokens that end before a request's turn comes are fetched twice for it and no
// more, also where it has joined the fetch of somebody else.
func TestNoLoginForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&partner{lifetime: 10 * time.Second}).on("login", reply{after: 2 * time.Second})
		slow := p.transport(limiterFunc(func(ctx context.Context) error { return sleep(ctx, 20*time.Second) }))
		fast := p.transport(nil)
		fast.Source = slow.Source
		wg := atOnce(1, func(int) {
			_, err := try(deadline(t, time.Hour), slow, "/")
			errorIf(t, err == nil, "no error")
		})
		time.Sleep(83 * time.Second) // its second login is over
		get(t, fast, "/")
		wg.Wait()
		errorIf(t, p.count("login") > 4, "%d logins, want 4 at most", p.count("login"))
		time.Sleep(time.Minute)
	})
}
