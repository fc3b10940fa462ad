package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// timers are all places of the daemon, the keeper and the runner that begin a
// timer, by file and function, with what it is for: to bound a wait for an
// event, or to pause between two tries or rounds. None is there to look whether
// something has happened meanwhile.
var timers = map[string]string{
	"cmd/berthd/lock.go lock":              "pauses between two tries to take a lock that outlives a dead daemon by a moment",
	"cmd/berthd/memory.go returnMemory":    "pauses between two rounds of giving memory back",
	"image/open.go takeLock":               "pauses between two tries to take a lock that outlives a dead daemon by a moment",
	"cri/portforward.go awaitSent":         "bounds how long a pod that has answered may take to read the rest",
	"cri/pull.go show":                     "pauses between two reports of a pull's progress",
	"cri/remote.go collect":                "bounds how long a client takes to open its streams",
	"cri/server.go stop":                   "bounds how long calls may take to end with the daemon",
	"cri/session.go awaitTyped":            "bounds how long the container takes what was typed before the client left",
	"cri/session.go beat":                  "pauses between two signs of life for a client",
	"cri/session.go linger":                "bounds how long a client takes to read the end of a session",
	"image/kept.go keep":                   "ends how long the layers of a failed pull stay for the next try",
	"image/registry/pace.go begin":         "bounds how long a registry keeps a pull waiting",
	"image/registry/pace.go pause":         "pauses between two tries of a request",
	"image/walk.go keep":                   "leaves the disk to the containers for a while",
	"oci/exec.go afterwards":               "bounds the start of an exec that nobody wants any more",
	"oci/keeper/client.go CallRunner":      "pauses between two tries while a runner is being replaced",
	"oci/keeper/client.go stayConnected":   "pauses between two tries to reach the keeper",
	"oci/keeper/runner.go restartRunner":   "pauses before a runner that dies again and again is started anew",
	"oci/keeper/runner/command.go runtime": "bounds an OCI runtime",
	"oci/keeper/runner/cut.go ask":         "bounds an OCI runtime",
	"oci/keeper/runner/output.go drain":    "bounds the wait for a FIFO that somebody elsewhere has locked",
	"oci/keeper/runner/read.go newReader":  "bounds how long one stream may hold up all others",
	"sandbox/background.go pause":          "pauses between two tries, and between two rounds of the background",
	"sandbox/flight.go wait":               "bounds how long a container may take to stop",
}

// A wait for a state is a wait for its event. Each timer is here on purpose.
func TestTimers(t *testing.T) {
	found := map[string]bool{}
	for _, room := range []string{"cmd/berthd", "cmd/berth-keeper", "cri", "sandbox", "image", "oci", "cni"} {
		err := filepath.WalkDir(filepath.Join("..", room), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && beginsTimer(f) {
					found[strings.TrimPrefix(path, "../")+" "+f.Name.Name] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, place := range slices.Sorted(maps.Keys(found)) {
		if timers[place] == "" {
			t.Errorf("%s begins a timer that is not listed here", place)
		}
	}
	for place := range timers {
		if !found[place] {
			t.Errorf("%s begins no timer any more", place)
		}
	}
}

// beginsTimer finds calls of package time's timers.
func beginsTimer(f *ast.FuncDecl) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
			switch sel.Sel.Name {
			case "After", "AfterFunc", "NewTicker", "NewTimer", "Sleep", "Tick":
				found = true
			}
		}
		return !found
	})
	return found
}
