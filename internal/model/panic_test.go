package model

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/oauth2"
	"pgregory.net/rapid"

	"github.com/partnerauth/partnerauth"
)

type propagator struct {
	propagation.TextMapPropagator
	inject func()
}

func (p propagator) Inject(context.Context, propagation.TextMapCarrier) { p.inject() }

// A bomb goes off in one place of the user's code, at some of its uses.
type bomb struct {
	place   string
	uses    []int
	goexit  bool
	defused atomic.Bool
	n       atomic.Int64
}

func (b *bomb) at(place string) {
	if place != b.place || b.defused.Load() {
		return
	}
	if !slices.Contains(b.uses, int(b.n.Add(1))) {
		return
	}
	if b.goexit {
		runtime.Goexit()
	}
	panic("a bomb")
}

type bombSource struct {
	*custom
	bomb *bomb
}

func (s bombSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	s.bomb.at("TokenContext")
	return s.get(ctx)
}

func (s bombSource) Invalidate(t *oauth2.Token) {
	s.drop(t)
	s.bomb.at("Invalidate")
}

// (10) Whatever code of the user's panics or ends its goroutine, those who wait
// get an answer or an error, and the next calls work.
func TestPanics(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, window := quotas(rt)
		b := &bomb{
			place: rapid.SampledFrom([]string{
				"Base login", "Base call", "Limiter", "Propagator", "TokenContext", "Invalidate", "GetBody",
			}).Draw(rt, "place"),
			uses:   rapid.SliceOfN(rapid.IntRange(1, 8), 1, 4).Draw(rt, "uses"),
			goexit: rapid.Bool().Draw(rt, "Goexit"),
		}
		latency := ms(rt, 0, 50, "latency")
		revoked := ms(rt, 1, 300, "revoked")
		gap := ms(rt, 0, 30, "gap")
		play(t, rt, func() {
			p := &partner{rt: rt}
			p.answer = func(_ int, a *attempt) reply {
				if a.path == apiPath {
					return reply{Back: latency, Do: func() { b.at("Base call") }}
				}
				return reply{Back: latency, Do: func() { b.at("Base login") }}
			}
			var limiter partnerauth.Limiter = &partnerauth.Quota{Requests: n, Window: window}
			if b.place == "Limiter" {
				limiter = limiterFunc(func(context.Context) error {
					b.at("Limiter")
					return nil
				})
			}
			transport := &partnerauth.Transport{
				Source: p.source(), Base: p, Limiter: limiter, Propagator: propagator{inject: func() { b.at("Propagator") }},
			}
			if b.place == "TokenContext" || b.place == "Invalidate" {
				transport.Source, transport.Origins = bombSource{&custom{partner: p}, b}, []string{origin}
			}
			time.AfterFunc(revoked, func() { p.revoke() })
			var callers []*caller
			for i := range 12 {
				time.Sleep(gap)
				c := &caller{id: i + 1, ctx: context.Background(), method: "POST", done: make(chan struct{})}
				c.body = bytes.NewReader([]byte("body"))
				c.getBody = func() (io.ReadCloser, error) {
					b.at("GetBody")
					return http.NoBody, nil
				}
				c.run(transport)
				callers = append(callers, c)
			}
			patience := 40*(2*window+time.Second) + time.Minute
			if !join(rt, patience, callers...) {
				return
			}
			time.Sleep(2*window + 40*time.Second) // the backoff of a failed fetch included
			b.defused.Store(true)
			for i := range n + 1 {
				c := call(transport, 100+i, context.Background())
				if !join(rt, 4*window+2*time.Second, c) {
					return
				}
				if c.status != 200 {
					rt.Errorf("call %d after it: %d, %v", c.id, c.status, c.err)
				}
			}
			inWindow(rt, map[bool]int{true: 1_000_000, false: n}[b.place == "Limiter"], window, p.arrivals())
		})
	})
}

// A closing is a body that knows whether it was closed.
type closing struct {
	io.Reader
	closed int
}

func (c *closing) Close() error {
	c.closed++
	return nil
}

// (4) Where foreign code panics in the goroutine of a caller, the answer in hand and the
// body that is to be sent are closed all the same.
func TestPanicsCloseBodies(t *testing.T) {
	for _, place := range []string{"TokenContext", "Invalidate", "GetBody"} {
		for use := 1; use <= 2; use++ {
			if use == 2 && place != "TokenContext" {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				answer, request := &closing{Reader: strings.NewReader("who are you?")}, &closing{Reader: strings.NewReader("body")}
				b := &bomb{place: place, uses: []int{use}}
				p := &partner{}
				base := base(func(req *http.Request) (*http.Response, error) {
					req.Body.Close()
					return &http.Response{StatusCode: 401, Header: http.Header{}, Body: answer}, nil
				})
				transport := &partnerauth.Transport{Source: bombSource{&custom{partner: p}, b}, Origins: []string{origin}, Base: base}
				req, _ := http.NewRequest("POST", origin, request)
				req.GetBody = func() (io.ReadCloser, error) {
					b.at("GetBody")
					return io.NopCloser(strings.NewReader("body")), nil
				}
				func() {
					defer func() {
						if recover() == nil {
							t.Errorf("%s: the panic is lost", place)
						}
					}()
					transport.RoundTrip(req)
				}()
				if answered := place != "TokenContext" || use == 2; request.closed == 0 || answered && answer.closed == 0 {
					t.Errorf("panic in use %d of %s: body closed %d times, answer %d times, want both closed", use, place, request.closed, answer.closed)
				}
				time.Sleep(time.Hour)
			})
		}
	}
}

type base func(*http.Request) (*http.Response, error)

func (f base) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
