package image

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// keepTime is how long the layers of a failed pull wait for the next try. The
// kubelet's own tries are at most five minutes apart.
const keepTime = 15 * time.Minute

// keep claims the layers that a failed pull has brought or found until keepTime
// is over, space gets short, or an image has them. A layer that the pull only
// named is none of them.
func (s *Store) keep(promises []promise) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range promises {
		d := p.DiffID
		if !s.provenLocked(p.Declared) {
			continue
		}
		if s.kept[d] == nil {
			s.holdLocked(newClaim([]digest.Digest{d}))
		} else {
			s.kept[d].Stop()
		}
		var timer *time.Timer
		timer = time.AfterFunc(s.keepTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.kept[d] == timer { // and not a later one, or none
				s.forgetLocked(d)
			}
		})
		s.kept[d] = timer
	}
}

// forget ends keep for layers that are claimed otherwise, so that they go with
// whatever claims them.
func (s *Store) forget(layers []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range layers {
		s.forgetLocked(d)
	}
}

func (s *Store) forgetLocked(d digest.Digest) {
	if timer := s.kept[d]; timer != nil {
		timer.Stop()
		delete(s.kept, d)
		s.releaseLocked(newClaim([]digest.Digest{d}))
	}
}

// forgetAll ends keep for all layers, and tells whether there were any.
func (s *Store) forgetAll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	some := len(s.kept) > 0
	for d := range s.kept {
		s.forgetLocked(d)
	}
	return some
}

// stopKeeping stops the clocks; what is kept stays for Open to delete.
func (s *Store) stopKeeping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, timer := range s.kept {
		timer.Stop()
		delete(s.kept, d)
	}
}
