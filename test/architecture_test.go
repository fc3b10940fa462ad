package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var (
	hopFile = regexp.MustCompile("`([a-z0-9/_]+\\.go)`(?: `([A-Za-z]+)`)?")
	hopLine = regexp.MustCompile(`(?m)^\d+\. .*(\n   .*)*`)
)

// What docs/architecture.md says of the ways through the code is still there.
func TestWaysExist(t *testing.T) {
	text, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	hops := hopLine.FindAllString(string(text), -1)
	if len(hops) == 0 {
		t.Fatal("the document has no hops")
	}
	for _, hop := range hops {
		named := hopFile.FindAllStringSubmatch(hop, -1)
		if len(named) == 0 {
			t.Errorf("a hop names no file: %s", hop)
		}
		for _, m := range named {
			if file, function := m[1], m[2]; !hasFunction(t, file, function) {
				t.Errorf("%s has no function %q", file, function)
			}
		}
	}
}

// hasFunction tells whether file, relative to the module, declares a function or
// method of this name; "": whether it exists.
func hasFunction(t *testing.T, file, name string) bool {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", file), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return true
	}
	for _, decl := range parsed.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Name.Name == name {
			return true
		}
	}
	return name == ""
}
