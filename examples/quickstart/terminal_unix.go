//go:build linux || darwin || freebsd

package main

import (
	"syscall"
	"unsafe"
)

// terminalWidth returns the columns of the terminal behind fd, which is 0 where
// the terminal does not know, and whether there is one.
func terminalWidth(fd uintptr) (columns int, ok bool) {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	return int(size.columns), errno == 0
}
