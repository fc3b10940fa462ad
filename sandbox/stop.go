package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"berth/oci"
)

// patientTries is how many failed network detachments callers are told of before
// a pod's stop goes on without: an address that is still held must not be handed
// on, but a broken plugin must not keep a pod for ever either.
const patientTries = 3

// errDetach marks an error of Network.Del.
var errDetach = errors.New("detach from the network")

// Stop makes the pod NOTREADY at once, kills its containers and gives back
// everything that the kernel and the network hold for it (CRI StopPodSandbox).
// It is idempotent; a second call joins the first. A pod in creation is
// pre-empted and goes away. The error of a network that does not let go is
// returned for three calls; then the pod counts as stopped, and the detachment
// is tried again in the background.
func (p *Pod) Stop(ctx context.Context) error {
	if err := p.do(ctx, verbStop, p.stop); err != nil {
		p.told(err)
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	return nil
}

func (p *Pod) stop(ctx context.Context) error {
	switch p.record().State {
	case podGone:
		return nil
	case podCreating, podRemoving: // its creation failed, or its removal was begun: it can only go
		return p.remove(ctx)
	}
	err := p.change(podStop, nil)
	if err == nil {
		err = p.each(func(c *Container) error { return c.kill(ctx) })
	}
	if err == nil {
		err = p.free(ctx)
	}
	if err != nil || !p.record().Detached {
		p.again(verbStop, p.stop)
	}
	return err
}

// told counts what callers were told of a network that does not let go.
func (p *Pod) told(err error) {
	if errors.Is(err, errDetach) {
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
	}
}

// free gives back what the pod itself holds of the network and the kernel; its
// containers have been killed. Its namespaces stay as long as the network may
// still need them.
func (p *Pod) free(ctx context.Context) error {
	if err := p.detach(ctx); err != nil {
		p.mu.Lock()
		patient := p.refused < patientTries
		p.mu.Unlock()
		if patient {
			return err
		}
		klog.ErrorS(err, "The network does not let a pod go; its addresses and host ports may still be held; trying again in the background", "pod", p.id)
	}
	if p.record().Freed {
		return nil
	}
	err := p.pods.effect(ctx, "runtime.RemovePod", func() error { return p.runtime().RemovePod(ctx, p.oci()) })
	if err != nil {
		return fmt.Errorf("remove namespaces: %w", err)
	}
	return p.change("", func(rec *podRecord) { rec.Freed = true })
}

func (p *Pod) detach(ctx context.Context) error {
	if p.record().Detached {
		return nil
	}
	err := p.pods.effect(ctx, "network.Del", func() error { return p.pods.Network.Del(ctx, p.cni()) })
	if err != nil {
		return fmt.Errorf("%w: %w", errDetach, err)
	}
	return p.change("", func(rec *podRecord) { rec.Detached = true })
}

// Stop sends the container its stop signal, waits for it to end, and kills it
// when grace is over; with no grace it kills at once (CRI StopContainer). It
// returns when the container is EXITED, and does nothing to one that is not
// running. A second Stop joins the first; if it has less grace, that counts.
// A start under way is pre-empted. When ctx ends the container is stopped all
// the same.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	grace = min(max(grace, 0), 10*365*24*time.Hour)
	patience := newPatience(time.Now().Add(grace))
	f := &flight{verb: verbStop, patience: patience}
	err := c.do(ctx, f, grace+operationTimeout, func(ctx context.Context) error { return c.stop(ctx, patience) })
	if err != nil {
		return fmt.Errorf("stop container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) stop(ctx context.Context, patience *patience) error {
	if c.record().State != containerRunning {
		return nil
	}
	if patience.left() > 0 {
		err := c.pod.pods.effect(ctx, "runtime.Signal", func() error {
			return c.pod.runtime().Signal(ctx, c.oci(), number(c.signal()))
		})
		switch {
		case errors.Is(err, oci.ErrNotRunning): // its end is on the way here
		case err != nil:
			klog.ErrorS(err, "Sending the stop signal; killing instead", "container", c.id)
			patience.shorten(time.Now())
		}
		if patience.wait(ctx, c.exited) {
			return nil
		}
	}
	return c.end(ctx)
}

// end kills the running container and waits until it is EXITED.
func (c *Container) end(ctx context.Context) error {
	err := c.pod.pods.effect(ctx, "runtime.Kill", func() error { return c.pod.runtime().Kill(ctx, c.oci()) })
	if err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("killed, but not gone: %w", context.Cause(ctx))
	}
}

// kill ends the container and gives back what the runtime holds of it; its
// writable layer and its record stay.
func (c *Container) kill(ctx context.Context) error {
	return c.do(ctx, &flight{verb: verbHalt}, operationTimeout, c.halt)
}

func (c *Container) halt(ctx context.Context) error {
	if c.record().State == containerRunning {
		if err := c.end(ctx); err != nil {
			return err
		}
	}
	rec := c.record()
	if rec.Freed || rec.State == containerGone {
		return nil
	}
	err := c.pod.pods.effect(ctx, "runtime.Remove", func() error { return c.pod.runtime().Remove(ctx, c.oci()) })
	if err != nil {
		return fmt.Errorf("free: %w", err)
	}
	switch rec.State {
	case containerRemoving: // its record goes as well
		return nil
	case containerStarting:
		return c.change(containerExit, func(rec *containerRecord) {
			rec.FinishedAt = time.Now()
			if rec.Reason == reasonUnknown {
				rec.ExitCode = codeUnknown
			} else {
				rec.ExitCode, rec.Reason = codeStartError, reasonStartError
			}
			rec.Freed = true
		})
	}
	return c.change("", func(rec *containerRecord) { rec.Freed = true })
}
