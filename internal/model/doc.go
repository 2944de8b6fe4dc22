// Package model walks through random histories of the package against a plain
// reference, in virtual time. It has no code but its tests.
//
// Each property draws a history as plain data, plays it in a bubble with play,
// and looks at what the partner and the callers have seen. To add one: draw with
// rapid outside of play, let a partner answer inside of it, and report with
// rt.Errorf. The rules are those of the package's documentation:
//
//	go test -rapid.checks 2000 -run TestOrder .
package model
