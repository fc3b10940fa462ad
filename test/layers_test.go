package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// arrows says which other rooms each room may import. A room is a folder of the
// module with everything below it that is not a room of its own. Do not change
// this table to fix a build: it is the design.
var arrows = map[string]string{
	"cmd":              "cri cri/admin sandbox image cni oci oci/keeper",
	"cmd/berth":        "cri/admin",
	"cmd/berth-keeper": "oci/keeper",
	"cri":              "cri/admin sandbox image",
	"cri/admin":        "",
	"sandbox":          "image cni oci",
	"image":            "",
	"cni":              "",
	"oci":              "oci/keeper oci/cgroup",
	"oci/keeper":       "oci/cgroup",
	"oci/cgroup":       "",
	"test":             "cri cri/admin sandbox image cni oci oci/keeper oci/cgroup",
}

// libraries says who may import what is not for everybody: the specification
// that a room speaks, and the kernel.
var libraries = map[string]string{
	"google.golang.org/grpc":                 "cri cmd",
	"k8s.io/cri-api":                         "cri sandbox cmd/berth",
	"github.com/containernetworking/cni":     "cni",
	"github.com/opencontainers/image-spec":   "image sandbox",
	"github.com/opencontainers/runtime-spec": "oci sandbox",
	"oras.land/oras-go/v2":                   "image",
	"golang.org/x/sys":                       "image cni oci cmd/berth-keeper",
}

// bare rooms import the standard library, x/sys and each other only: the keeper
// outlives everything, so it holds nothing that could crash it.
const bare = "oci/keeper oci/cgroup cmd/berth-keeper"

// An arrow is one import. Paths of this module are written without "berth/".
type arrow struct {
	from, to string
	test     bool // imported by a _test.go file
}

// check says what is wrong with a, or nil. A test may also import the rooms
// below those, whose types its fakes speak, and berth/test/leak and the like.
func (a arrow) check() error {
	from := room(a.from)
	if from == "" {
		return fmt.Errorf("%s is in no room", a.from)
	}
	may := strings.Fields(arrows[from])
	if a.test {
		may = append(below(from), "test")
	}
	if own, berth := strings.CutPrefix(a.to, "berth/"); berth {
		if to := room(own); to != from && !slices.Contains(may, to) {
			return fmt.Errorf("%s imports %s: room %s may import %v", a.from, a.to, from, may)
		}
		return nil
	}
	if first, _, _ := strings.Cut(a.to, "/"); !strings.Contains(first, ".") || from == "test" {
		return nil
	}
	if within(a.from, bare) && !within(a.to, "golang.org/x/sys") {
		return fmt.Errorf("%s imports %s: it may import only the standard library and x/sys", a.from, a.to)
	}
	importers := []string{a.from}
	if a.test {
		importers = append(importers, may...)
	}
	for library, users := range libraries {
		used := func(importer string) bool { return within(importer, users) }
		if within(a.to, library) && !slices.ContainsFunc(importers, used) {
			return fmt.Errorf("%s imports %s, which is for %s", a.from, a.to, users)
		}
	}
	return nil
}

// below are the rooms that a room reaches by arrows.
func below(room string) []string {
	reached := strings.Fields(arrows[room])
	for i := 0; i < len(reached); i++ {
		for _, next := range strings.Fields(arrows[reached[i]]) {
			if !slices.Contains(reached, next) {
				reached = append(reached, next)
			}
		}
	}
	return reached
}

// room is the room that a folder of the module is in, or "".
func room(folder string) string {
	for ; folder != "."; folder = filepath.Dir(folder) {
		if _, ok := arrows[folder]; ok {
			return folder
		}
	}
	return ""
}

// within tells whether path is one of the folders, or below one.
func within(path, folders string) bool {
	for _, folder := range strings.Fields(folders) {
		if path == folder || strings.HasPrefix(path, folder+"/") {
			return true
		}
	}
	return false
}

// A listed package is what go list says of it.
type listed struct {
	GoFiles                            []string
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
}

