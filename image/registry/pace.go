package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// DefaultMinRate is the least rate of a transfer, in bytes per second.
const DefaultMinRate = 10 << 10

// errStalled is the cause of a request that ran out of patience.
var errStalled = errors.New("registry is too slow")

// pace is how long one manifest or blob may keep its reader waiting: for each
// stretch of patience at least so many bytes must come. It goes on over broken
// connections, redirects and pauses, so that a registry gains nothing by
// breaking a connection that it feeds with drops. Time that the reader spends
// elsewhere, on a slow disk for example, does not count. Not safe for use by
// several goroutines.
type pace struct {
	patience time.Duration
	least    int64         // bytes that end a stretch
	left     time.Duration // of this stretch
	bytes    int64         // of this stretch
}

func newPace(patience time.Duration, minRate int64) *pace {
	return &pace{patience: patience, least: max(1, int64(patience.Seconds()*float64(minRate))), left: patience}
}

// took counts a wait that brought n bytes.
func (p *pace) took(d time.Duration, n int) {
	p.left -= d
	if p.bytes += int64(n); p.bytes >= p.least {
		p.left, p.bytes = p.patience, 0
	}
}

func (p *pace) stalled() error {
	return fmt.Errorf("%w: fewer than %d bytes in %s", errStalled, p.least, p.patience)
}

// pause waits for d, or not at all if the patience does not last that long.
func (p *pace) pause(ctx context.Context, d time.Duration) error {
	if d > p.left {
		return p.stalled()
	}
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		p.took(time.Since(began), 0)
		return nil
	}
}

// request is one request under a pace: its clock runs while somebody waits.
type request struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	pace   *pace
	clock  *time.Timer
	began  time.Time
}

// begin starts the clock for the answer's header. The request runs with r.ctx.
func (p *pace) begin(ctx context.Context) *request {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &request{ctx: ctx, cancel: cancel, pace: p, began: time.Now()}
	r.clock = time.AfterFunc(p.left, func() { cancel(p.stalled()) })
	return r
}

func (r *request) wait() {
	r.began = time.Now()
	r.clock.Reset(r.pace.left)
}

// came ends a wait that brought n bytes.
func (r *request) came(n int) {
	r.clock.Stop()
	r.pace.took(time.Since(r.began), n)
}

func (r *request) end() {
	r.clock.Stop()
	r.cancel(nil)
}

// explain puts the end of patience in the place of the cancellation that it
// caused.
func (r *request) explain(err error) error {
	if cause := context.Cause(r.ctx); err != nil && errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// pacedBody is an answer's body under a pace. Closing it ends the request.
type pacedBody struct {
	io.ReadCloser
	request *request
}

func (b *pacedBody) Read(p []byte) (int, error) {
	b.request.wait()
	n, err := b.ReadCloser.Read(p)
	b.request.came(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.request.explain(err)
	}
	return n, err
}

func (b *pacedBody) Close() error {
	err := b.ReadCloser.Close()
	b.request.end()
	return err
}
