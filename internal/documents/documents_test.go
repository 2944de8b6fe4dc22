// Package documents checks what the repository's documents say: that their code compiles,
// that CI runs their commands, that what they name exists.
package documents

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

// fragment goes before a block that is not a whole file: the imports that it may
// need, and the names that the text around it has introduced.
const fragment = `package readme

import (
	"bytes"
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
	"net/http/cookiejar"
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

// modules are the nested modules whose code the documents show, in blocks that say
// so beside their language, and what such a block may also import. They have
// requirements that the root does not have, so only -modules compiles their blocks.
var modules = map[string][]string{
	"partnerfile":  {root + "/partnerfile"},
	"partnerredis": {root + "/partnerredis", "github.com/redis/go-redis/v9"},
	"partnertest":  {root + "/partnertest"},
}

const root = "github.com/partnerauth/partnerauth"

var nested = flag.Bool("modules", false, "also compile the documents' code for nested modules")

// TestMain runs the tests in the root of the repository.
func TestMain(m *testing.M) {
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// documents returns the names of the documents for users, whose code is compiled and
// whose commands are run.
func documents(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	must(t, err)
	errorIf(t, len(names) < 5, "found %d documents in docs, want more", len(names))
	return append([]string{"README.md"}, names...)
}

// document returns the text of a file of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	must(t, err)
	return string(text)
}

var fence = regexp.MustCompile("(?ms)^ *```([^`\n]*)\n(.*?)^ *```$")

// blocks returns the code blocks of text in a language, such as "go" or "go partnerredis".
func blocks(text, language string) []string {
	var found []string
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	return found
}

// goFile returns a block as a file: it is one, or it has declarations or
// statements, which may also use the packages of besides.
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

// TestReadmeCode compiles every Go block of the documents. A block need not use what it
// declares, since the reader's code does.
func TestReadmeCode(t *testing.T) {
	t.Parallel()
	var found []string
	shown := map[string][]string{}
	for _, name := range documents(t) {
		text := document(t, name)
		found = append(found, blocks(text, "go")...)
		for module := range modules {
			shown[module] = append(shown[module], blocks(text, "go "+module)...)
		}
	}
	errorIf(t, len(found) < 10, "found %d blocks of Go code, want more", len(found))
	compile(t, ".", nil, found)
	for module, besides := range modules {
		errorIf(t, len(shown[module]) == 0, "found no block of Go code for %s", module)
		if *nested {
			compile(t, module, besides, shown[module])
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

// TestReadmeCommands fails unless a script of CI runs every command of the documents,
// perhaps with more flags.
func TestReadmeCommands(t *testing.T) {
	var run []string
	for line := range strings.Lines(document(t, ".ci/run") + document(t, ".ci/outside")) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "step ") && !strings.HasPrefix(line, "echo ") {
			run = append(run, line)
		}
	}
	for _, name := range documents(t) {
		for _, command := range commands(document(t, name)) {
			whole := regexp.MustCompile(`(^|[\s"'(;&|])` + regexp.QuoteMeta(command) + `($|[\s"');&|])`)
			errorIf(t, !slices.ContainsFunc(run, whole.MatchString), "%s: no script of CI runs %q", name, command)
		}
	}
}

var inlineCommand = regexp.MustCompile("`(go (?:run|test) [^`]+)`")

// commands returns the commands of a document: those of its sh blocks, and go run and go
// test in its text.
func commands(text string) []string {
	found := strings.Split(strings.Join(blocks(text, "sh"), ""), "\n")
	for _, m := range inlineCommand.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		found = append(found, m[1])
	}
	for i, command := range found {
		found[i] = strings.TrimSpace(command)
	}
	return slices.DeleteFunc(found, func(command string) bool { return command == "" || strings.HasPrefix(command, "#") })
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

// TestDocumentLinks fails if a document links to a file or heading that does not exist.
func TestDocumentLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)`)
	for _, name := range append(documents(t), "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md") {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(document(t, name), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, heading, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if heading != "" && !slices.Contains(anchors(document(t, target)), heading) {
				t.Errorf("%s: %s has no heading #%s", name, target, heading)
			}
		}
	}
}

// anchors returns what GitHub makes of the headings of a document for links to them.
func anchors(text string) []string {
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		heading := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found = append(found, strings.ReplaceAll(heading, " ", "-"))
	}
	return found
}

// TestTelemetryNames fails unless docs/telemetry.md has every name of a span, metric or
// attribute, and no other.
func TestTelemetryNames(t *testing.T) {
	name := regexp.MustCompile("[\"`](partnerauth\\.[a-z_.]+[a-z])[\"`]")
	files, err := filepath.Glob("*.go")
	must(t, err)
	known, shown := map[string]bool{}, map[string]bool{}
	for _, file := range append(files, "partnerredis/telemetry.go") {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(document(t, file), -1) {
			known[m[1]] = true
		}
	}
	for _, m := range name.FindAllStringSubmatch(document(t, "docs/telemetry.md"), -1) {
		shown[m[1]] = true
		errorIf(t, !known[m[1]], "there is no %s", m[1])
	}
	for name := range known {
		errorIf(t, !shown[name], "docs/telemetry.md does not have %s", name)
	}
	errorIf(t, len(known) < 20, "found %d names, want more", len(known))
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func errorIf(t *testing.T, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Errorf(format, args...)
	}
}
