// Command byhand compares a program that uses package partnerauth with one that
// stacks oauth2.Transport, rate.Limiter and otelhttp: lines of code that its author
// maintains, modules that it is built from, and the size of the stripped binary.
//
//	go run -C bench ./byhand
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	dir, err := os.MkdirTemp("", "byhand")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fmt.Println("| program | lines | modules | binary |")
	fmt.Println("|---|--:|--:|--:|")
	for _, name := range []string{"bare", "stack", "partnerauth"} {
		source, err := os.ReadFile(filepath.Join("byhand", name, "main.go"))
		if err != nil {
			log.Fatal(err)
		}
		binary := filepath.Join(dir, name)
		run("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./byhand/"+name)
		info, err := os.Stat(binary)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("| %s | %d | %d | %.1f MB |\n", name, lines(source), modules(name), float64(info.Size())/1e6)
	}
}

// lines counts those that are neither empty nor a comment.
func lines(source []byte) int {
	n := 0
	for line := range bytes.Lines(source) {
		if line = bytes.TrimSpace(line); len(line) > 0 && !bytes.HasPrefix(line, []byte("//")) {
			n++
		}
	}
	return n
}

// modules counts those that packages of the program come from, its own left out.
func modules(name string) int {
	const format = `{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}`
	found := map[string]bool{}
	for module := range strings.FieldsSeq(run("go", "list", "-deps", "-f", format, "./byhand/"+name)) {
		found[module] = true
	}
	return len(found)
}

func run(name string, args ...string) string {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		log.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}
