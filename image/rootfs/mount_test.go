package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

func TestMountAgain(t *testing.T) {
	leak.NeedRoot(t)
	lower, _ := mustExtract(t, file("f", "image"))
	top := t.TempDir()
	o := Overlay{Lower: []string{lower}, Upper: filepath.Join(top, `up\per`), Work: filepath.Join(top, "wo:r,k")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first := attach(t, o, nil)
	if err := os.WriteFile(filepath.Join(first, "f"), []byte("container"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(first, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(o.Work, "work", "incompat", "volatile")); err != nil {
		t.Errorf("the mount was not volatile: %v", err)
	}
	second := attach(t, o, nil)
	if got := readFile(t, filepath.Join(second, "f")); got != "container" {
		t.Errorf("f is %q, want what the container wrote", got)
	}
	if got := readFile(t, filepath.Join(lower, "f")); got != "image" {
		t.Errorf("the layer's own f is %q", got)
	}
}

// TestSetuidAndDevices: a root must be neither nosuid nor nodev.
func TestSetuidAndDevices(t *testing.T) {
	root, _ := mounted(t, []member{file("f", "")})
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Fatal(err)
	}
	if st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC|unix.ST_RDONLY) != 0 {
		t.Errorf("mount flags are %#x", st.Flags)
	}
}

func TestSameLayerTwice(t *testing.T) {
	leak.NeedRoot(t)
	a, _ := mustExtract(t, file("f", "a"), file("of-a", ""))
	b, _ := mustExtract(t, file("f", "b"), file(".wh.of-a", ""))
	top := t.TempDir()
	o := Overlay{Lower: []string{a, b, a}, Upper: filepath.Join(top, "upper"), Work: filepath.Join(top, "work")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := attach(t, o, nil)
	if got := names(t, root); got != "f of-a" {
		t.Errorf("root has %q", got)
	}
	if got := readFile(t, filepath.Join(root, "f")); got != "a" {
		t.Errorf("f is %q, want the uppermost", got)
	}
}

func TestManyLayers(t *testing.T) {
	var layers [][]member
	for i := range 130 {
		layers = append(layers, []member{file(fmt.Sprint("f", i), "")})
	}
	root, _ := mounted(t, layers...)
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != len(layers) {
		t.Errorf("%d names of %d: %v", len(entries), len(layers), err)
	}
}

// TestImpliedDirectories: a layer that has only tmp/x must not change /tmp.
func TestImpliedDirectories(t *testing.T) {
	stamp := time.Unix(1_000_000_000, 0)
	tmp := dir("tmp", 0o1777)
	tmp.Uid, tmp.Gid, tmp.ModTime = 11, 22, stamp
	base := []member{tmp, dir("etc", 0o700), dir("gone", 0o711), dir("opaque", 0o711)}
	root, upper := mounted(t, base,
		[]member{file("unrelated", "")},
		[]member{file("tmp/x", ""), file("etc/y", ""), file("new/z", ""), file(".wh.gone", "")},
		[]member{file("tmp/again", ""), dir("etc", 0o750), file("gone/w", ""), file("opaque/.wh..wh..opq", "")},
	)
	for name, want := range map[string]uint32{"tmp": 0o1777, "etc": 0o750, "new": 0o755, "gone": 0o755, "opaque": 0o755} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Mode & 0o7777; got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
		if name == "tmp" && (st.Uid != 11 || st.Gid != 22 || st.Mtim.Sec != stamp.Unix()) {
			t.Errorf("tmp has owner %d:%d and time %d", st.Uid, st.Gid, st.Mtim.Sec)
		}
	}
	if got := names(t, filepath.Join(root, "tmp")); got != "again x" {
		t.Errorf("tmp has %q", got)
	}
	if got := names(t, upper); got != "tmp" {
		t.Errorf("the writable layer has %q, want only tmp", got)
	}
}

// TestImpliedIsAdoptedOnce: a container's own chmod stands at the next mount.
func TestImpliedIsAdoptedOnce(t *testing.T) {
	leak.NeedRoot(t)
	base, _ := mustExtract(t, dir("tmp", 0o1777))
	over, tree := mustExtract(t, file("tmp/x", ""))
	top := t.TempDir()
	o := Overlay{Lower: []string{over, base}, Upper: filepath.Join(top, "upper"), Work: filepath.Join(top, "work")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stack := []Layer{{Root: over, Implied: tree.Implied}, {Root: base}}
	root := attach(t, o, stack)
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	root = attach(t, o, stack)
	if info, err := os.Stat(filepath.Join(root, "tmp")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("tmp has mode %v: %v", info.Mode(), err)
	}
}
