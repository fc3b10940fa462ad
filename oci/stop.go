package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/oci/keeper/runner"
)

// goneTimeout bounds how long Remove waits for the end of a killed process and
// the last of its output.
const goneTimeout = 10 * time.Second

// Signal sends sig to the container's first process; ErrNotRunning.
func (r *Runtime) Signal(ctx context.Context, c Container, sig syscall.Signal) error {
	_, err := r.state(ctx, c)
	if err == nil {
		err = r.Keeper.Signal(c.ID, sig)
	}
	if errors.Is(err, keeper.ErrUnknown) {
		return ErrNotRunning
	}
	return err
}

// Kill kills every process of the container: its cgroup, whole.
func (r *Runtime) Kill(ctx context.Context, c Container) error {
	if err := r.Signal(ctx, c, syscall.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return cgroup.Kill(ctx, c.Cgroup)
}

// Remove kills what is left of the container and removes everything that Start
// made: the mounts of its root and its views, its cgroup, the runtime's state, its FIFOs, the
// keeper's knowledge. Nil for what was never started.
func (r *Runtime) Remove(ctx context.Context, c Container) error {
	if st, err := r.Keeper.State(c.ID); err == nil && st.Pid != 0 && !st.Gone {
		if err := r.Kill(ctx, c); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, goneTimeout)
		_, err := r.Keeper.Wait(wait, c.ID)
		cancel()
		if err != nil && !errors.Is(err, keeper.ErrUnknown) {
			return err
		}
	}
	what := runner.Clear{ID: c.ID, Dir: c.Dir, Cgroup: c.Cgroup, Root: c.RootFS(), Views: c.views(), PIDNS: c.PIDNS()}
	if err := r.Keeper.CallRunner(ctx, runner.OpClear, what, nil, nil); err != nil {
		return err
	}
	r.gauges.drop(c.ID) // the cgroup is gone: nobody opens it again
	if err := r.Keeper.Drop(ctx, c.ID); err != nil {
		return err
	}
	if err := keeper.RemoveConsole(r.Run, c.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(r.Root(), c.ID)); err != nil {
		return err
	}
	for _, name := range []string{
		keeper.StdinFIFO, keeper.StdoutFIFO, keeper.StderrFIFO, keeper.PidFile, keeper.ExitFile, keeper.ExitFile + ".new",
		"." + keeper.PidFile, // of a runc that was killed before it renamed it
		runner.LogFile, logLink, specFile, specFile + partial,
	} {
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
