package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cuttingRuntime is an OCI runtime that, the first time it runs a container, does
// what a real one does up to a point, and there is killed together with the runner.
// %[1]s is the real one, %[2]s what it does instead of run. It does not tell the pid.
const cuttingRuntime = `#!/bin/sh
root=$2
case " $* " in *" run --detach "*)
	if [ ! -e "$root.cut" ]; then
		: >"$root.cut"
		for bundle; do [ "$previous" = --bundle ] && break; previous=$bundle; done
		%[2]s
		kill -9 $PPID $$
	fi
esac
exec %[1]s "$@"
`

// A start may be cut at any point of its runtime's work. Whoever comes next finds
// out from the runtime whether the program has begun: then it is adopted. If it has
// not, it is begun, with nothing in its way. If nobody can tell, it is not begun.
func TestStartIsCut(t *testing.T) {
	const id = `"$(basename "$bundle")"`
	for _, test := range []struct {
		name, first string // what the killed runtime has done
		script      string
		wantUnknown bool
	}{
		{"before-anything", ":", "exit 7", false},
		{"with-its-state-begun", `mkdir "$root/"` + id, "exit 7", false},
		{"before-the-program", `%[1]s --root "$root" create --bundle "$bundle" ` + id, "exit 7", false},
		{"after-the-program", `%[1]s --root "$root" run --detach --bundle "$bundle" ` + id, "exit 7", false},
		{"after-the-end", `%[1]s --root "$root" run --detach --bundle "$bundle" ` + id + `
			while %[1]s --root "$root" state ` + id + ` | grep -q '"status": "running"'; do :; done`, "exit 7", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				real := r.Path
				r.Path = filepath.Join(n.run, r.Name)
				first := strings.ReplaceAll(test.first, "%[1]s", real)
				if err := os.WriteFile(r.Path, fmt.Appendf(nil, cuttingRuntime, real, first), 0o755); err != nil {
					t.Fatal(err)
				}
				script := "echo begun; " + test.script
				if !test.wantUnknown {
					script = "echo begun; read x; " + test.script
				}
				c := n.container(r, script)
				c.stdin = true
				_, err := c.tryStart()
				if test.wantUnknown {
					if !errors.Is(err, ErrExitUnknown) || !strings.Contains(err.Error(), "killed") {
						t.Errorf("start: %v, want an unknown end and its reason", err)
					}
					if out, _ := c.output(); out != "begun\n" {
						t.Errorf("output %q, want what the program has written", out)
					}
				} else if err != nil {
					t.Fatalf("start: %v", err)
				} else {
					c.awaitOutput("begun")
					c.write("go\n")
					c.checkExit(7)
					if out, _ := c.output(); out != "begun\n" {
						t.Errorf("output %q, want that of one program", out)
					}
				}
				c.remove()
				n.check()
			})
		})
	}
}
