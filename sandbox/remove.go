package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Remove removes the pod with everything in it, by force (CRI
// RemovePodSandbox). It is idempotent; a second call joins the first. What would
// not go is tried again in the background, also when the caller does not come
// again.
func (p *Pod) Remove(ctx context.Context) error {
	if err := p.do(ctx, verbRemove, p.remove); err != nil {
		p.told(err)
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	return nil
}

// remove is the only way by which a pod goes: failed creations, crashes and
// Remove end here. It takes the pod from any state, tolerates what is missing,
// and tries again in the background what would not go. The record goes last.
func (p *Pod) remove(ctx context.Context) error {
	if p.record().State == podGone {
		return nil
	}
	p.pods.release(p)
	gone, err := p.takeApart(ctx)
	if !gone {
		p.again(verbRemove, p.remove)
	}
	return err
}

func (p *Pod) takeApart(ctx context.Context) (gone bool, err error) {
	if err := p.change(podRemove, nil); err != nil {
		return false, err
	}
	if err := p.each(func(c *Container) error { return c.Remove(ctx) }); err != nil {
		return false, err
	}
	if err := p.free(ctx); err != nil {
		return false, err
	}
	if !p.record().Detached { // patience is over: it goes on unseen
		return false, p.change("", func(rec *podRecord) { rec.Dropped = true })
	}
	err = p.pods.effect(ctx, "remove pod", func() error { return os.RemoveAll(p.dir) })
	if err != nil {
		// A mount may be in the way: the next try gives everything back once more.
		return false, errors.Join(err, p.change("", func(rec *podRecord) { rec.Freed = false }))
	}
	if err := p.vanish(); err != nil {
		return false, err
	}
	p.pods.forget(p)
	return true, nil
}

// vanish ends the pod in memory; on disk there is nothing left.
func (p *Pod) vanish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := podStates.next(p.rec.State, podRemoved)
	p.rec.State = next
	return err
}

// Remove removes the container, killing it if it runs (CRI RemoveContainer). It
// is idempotent; a second call joins the first. Its log is the caller's. What
// would not go is tried again in the background.
func (c *Container) Remove(ctx context.Context) error {
	if err := c.do(ctx, &flight{verb: verbRemove}, operationTimeout, c.remove); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	return nil
}

// remove is for containers what Pod.remove is for pods.
func (c *Container) remove(ctx context.Context) error {
	if c.record().State == containerGone {
		return nil
	}
	err := c.takeApart(ctx)
	if err != nil {
		c.again(verbRemove, c.remove)
	}
	return err
}

func (c *Container) takeApart(ctx context.Context) error {
	ps := c.pod.pods
	if c.record().State == containerRunning {
		if err := c.end(ctx); err != nil {
			return err
		}
	}
	if err := c.change(containerRemove, nil); err != nil {
		return err
	}
	if err := c.halt(ctx); err != nil {
		return err
	}
	err := ps.effect(ctx, "images.RemoveRoot", func() error { return ps.Images.RemoveRoot(ctx, c.id) })
	if err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
	}
	err = ps.effect(ctx, "remove container", func() error { return os.RemoveAll(c.dir) })
	if err != nil {
		return err
	}
	return c.vanish()
}

// vanish ends the container in memory and takes it out of the indexes.
func (c *Container) vanish() error {
	ps, p := c.pod.pods, c.pod
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := containerStates.next(c.rec.State, containerRemoved)
	c.rec.State = next
	delete(p.containers, c.id)
	delete(ps.containers, c.id)
	ps.mirror.touch(p.id)
	return err
}
