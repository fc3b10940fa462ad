package oci

import (
	"context"
	"errors"
	"fmt"
	"os"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// Wait blocks until the container's first process has ended and all its output
// is in its log. ErrExitUnknown if nobody saw the exit code.
//
// A process that the keeper does not know, because berthd and the keeper both
// died, is adopted if it still runs.
func (r *Runtime) Wait(ctx context.Context, c Container) (Exit, error) {
	e, err := r.Keeper.Wait(ctx, c.ID)
	if errors.Is(err, keeper.ErrUnknown) {
		e, err = r.waitAlone(ctx, c)
	}
	if err != nil {
		return Exit{}, fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	r.gauges.drop(c.ID) // it may stay for long before it is removed
	if e.Code < 0 {
		return Exit{At: e.At, OOMKilled: e.OOMKilled}, fmt.Errorf("container %s: %w", c.ID, errNobodySaw)
	}
	exit := Exit{Code: e.Code, At: e.At, OOMKilled: e.OOMKilled}
	if e.Refused {
		exit.Refused = refusal(c.Dir)
	}
	return exit, nil
}

// errNobodyThere is why an exit is unknown of a process that nobody has handed over.
var errNobodyThere = fmt.Errorf("berthd, the keeper and the runner were all dead when it ended: %w", ErrExitUnknown)

// errNobodySaw is why an exit is unknown of a process that was handed over too late.
var errNobodySaw = fmt.Errorf("it ended while its parents died, and the kernel does not tell its code: %w", ErrExitUnknown)

// waitAlone is Wait for a process that the keeper does not know. What one that
// has ended has left in its cgroup is killed, as the runner does it for others.
func (r *Runtime) waitAlone(ctx context.Context, c Container) (keeper.Exit, error) {
	e, err := keeper.ReadExit(c.Dir)
	if err != nil {
		if err = r.adopt(ctx, c); err == nil {
			return r.Keeper.Wait(ctx, c.ID)
		}
	}
	if err == nil || errors.Is(err, ErrExitUnknown) {
		if err := cgroup.Kill(ctx, c.Cgroup); err != nil {
			return e, err
		}
	}
	return e, err
}

// state is what the keeper knows of a container, which it adopts if it has to,
// as in Wait. keeper.ErrUnknown.
func (r *Runtime) state(ctx context.Context, c Container) (keeper.State, error) {
	st, err := r.Keeper.State(c.ID)
	if !errors.Is(err, keeper.ErrUnknown) {
		return st, err
	}
	if err := r.adopt(ctx, c); err != nil && !errors.Is(err, ErrExitUnknown) {
		return st, err
	}
	return r.Keeper.State(c.ID)
}

// adopt hands a running container to the keeper. ErrExitUnknown if it does not
// run any more.
func (r *Runtime) adopt(ctx context.Context, c Container) error {
	pid, pidfd := openProcess(c.Dir, c.Cgroup)
	if pidfd == nil {
		return errNobodyThere
	}
	files := map[string]*os.File{keeper.FilePidfd: pidfd}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	fifos, err := openFIFOs(c.Dir)
	if err != nil {
		return err
	}
	for name, f := range fifos {
		files[name] = f
	}
	if log, err := reopenLog(c.Dir); err == nil {
		files[keeper.FileLog] = log
	}
	spec := keeper.Spec{ID: c.ID, Dir: c.Dir, Cgroup: c.Cgroup, Output: true, Pid: pid}
	var list []*os.File
	for name, f := range files {
		spec.Files = append(spec.Files, name)
		list = append(list, f)
	}
	_, err = r.Keeper.Add(ctx, spec, list...)
	return err
}

// openProcess opens a pidfd of the process that the pid file in dir names; nil
// if it is gone. Its pid may be another's by now: one that is not in the cgroup at path.
func openProcess(dir, path string) (pid int, pidfd *os.File) {
	pid = keeper.ReadPid(dir)
	if pid == 0 {
		return 0, nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return 0, nil
	}
	pidfd = os.NewFile(uintptr(fd), "pidfd")
	if in, err := cgroup.Holds(path, pid); err != nil || !in { // asked after the pidfd is open
		pidfd.Close()
		return 0, nil
	}
	return pid, pidfd
}
