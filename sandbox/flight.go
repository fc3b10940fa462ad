package sandbox

import (
	"context"
	"sync"
	"time"
)

// verb names an operation on a pod or a container.
type verb string

const (
	verbRun    verb = "run"    // pod: until it is ready, or gone again
	verbCreate verb = "create" // container: until it is created, or gone again
	verbStart  verb = "start"
	verbUpdate verb = "update" // container: what it may use
	verbStop   verb = "stop"
	verbHalt   verb = "halt" // container: killed, and what it held of the kernel given back
	verbRemove verb = "remove"
)

// operationTimeout bounds an operation beyond the time that its caller gave it
// to wait (the grace of a stop). It is the longest that the kubelet waits for
// any RPC, so that a hung operation ends, and is cleaned up, when its caller has
// given up as well.
const operationTimeout = 4 * time.Minute

// flight is one operation under way.
type flight struct {
	verb     verb
	patience *patience // of a container's stop; else nil
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when it has ended and its slot is free
	err      error         // of the operation; to be read after done
}

// wait returns what became of the flight; if ctx ends before, its error.
func (f *flight) wait(ctx context.Context) error {
	if err := f.end(ctx); err != nil {
		return err
	}
	return f.err
}

// end waits for the flight to end, however it does.
func (f *flight) end(ctx context.Context) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// slot holds the one operation that may change a pod or container.
type slot struct {
	mu  sync.Mutex
	now *flight // nil: free
}

// begin starts f with do, detached from ctx and bounded by d. If the slot is
// taken it returns the flight that has it instead of f, and starts nothing. The
// only error is ErrClosed.
func (s *slot) begin(ctx context.Context, b *background, f *flight, d time.Duration, do func(context.Context) error) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil {
		return s.now, nil
	}
	ctx, cancel := b.detach(ctx, d)
	f.cancel = cancel
	f.done = make(chan struct{})
	started := b.run(func() {
		defer cancel(nil)
		s.land(f, do(ctx))
	})
	if !started {
		cancel(nil)
		return nil, ErrClosed
	}
	s.now = f
	return f, nil
}

func (s *slot) land(f *flight, err error) {
	s.mu.Lock()
	s.now = nil
	s.mu.Unlock()
	f.err = err
	close(f.done)
}

func (s *slot) current() *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// patience is how long a stop waits before it kills. It only ever shrinks.
type patience struct {
	sooner chan struct{} // has an element when until has shrunk

	mu    sync.Mutex
	until time.Time
}

func newPatience(until time.Time) *patience {
	return &patience{sooner: make(chan struct{}, 1), until: until}
}

func (p *patience) shorten(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !until.Before(p.until) {
		return
	}
	p.until = until
	select {
	case p.sooner <- struct{}{}:
	default:
	}
}

func (p *patience) deadline() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until
}

func (p *patience) left() time.Duration { return time.Until(p.deadline()) }

// wait returns true when done is closed, false when patience or ctx has ended.
func (p *patience) wait(ctx context.Context, done <-chan struct{}) bool {
	t := time.NewTimer(p.left())
	defer t.Stop()
	for {
		select {
		case <-done:
			return true
		case <-p.sooner:
			t.Reset(p.left())
		case <-t.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// do runs verb, joining one of the same verb or a removal that is under way
// already, after anything else in the pod's slot has ended.
func (p *Pod) do(ctx context.Context, v verb, do func(context.Context) error) error {
	for {
		f := &flight{verb: v}
		now, err := p.slot.begin(ctx, p.pods.background, f, operationTimeout, p.reported(v, nil, do))
		if err != nil {
			return err
		}
		if now == f || now.verb == v || now.verb == verbRemove {
			return now.wait(ctx)
		}
		if now.verb == verbRun {
			now.cancel(ErrPreempted)
		}
		if err := now.end(ctx); err != nil {
			return err
		}
	}
}

// begin puts f into the container's slot, or returns the flight that has it.
func (c *Container) begin(ctx context.Context, f *flight, d time.Duration, do func(context.Context) error) (*flight, error) {
	return c.slot.begin(ctx, c.pod.pods.background, f, d, c.pod.reported(f.verb, c, do))
}

// do runs f, joining a flight under way that does the same or more. A weaker one
// gives way: a creation or start is pre-empted, a stop's patience ends.
func (c *Container) do(ctx context.Context, f *flight, d time.Duration, do func(context.Context) error) error {
	for {
		now, err := c.begin(ctx, f, d, do)
		if err != nil {
			return err
		}
		if now == f || covers(now.verb, f.verb) {
			if now != f && now.patience != nil {
				now.patience.shorten(f.patience.deadline())
			}
			return now.wait(ctx)
		}
		if f.verb != verbStart && f.verb != verbUpdate {
			giveWay(now)
		}
		if err := now.end(ctx); err != nil {
			return err
		}
	}
}

// covers says whether who asked for verb is served by a flight of under. An update
// is not served by another: they may differ.
func covers(under, verb verb) bool {
	return under == verb && verb != verbUpdate || verb == verbStop && (under == verbHalt || under == verbRemove) || verb == verbHalt && under == verbRemove
}

func giveWay(f *flight) {
	switch f.verb {
	case verbCreate, verbStart:
		f.cancel(ErrPreempted)
	case verbStop:
		f.patience.shorten(time.Now())
	}
}
