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

const legend = `Every call below is a plain Do of http.Client. Under it is what the call took, span by span:
███ a request, ××× one that was refused, ░░░ a wait for the quota, ─── a step made of others.

`

// row is a line of a picture: its left part, status, duration, right part. With
// the widest bar it has 98 columns.
const (
	row      = "%-47.47s %3s %7s  %s\n"
	barWidth = 38
)

const (
	waitName  = "partnerauth.rate_limit.wait"
	fetchName = "partnerauth.token.fetch"
)

// draw draws a call: a line, and below it the tree of its spans, each with a bar
// on the time scale of the call. A call that failed before anything began has no
// spans, and no picture.
func draw(out io.Writer, number int, name, status string, spans []trace.ReadOnlySpan) {
	if len(spans) == 0 {
		return
	}
	t := newTree(spans)
	fmt.Fprintf(out, row, fmt.Sprintf("%2d  %s", number, name), status, length(t.ends.Sub(t.starts)), t.story())
	t.draw(out, oteltrace.SpanID{}, "    ")
	fmt.Fprintln(out)
}

// A tree is the spans of a call by parentage, siblings by their start.
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

// draw draws what is under parent, which for roots is the zero SpanID.
func (t *tree) draw(out io.Writer, parent oteltrace.SpanID, indent string) {
	siblings := t.children[parent]
	for i, s := range siblings {
		branch, stem := "├─ ", "│  "
		switch {
		case !parent.IsValid():
			branch, stem = "", ""
		case i == len(siblings)-1:
			branch, stem = "└─ ", "   "
		}
		label := indent + branch + s.Name() + " " + value(s, "partnerauth.token.operation")
		fmt.Fprintf(out, row, label, outcome(s), length(s.EndTime().Sub(s.StartTime())), t.bar(s))
		t.draw(out, s.SpanContext().SpanID(), indent+stem)
	}
}

func (t *tree) bar(s trace.ReadOnlySpan) string {
	total := max(1, t.ends.Sub(t.starts))
	column := func(at time.Time) int { return int((barWidth*at.Sub(t.starts) + total/2) / total) }
	from := min(column(s.StartTime()), barWidth-1)
	to := max(column(s.EndTime()), from+1) // the shortest can be seen

	stroke := "█"
	switch {
	case len(t.children[s.SpanContext().SpanID()]) > 0:
		stroke = "─"
	case s.Status().Code == codes.Error:
		stroke = "×"
	case s.Name() == waitName:
		stroke = "░"
	}
	return strings.Repeat(" ", from) + strings.Repeat(stroke, to-from)
}

// outcome is the status of a request's answer, or tells that there was an error.
func outcome(s trace.ReadOnlySpan) string {
	if status := value(s, "http.response.status_code"); status != "" && s.SpanKind() == oteltrace.SpanKindClient {
		return status
	}
	if s.Status().Code == codes.Error {
		return "ERR"
	}
	return ""
}

// story tells in a few words what happened on the way to the answer.
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

// value is that of an attribute of s, "" if it has none.
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
