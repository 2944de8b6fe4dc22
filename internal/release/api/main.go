// Command api lists what the packages of a module export: one line for each name,
// field and method, sorted, so that a review sees a change of the surface as
// lines added and removed. A line that is gone may break somebody's build, and
// a line that is only added does not.
//
//	go run ./api MODULE
//
// MODULE is the module's directory. Internal packages and commands export
// nothing. Names of parameters are left out, since callers do not depend on
// them, and so are methods promoted from an embedded type that is listed itself.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: api MODULE")
	}
	lines, err := listing(os.Args[1])
	if err != nil {
		log.Fatalf("api: %s: %v", os.Args[1], err)
	}
	for _, line := range lines {
		fmt.Println(line)
	}
}

// listing returns the sorted lines for the module in dir.
func listing(dir string) ([]string, error) {
	list := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Name,Export,DepOnly,Module", "./...")
	list.Dir = dir
	out, err := list.Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			return nil, fmt.Errorf("go list: %s", failed.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	compiled := map[string]string{}
	var lines []string
	imports := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(compiled[path])
	})
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Name, Export string
			DepOnly                  bool
			Module                   struct{ Path string }
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		compiled[p.ImportPath] = p.Export
		if !p.DepOnly && p.Name != "main" && !slices.Contains(strings.Split(p.ImportPath, "/"), "internal") {
			pkg, err := imports.Import(p.ImportPath) // what it imports is listed before it
			if err != nil {
				return nil, err
			}
			prefix := ""
			if below, ok := strings.CutPrefix(p.ImportPath, p.Module.Path+"/"); ok {
				prefix = below + ": "
			}
			lines = append(lines, exported(pkg, prefix)...)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// exported returns the lines for one package, each after a prefix.
func exported(pkg *types.Package, prefix string) []string {
	l := &surface{pkg: pkg, prefix: prefix}
	for _, name := range pkg.Scope().Names() {
		obj := pkg.Scope().Lookup(name)
		if !obj.Exported() {
			continue
		}
		switch obj := obj.(type) {
		case *types.Const:
			l.add("const %s %s = %s", name, l.text(obj.Type()), obj.Val().ExactString())
		case *types.Var:
			l.add("var %s %s", name, l.text(obj.Type()))
		case *types.Func:
			l.add("func %s%s", name, l.signature(obj))
		case *types.TypeName:
			l.typeName(obj)
		}
	}
	return l.lines
}

// A surface collects the lines of one package.
type surface struct {
	pkg    *types.Package
	prefix string
	lines  []string
}

func (l *surface) add(format string, args ...any) {
	l.lines = append(l.lines, l.prefix+fmt.Sprintf(format, args...))
}

func (l *surface) typeName(obj *types.TypeName) {
	name := obj.Name()
	if obj.IsAlias() {
		l.add("type %s = %s", name, l.text(types.Unalias(obj.Type())))
		return
	}
	if named, ok := obj.Type().(*types.Named); ok && named.TypeParams().Len() > 0 {
		name = l.text(named) // with its type parameters
	}
	switch t := obj.Type().Underlying().(type) {
	case *types.Interface:
		l.contract(name, t)
		return // its methods are in its line: one more breaks who implements it
	case *types.Struct:
		comparable := ""
		if types.Comparable(t) {
			comparable = ", comparable"
		}
		l.add("type %s struct%s", name, comparable)
		l.fields(name, t)
	default:
		l.add("type %s %s", name, l.text(t))
	}
	values := types.NewMethodSet(obj.Type())
	for selection := range types.NewMethodSet(types.NewPointer(obj.Type())).Methods() {
		method := selection.Obj().(*types.Func)
		if !method.Exported() || promoted(obj.Type(), selection.Index()) {
			continue
		}
		receiver := "*" + name
		if values.Lookup(method.Pkg(), method.Name()) != nil {
			receiver = name
		}
		l.add("type %s: method (%s) %s%s", name, receiver, method.Name(), l.signature(method))
	}
}

// fields adds the exported fields of a struct, those of unexported embedded
// structs among them.
func (l *surface) fields(name string, t *types.Struct) {
	for field := range t.Fields() {
		embedded, isStruct := field.Type().Underlying().(*types.Struct)
		switch {
		case field.Exported() && field.Embedded():
			l.add("type %s: embedded %s", name, l.text(field.Type()))
		case field.Exported():
			l.add("type %s: field %s %s", name, field.Name(), l.text(field.Type()))
		case field.Embedded() && isStruct:
			l.fields(name, embedded)
		}
	}
}

// promoted reports whether the method of t at index comes from an exported
// embedded field.
func promoted(t types.Type, index []int) bool {
	s, ok := t.Underlying().(*types.Struct)
	return ok && len(index) > 1 && s.Field(index[0]).Exported()
}

// contract adds the line of an interface.
func (l *surface) contract(name string, t *types.Interface) {
	var methods []string
	sealed := false
	for method := range t.Methods() {
		if method.Exported() {
			methods = append(methods, method.Name()+l.signature(method))
		} else {
			sealed = true
		}
	}
	slices.Sort(methods)
	if sealed {
		methods = append(methods, "unexported methods")
	}
	for embedded := range t.EmbeddedTypes() {
		if _, union := embedded.Underlying().(*types.Interface); !union {
			methods = append(methods, l.text(embedded))
		}
	}
	l.add("type %s interface { %s }", name, strings.Join(methods, "; "))
}

func (l *surface) signature(f *types.Func) string {
	return strings.TrimPrefix(l.text(f.Type()), "func")
}

// text is a type as source has it, with packages by their import paths, and
// without names of parameters.
func (l *surface) text(t types.Type) string {
	return types.TypeString(unnamed(t), types.RelativeTo(l.pkg))
}

// unnamed returns a type without the names of parameters in it.
func unnamed(t types.Type) types.Type {
	switch t := t.(type) {
	case *types.Signature:
		var params []*types.TypeParam
		for p := range t.TypeParams().TypeParams() {
			params = append(params, p)
		}
		if len(params) > 0 {
			return t // it cannot be taken apart
		}
		return types.NewSignatureType(nil, nil, nil, tuple(t.Params()), tuple(t.Results()), t.Variadic())
	case *types.Pointer:
		return types.NewPointer(unnamed(t.Elem()))
	case *types.Slice:
		return types.NewSlice(unnamed(t.Elem()))
	case *types.Array:
		return types.NewArray(unnamed(t.Elem()), t.Len())
	case *types.Map:
		return types.NewMap(unnamed(t.Key()), unnamed(t.Elem()))
	case *types.Chan:
		return types.NewChan(t.Dir(), unnamed(t.Elem()))
	}
	return t
}

func tuple(t *types.Tuple) *types.Tuple {
	var vars []*types.Var
	for v := range t.Variables() {
		vars = append(vars, types.NewParam(token.NoPos, nil, "", unnamed(v.Type())))
	}
	return types.NewTuple(vars...)
}
