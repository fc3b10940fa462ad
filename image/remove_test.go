package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func remove(t *testing.T, s *Store, ref string) {
	t.Helper()
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveByAnyName removes all tags by any one name.
func TestRemoveByAnyName(t *testing.T) {
	f, s := newFake(t), newStore(t)
	sp := spec{layers: [][]byte{files("a", "a")}}
	d := f.image("a", "v1", sp)
	f.image("a", "v2", sp)
	f.image("other/b", "v1", sp)
	h := f.host()
	for _, name := range []string{h + "/a:v2", h + "/other/b:v1", h + "/a@" + d.Digest.String(), "ID", "HEX", "PREFIX"} {
		pull(t, s, h+"/a:v1")
		pull(t, s, h+"/a:v2")
		img := pull(t, s, h+"/other/b:v1")
		if want := []string{h + "/a:v1", h + "/a:v2", h + "/other/b:v1"}; !slices.Equal(img.Tags, want) {
			t.Fatalf("tags are %q, want %q", img.Tags, want)
		}
		name = strings.NewReplacer("ID", img.ID.String(), "HEX", img.ID.Encoded(), "PREFIX", img.ID.Encoded()[:10]).Replace(name)
		remove(t, s, name)
		s.empty(t)
		remove(t, s, name)
	}
	if err := s.Remove(context.Background(), "NOT A NAME"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("got %v", err)
	}
}

func TestRemoveKeepsSharedLayers(t *testing.T) {
	f, s := newFake(t), newStore(t)
	base := files("base", "b")
	f.image("a", "v1", spec{layers: [][]byte{base, files("a", "a")}})
	f.image("b", "v1", spec{layers: [][]byte{base, files("b", "b")}})
	a, b := pull(t, s, f.host()+"/a:v1"), pull(t, s, f.host()+"/b:v1")
	remove(t, s, a.ID.String())
	s.check(t)
	if !s.has(digest.FromBytes(base)) || s.has(a.Layers[1]) {
		t.Error("the shared layer is gone, or the other one is not")
	}
	if _, err := s.Image(f.host() + "/b:v1"); err != nil {
		t.Error(err)
	}
	remove(t, s, b.ID.String())
	s.empty(t)
}

// TestMovedTag: the old image stays under its digest.
func TestMovedTag(t *testing.T) {
	f, s := newFake(t), newStore(t)
	oldManifest := f.image("a", "v1", spec{layers: [][]byte{files("a", "old")}})
	old := pull(t, s, f.host()+"/a:v1")
	f.image("a", "v1", spec{layers: [][]byte{files("a", "new")}})
	img := pull(t, s, f.host()+"/a:v1")
	if img.ID == old.ID {
		t.Fatal("the tag did not move")
	}
	for range 2 {
		got, err := s.Image(f.host() + "/a@" + oldManifest.Digest.String())
		if err != nil || got.ID != old.ID || len(got.Tags) != 0 {
			t.Errorf("the old image is %+v, %v", got, err)
		}
		if all := s.Images(); len(all) != 2 || all[0].ID != img.ID || all[1].ID != old.ID {
			t.Errorf("images are %v", all)
		}
		s = reopen(t, s)
	}
}

func TestUsage(t *testing.T) {
	f, s := newFake(t), newStore(t)
	usage := func() Usage {
		t.Helper()
		u, err := s.Usage(context.Background())
		if err != nil || u.At.IsZero() {
			t.Fatalf("at %v: %v", u.At, err)
		}
		u.At = time.Time{}
		return u
	}
	if u := usage(); u != (Usage{Mountpoint: s.Dir}) {
		t.Errorf("an empty store takes %+v", u)
	}
	f.image("a", "v1", spec{layers: [][]byte{files("a", noise(100_000, "a"), "b", "b"), files("c", "c")}})
	pull(t, s, f.host()+"/a:v1")
	u := usage()
	var inodes, bytes uint64
	for _, dir := range []string{layersDir, blobsDir, filepath.Join(treesDir, s.boot)} {
		check(filepath.Walk(s.path(dir), func(path string, info os.FileInfo, err error) error {
			if err == nil && path != s.path(dir) {
				inodes++
				if !info.IsDir() && filepath.Base(path) != "tree.json" && filepath.Base(path) != "meta.json" {
					bytes += uint64(info.Size())
				}
			}
			return err
		}))
	}
	if u.Bytes != bytes || u.Inodes != inodes {
		t.Errorf("usage is %+v, on disk are %d bytes and %d inodes", u, bytes, inodes)
	}
	s = reopen(t, s)
	if again := usage(); again != u {
		t.Errorf("after a restart it is %+v, before %+v", again, u)
	}
	remove(t, s, f.host()+"/a:v1")
	if u := usage(); u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("after the removal it is %+v", u)
	}
}
