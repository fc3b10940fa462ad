package image

import (
	"context"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// How many layers are downloaded at once. An image always has one download of
// its own, whatever the others hold: what is shared out is the rest.
const (
	perImage    = 4
	perRegistry = 8
	perNode     = 16
)

// slots shares out downloads among registries, and among the images of one, so
// that a slow image or registry takes no more than its share. The zero value is
// ready.
type slots struct {
	mu         sync.Mutex
	all        int // held
	registries map[string]int
	images     map[share]int
	waiting    []*waiter // who came first stands first
}

// share is whose slots are counted together.
type share struct {
	registry string
	image    digest.Digest // its manifest or index
}

type waiter struct {
	share
	granted chan struct{} // closed with the slot taken
}

// take waits for a slot. The caller calls release once.
func (s *slots) take(ctx context.Context, of share) (release func(), _ error) {
	w := &waiter{share: of, granted: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.grantLocked()
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.addLocked(of, -1)
		s.grantLocked()
	}
	select {
	case <-w.granted:
		return release, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.waiting, w)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // it was granted in the same moment
		release()
	}
	return nil, ctx.Err()
}

// grantLocked gives slots to those who may have one. Who holds least comes
// first: the registry, then its image, then whoever came first.
func (s *slots) grantLocked() {
	for {
		best := -1
		for i, w := range s.waiting {
			if s.mayLocked(w.share) && (best < 0 || s.beforeLocked(w.share, s.waiting[best].share)) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		w := s.waiting[best]
		s.waiting = slices.Delete(s.waiting, best, best+1)
		s.addLocked(w.share, 1)
		close(w.granted)
	}
}

func (s *slots) mayLocked(of share) bool {
	held := s.images[of]
	return held == 0 || held < perImage && s.registries[of.registry] < perRegistry && s.all < perNode
}

func (s *slots) beforeLocked(a, b share) bool {
	if x, y := s.registries[a.registry], s.registries[b.registry]; x != y {
		return x < y
	}
	return s.images[a] < s.images[b]
}

func (s *slots) addLocked(of share, n int) {
	if s.images == nil {
		s.registries, s.images = map[string]int{}, map[share]int{}
	}
	s.all += n
	if s.registries[of.registry] += n; s.registries[of.registry] == 0 {
		delete(s.registries, of.registry)
	}
	if s.images[of] += n; s.images[of] == 0 {
		delete(s.images, of)
	}
}
