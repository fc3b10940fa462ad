package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// minProgress is how many bytes must arrive within one timeout for the transfer
// to count as alive; a drip of single bytes is a stall.
const minProgress = 4 << 10

// stall ends one request when nothing has come for a while.
type stall struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
	since   int // bytes since the timer was last set
}

// watch starts the clock for one request, which runs with s.ctx.
func watch(ctx context.Context, timeout time.Duration) *stall {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stall{ctx: ctx, cancel: cancel, timeout: timeout}
	s.timer = time.AfterFunc(timeout, func() {
		cancel(fmt.Errorf("%w for %s", errStalled, timeout))
	})
	return s
}

// progress is called by the one reader of the answer.
func (s *stall) progress(n int) {
	if s.since += n; s.since >= minProgress {
		s.since = 0
		s.timer.Reset(s.timeout)
	}
}

func (s *stall) stop() {
	s.timer.Stop()
	s.cancel(nil)
}

// explain puts the stall in the place of the cancellation that it caused.
func (s *stall) explain(err error) error {
	if cause := context.Cause(s.ctx); err != nil && errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// watchedBody is an answer's body under a stall clock. Closing it ends the
// request.
type watchedBody struct {
	io.ReadCloser
	stall *stall
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.stall.progress(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.stall.explain(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.stall.stop()
	return err
}