// packages lists this module.
func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "berth/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, "berth/")
		for _, to := range p.Imports {
			if err := (arrow{from, to, false}).check(); err != nil {
				t.Error(err)
			}
		}
		for _, to := range append(p.TestImports, p.XTestImports...) {
			if to == p.ImportPath {
				continue
			}
			if err := (arrow{from, to, true}).check(); err != nil {
				t.Errorf("test: %v", err)
			}
		}
	}
}

func TestLayersReportsForbiddenArrows(t *testing.T) {
	const inTest = true
	for _, a := range []arrow{
		{"sandbox", "berth/cri", false},
		{"sandbox", "berth/cri/admin", false},
		{"sandbox", "berth/oci/keeper", false}, // behind oci
		{"sandbox", "berth/test/leak", false},
		{"sandbox", "google.golang.org/grpc", inTest},
		{"sandbox/nri", "google.golang.org/grpc/codes", false},
		{"sandbox", "golang.org/x/sys/unix", false},
		{"image", "berth/oci", false},
		{"image/layer", "berth/cni", inTest},
		{"image", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"oci", "berth/image", false},
		{"oci", "k8s.io/cri-api/pkg/apis/runtime/v1", inTest},
		{"cni", "berth/oci", false},
		{"cni", "google.golang.org/grpc", false},
		{"cri", "berth/oci", false},
		{"cri", "berth/cni", false},
		{"cri", "golang.org/x/sys/unix", false},
		{"oci/keeper", "berth/oci", false},
		{"oci/keeper/wire", "k8s.io/klog/v2", false},
		{"oci/cgroup", "github.com/opencontainers/cgroups", inTest},
		{"oci/cgroup", "berth/oci/keeper", false},
		{"cmd/berth-keeper", "berth/oci", false},
		{"cmd/berth-keeper", "github.com/spf13/cobra", false},
		{"cmd/berth", "berth/sandbox", false},
		{"cmd/berthd", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"cmd/berthd", "berth/test/leak", false},
		{"helpers", "fmt", false}, // in no room
	} {
		if a.check() == nil {
			t.Errorf("%+v is not reported", a)
		}
	}
}

func TestLayersAllowsTheDesign(t *testing.T) {
	const inTest = true
	for _, a := range []arrow{
		{"cmd/berthd", "berth/oci", false},
		{"cmd/berthd", "google.golang.org/grpc", false},
		{"cmd/berth", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"cmd/berth-keeper", "berth/oci/keeper/runner", false},
		{"cri", "berth/sandbox", false},
		{"sandbox", "berth/oci", false},
		{"sandbox", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"cri", "berth/cni", inTest},
		{"sandbox", "berth/test/leak", inTest},
		{"sandbox", "golang.org/x/sys/unix", inTest},
		{"image", "berth/image/layer", false},
		{"oci", "berth/oci/keeper", false},
		{"oci/keeper/runner", "berth/oci/cgroup", false},
		{"oci/keeper", "golang.org/x/sys/unix", false},
		{"oci/keeper", "berth/test/leak", inTest},
		{"test/conformance", "google.golang.org/grpc", inTest},
	} {
		if err := a.check(); err != nil {
			t.Error(err)
		}
	}
}

// Every package but commands begins with doc.go. Where that says in which order to
// read, it names every file and none that there is not.
func TestEveryPackageHasADocFile(t *testing.T) {
	goFile := regexp.MustCompile(`\b[a-z0-9_]+\.go\b`)
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "berth/cmd/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(p.Dir, "doc.go"))
		if err != nil {
			t.Errorf("%s: no doc.go", p.ImportPath)
			continue
		}
		named := goFile.FindAllString(string(text), -1)
		for _, file := range p.GoFiles {
			if len(named) > 0 && file != "doc.go" && !slices.Contains(named, file) {
				t.Errorf("%s: doc.go does not say when to read %s", p.ImportPath, file)
			}
		}
		for _, file := range named {
			if _, err := os.Stat(filepath.Join(p.Dir, file)); err != nil {
				t.Errorf("%s: doc.go names %s, which there is not", p.ImportPath, file)
			}
		}
	}
}
