package main

import (
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Columns of a row: its label, status, duration and bar.
const (
	labelWidth = 42
	rowFormat  = "%s %s %6s  %s\n" // 13 columns beside label and bar
	rowRest    = 13
	minBar     = 8
	maxBar     = 60
)

// A screen is what the output is shown on.
type screen struct {
	columns int
	color   bool
}

// screenOf returns the screen for out. COLUMNS sets its width; without it, the
// width is the terminal's, or 80. There is color on a terminal only, and none if
// NO_COLOR is set (no-color.org).
func screenOf(out io.Writer, getenv func(string) string) screen {
	s := screen{columns: 80}
	if file, ok := out.(interface{ Fd() uintptr }); ok {
		if columns, terminal := terminalWidth(file.Fd()); terminal {
			s.color = getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
			if columns > 0 {
				s.columns = columns
			}
		}
	}
	if columns, err := strconv.Atoi(getenv("COLUMNS")); err == nil && columns > 0 {
		s.columns = columns
	}
	s.columns = max(s.columns, 40)
	return s
}

// widths are those of labels and bars. Bars shrink before labels do, and the
// last column stays free.
func (s screen) widths() (label, bar int) {
	free := s.columns - 1 - rowRest
	label = min(labelWidth, free-minBar)
	return label, min(free-label, maxBar)
}

// A color is the number of an ANSI escape sequence.
type color int

const (
	bold   color = 1
	faint  color = 2
	red    color = 31
	green  color = 32
	yellow color = 33
)

func (s screen) paint(c color, text string) string {
	if !s.color || c == 0 || text == "" {
		return text
	}
	return "\x1b[" + strconv.Itoa(int(c)) + "m" + text + "\x1b[0m"
}

// fit cuts text that is longer than width.
func fit(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// pad returns text behind a prefix, cut or filled up to width.
func pad(text string, width int, prefix string) string {
	text = fit(prefix+text, width)
	return text + strings.Repeat(" ", width-utf8.RuneCountInString(text))
}
