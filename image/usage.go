package image

import (
	"context"
	"time"
)

// Usage is what images take: layers, blobs and extracted trees, from counters,
// without looking at the disk. Writable layers are not in it: RootsUsage.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	if err := ctx.Err(); err != nil {
		return Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Mountpoint: s.Dir, At: time.Now()}
	for _, l := range s.layers {
		if l.present {
			u.Bytes += uint64(l.size + l.tree.Bytes)
			u.Inodes += uint64(layerInodes + l.tree.Inodes)
		}
	}
	for _, b := range s.blobs {
		if b.present {
			u.Bytes += uint64(b.size)
			u.Inodes++
		}
	}
	return u, nil
}

// layerInodes are a layer's own: its directory, layer.tar and meta.json, and
// its tree's directory, root and tree.json.
const layerInodes = 6

// RootUsage is what the writable layer of container id takes, as it was measured
// last: Usage.At says when, and is zero if it never was. To ask lets it be
// measured anew in the background when that is due, and waits for nothing.
func (s *Store) RootUsage(id string) Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Mountpoint: s.Dir}
	if _, ok := s.roots[id]; ok {
		m := s.survey.ask(id)
		u.Bytes, u.Inodes, u.At = m.Bytes, m.Inodes, m.At
	}
	return u
}

// RootsUsage is RootUsage of all writable layers together. At is now: what was
// not measured yet is missing.
func (s *Store) RootsUsage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Mountpoint: s.Dir, At: time.Now()}
	for id := range s.roots {
		m := s.survey.ask(id)
		u.Bytes += m.Bytes
		u.Inodes += m.Inodes
	}
	return u
}
