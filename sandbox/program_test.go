package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/oci"
)

// A program that cannot be seen, or that is there, is not said to be missing: the
// runtime had another reason.
func TestNoProgram(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"bin", "opt", "volume"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "opt", "there"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"bin/link": "/opt/there", "bin/loose": "/opt/gone", "bin/out": "../../../../bin/sh"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []specs.Mount{{Destination: "/volume"}, {Destination: "/bin/mounted"}}
	said := error(&oci.RuntimeError{Said: "whatever"})
	for _, tt := range []struct {
		name, path string
		want       bool
	}{
		{"none", "/bin:/opt", true},
		{"there", "/bin:/opt", false},
		{"there", "/bin", true},
		{"none", "/bin:/volume", false},
		{"mounted", "/bin", false},
		{"/volume/x", "", false},
		{"/opt/there", "", false},
		{"/opt/gone", "", true},
		{"./there", "", false}, // in the working directory
		{"sub/../there", "", false},
		{"./gone", "", true},
		{"link", "/bin", false},
		{"loose", "/bin", true},
		{"/bin/out", "", true}, // and not the node's
		{"/bin", "", false},
	} {
		p := &specs.Process{Args: []string{tt.name}, Cwd: "/opt", Env: []string{"A=b", "PATH=" + tt.path}}
		if err := noProgram(said, root, p, mounts); errors.Is(err, ErrNoProgram) != tt.want || !errors.Is(err, said) {
			t.Errorf("%q in %q: %v, want %v", tt.name, tt.path, err, tt.want)
		}
	}
	other := errors.New("the runner died")
	if err := noProgram(other, root, &specs.Process{Args: []string{"/none"}}, nil); !errors.Is(err, other) || errors.Is(err, ErrNoProgram) {
		t.Errorf("a runtime that was not asked: %v", err)
	}
}
