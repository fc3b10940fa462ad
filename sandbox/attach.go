package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/klog/v2"

	"berth/oci"
)

// Attach is what a client wants of a running container's streams.
type Attach struct {
	TTY            bool                // the client shows a terminal; as in the container's config
	Stdin          io.ReadCloser       // nil: none. Attach closes it, which must end a Read under way
	Stdout, Stderr io.Writer           // nil: none
	Resize         <-chan TerminalSize // with TTY; nil: never
}

// Attach copies between the container's own process and a client until the
// container, the client (that is ctx) or, where only Stdin is wanted, its input
// ends (CRI Attach). Output begins with what comes after the call. With
// stdin_once the end of the first input is the end of the container's stdin.
//
// Errors: *InvalidError, ErrNotRunning, ErrIllegal (stdin was taken),
// oci.ErrTooSlow, oci.ErrDetached.
func (c *Container) Attach(ctx context.Context, a Attach) error {
	if a.Stdin != nil {
		defer a.Stdin.Close()
	}
	if err := c.MayAttach(a.TTY, a.Stdin != nil); err != nil {
		return err
	}
	once := c.config.GetStdinOnce() && a.Stdin != nil
	if once {
		if err := c.takeStdin(); err != nil {
			return fmt.Errorf("attach to container %s: %w", c.id, err)
		}
	}
	err := c.pod.runtime().Attach(ctx, oci.Attach{
		Container: c.oci(),
		Stdin:     a.Stdin,
		StdinOnce: once,
		Stdout:    a.Stdout,
		Stderr:    a.Stderr,
		Resize:    a.Resize,
	})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

// MayAttach says whether Attach could begin now. Its errors are Attach's.
func (c *Container) MayAttach(tty, stdin bool) error {
	rec := c.record()
	switch {
	case tty != c.config.GetTty():
		return invalid("tty", "must be as in the container's config: %v", c.config.GetTty())
	case stdin && !c.config.GetStdin():
		return invalid("stdin", "the container was created without stdin")
	case rec.State != containerRunning:
		return fmt.Errorf("attach to container %s: %w", c.id, ErrNotRunning)
	case stdin && rec.StdinTaken:
		return fmt.Errorf("attach to container %s: %w", c.id, errStdinTaken)
	}
	return nil
}

var errStdinTaken = fmt.Errorf("%w: its stdin was for one session (stdin_once)", ErrIllegal)

// takeStdin lets one session have the stdin of a stdin_once container. A
// terminal stays usable: it has no end that would be final.
func (c *Container) takeStdin() error {
	if c.config.GetTty() {
		return nil
	}
	taken := false
	err := c.change("", func(rec *containerRecord) { taken, rec.StdinTaken = rec.StdinTaken, true })
	if err == nil && taken {
		err = errStdinTaken
	}
	return err
}

// closeTakenStdin ends the stdin of a container whose one session ended with an
// earlier daemon.
func (c *Container) closeTakenStdin() {
	if !c.record().StdinTaken {
		return
	}
	b := c.pod.pods.background
	b.run(func() {
		if err := c.pod.runtime().CloseStdin(b.ctx, c.oci()); err != nil && !errors.Is(err, ErrNotRunning) {
			klog.ErrorS(err, "Closing the stdin of a container whose one session has ended", "container", c.id)
		}
	})
}
