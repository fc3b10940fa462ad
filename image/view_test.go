package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// entries is a tar of what headers say; regular files hold their name.
func entries(headers ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		check(w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			must(w.Write([]byte(h.Name)))
		}
	}
	check(w.Close())
	return buf.Bytes()
}

func newView(t *testing.T, s *Store, id string, img *Image) string {
	t.Helper()
	view, err := s.View(context.Background(), id, img, nil)
	return at(t, view, err)
}

// tree is what lies below dir: names with modes, and the content of files.
func tree(t *testing.T, dir string) (all []string) {
	t.Helper()
	check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := must(filepath.Rel(dir, path))
		info := must(d.Info())
		line := info.Mode().String() + " " + name
		if info.Mode().IsRegular() {
			line += " " + readAt(t, path)
		}
		all = append(all, line)
		return nil
	}))
	return all
}

// A view shows what a container's root shows: whiteouts, opaque directories and
// directories that a layer only implies, whatever the number of layers.
func TestViewIsLikeARoot(t *testing.T) {
	f, s := newFake(t), newStore(t)
	base := entries(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, tar.Header{Name: "tmp/old", Mode: 0o600},
		tar.Header{Name: "gone", Mode: 0o644}, tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o700}, tar.Header{Name: "dir/hidden", Mode: 0o644},
		tar.Header{Name: "bin/su", Mode: 0o4755})
	top := entries(tar.Header{Name: "tmp/new", Mode: 0o644}, tar.Header{Name: ".wh.gone"},
		tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o750}, tar.Header{Name: "dir/.wh..wh..opq"}, tar.Header{Name: "dir/shown", Mode: 0o644},
		tar.Header{Name: "only/.wh.nothing"})
	for name, test := range map[string]struct {
		layers [][]byte
		want   []string
	}{
		"none": {nil, nil},
		"one":  {[][]byte{base}, []string{"drwxr-xr-x bin", "urwxr-xr-x bin/su bin/su", "drwx------ dir", "-rw-r--r-- dir/hidden dir/hidden", "-rw-r--r-- gone gone", "dtrwxrwxrwx tmp", "-rw------- tmp/old tmp/old"}},
		"two": {[][]byte{base, top}, []string{"drwxr-xr-x bin", "urwxr-xr-x bin/su bin/su", "drwxr-x--- dir", "-rw-r--r-- dir/shown dir/shown", "drwxr-xr-x only",
			"dtrwxrwxrwx tmp", "-rw-r--r-- tmp/new tmp/new", "-rw------- tmp/old tmp/old"}},
		"the same twice": {[][]byte{base, top, base}, nil},
	} {
		f.image(name[:3], "v1", spec{layers: test.layers})
		img := pull(t, s, f.host()+"/"+name[:3]+":v1")
		root := newRoot(t, s, name[:3], img)
		view := newView(t, s, name[:3], img)
		got, as := tree(t, view), tree(t, root)
		if !slices.Equal(got, as) || test.want != nil && !slices.Equal(got, test.want) {
			t.Errorf("%s: the view has %q,\nthe root has %q, want %q", name, got, as, test.want)
		}
		check(unix.Unmount(view, 0))
		check(unix.Unmount(root, 0))
		removeRoot(t, s, name[:3])
	}
}

