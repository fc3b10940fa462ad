package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestOpenTwice(t *testing.T) {
	s := newStore(t)
	other := &Store{Dir: s.Dir}
	if err := other.Open(context.Background()); err == nil {
		t.Error("two had the store open")
	}
	s.check(t)
	if err := (&Store{Dir: "relative"}).Open(context.Background()); err == nil {
		t.Error("a relative directory was accepted")
	}
}

// TestOpenHalfStates: what a crash or a foul disk can leave. Whatever it is, the
// store opens, shows only what is whole, and what was not is gone.
func TestOpenHalfStates(t *testing.T) {
	junk := digest.FromString("junk").Encoded()
	write := func(path string) {
		check(os.MkdirAll(filepath.Dir(path), 0o700))
		check(os.WriteFile(path, []byte("junk"), 0o600))
	}
	tests := []struct {
		name   string
		damage func(s *Store, img *Image)
		lost   bool // the image
	}{
		{"nothing", func(*Store, *Image) {}, false},
		{"junk in ingest and trash", func(s *Store, _ *Image) {
			write(s.path(ingestDir, "a", "layer", "layer.tar"))
			write(s.path(ingestDir, "b"))
			write(s.path(trashDir, "1", "x"))
			write(s.path(trashDir, "2"))
		}, false},
		{"layer that nobody claims", func(s *Store, img *Image) {
			check(os.CopyFS(s.path(layersDir, junk), os.DirFS(s.layerPath(img.Layers[0]))))
		}, false},
		{"layer without its meta.json", func(s *Store, img *Image) { check(os.Remove(filepath.Join(s.layerPath(img.Layers[0]), "meta.json"))) }, true},
		{"layer without its tar", func(s *Store, img *Image) { check(os.Remove(filepath.Join(s.layerPath(img.Layers[0]), "layer.tar"))) }, true},
		{"layer cut short", func(s *Store, img *Image) {
			check(os.Truncate(filepath.Join(s.layerPath(img.Layers[0]), "layer.tar"), 10))
		}, true},
		{"layer as a symlink", func(s *Store, img *Image) {
			tar := filepath.Join(s.layerPath(img.Layers[0]), "layer.tar")
			check(os.Rename(tar, s.path(ingestDir, "x")))
			check(os.Symlink(s.path(ingestDir, "x"), tar))
		}, true},
		{"layer gone", func(s *Store, img *Image) { check(os.RemoveAll(s.layerPath(img.Layers[1]))) }, true},
		{"blob that nobody claims", func(s *Store, _ *Image) { write(s.path(blobsDir, junk)) }, false},
		{"config damaged", func(s *Store, img *Image) { check(os.Truncate(s.blobPath(img.ID), 5)) }, true},
		{"config gone", func(s *Store, img *Image) { check(os.Remove(s.blobPath(img.ID))) }, true},
		{"names that are no digest", func(s *Store, _ *Image) {
			write(s.path(layersDir, "not-a-digest", "layer.tar"))
			write(s.path(blobsDir, "README"))
			write(s.path(treesDir, s.boot, "x", "root", "f"))
		}, false},
		{"record that is junk", func(s *Store, _ *Image) { write(s.path(imagesDir, "x.json")) }, false},
		{"record under another name", func(s *Store, img *Image) {
			check(os.Rename(s.recordPath(img.Tags[0]), s.path(imagesDir, "x.json")))
			check(os.Remove(s.recordPath(img.Digests[0])))
		}, true},
		{"record empty", func(s *Store, img *Image) {
			check(os.Truncate(s.recordPath(img.Tags[0]), 0))
			check(os.Truncate(s.recordPath(img.Digests[0]), 0))
		}, true},
		{"writable layer without its record", func(s *Store, _ *Image) { write(s.path(containersDir, "c", "upper", "x")) }, false},
		{"tree without its layer", func(s *Store, img *Image) {
			check(os.Rename(s.treePath(img.Layers[0]), s.path(treesDir, s.boot, junk)))
		}, false},
		{"tree without its tree.json", func(s *Store, img *Image) {
			check(os.Remove(filepath.Join(s.treePath(img.Layers[0]), "tree.json")))
		}, false},
		{"images without the rest", func(s *Store, _ *Image) {
			check(os.RemoveAll(s.path("layers")))
			check(os.RemoveAll(s.path("blobs")))
			check(os.RemoveAll(s.path(treesDir)))
		}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, s := newFake(t), newStore(t)
			f.image("a", "v1", spec{layers: [][]byte{files("a", "a"), files("b", "b")}})
			ref := f.host() + "/a:v1"
			img := pull(t, s, ref)
			closeStore(t, s)
			test.damage(s, img)
			s = openStore(t, s.Dir)
			s.check(t)
			if _, err := s.Image(ref); (err != nil) != test.lost {
				t.Errorf("the image is lost: %v, want %v", err, test.lost)
			}
			if test.lost {
				s.empty(t)
			}
			img = pull(t, s, ref)
			root, err := s.Root(context.Background(), "c", img, nil)
			if err != nil {
				t.Fatal(err)
			}
			root.Close()
			removeRoot(t, s, "c")
		})
	}
}
