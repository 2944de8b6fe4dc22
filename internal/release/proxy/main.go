// Command proxy writes a module proxy into a directory: the modules of this
// repository at one version, as go get would find them once they are tagged.
//
//	go run ./proxy ROOT VERSION DIR MODULE...
//
// ROOT is the top of the repository, and each MODULE is a directory below it. A
// zip holds the files that git tracks, with their present content. Use the proxy
// with GOPROXY=file://DIR and GONOSUMDB set to the path of the root module.
package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 5 {
		log.Fatal("usage: proxy ROOT VERSION DIR MODULE...")
	}
	root, version, proxy := os.Args[1], os.Args[2], os.Args[3]
	for _, dir := range os.Args[4:] {
		if err := publish(root, version, proxy, dir); err != nil {
			log.Fatalf("proxy: %s: %v", dir, err)
		}
	}
}

// publish writes the module in a directory below root into the proxy.
func publish(root, version, proxy, dir string) error {
	goMod, err := os.ReadFile(filepath.Join(root, dir, "go.mod"))
	if err != nil {
		return err
	}
	mod := module.Version{Path: modfile.ModulePath(goMod), Version: version}
	escaped, err := module.EscapePath(mod.Path)
	if err != nil {
		return err
	}
	files, err := tracked(root, dir)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := zip.Create(&archive, mod, files); err != nil {
		return err
	}
	at := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"list":            []byte(version + "\n"),
		version + ".info": fmt.Appendf(nil, "{\"Version\":%q}\n", version),
		version + ".mod":  goMod,
		version + ".zip":  archive.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(at, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tracked returns the files of the module in dir that git tracks. zip.Create
// leaves out those of modules below it. A module without a LICENSE gets the
// repository's, as it does from a tag.
func tracked(root, dir string) ([]zip.File, error) {
	list := exec.Command("git", "ls-files", "-z", "--", ".")
	list.Dir = filepath.Join(root, dir)
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	var files []zip.File
	licensed := false
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		on := filepath.Join(root, dir, filepath.FromSlash(name))
		if _, err := os.Lstat(on); os.IsNotExist(err) {
			continue // deleted and not committed yet
		}
		licensed = licensed || name == "LICENSE"
		files = append(files, file{path.Clean(name), on})
	}
	if !licensed {
		files = append(files, file{"LICENSE", filepath.Join(root, "LICENSE")})
	}
	return files, nil
}

// A file of a module has a path in it, and one on disk.
type file struct{ name, disk string }

func (f file) Path() string                 { return f.name }
func (f file) Lstat() (fs.FileInfo, error)  { return os.Lstat(f.disk) }
func (f file) Open() (io.ReadCloser, error) { return os.Open(f.disk) }
