package image

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/image/layer"
)

// promise is what an image at a registry says of a layer: that the registry has
// a blob of this digest and size, and that it inflates to DiffID. It is nothing
// more until the blob has come. So pulls wait for one another only if they were
// promised the same by the same registry, and a layer that is here counts only
// for a blob that was proven to be it.
type promise struct {
	registry string
	layer.Declared
}

// flight is what all pulls that want the same promise share.
type flight struct {
	pulls  int // Store.mu
	moving transfer
}

// join adds a pull to the flight of each promise; the caller calls leave once.
func (s *Store) join(promises []promise) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range promises {
		if s.flights[p] == nil {
			s.flights[p] = &flight{}
		}
		s.flights[p].pulls++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range promises {
			if s.flights[p].pulls--; s.flights[p].pulls == 0 {
				delete(s.flights, p)
			}
		}
	}
}

// transfer is what a pull that has joined the flight counts in.
func (s *Store) transfer(p promise) *transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &s.flights[p].moving
}

// lockPromise waits until no other pull fetches what was promised.
func (s *Store) lockPromise(ctx context.Context, p promise) (unlock func(), _ error) {
	return s.busy.lock(ctx, fmt.Sprintf("promise %s %s %d %s", p.registry, p.Digest, p.Size, p.DiffID))
}

// lockLayer waits until nobody makes the layer, its tree or its list of proofs.
// Nobody speaks to a registry with this lock.
func (s *Store) lockLayer(ctx context.Context, diffID digest.Digest) (unlock func(), _ error) {
	return s.busy.lock(ctx, "layer "+diffID.String())
}

// provenLocked tells whether the layer is on disk and a blob of this digest was
// once fetched and inflated to it.
func (s *Store) provenLocked(d layer.Declared) bool {
	l := s.layers[d.DiffID]
	return l != nil && l.present && slices.Contains(l.blobs, d.Digest)
}

// claimFor claims more for the pull of r.
func (s *Store) claimFor(r *resolved, c claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holdLocked(c)
	r.held = append(r.held, c)
}

// claimProven claims the layer for the pull of r if it is proven. What an image
// only names it must not keep on the disk.
func (s *Store) claimProven(r *resolved, p promise) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.provenLocked(p.Declared) {
		return false
	}
	c := newClaim([]digest.Digest{p.DiffID})
	s.holdLocked(c)
	r.held = append(r.held, c)
	return true
}

// releaseFor gives back all claims of the pull of r.
func (s *Store) releaseFor(r *resolved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range r.held {
		s.releaseLocked(c)
	}
	r.held = nil
}

// maxProofs bounds how many blobs of one layer are remembered, the last ones.
const maxProofs = 64

// addProof remembers that the blob was inflated to a layer that is here. The
// caller has lockLayer.
func (s *Store) addProof(d layer.Declared) error {
	s.mu.Lock()
	l := s.layerLocked(d.DiffID)
	meta := layerMeta{Size: l.size, Blobs: append(slices.Clone(l.blobs), d.Digest)}
	s.mu.Unlock()
	meta.Blobs = meta.Blobs[max(0, len(meta.Blobs)-maxProofs):]
	data, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if err := s.writeFile(filepath.Join(s.layerPath(d.DiffID), "meta.json"), data); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.blobs = meta.Blobs
	return nil
}
