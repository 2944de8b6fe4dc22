//go:build !linux

package partnerredis

import (
	"os"
	"syscall"
)

// freeze and thaw are the signals that stop a process and let it go on. Not
// every system has them, and the tests that need them fail there.
var freeze, thaw os.Signal = syscall.Signal(0), syscall.Signal(0)

// endWithTest would make a process end when the test does, which only Linux can.
func endWithTest() *syscall.SysProcAttr { return nil }
