package partnerredis

import (
	"os"
	"syscall"
)

// freeze and thaw are the signals that stop a process and let it go on.
var freeze, thaw os.Signal = syscall.SIGSTOP, syscall.SIGCONT

// endWithTest makes a process end when the test does, however the test ends.
func endWithTest() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
