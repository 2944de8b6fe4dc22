//go:build !unix

package main

import "os"

// lock does nothing here: two runs at once on one sheet are the user's to avoid.
func lock(*os.File) error { return nil }
