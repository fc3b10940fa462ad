package image

import (
	"context"
	"sync"
)

// keyed is a set of locks by name, so that of several who need the same thing
// one makes it and the others wait and find it. The zero value is ready.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the lock is free again
}

// lock waits for key. The caller calls unlock once.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), _ error) {
	for {
		k.mu.Lock()
		free, held := k.held[key]
		if !held {
			mine := make(chan struct{})
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			k.held[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
