package image

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/test/leak"
)

var timeZero time.Time

// newStore opens a store in a new directory.
func newStore(t *testing.T) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "berth"))
}

// openStore opens a store in dir. When the test ends, the whole store is
// checked and closed.
func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	leak.NeedRoot(t)
	s := &Store{Dir: dir, Registries: Registries{Timeout: 10 * time.Second}}
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.lock != nil {
			s.check(t)
			closeStore(t, s)
		}
	})
	return s
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// reopen is what a restart of the daemon does.
func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	closeStore(t, s)
	return openStore(t, s.Dir)
}

// check compares the whole store on disk with itself and with the maps: see the
// invariants in doc.go. No method may be running.
func (s *Store) check(t *testing.T) {
	t.Helper()
	s.work.Wait()
	for _, dir := range []string{ingestDir, trashDir} {
		if left := must(list(s.path(dir))); len(left) > 0 {
			t.Errorf("%s has %q", dir, left)
		}
	}
	s.checkContent(t, layersDir, s.layers, func(d digest.Digest) string { return filepath.Join(s.layerPath(d), "layer.tar") })
	s.checkContent(t, blobsDir, s.blobs, s.blobPath)
	for _, name := range must(list(s.path(treesDir, s.boot))) {
		if s.layers[digest.NewDigestFromEncoded(digest.SHA256, name)] == nil {
			t.Errorf("tree %s has no layer", name)
		}
	}
	if on, in := len(must(list(s.path(imagesDir)))), len(s.records); on != in {
		t.Errorf("%d records on disk, %d in memory", on, in)
	}
	if on, in := len(must(list(s.path(containersDir)))), len(s.roots); on != in {
		t.Errorf("%d writable layers on disk, %d in memory", on, in)
	}
	claims := map[digest.Digest]int{}
	count := func(c claim) {
		for _, d := range append(append([]digest.Digest{}, c.layers...), c.blobs...) {
			claims[d]++
		}
	}
	for ref, e := range s.records {
		count(e.claim)
		if _, err := s.readRecord(s.recordPath(ref)); err != nil {
			t.Errorf("record of %s: %v", ref, err)
		}
		if s.images[e.Config] == nil {
			t.Errorf("image of %s is not visible", ref)
		}
	}
	for _, c := range s.roots {
		count(c)
	}
	for d := range s.kept {
		count(newClaim([]digest.Digest{d}))
	}
	for _, contents := range []map[digest.Digest]*content{s.layers, s.blobs} {
		for d, c := range contents {
			if c.claims != claims[d] {
				t.Errorf("%s has %d claims, there are %d", d, c.claims, claims[d])
			}
		}
	}
	s.checkModes(t)
}

// checkContent proves every file of one kind.
func (s *Store) checkContent(t *testing.T, dir string, known map[digest.Digest]*content, file func(digest.Digest) string) {
	t.Helper()
	present := 0
	for d, c := range known {
		if c.present {
			present++
		}
		data, err := os.ReadFile(file(d))
		if err != nil && c.present {
			t.Errorf("%s: %v", d, err)
		} else if c.present && (digest.FromBytes(data) != d || int64(len(data)) != c.size) {
			t.Errorf("%s/%s has the wrong content", dir, d.Encoded())
		}
	}
	if on := must(list(s.path(dir))); len(on) != present {
		t.Errorf("%s has %d entries, %d are known", dir, len(on), present)
	}
}

// checkModes: nobody else reads what the store makes. What is below a tree's or
// writable layer's root is the image's own, and closed off by the store's
// directory.
func (s *Store) checkModes(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if path == filepath.Join(filepath.Dir(path), "upper") && strings.HasPrefix(path, s.path(containersDir)) {
			if info.Mode().Perm() != 0o755 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return fs.SkipDir
		}
		if filepath.Base(path) == volumesDir && strings.HasPrefix(path, s.path(containersDir)) {
			if info.Mode().Perm() != 0o711 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return fs.SkipDir
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if d.IsDir() && d.Name() == "root" && strings.HasPrefix(path, s.path(treesDir)) || d.IsDir() && d.Name() == "work" {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// pull pulls what must succeed.
func pull(t *testing.T, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(context.Background(), Pull{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// empty fails when anything at all is in the store, but for what a failed pull
// keeps until its time is over.
func (s *Store) empty(t *testing.T) {
	t.Helper()
	s.forgetAll()
	s.work.Wait()
	for _, dir := range []string{layersDir, blobsDir, imagesDir, containersDir, filepath.Join(treesDir, s.boot), ingestDir, trashDir} {
		if left := must(list(s.path(dir))); len(left) > 0 {
			t.Errorf("%s has %q", dir, left)
		}
	}
	if len(s.layers)+len(s.blobs)+len(s.images)+len(s.records) > 0 {
		t.Errorf("the maps are not empty: %v %v %v %v", s.layers, s.blobs, s.images, s.records)
	}
}

// at mounts a root somewhere and returns where.
func at(t *testing.T, root *os.File, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	dir := t.TempDir()
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// EINVAL: the test has done it already.
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}
