package runner

import (
	"os"
	"path/filepath"
	"testing"

	"berth/test/leak"

	"golang.org/x/sys/unix"
)

// A start that another berthd repeats gets that one's root, not the one that a dead
// berthd had attached. The same one is left where it is.
func TestAttachTakesTheMountThatItIsGiven(t *testing.T) {
	leak.NeedRoot(t)
	target := filepath.Join(t.TempDir(), "rootfs")
	defer detach(target)
	for _, name := range []string{"first", "second"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		mount := os.NewFile(uintptr(fd), dir)
		defer mount.Close()
		for range 2 {
			if err := attach(mount, target); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(target, name)); err != nil {
				t.Errorf("%s is not attached: %v", name, err)
			}
		}
	}
}
