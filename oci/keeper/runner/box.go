package runner

import (
	"os"
	"path/filepath"
	"syscall"

	"berth/oci/cgroup"
)

// box is the cgroup that a runtime command runs in, on a node with cgroup v2.
// A runtime moves the container out of it; where it does not (on a hybrid node),
// the box stays until the container is removed.
type box struct {
	path string
	dir  *os.File // nil: none
}

func openBox(name string) box {
	root := cgroup.Unified()
	if root == "" || name == "" {
		return box{}
	}
	path := filepath.Join(root, RuntimesCgroup, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return box{}
	}
	dir, err := os.Open(path)
	if err != nil {
		return box{}
	}
	return box{path: path, dir: dir}
}

func (b box) kill() {
	if b.dir != nil {
		_ = os.WriteFile(filepath.Join(b.path, "cgroup.kill"), []byte("1"), 0)
	}
}

func (b box) close() {
	if b.dir != nil {
		b.dir.Close()
		_ = syscall.Rmdir(b.path)
	}
}
