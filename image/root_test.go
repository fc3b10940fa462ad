package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func readAt(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func newRoot(t *testing.T, s *Store, id string, img *Image) string {
	t.Helper()
	root, err := s.Root(context.Background(), id, img, nil)
	return at(t, root, err)
}

func removeRoot(t *testing.T, s *Store, id string) {
	t.Helper()
	if err := s.RemoveRoot(context.Background(), id); err != nil {
		t.Error(err)
	}
}

func TestRoot(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "base", "etc/g", "g"), files("f", "top", "etc/.wh.g", "")}})
	img := pull(t, s, f.host()+"/a:v1")
	one, two := newRoot(t, s, "one", img), newRoot(t, s, "two", img)
	check(os.WriteFile(filepath.Join(one, "mine"), []byte("1"), 0o600))
	if got := readAt(t, one, "f"); got != "top" {
		t.Errorf("f is %q", got)
	}
	if _, err := os.Lstat(filepath.Join(one, "etc", "g")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("g is hidden: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(two, "mine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one container sees another's file: %v", err)
	}
	if info := must(os.Stat(one)); info.Mode().Perm() != 0o755 {
		t.Errorf("the root has mode %v", info.Mode())
	}
	if ids := s.Roots(); !slices.Equal(ids, []string{"one", "two"}) {
		t.Errorf("roots are %q", ids)
	}
	check(unix.Unmount(one, 0))

	s = reopen(t, s)
	img, err := s.Image(f.host() + "/a:v1")
	if err != nil {
		t.Fatal(err)
	}
	again := newRoot(t, s, "one", img)
	if got := readAt(t, again, "mine"); got != "1" {
		t.Errorf("after a restart mine is %q", got)
	}
	check(unix.Unmount(again, 0))
	check(unix.Unmount(two, 0))
	for _, id := range []string{"one", "two", "one", "never", "../x", ""} {
		removeRoot(t, s, id)
	}
	if ids := s.Roots(); len(ids) != 0 {
		t.Errorf("roots are %q", ids)
	}
}

func TestRootOfNoLayers(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("scratch", "v1", spec{})
	root := newRoot(t, s, "c", pull(t, s, f.host()+"/scratch:v1"))
	if names := must(list(root)); len(names) != 0 {
		t.Errorf("it has %q", names)
	}
	check(unix.Unmount(root, 0))
	removeRoot(t, s, "c")
}

func TestRootRefuses(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "a")}})
	f.image("b", "v1", spec{layers: [][]byte{files("f", "b")}})
	a, b := pull(t, s, f.host()+"/a:v1"), pull(t, s, f.host()+"/b:v1")
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".hidden", string(make([]byte, 200))} {
		if root, err := s.Root(context.Background(), id, a, nil); err == nil {
			root.Close()
			t.Errorf("id %q was accepted", id)
		}
	}
	root, err := s.Root(context.Background(), "c", a, nil)
	if err != nil {
		t.Fatal(err)
	}
	root.Close()
	if _, err := s.Root(context.Background(), "c", b, nil); err == nil {
		t.Error("a container changed its image")
	}
	removeRoot(t, s, "c")
	remove(t, s, f.host()+"/a:v1")
	if _, err := s.Root(context.Background(), "c", a, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("root of a removed image: %v", err)
	}
}

// TestRootKeepsLayers: the image goes, the container lives on, also across a
// restart; the layers go with the container.
func TestRootKeepsLayers(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "image")}})
	img := pull(t, s, f.host()+"/a:v1")
	root := newRoot(t, s, "c", img)
	remove(t, s, f.host()+"/a:v1")
	s = reopen(t, s)
	if len(s.Images()) != 0 {
		t.Error("the image is still there")
	}
	if got := readAt(t, root, "f"); got != "image" {
		t.Errorf("f is %q", got)
	}
	check(unix.Unmount(root, 0))
	again := newRoot(t, s, "c", img)
	if got := readAt(t, again, "f"); got != "image" {
		t.Errorf("f is %q", got)
	}
	check(unix.Unmount(again, 0))
	removeRoot(t, s, "c")
	s.empty(t)
}

// TestRootsAtOnce: the same and different containers, before any tree exists.
func TestRootsAtOnce(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "1"), files("g", "2")}})
	img := pull(t, s, f.host()+"/a:v1")
	closeStore(t, s)
	check(os.RemoveAll(s.path(treesDir)))
	s = openStore(t, s.Dir)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			root, err := s.Root(context.Background(), fmt.Sprint("c", i%4), img, nil)
			if err != nil {
				t.Error(err)
				return
			}
			root.Close()
		})
	}
	all.Wait()
	for i := range 4 {
		removeRoot(t, s, fmt.Sprint("c", i))
	}
}

// TestReboot: trees and writable layers of another boot are deleted, images
// stay, and their layers are proven before they are used again.
func TestReboot(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "image"), files("g", noise(10_000, "g"))}})
	img := pull(t, s, f.host()+"/a:v1")
	root, err := s.Root(context.Background(), "c", img, nil)
	if err != nil {
		t.Fatal(err)
	}
	root.Close()
	reboot := func() {
		closeStore(t, s)
		check(os.Rename(s.path(treesDir, s.boot), s.path(treesDir, "another-boot")))
		if data, err := os.ReadFile(s.path(containersDir, "c", "root.json")); err == nil {
			data = []byte(string(data[:9]) + "x" + string(data[10:])) // in the boot id
			check(os.WriteFile(s.path(containersDir, "c", "root.json"), data, 0o600))
		}
		s = openStore(t, s.Dir)
	}
	reboot()
	if ids := s.Roots(); len(ids) != 0 {
		t.Errorf("roots are %q", ids)
	}
	if boots := must(list(s.path(treesDir))); !slices.Equal(boots, []string{s.boot}) {
		t.Errorf("trees of %q", boots)
	}
	mounted := newRoot(t, s, "c", img)
	if got := readAt(t, mounted, "f"); got != "image" {
		t.Errorf("f is %q", got)
	}
	check(unix.Unmount(mounted, 0))

	reboot()
	tar := filepath.Join(s.layerPath(img.Layers[1]), "layer.tar")
	data := must(os.ReadFile(tar))
	data[600] ^= 1
	check(os.WriteFile(tar, data, 0o600))
	if _, err := s.Root(context.Background(), "c", img, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a damaged layer was used: %v", err)
	}
	if s.has(img.Layers[1]) {
		t.Error("the damaged layer is still there")
	}
	pull(t, s, f.host()+"/a:v1")
	mounted = newRoot(t, s, "c", img)
	if got := readAt(t, mounted, "g"); got != noise(10_000, "g") {
		t.Error("the layer was not repaired")
	}
	check(unix.Unmount(mounted, 0))
	if n := f.count(digest.FromBytes(gzipped(files("f", "image"))).String()); n != 1 {
		t.Errorf("the layer that was in order was fetched %d times", n)
	}
	removeRoot(t, s, "c")
}
