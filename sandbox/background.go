package sandbox

import (
	"context"
	"sync"
	"time"
)

// background owns every goroutine of Pods: close waits for them all.
type background struct {
	ctx    context.Context // ends with close; its cause is ErrClosed
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	closed bool // no goroutine begins once it is set
	wg     sync.WaitGroup
}

func newBackground() *background {
	b := &background{}
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	return b
}

// run calls do on a goroutine, unless close has been called: then it returns
// false.
func (b *background) run(do func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.wg.Go(do)
	return true
}

// later calls do after d, if close is not called before.
func (b *background) later(d time.Duration, do func()) {
	b.run(func() {
		if b.pause(d) {
			do()
		}
	})
}

// pause waits for d, and returns false if close cut it short.
func (b *background) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-b.ctx.Done():
		return false
	}
}

// detach returns a context with ctx's values that does not end with ctx, but
// after d or with close.
func (b *background) detach(ctx context.Context, d time.Duration) (context.Context, context.CancelCauseFunc) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), d)
	ctx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(b.ctx, func() { cancel(ErrClosed) })
	return ctx, func(cause error) {
		cancel(cause)
		unlink()
		stop()
	}
}

func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel(ErrClosed)
	b.wg.Wait()
}
