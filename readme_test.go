package partnerauth_test

import (
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/doc"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fragment is what the README's code that is no whole file stands in: imports,
// of which it needs some, and the names that a reader has from what is around.
const fragment = `package readme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/oauth2"
)

var (
	ctx    context.Context
	shop   partnerauth.NowPost
	client *http.Client
	req    *http.Request
	roots  *x509.CertPool
	err    error
)
`

// modules are the nested modules whose code the README shows, in blocks that say
// so beside their language, and what such a block may import besides. They have
// requirements that the root has not, so their blocks are for -modules alone.
var modules = map[string][]string{
	"partnerfile":  {root + "/partnerfile"},
	"partnerredis": {root + "/partnerredis", "github.com/redis/go-redis/v9"},
	"partnertest":  {root + "/partnertest"},
}

const root = "github.com/partnerauth/partnerauth"

var nested = flag.Bool("modules", false, "compile the README's code for nested modules, too")

// document is a Markdown file of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	must(t, err)
	return string(text)
}

var fence = regexp.MustCompile("(?ms)^ *```([^`\n]*)\n(.*?)^ *```$")

// blocks are the code blocks of text in a language, such as go, or go and a module.
func blocks(text, language string) []string {
	var found []string
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	return found
}

// goFile makes a file of a block: it is one, or it holds declarations or
// statements, which may use the packages that are imported besides.
func goFile(fset *token.FileSet, block string, besides []string) (*ast.File, error) {
	if strings.HasPrefix(block, "package ") {
		return parser.ParseFile(fset, "README.md", block, parser.SkipObjectResolution)
	}
	fragment := fragment
	for _, path := range besides {
		fragment = strings.Replace(fragment, "import (", fmt.Sprintf("import (\n%q", path), 1)
	}
	file, err := parser.ParseFile(fset, "README.md", fragment+block, parser.SkipObjectResolution)
	if err != nil {
		file, err = parser.ParseFile(fset, "README.md", fragment+"func _() {\n"+block+"}\n", parser.SkipObjectResolution)
	}
	return file, err
}

// exports has the compiled form of every package that a fragment can import in
// the module of a directory.
func exports(t *testing.T, dir string, besides []string) types.Importer {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "", fragment, parser.ImportsOnly)
	must(t, err)
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}
	for _, spec := range file.Imports {
		args = append(args, strings.Trim(spec.Path.Value, `"`))
	}
	list := exec.Command("go", append(args, besides...)...)
	list.Dir = dir
	out, err := list.Output()
	if err != nil {
		var failed *exec.ExitError
		errors.As(err, &failed)
		t.Fatalf("go list: %v\n%s", err, failed.Stderr)
	}
	compiled := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, export, _ := strings.Cut(strings.TrimSpace(line), " ")
		compiled[path] = export
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		if compiled[path] == "" {
			return nil, fmt.Errorf("%s is not among the packages that the README may import", path)
		}
		return os.Open(compiled[path])
	})
}

// Every Go block of the README compiles. What it declares or imports it need
// not use: the reader's code does.
func TestReadmeCode(t *testing.T) {
	t.Parallel()
	found := blocks(document(t, "README.md"), "go")
	errorIf(t, len(found) < 5, "found %d blocks of Go code, want more", len(found))
	compile(t, ".", nil, found)
	for module, besides := range modules {
		found := blocks(document(t, "README.md"), "go "+module)
		errorIf(t, len(found) == 0, "found no block of Go code for %s", module)
		if *nested {
			compile(t, module, besides, found)
		}
	}
}

// compile type-checks blocks of Go code in the module of a directory.
func compile(t *testing.T, dir string, besides, blocks []string) {
	t.Helper()
	packages := exports(t, dir, besides)
	for _, block := range blocks {
		fset := token.NewFileSet()
		file, err := goFile(fset, block, besides)
		if err != nil {
			t.Errorf("%v in\n%s", err, block)
			continue
		}
		config := types.Config{Importer: packages, Error: func(err error) {
			var mistake types.Error
			if errors.As(err, &mistake) && !mistake.Soft {
				t.Errorf("%s in\n%s", mistake.Msg, block)
			}
		}}
		config.Check("readme", fset, []*ast.File{file}, nil)
	}
}

// Every command of the README is run by .ci/run, or by .ci/outside which it
// runs, there perhaps with more flags.
func TestReadmeCommands(t *testing.T) {
	var run []string
	for line := range strings.Lines(document(t, ".ci/run") + document(t, ".ci/outside")) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "step ") && !strings.HasPrefix(line, "echo ") {
			run = append(run, line)
		}
	}
	readme := document(t, "README.md")
	commands := strings.Split(strings.Join(blocks(readme, "sh"), ""), "\n")
	for _, inline := range regexp.MustCompile("`(go (?:run|test) [^`]+)`").FindAllStringSubmatch(readme, -1) {
		commands = append(commands, inline[1])
	}
	for _, command := range commands {
		command = strings.TrimSpace(command)
		if command == "" || strings.HasPrefix(command, "#") {
			continue
		}
		whole := regexp.MustCompile(`(^|[\s"'(;&|])` + regexp.QuoteMeta(command) + `($|[\s"');&|])`)
		if !slices.ContainsFunc(run, whole.MatchString) {
			t.Errorf("no line of .ci/run or .ci/outside runs %q", command)
		}
	}
}

// Every test that SECURITY.md names exists, and every promise there has one.
func TestSecurityTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	var code strings.Builder
	for _, file := range files {
		code.WriteString(document(t, file))
	}
	promises := 0
	for line := range strings.Lines(document(t, "SECURITY.md")) {
		names := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`).FindAllString(line, -1)
		if regexp.MustCompile(`^\| \d+ \|`).MatchString(line) {
			promises++
			errorIf(t, len(names) == 0, "a promise without a test: %s", line)
		}
		for _, name := range names {
			errorIf(t, !strings.Contains(code.String(), "\nfunc "+name+"("), "there is no %s: %s", name, line)
		}
	}
	errorIf(t, promises < 20, "found %d promises, want more", promises)
}

// What the documents link to in the repository is there.
func TestDocumentLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)`)
	for _, name := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} {
		for _, m := range link.FindAllStringSubmatch(document(t, name), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			_, err := os.Stat(m[1])
			errorIf(t, err != nil, "%s: %v", name, err)
		}
	}
}

// What pkg.go.dev shows of the examples are whole programs that can be copied.
func TestExamplesCanBeCopied(t *testing.T) {
	names, err := filepath.Glob("example*_test.go")
	errorIf(t, err != nil || len(names) == 0, "no examples: %v", err)
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		errorIf(t, err != nil, "%v", err)
		for _, example := range doc.Examples(file) {
			errorIf(t, example.Play == nil, "Example%s needs something that is not shown", example.Name)
			for _, i := range file.Imports {
				errorIf(t, strings.Contains(i.Path.Value, "/internal/"), "%s imports %s", name, i.Path.Value)
			}
		}
	}
}
