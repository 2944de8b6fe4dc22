package partnerredis

import (
	"context"
	_ "embed"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

//go:embed testdata/grant-1.lua
var grant1 string

// A version1 client runs the script of the version before in place of the present
// one: its questions have no good answers and no check of the clock, and its
// answers tell nothing of the window, the pace and the burst.
type version1 struct{ redis.Scripter }

func (v version1) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	const numbers, added = 16, 3
	old := append(append([]any{}, args[:numbers]...), args[numbers+added:]...)
	old[9], old[10] = 0, 0 // lessons differ
	cmd := v.Eval(ctx, grant1, keys, old...)
	if answer, err := cmd.Slice(); err == nil {
		const head = 6
		cmd.SetVal(append(append(append([]any{}, answer[:head]...), int64(1<<30), int64(1e6), int64(args[4].(int))), answer[head:]...))
	}
	return cmd
}

// TestTwoVersions has processes of two versions on one Redis, as in the middle of
// a deploy, in both orders.
func TestTwoVersions(t *testing.T) {
	t.Parallel()
	for _, olderFirst := range []bool{true, false} {
		t.Run(map[bool]string{true: "a deploy", false: "a rollback"}[olderFirst], func(t *testing.T) {
			t.Parallel()
			s, p := startServer(t), newPartner(t, 100, window)
			run := func(old bool, n int) (wait func()) {
				var all sync.WaitGroup
				for range n {
					all.Go(func() {
						client := s.client()
						defer client.Close()
						q := &Quota{Client: client, Name: "test", Requests: 100, Window: window}
						if old {
							q.Client = version1{client}
						}
						job{Partner: p.URL, Hungry: 20, For: 3 * window}.run(q)
					})
				}
				return all.Wait
			}
			first := run(olderFirst, 3)
			until(t, 2*window, "the first version has sent", func() bool { return p.total() > 120 })
			second := run(!olderFirst, 3)
			first()
			second()
			c := p.result(0, 4*window)
			t.Log(c)
			if c.refused > 0 || c.fullest > 100 || c.total < 300 {
				t.Errorf("got %v, want none refused, at most 100 in a window, and 300 requests", c)
			}
		})
	}
}
