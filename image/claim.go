package image

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

// content is one layer or blob.
type content struct {
	claims  int
	present bool  // it is on disk, complete
	size    int64 // bytes; 0 until present
	tree    treeInfo
	blobs   []digest.Digest // of a layer: the compressed blobs proven to be it
}

// claim is the right of a record, a writable layer or a pull to find content
// in the store. What nobody claims is deleted.
type claim struct {
	layers []digest.Digest // without duplicates
	blobs  []digest.Digest // without duplicates
}

func newClaim(layers []digest.Digest, blobs ...digest.Digest) claim {
	return claim{unique(layers), unique(blobs)}
}

func unique(all []digest.Digest) []digest.Digest {
	seen := map[digest.Digest]bool{}
	var out []digest.Digest
	for _, d := range all {
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	return out
}

// holdPresent makes a claim on layers that must all be there; ErrNotFound.
func (s *Store) holdPresent(c claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range c.layers {
		if l := s.layers[d]; l == nil || !l.present {
			return fmt.Errorf("%w: layer %s, pull the image again", ErrNotFound, d)
		}
	}
	s.holdLocked(c)
	return nil
}

func (s *Store) holdLocked(c claim) {
	for _, d := range c.layers {
		s.layerLocked(d).claims++
	}
	for _, d := range c.blobs {
		s.blobLocked(d).claims++
	}
}

func (s *Store) layerLocked(d digest.Digest) *content { return get(s.layers, d) }
func (s *Store) blobLocked(d digest.Digest) *content  { return get(s.blobs, d) }

func get(m map[digest.Digest]*content, d digest.Digest) *content {
	if m[d] == nil {
		m[d] = &content{}
	}
	return m[d]
}

// release gives a claim back and deletes what nobody claims any more.
func (s *Store) release(c claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(c)
}

func (s *Store) releaseLocked(c claim) {
	for _, d := range c.layers {
		if l := s.layers[d]; l.drop() {
			delete(s.layers, d)
			s.deleteLayerLocked(d)
		}
	}
	for _, d := range c.blobs {
		if b := s.blobs[d]; b.drop() {
			delete(s.blobs, d)
			if err := os.Remove(s.blobPath(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
				klog.ErrorS(err, "Blob is not removed, the next start does it", "digest", d)
			}
		}
	}
}

// drop takes one claim off and tells whether it was the last.
func (c *content) drop() bool {
	c.claims--
	return c.claims == 0
}

// deleteLayerLocked moves a layer and its tree to the trash. The layer goes
// last: a tree without its layer is swept by Open.
func (s *Store) deleteLayerLocked(d digest.Digest) {
	if err := errors.Join(s.discard(s.treePath(d)), s.discard(s.layerPath(d))); err != nil {
		klog.ErrorS(err, "Layer is not removed, the next start does it", "diffID", d)
	}
}

// has tells whether a layer is on disk. The answer stays true for as long as
// the caller has a claim on it, and lockLayer: a damaged layer is taken away.
func (s *Store) has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[d]
	return l != nil && l.present
}
