package oci

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"berth/test/leak"

	"golang.org/x/sys/unix"
)

func TestDevices(t *testing.T) {
	leak.NeedRoot(t)
	dir := t.TempDir()
	mknod := func(name string, mode uint32, major, minor uint32) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, mode, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
	}
	mknod("set/null", unix.S_IFCHR|0o640, 1, 3)
	mknod("set/below/disk", unix.S_IFBLK|0o600, 300, 70000)
	mknod("set/pts/0", unix.S_IFCHR|0o600, 136, 0)
	for link, target := range map[string]string{"link": "set/null", "set/link": "null", "set/up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "set", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Devices(filepath.Join(dir, "link"))
	if err != nil || len(got) != 1 || got[0].Path != filepath.Join(dir, "link") || got[0].Type != "c" || got[0].Major != 1 || got[0].Minor != 3 || *got[0].FileMode != 0o640 {
		t.Errorf("by a link: %+v, %v", got, err)
	}
	got, err = Devices(filepath.Join(dir, "set"))
	if err != nil || len(got) != 2 || got[0].Path != filepath.Join(dir, "set/below/disk") || got[0].Type != "b" || got[0].Major != 300 || got[0].Minor != 70000 || got[1].Path != filepath.Join(dir, "set/null") {
		t.Errorf("a directory: %+v, %v", got, err)
	}
	for path, want := range map[string]error{"set/file": ErrNoDevice, "never": fs.ErrNotExist, "set/pts/1": fs.ErrNotExist} {
		if _, err := Devices(filepath.Join(dir, path)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if _, err := Devices(t.TempDir()); !errors.Is(err, ErrNoDevice) {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestPropagationOf(t *testing.T) {
	leak.NeedRoot(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		flag uintptr
		want Propagation
	}{
		{unix.MS_PRIVATE, Propagation{Mount: dir}},
		{unix.MS_SHARED, Propagation{Mount: dir, Shared: true}},
	} {
		if err := unix.Mount("", dir, "", step.flag, ""); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{dir, below} {
			if got, err := PropagationOf(path); err != nil || got != step.want {
				t.Errorf("%s: %+v, %v, want %+v", path, got, err, step.want)
			}
		}
	}
	copied := filepath.Join(t.TempDir(), "slave")
	if err := os.Mkdir(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, copied, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(copied, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", copied, "", unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := PropagationOf(copied); err != nil || got.Shared || !got.Slave {
		t.Errorf("a slave: %+v, %v", got, err)
	}
	if _, err := PropagationOf(filepath.Join(dir, "never")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}
