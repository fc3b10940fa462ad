package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// Every module that is imported has its reason in docs/dependencies.md, and
// nothing else has.
func TestEveryDependencyHasItsReason(t *testing.T) {
	page, err := os.ReadFile("../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(.+)` \\| .{20,} \\|$").FindAllStringSubmatch(string(page), -1) {
		reasons[row[1]] = true
	}
	imported := importedModules(t)
	for module := range imported {
		if !reasons[module] {
			t.Errorf("docs/dependencies.md has no reason for %s", module)
		}
	}
	for module := range reasons {
		if !imported[module] {
			t.Errorf("docs/dependencies.md lists %s, which nothing imports", module)
		}
	}
}

// importedModules are the modules of go.mod that this module's packages and
// tests import.
func importedModules(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatalf("go mod edit: %v", err)
	}
	var mod struct{ Require []struct{ Path string } }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	imported := map[string]bool{}
	for _, p := range packages(t) {
		for _, path := range append(append(p.Imports, p.TestImports...), p.XTestImports...) {
			longest := ""
			for _, module := range mod.Require {
				if within(path, module.Path) && len(module.Path) > len(longest) {
					longest = module.Path
				}
			}
			if longest != "" {
				imported[longest] = true
			}
		}
	}
	return imported
}
