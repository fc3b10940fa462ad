package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"berth/oci"
)

// Exec is a command to run in a container. It may take until ctx's deadline.
type Exec struct {
	Cmd            []string
	TTY            bool                // a terminal, which takes the place of stdin, stdout and stderr
	Stdin          io.ReadCloser       // nil: empty. Exec closes it, which must end a Read under way
	Stdout, Stderr io.Writer           // nil: dropped
	Resize         <-chan TerminalSize // with TTY; nil: never
}

// TerminalSize is in characters.
type TerminalSize = oci.TerminalSize

// Exec runs a command in the running container, with the user, capabilities,
// environment, limits and directory of its own process, and returns the
// command's exit code (CRI ExecSync and Exec). When ctx ends, the command is
// killed with its descendants.
//
// Errors: *InvalidError, ErrNotRunning.
func (c *Container) Exec(ctx context.Context, e Exec) (code int, err error) {
	if e.Stdin != nil {
		defer e.Stdin.Close()
	}
	if err := c.MayExec(e.Cmd); err != nil {
		return 0, err
	}
	spec, err := c.readSpec()
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	process := spec.Process
	process.Args = e.Cmd
	process.Terminal = e.TTY
	code, err = c.pod.runtime().Exec(ctx, oci.Exec{
		Container: c.oci(),
		Process:   process,
		Stdin:     e.Stdin,
		Stdout:    e.Stdout,
		Stderr:    e.Stderr,
		Resize:    e.Resize,
	})
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return code, nil
}

// MayExec says whether Exec of cmd could begin now. Its errors are Exec's.
func (c *Container) MayExec(cmd []string) error {
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid("cmd", "is required")
	}
	if err := checkArgs("cmd", cmd); err != nil {
		return err
	}
	if c.record().State != containerRunning {
		return fmt.Errorf("exec in container %s: %w", c.id, ErrNotRunning)
	}
	return nil
}

// ReopenLog makes the running container's further output go to its log path
// anew, after the old file was renamed (CRI ReopenContainerLog). On an error no
// new file is left.
//
// Errors: ErrNotRunning; ErrIllegal for a container without a log.
func (c *Container) ReopenLog(ctx context.Context) error {
	if err := c.reopenLog(ctx); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) reopenLog(ctx context.Context) (err error) {
	if c.record().State != containerRunning {
		return ErrNotRunning
	}
	if c.config.GetLogPath() == "" {
		return fmt.Errorf("%w: it has no log", ErrIllegal)
	}
	dir, err := os.OpenRoot(c.pod.config.GetLogDirectory())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	_, missing := dir.Lstat(c.config.GetLogPath())
	log, err := c.openLog()
	if err != nil {
		return err
	}
	err = errors.Join(c.pod.runtime().ReopenLog(ctx, c.oci(), log), log.Close())
	if err != nil && errors.Is(missing, fs.ErrNotExist) {
		err = errors.Join(err, dir.Remove(c.config.GetLogPath()))
	}
	return err
}
