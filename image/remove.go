package image

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Remove removes the image that ref names in any way, with all its tags and
// digests; nil if there is none. Its layers are deleted in the background, but
// for those that another image, a writable layer or a pull under way needs.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.imageLocked(ref)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var all []*entry
	for _, e := range s.records {
		if e.Config == img.ID {
			all = append(all, e)
		}
	}
	if err := s.withdrawLocked(all); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}

// withdrawLocked deletes records. The files go first: after a crash between two
// of them the image is still complete under its other references. Nothing is
// synced: a record that a power cut brings back without its layers is withdrawn
// by Open.
func (s *Store) withdrawLocked(all []*entry) error {
	for _, e := range all {
		if err := os.Remove(s.recordPath(e.Ref)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		s.uninstallLocked(e)
	}
	return nil
}
