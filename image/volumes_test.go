package image

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// newVolumes mounts a container's root and its volumes.
func newVolumes(t *testing.T, s *Store, id string, img *Image, users *Users, paths ...string) string {
	t.Helper()
	root, err := s.Root(context.Background(), id, img, users)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	volumes, err := s.Volumes(context.Background(), id, root, paths, users)
	return at(t, volumes, err)
}

// volumeImage has what volumes are filled from, in two layers.
func volumeImage(f *fake) {
	f.image("a", "v1", spec{layers: [][]byte{
		entries(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o3770, Uid: 5, Gid: 6}, tar.Header{Name: "data/old", Mode: 0o644}, tar.Header{Name: "data/gone", Mode: 0o644},
			tar.Header{Name: "real/f", Mode: 0o640, Uid: 7, Gid: 8}, tar.Header{Name: "file", Mode: 0o644}),
		entries(tar.Header{Name: "data/.wh.gone"}, tar.Header{Name: "data/out", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
			tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/../../real"}, tar.Header{Name: "loop", Typeflag: tar.TypeSymlink, Linkname: "loop"}),
	}})
}

// Volumes begin with what the image has, each container's are its own, and they
// stay as they are written until the container is removed.
func TestVolumes(t *testing.T) {
	f, s := newFake(t), newStore(t)
	volumeImage(f)
	img := pull(t, s, f.host()+"/a:v1")
	paths := []string{"/data", "/link", "/never/there", "/../../real"}
	one, two := newVolumes(t, s, "one", img, nil, paths...), newVolumes(t, s, "two", img, nil, paths...)
	want := []string{
		"dgtrwxrwx--- 0", "-rw-r--r-- 0/old data/old", "Lrwxrwxrwx 0/out",
		"drwxr-xr-x 1", "-rw-r----- 1/f real/f", "drwxr-xr-x 2", "drwxr-xr-x 3", "-rw-r----- 3/f real/f",
	}
	if got := tree(t, one); !slices.Equal(got, want) {
		t.Errorf("volumes %q, want %q", got, want)
	}
	owner(t, filepath.Join(one, "0"), 5, 6)
	owner(t, filepath.Join(one, "1", "f"), 7, 8)
	owner(t, filepath.Join(one, "2"), 0, 0)
	check(os.WriteFile(filepath.Join(one, "0", "new"), []byte("mine"), 0o600))
	check(os.Remove(filepath.Join(one, "1", "f")))
	if got := tree(t, two); !slices.Equal(got, want) {
		t.Errorf("another container's volumes are %q", got)
	}
	s.checkModes(t)
	check(unix.Unmount(one, 0))
	check(unix.Unmount(two, 0))
	s = reopen(t, s)
	one = newVolumes(t, s, "one", img, nil, paths...)
	if got := tree(t, filepath.Join(one, "0")); !slices.Contains(got, "-rw------- new mine") {
		t.Errorf("after a restart it has %q", got)
	}
	if got := tree(t, filepath.Join(one, "1")); len(got) > 0 {
		t.Errorf("what was removed is back: %q", got)
	}
	// Not a part of what the container wrote to its root; data's mode is there for
	// the layer that only implies it.
	if got := tree(t, s.path(containersDir, "one", "upper")); !slices.Equal(got, []string{"dgtrwxrwx--- data"}) {
		t.Errorf("the writable layer has %q", got)
	}
	check(unix.Unmount(one, 0))
	removeRoot(t, s, "one")
	removeRoot(t, s, "two")
	if _, err := s.Volumes(context.Background(), "one", nil, paths, nil); err == nil {
		t.Error("a container without a writable layer has volumes")
	}
}

// Its root owns a volume that the image does not have; what it has, it has for the
// pod's ids.
func TestVolumesOfAUserNamespace(t *testing.T) {
	f, s := newFake(t), newStore(t)
	volumeImage(f)
	img := pull(t, s, f.host()+"/a:v1")
	volumes := newVolumes(t, s, "c", img, newUsers(t), "/data", "/never")
	owner(t, filepath.Join(volumes, "0"), 1<<20+5, 3<<20+6)
	owner(t, filepath.Join(volumes, "0", "old"), 1<<20, 3<<20)
	owner(t, filepath.Join(volumes, "1"), 1<<20, 3<<20)
	check(unix.Unmount(volumes, 0))
	removeRoot(t, s, "c")
}

// What cannot be a volume is refused, and a try that failed leaves nothing: the
// next one makes all of them.
func TestVolumesThatAreNoDirectories(t *testing.T) {
	f, s := newFake(t), newStore(t)
	volumeImage(f)
	img := pull(t, s, f.host()+"/a:v1")
	root, err := s.Root(context.Background(), "c", img, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{"/file", "/file/below", "/loop"} {
		if _, err := s.Volumes(context.Background(), "c", root, []string{"/data", path}, nil); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: %v", path, err)
		}
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Volumes(cancelled, "c", root, []string{"/data"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	volumes, err := s.Volumes(context.Background(), "c", root, []string{"/data"}, nil)
	got := tree(t, at(t, volumes, err))
	if !slices.Contains(got, "-rw-r--r-- 0/old data/old") {
		t.Errorf("made at last: %q", got)
	}
	removeRoot(t, s, "c")
}

// Volumes count as what the container has written.
func TestVolumesAreMeasured(t *testing.T) {
	f, s := newFake(t), newStore(t)
	volumeImage(f)
	img := pull(t, s, f.host()+"/a:v1")
	s.survey.pause = 0
	volumes := newVolumes(t, s, "c", img, nil, "/data", "/never")
	check(os.WriteFile(filepath.Join(volumes, "1", "big"), make([]byte, 3<<20), 0o600))
	upper, files := du(t, s.path(containersDir, "c", "upper"))
	bytes, inodes := du(t, s.path(containersDir, "c", volumesDir))
	asked(t, s, "c", func(u Usage) bool { return u.Bytes == upper+bytes && u.Inodes == files+inodes })
	check(unix.Unmount(volumes, 0))
	removeRoot(t, s, "c")
}