// Nothing can be written, whoever mounts it how; programs and devices of the
// image are as in a root.
func TestViewIsReadOnly(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("many/f", "1")}})
	img := pull(t, s, f.host()+"/a:v1")
	root := newRoot(t, s, "c", img)
	view := newView(t, s, "c", img)
	if err := unix.Mount("", view, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Errorf("make the mount writable: %v", err) // the filesystem is not
	}
	if err := unix.Mount("", view, "", unix.MS_REMOUNT, ""); err == nil {
		t.Error("the filesystem was made writable")
	}
	for name, err := range map[string]error{
		"create": os.WriteFile(filepath.Join(view, "new"), nil, 0o600),
		"write":  os.WriteFile(filepath.Join(view, "many", "f"), nil, 0o600),
		"remove": os.Remove(filepath.Join(view, "many", "f")),
		"chmod":  os.Chmod(filepath.Join(view, "many"), 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(view, &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != 0 {
		t.Errorf("mount flags are %#x, %v", st.Flags, err)
	}
	check(os.WriteFile(filepath.Join(root, "many", "f"), []byte("2"), 0o600))
	if got := readAt(t, view, "many", "f"); got != "1" {
		t.Errorf("the view has what a container wrote to its root: %q", got)
	}
	check(unix.Unmount(view, 0))
	check(unix.Unmount(root, 0))
	removeRoot(t, s, "c")
}

// The image goes, its view stays as long as the container, also across a
// restart; the layers go with the container.
func TestViewKeepsLayers(t *testing.T) {
	f, s := newFake(t), newStore(t)
	shared := files("shared", "s")
	f.image("a", "v1", spec{layers: [][]byte{shared, files("f", "own")}})
	f.image("b", "v1", spec{layers: [][]byte{shared, files("f", "viewed"), files("dir/g", "g")}})
	own, viewed := pull(t, s, f.host()+"/a:v1"), pull(t, s, f.host()+"/b:v1")
	check(unix.Unmount(newRoot(t, s, "c", own), 0))
	check(unix.Unmount(newView(t, s, "c", viewed), 0))
	remove(t, s, f.host()+"/b:v1")
	s.check(t)
	removeRoot(t, s, "c")
	s.check(t)
	if s.has(viewed.Layers[1]) || !s.has(own.Layers[0]) {
		t.Error("with the container, its view's layers and no others go")
	}

	pull(t, s, f.host()+"/b:v1")
	check(unix.Unmount(newRoot(t, s, "c", own), 0))
	view := newView(t, s, "c", viewed)
	remove(t, s, f.host()+"/a:v1")
	remove(t, s, f.host()+"/b:v1")
	s = reopen(t, s)
	for range 2 {
		again := newView(t, s, "c", viewed)
		for _, dir := range []string{view, again} {
			if got := tree(t, dir); !slices.Equal(got, []string{"drwxr-xr-x dir", "-rw-r--r-- dir/g g", "-rw-r--r-- f viewed", "-rw-r--r-- shared s"}) {
				t.Errorf("it has %q", got)
			}
		}
		check(unix.Unmount(again, 0))
	}
	check(unix.Unmount(newRoot(t, s, "c", own), 0))
	check(unix.Unmount(view, 0))
	removeRoot(t, s, "c")
	s.empty(t)
}

func TestViewRefuses(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "a")}})
	f.image("b", "v1", spec{layers: [][]byte{files("f", "b"), files("g", "g")}})
	a, b := pull(t, s, f.host()+"/a:v1"), pull(t, s, f.host()+"/b:v1")
	refused := func(id string, img *Image) error {
		t.Helper()
		view, err := s.View(context.Background(), id, img, nil)
		if err == nil {
			view.Close()
			t.Errorf("a view of %s for %q", img.ID, id)
		}
		return err
	}
	for _, id := range []string{"c", "", "../x"} {
		refused(id, a)
	}
	check(unix.Unmount(newRoot(t, s, "c", a), 0))
	for _, id := range []digest.Digest{"", "sha256:../../x", digest.SHA512.FromString("x")} {
		refused("c", &Image{ID: id, Layers: a.Layers})
	}
	remove(t, s, f.host()+"/b:v1")
	if err := refused("c", b); !errors.Is(err, ErrNotFound) {
		t.Errorf("view of a removed image: %v", err)
	}

	// A layer that turns out to be damaged.
	pull(t, s, f.host()+"/b:v1")
	s.work.Wait()
	check(os.RemoveAll(s.treePath(b.Layers[1])))
	check(os.WriteFile(filepath.Join(s.layerPath(b.Layers[1]), "layer.tar"), []byte("x"), 0o600))
	if err := refused("c", b); !errors.Is(err, ErrNotFound) {
		t.Errorf("view of a damaged image: %v", err)
	}
	s.check(t)
	remove(t, s, f.host()+"/b:v1")
	removeRoot(t, s, "c")
}

// The record of a view that was destroyed: the view is made anew.
func TestDamagedView(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("dir/f", "a")}})
	img := pull(t, s, f.host()+"/a:v1")
	check(unix.Unmount(newRoot(t, s, "c", img), 0))
	check(unix.Unmount(newView(t, s, "c", img), 0))
	closeStore(t, s)
	check(os.WriteFile(filepath.Join(s.viewPath("c", img.ID), "root.json"), []byte("{"), 0o600))
	s = openStore(t, s.Dir)
	if left := must(list(s.path(containersDir, "c", viewsDir))); len(left) > 0 {
		t.Errorf("left of it: %q", left)
	}
	view := newView(t, s, "c", img)
	if got := readAt(t, view, "dir", "f"); got != "a" {
		t.Errorf("f is %q", got)
	}
	check(unix.Unmount(view, 0))
	removeRoot(t, s, "c")
}

// Symlinks are the image's, and lead nowhere else.
func TestSubPath(t *testing.T) {
	f, s := newFake(t), newStore(t)
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	f.image("a", "v1", spec{layers: [][]byte{entries(tar.Header{Name: "models/v1/data", Mode: 0o644}, tar.Header{Name: "etc/ä b\n", Mode: 0o644},
		link("current", "/models/v1"), link("up", "../../../../models"), link("models/file", "v1/data"), link("host", "/root/.bashrc"),
		link("out", "/proc/self/root/etc/passwd"), link("loop", "loop"), link("dangling", "nowhere"),
		tar.Header{Name: "zero", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5},
		tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o666})}})
	img := pull(t, s, f.host()+"/a:v1")
	check(unix.Unmount(newRoot(t, s, "c", img), 0))
	view, err := s.View(context.Background(), "c", img, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		".": ".", "models": "models", "current": "models/v1", "current/data": "models/v1/data", "up/v1": "models/v1",
		"models/file": "models/v1/data", "etc/ä b\n": "etc/ä b\n", "current/../v1": "models/v1", "../../etc": "etc", "/": ".",
	} {
		if got, err := SubPath(view, name); err != nil || got != want {
			t.Errorf("%q is %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"never": "no such file", "host": "no such file", "out": "no such file", "dangling": "no such file", "loop": "too many levels",
		"models/v1/data/x": "not a directory", "zero": "neither", "fifo": "neither", "": "no such file",
	} {
		if got, err := SubPath(view, name); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q is %q, %v", name, got, err)
		}
	}
	view.Close()
	removeRoot(t, s, "c")
}
