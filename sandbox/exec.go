package sandbox

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/oci"
)

// Exec is a command to run in a container. It may take until ctx's deadline.
type Exec struct {
	Cmd            []string
	TTY            bool                // a terminal, which takes the place of stdin, stdout and stderr
	Stdin          io.ReadCloser       // nil: empty. Exec closes it, which must end a Read under way
	Stdout, Stderr io.Writer           // nil: dropped
	Resize         <-chan TerminalSize // with TTY; nil: never
	Whole          bool                // when ctx ends first, all that the command has started is killed
}

// TerminalSize is in characters.
type TerminalSize = oci.TerminalSize

// LooseError says why what a killed command has started may live on.
type LooseError = oci.LooseError

// Exec runs a command in the running container, with the user, capabilities,
// environment, limits and directory of its own process, and returns the
// command's exit code (CRI ExecSync and Exec). When ctx ends, the command is
// killed with its descendants and its session, or with all that it has started.
//
// Errors: *InvalidError, ErrNotRunning, ErrNoProgram, ErrInterrupted; a *LooseError
// beside ctx's when more was to be killed than could be.
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
	if e.TTY && !slices.ContainsFunc(process.Env, isTerm) { // a container without a terminal
		process.Env = append(process.Env, defaultTerm)
	}
	code, err = c.pod.runtime().Exec(ctx, oci.Exec{
		Container: c.oci(),
		Process:   process,
		Stdin:     e.Stdin,
		Stdout:    e.Stdout,
		Stderr:    e.Stderr,
		Resize:    e.Resize,
		Whole:     e.Whole,
	})
	if err != nil {
		err = noProgram(err, fmt.Sprintf("/proc/%d/root", c.record().Pid), process, nil)
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return code, nil
}

func isTerm(variable string) bool { return strings.HasPrefix(variable, "TERM=") }

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
