package image

import "context"

// Usage is what images take: layers, blobs and extracted trees, from counters,
// without looking at the disk. Writable layers are not in it.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	if err := ctx.Err(); err != nil {
		return Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Mountpoint: s.Dir}
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
