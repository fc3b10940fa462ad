package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/oci"
)

// Start starts the container's process (CRI StartContainer). A second Start
// joins the first; of a running container it does nothing. When ctx ends the
// container is started all the same. A container that cannot be started becomes
// EXITED with reason StartError, and the error holds the runtime's own message. One
// of which nobody can tell whether it has begun, since one of our processes died
// under its start, is not begun again: it becomes EXITED with reason Unknown.
//
// Errors: ErrNotReady, ErrIllegal (it has exited), ErrNotFound, ErrPreempted,
// ErrNoProgram.
func (c *Container) Start(ctx context.Context) error {
	err := c.do(ctx, &flight{verb: verbStart}, operationTimeout, c.start)
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	return nil
}

// start begins, or after a crash goes on.
func (c *Container) start(ctx context.Context) error {
	cut := false // by a crash
	switch rec := c.record(); rec.State {
	case containerCreated:
		if err := c.pod.startable(); err != nil {
			return err
		}
		if err := c.change(containerStart, nil); err != nil {
			return err
		}
	case containerStarting:
		cut = true
	case containerRunning:
		return nil
	case containerGone:
		return ErrNotFound
	default:
		return fmt.Errorf("%w: it is %s", ErrIllegal, rec.State)
	}
	if c.record().Message == "" {
		err := c.launch(ctx, cut)
		if err == nil || c.pod.pods.background.ctx.Err() != nil {
			return err // closed: the next daemon goes on
		}
		return c.failStart(ctx, because(ctx, err))
	}
	return c.failStart(ctx, errors.New(c.record().Message))
}

// startable says whether a process may begin in the pod.
func (p *Pod) startable() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startableLocked()
}

func (p *Pod) startableLocked() error {
	if err := p.readyLocked(); err != nil {
		return err
	}
	if _, ok := p.pods.handler(p.rec.Handler); !ok {
		return fmt.Errorf("runtime handler %q is not configured any more", p.rec.Handler)
	}
	return nil
}

func (p *Pod) readyLocked() error {
	switch p.rec.State {
	case podReady:
		return nil
	case podGone, podRemoving:
		return fmt.Errorf("pod %s: %w", p.id, ErrNotFound)
	}
	return ErrNotReady
}

// launch begins the container's process; cut says that an earlier start may have.
func (c *Container) launch(ctx context.Context, cut bool) error {
	if err := c.pod.startable(); err != nil { // it may have changed since the crash
		return err
	}
	ps := c.pod.pods
	w := stopwatch{pods: ps}
	rec := c.record()
	spec, err := c.readSpec()
	if err != nil {
		return err
	}
	target, err := c.target()
	if err != nil {
		return err
	}
	var left *os.File
	if cut {
		if left, err = c.pod.runtime().Left(ctx, c.oci()); err != nil {
			return err
		}
	}
	fs, err := c.mount(ctx, &w, left, rec.Image, rec.Mounted)
	if err != nil {
		return err
	}
	if err := c.mountVolumes(ctx, &w, fs, rec.Volumes); err != nil {
		return errors.Join(err, fs.close())
	}
	s := oci.Start{Container: c.oci(), Spec: spec, Root: fs.root, Views: fs.views, Stdin: c.config.GetStdin(), Target: target}
	defer func() {
		if err := errors.Join(fs.close(), closeFiles(s.Log)); err != nil { // the runtime has its own
			klog.ErrorS(err, "Closing what a start was given", "container", c.id)
		}
	}()
	err = w.effect(ctx, "log", func() (err error) {
		s.Log, err = c.openLog()
		return err
	})
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	pid := 0
	err = w.effect(ctx, "runtime.Start", func() (err error) {
		pid, err = c.pod.runtime().Start(ctx, s)
		return err
	})
	if err != nil {
		return noProgram(err, fmt.Sprintf("/proc/self/fd/%d", fs.root.Fd()), spec.Process, spec.Mounts)
	}
	err = c.change(containerStarted, func(rec *containerRecord) {
		rec.StartedAt = time.Now()
		rec.Pid = pid
		rec.Steps = append(rec.Steps[:len(rec.Steps):len(rec.Steps)], w.steps...)
	})
	if err != nil {
		return err
	}
	c.watch()
	return nil
}

// target is the container whose processes this one sees; nil: it has a pid
// namespace of its own, or the pod's, or the host's.
func (c *Container) target() (*oci.Container, error) {
	ns := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil, nil
	}
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	target := c.pod.containers[ns.GetTargetId()]
	if target == nil {
		return nil, fmt.Errorf("target container %s: %w", ns.GetTargetId(), ErrNotRunning)
	}
	at := target.oci()
	return &at, nil
}

func closeFiles(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// failStart makes sure that nothing of the start is left and lets the container
// be EXITED. Until that is sure it stays starting, with the message that says
// that it will not run, and the clean-up is tried again in the background.
func (c *Container) failStart(ctx context.Context, cause error) error {
	ctx, cancel := c.pod.pods.background.detach(ctx, operationTimeout)
	defer cancel(nil)
	err := c.change("", func(rec *containerRecord) {
		rec.Message = cause.Error()
		if errors.Is(cause, oci.ErrExitUnknown) { // a death of ours has cut it: it may have run
			rec.Reason = reasonUnknown
		}
	})
	if err == nil {
		err = c.halt(ctx)
	}
	if err != nil {
		klog.ErrorS(err, "Cleaning up after a failed start; trying again in the background", "container", c.id)
		c.again(verbHalt, c.halt)
	}
	return cause
}
