package image

import (
	"context"
	"fmt"
	"sync"
)

// A budget bounds the memory that images take while they are pulled. Each layer has a
// little of its own; of all that need more, one has it at a time, and the others wait
// for it. So none waits while another waits for it. The zero value is ready.
type budget struct {
	once sync.Once
	more chan struct{} // holds a token while nobody has more than a little
}

// share is for one layer: free bytes of its own, and at most so many in all.
func (b *budget) share(ctx context.Context, free, most int) *allowance {
	b.once.Do(func() {
		b.more = make(chan struct{}, 1)
		b.more <- struct{}{}
	})
	return &allowance{ctx: ctx, of: b, free: free, most: most}
}

// allowance is for one goroutine at a time.
type allowance struct {
	ctx              context.Context
	of               *budget
	used, free, most int
	held             bool // the token
}

// use takes n more bytes, until release. Errors: ErrInvalidImage, ctx's.
func (a *allowance) use(n int) error {
	a.used += n
	if a.used > a.most {
		return fmt.Errorf("%w: it needs more than %d bytes of memory to be read", ErrInvalidImage, a.most)
	}
	if a.used <= a.free || a.held {
		return nil
	}
	select {
	case <-a.of.more:
		a.held = true
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

func (a *allowance) release() {
	if a.held {
		a.of.more <- struct{}{}
		a.held = false
	}
}

// What a layer's metadata may take, in bytes: the paths of implied directories and the
// ACLs of others. Honest layers have neither, or some kilobytes.
const (
	freeMetadata = 512 << 10
	maxMetadata  = 18 << 20
)

// freeWindow is the zstd window, in bytes, that each layer may have: what all levels but
// the last ones ask for.
const freeWindow = 8 << 20
