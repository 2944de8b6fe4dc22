//go:build unix

package main

import (
	"errors"
	"os"
	"syscall"
)

// lock keeps a second run, such as the next one of a cron job, from creating the same orders. It ends with the process.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another run is at work on this sheet")
	}
	return err
}
