package image

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// A budget bounds the memory that images take while they are pulled: the windows of
// zstd decoders, and what extractions keep. Each layer has a little of its own; of all
// that need more, one has it at a time, and the others wait for it. Whoever has it waits
// for nothing but the disk: no other layer, and no registry. The zero value is ready.
type budget struct {
	once sync.Once
	more chan struct{} // holds a token while nobody has more than a little
}

// little is what each layer may have beside the others, in bytes.
const little = 512 << 10

// share is for one layer: so many bytes at most. before, unless it is nil, is called
// once, before the layer waits for more than a little.
func (b *budget) share(ctx context.Context, most int, before func() error) *allowance {
	b.once.Do(func() {
		b.more = make(chan struct{}, 1)
		b.more <- struct{}{}
	})
	return &allowance{ctx: ctx, of: b, most: most, before: before}
}

// allowance is for one goroutine at a time.
type allowance struct {
	ctx        context.Context
	of         *budget
	used, most int
	before     func() error
	held       bool // the token
}

// use takes n more bytes, until release. Errors: ErrInvalidImage, before's, ctx's.
func (a *allowance) use(n int) error {
	a.used += n
	if a.used > a.most {
		return fmt.Errorf("%w: it needs more than %d bytes of memory to be read", ErrInvalidImage, a.most)
	}
	if a.used <= little || a.held {
		return nil
	}
	if a.before != nil {
		if err := a.before(); err != nil {
			return err
		}
	}
	select {
	case <-a.of.more:
		a.held = true
		// What the last one had is garbage now. Go would keep it beside what comes next,
		// whatever its memory limit is: it collects while others allocate.
		debug.FreeOSMemory()
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

// maxMetadata is what a layer's metadata may take, in bytes: the paths of implied
// directories and the ACLs of others. Honest layers have neither, or some kilobytes.
const maxMetadata = 18 << 20
