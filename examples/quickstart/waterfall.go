package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
)

const legend = `Each numbered call is a plain Do of an http.Client. Below it are its spans:
███ a request, ××× a refused one, ░░░ a wait for the quota, ─── a step made of
others.

`

const (
	waitName  = "partnerauth.rate_limit.wait"
	fetchName = "partnerauth.token.fetch"
)

// draw draws a call: what it was, what happened, and the tree of its spans, each
// with a bar on the time scale of the call. A call that failed before anything
// began has no spans, and no picture.
func (s screen) draw(out io.Writer, number int, name, status string, spans []trace.ReadOnlySpan) {
	if len(spans) == 0 {
		return
	}
	t := newTree(spans)
	took := fmt.Sprintf(": %s after %s", status, length(t.ends.Sub(t.starts)))
	title := fmt.Sprintf("%2d  %s", number, name)
	fmt.Fprintln(out, s.paint(bold, fit(title, s.columns-1-len(took))+took))
	fmt.Fprintln(out, fit("    "+t.story(), s.columns-1))
	t.draw(out, s, oteltrace.SpanID{}, " ")
	fmt.Fprintln(out)
}

// A tree has the spans of a call by their parents, siblings in the order of their
// start.
type tree struct {
	spans        []trace.ReadOnlySpan // by their start
	children     map[oteltrace.SpanID][]trace.ReadOnlySpan
	starts, ends time.Time
}

func newTree(spans []trace.ReadOnlySpan) *tree {
	slices.SortFunc(spans, func(a, b trace.ReadOnlySpan) int {
		return cmp.Or(a.StartTime().Compare(b.StartTime()), b.EndTime().Compare(a.EndTime()))
	})
	t := &tree{spans: spans, children: map[oteltrace.SpanID][]trace.ReadOnlySpan{}, starts: spans[0].StartTime()}
	for _, s := range spans {
		t.children[s.Parent().SpanID()] = append(t.children[s.Parent().SpanID()], s)
		if s.EndTime().After(t.ends) {
			t.ends = s.EndTime()
		}
	}
	return t
}

// draw draws the spans below parent, which for roots is the zero SpanID.
func (t *tree) draw(out io.Writer, on screen, parent oteltrace.SpanID, indent string) {
	labels, bars := on.widths()
	siblings := t.children[parent]
	for i, s := range siblings {
		branch, stem := "├─ ", "│  "
		switch {
		case !parent.IsValid():
			branch, stem = "", ""
		case i == len(siblings)-1:
			branch, stem = "└─ ", "   "
		}
		label := pad(strings.TrimSpace(s.Name()+" "+value(s, "partnerauth.token.operation")), labels, indent+branch)
		outcome := pad(outcome(s), 3, "")
		if s.Status().Code == codes.Error {
			outcome = on.paint(red, outcome)
		}
		from, to := t.extent(s, bars)
		stroke, with := t.stroke(s)
		bar := strings.Repeat(" ", from) + on.paint(with, strings.Repeat(stroke, to-from))
		fmt.Fprintf(out, rowFormat, label, outcome, length(s.EndTime().Sub(s.StartTime())), bar)
		t.draw(out, on, s.SpanContext().SpanID(), indent+stem)
	}
}

// extent returns where the bar of s begins and ends. The shortest has one column.
func (t *tree) extent(s trace.ReadOnlySpan, width int) (from, to int) {
	total := max(1, t.ends.Sub(t.starts))
	column := func(at time.Time) int { return int((time.Duration(width)*at.Sub(t.starts) + total/2) / total) }
	from = min(column(s.StartTime()), width-1)
	return from, max(column(s.EndTime()), from+1)
}

// stroke returns what the bar of s is made of.
func (t *tree) stroke(s trace.ReadOnlySpan) (string, color) {
	switch {
	case len(t.children[s.SpanContext().SpanID()]) > 0:
		return "─", faint
	case s.Status().Code == codes.Error:
		return "×", red
	case s.Name() == waitName:
		return "░", yellow
	}
	return "█", green
}

// outcome is the status of a request's answer, or ERR.
func outcome(s trace.ReadOnlySpan) string {
	if status := value(s, "http.response.status_code"); status != "" && s.SpanKind() == oteltrace.SpanKindClient {
		return status
	}
	if s.Status().Code == codes.Error {
		return "ERR"
	}
	return ""
}

// story is what happened on the way to the answer, in a few words.
func (t *tree) story() string {
	var events []string
	for _, s := range t.spans {
		failed := s.Status().Code == codes.Error
		switch {
		case s.Name() == waitName:
			events = append(events, "waited "+length(s.EndTime().Sub(s.StartTime())))
		case s.Name() == fetchName && failed:
			events = append(events, "could not sign in")
		case s.Name() == fetchName && value(s, "partnerauth.token.trigger") == "unauthorized":
			events = append(events, "signed in again")
		case s.Name() == fetchName:
			events = append(events, "signed in")
		case failed && s.SpanKind() == oteltrace.SpanKindClient:
			events = append(events, outcome(s))
		}
	}
	if len(events) == 0 {
		return "still signed in"
	}
	return strings.Join(events, " → ")
}

// value returns an attribute of s as text, "" if it has none.
func value(s trace.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

func length(d time.Duration) string {
	if d < 999500*time.Microsecond {
		return fmt.Sprintf("%.0fms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}
