package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// mounted mounts layers, base first, and returns a path at which the root can
// be seen, and the writable layer.
func mounted(t *testing.T, layers ...[]member) (root, upper string) {
	t.Helper()
	leak.NeedRoot(t)
	top := t.TempDir()
	o := Overlay{Upper: filepath.Join(top, "upper"), Work: filepath.Join(top, "work")}
	var stack []Layer
	for _, members := range layers {
		path, tree := mustExtract(t, members...)
		o.Lower = append([]string{path}, o.Lower...)
		stack = append([]Layer{{Root: path, Implied: tree.Implied}}, stack...)
	}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return attach(t, o, stack), o.Upper
}

func attach(t *testing.T, o Overlay, stack []Layer) string {
	t.Helper()
	mount, err := Mount(o)
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	if err := AdoptImplied(context.Background(), mount, o.Upper, stack, o.Users); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// EINVAL: the test has done it already.
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// TestWhiteouts looks at the root as a container does: through overlayfs.
func TestWhiteouts(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]member
		want   map[string]string // directory → names in it
	}{
		{"hides a file", [][]member{
			{dir("d", 0o755), file("d/a", ""), file("d/b", "")},
			{dir("d", 0o755), file("d/.wh.a", "")},
		}, map[string]string{"d": "b"}},
		{"hides a directory", [][]member{
			{dir("d", 0o755), file("d/a", ""), file("e", "")},
			{file(".wh.d", "")},
		}, map[string]string{".": "e"}},
		{"of nothing, in a directory of no other layer", [][]member{
			{file("base", "")},
			{dir("new", 0o755), file("new/.wh.gone", ""), file("new/kept", "")},
		}, map[string]string{"new": "kept"}},
		{"of nothing, in an only layer", [][]member{
			{dir("new", 0o755), file("new/.wh.gone", ""), dir("new/sub", 0o755), file("new/sub/.wh.x", "")},
		}, map[string]string{"new": "sub", "new/sub": ""}},
		{"of nothing, at the root", [][]member{
			{file(".wh.gone", ""), file("kept", "")},
		}, map[string]string{".": "kept"}},
		{"in a directory that the tar implies", [][]member{
			{file("base", "")},
			{file("imp/lied/.wh.gone", "")},
		}, map[string]string{"imp": "lied", "imp/lied": ""}},
		{"in an opaque directory", [][]member{
			{dir("d", 0o755), file("d/a", ""), file("d/b", "")},
			{dir("d", 0o755), file("d/.wh..wh..opq", ""), file("d/.wh.a", ""), file("d/c", "")},
		}, map[string]string{"d": "c"}},
		{"in a directory that a whiteout device is in", [][]member{
			{dir("d", 0o755), device("d/zero", tar.TypeChar, 0, 0), file("d/a", "")},
		}, map[string]string{"d": "a"}},
		{"opaque before its content", [][]member{
			{dir("d", 0o755), file("d/old", "")},
			{file("d/.wh..wh..opq", ""), dir("d", 0o755), file("d/new", "")},
		}, map[string]string{"d": "new"}},
		{"then a file of that name", [][]member{
			{file("f", "")}, {file(".wh.f", ""), file("f", "")},
		}, map[string]string{".": "f"}},
		{"after a file of that name", [][]member{
			{file("f", "")}, {file("f", ""), file(".wh.f", "")},
		}, map[string]string{".": "f"}},
		{"then a directory of that name", [][]member{
			{dir("d", 0o755), file("d/old", "")},
			{file(".wh.d", ""), dir("d", 0o755), file("d/new", "")},
		}, map[string]string{"d": "new"}},
		{"after a directory of that name", [][]member{
			{dir("d", 0o755), file("d/old", "")},
			{dir("d", 0o755), file("d/new", ""), file(".wh.d", "")},
		}, map[string]string{"d": "new"}},
		{"then a name beneath it", [][]member{
			{dir("d", 0o755), file("d/old", "")},
			{file(".wh.d", ""), file("d/new", "")},
		}, map[string]string{"d": "new"}},
		{"and the name again, higher up", [][]member{
			{dir("d", 0o755), file("d/a", "")},
			{dir("d", 0o755), file("d/.wh.a", "")},
			{dir("d", 0o755), file("d/a", "")},
		}, map[string]string{"d": "a"}},
		{"of AUFS itself", [][]member{
			{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk", 0o700), file(".wh..wh.plnk/1.2", ""), file("f", "")},
		}, map[string]string{".": "f"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root, _ := mounted(t, test.layers...)
			for path, want := range test.want {
				if got := names(t, filepath.Join(root, path)); got != want {
					t.Errorf("%s has %q, want %q", path, got, want)
				}
			}
		})
	}
}

// TestTreeIsSharedByBases: one and the same tree, with a whiteout, over a base
// that has the hidden file and over one that has not even the directory.
func TestTreeIsSharedByBases(t *testing.T) {
	leak.NeedRoot(t)
	top, _ := mustExtract(t, dir("d", 0o755), file("d/.wh.a", ""), file("d/b", ""))
	with, _ := mustExtract(t, dir("d", 0o755), file("d/a", ""))
	without, _ := mustExtract(t, file("other", ""))
	for _, base := range []string{with, without} {
		over := t.TempDir()
		o := Overlay{Lower: []string{top, base}, Upper: filepath.Join(over, "upper"), Work: filepath.Join(over, "work")}
		for _, d := range []string{o.Upper, o.Work} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		root := attach(t, o, nil)
		if got := names(t, filepath.Join(root, "d")); got != "b" {
			t.Errorf("d has %q, want only b", got)
		}
		if err := os.WriteFile(filepath.Join(root, "d", "a"), nil, 0o600); err != nil {
			t.Errorf("a name that was hidden is not to be made: %v", err)
		}
	}
}
