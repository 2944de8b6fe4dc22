package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// A count is what a partner counted, and what happened meanwhile.
type count struct {
	requests                 []time.Duration // after the beginning
	logins, code401, code429 int
	served                   []int // by worker
	during, revoked, killed  time.Duration
	victim                   int
}

func newCount(p *partnertest.NowPost, workers int, began time.Time) count {
	c := count{logins: p.Logins(), code401: p.Status(401), code429: p.Status(429), served: make([]int, workers)}
	for _, r := range p.Requests() {
		c.requests = append(c.requests, r.Time.Sub(began))
		if n, err := strconv.Atoi(r.Header.Get(workerHeader)); err == nil && r.Status == 200 {
			c.served[n-1]++
		}
	}
	return c
}

// in is the number of requests in the window that ends at t.
func (c count) in(t time.Duration) (n int) {
	for _, r := range c.requests {
		if r > t-window && r <= t {
			n++
		}
	}
	return n
}

// most is the most in any window that ends from one time to another.
func (c count) most(from, to time.Duration) int {
	n := c.in(from)
	for _, r := range c.requests {
		if r > from && r <= to {
			n = max(n, c.in(r))
		}
	}
	return n
}

func (c count) peak() int { return c.most(0, c.during+window) }

func span(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }

// draw draws both side by side, to the same scale.
func draw(w io.Writer, counts [2]count) {
	top, scale := max(limit, counts[shared].peak(), counts[alone].peak()), 10
	for _, wider := range []int{20, 25, 50, 100} { // so that a row begins at the limit
		if top > 14*scale {
			scale = wider
		}
	}
	rows := max((top+scale-1)/scale, limit/scale+1)
	left, right := counts[shared].plot(rows, scale), counts[alone].plot(rows, scale)
	fmt.Fprintf(w, "%-40s%s\n", "With Redis: requests in any "+span(window), "Without: requests in any "+span(window))
	for i := range left {
		fmt.Fprintln(w, strings.TrimRight(left[i]+" "+right[i], " "))
	}
	victim := counts[shared].victim
	fmt.Fprintf(w, "··· the limit   ▒ above it   R tokens revoked   K worker %d killed\n\n", victim+1)

	fmt.Fprintf(w, "%-30s%12s%12s\n", "What the partner counted", "with Redis", "without")
	line := func(text string, what func(count) int) {
		fmt.Fprintf(w, "%-30s%12d%12d\n", text, what(counts[shared]), what(counts[alone]))
	}
	line("most requests in any "+span(window), count.peak)
	line("logins", func(c count) int { return c.logins })
	line("401s", func(c count) int { return c.code401 })
	line("429s", func(c count) int { return c.code429 })
	for i := range counts[shared].served {
		text := fmt.Sprint("served to worker ", i+1)
		if i == victim {
			text += ", killed"
		}
		line(text, func(c count) int { return c.served[i] })
	}
}

// plot is lines of 39 characters, so that two fit into 80.
func (c count) plot(rows, scale int) (lines []string) {
	const columns = 34
	at := func(x int) time.Duration { return c.during * time.Duration(x) / columns }
	for row := rows - 1; row >= 0; row-- {
		from, label := row*scale, ""
		if to := from + scale; to%limit == 0 {
			label = strconv.Itoa(to)
		}
		line := fmt.Sprintf("%4s│", label)
		for x := range columns {
			switch n := c.most(at(x), at(x+1)); {
			case n > from && from >= limit:
				line += "▒"
			case n > from:
				line += string([]rune("▁▁▂▃▄▅▆▇█")[min(8, (n-from)*8/scale)])
			case from == limit:
				line += "·"
			default:
				line += " "
			}
		}
		lines = append(lines, line)
	}
	axis := []rune(strings.Repeat("─", columns))
	axis[columns*c.revoked/c.during], axis[columns*c.killed/c.during] = 'R', 'K'
	return append(lines, "   0└"+string(axis), fmt.Sprintf("%5s0%*s", "", columns-1, span(c.during)))
}
