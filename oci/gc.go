package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/oci/keeper/runner"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where pods without a cgroup parent of their own have theirs.
const CgroupRoot = "/berth"

// GC destroys what the kernel, the keeper and the OCI runtime hold under Berth's
// names for pods and containers whose id keep does not have. It looks first and
// asks keep then: ids come into being while it looks. Execs of this process that
// are under way stay.
func (r *Runtime) GC(ctx context.Context, keep func(id string) bool) error {
	var errs []error
	for _, id := range r.Keeper.IDs() {
		if err := r.collect(ctx, id, keep); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, r.collectLostExecs(ctx))
	netns, _ := filepath.Glob(filepath.Join(NetNSDir, "berth-*"))
	for _, path := range netns {
		if id := strings.TrimPrefix(filepath.Base(path), "berth-"); !keep(id) {
			errs = append(errs, r.Keeper.CallRunner(ctx, runner.OpClearPod, runner.Pod{ID: id, NetNS: path}, nil, nil))
		}
	}
	for _, id := range cgroup.Children(CgroupRoot) {
		if !keep(id) {
			path := filepath.Join(CgroupRoot, id)
			errs = append(errs, r.Keeper.CallRunner(ctx, runner.OpClearPod, runner.Pod{ID: id, Cgroup: path}, nil, nil))
		}
	}
	states, err := os.ReadDir(r.Root())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, s := range states {
		if !keep(s.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(r.Root(), s.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect what no record names: %w", err)
	}
	return nil
}

// collect ends a process of the keeper that nobody wants.
func (r *Runtime) collect(ctx context.Context, id string, keep func(id string) bool) error {
	st, err := r.Keeper.State(id)
	if err != nil || keep(id) {
		return nil // gone meanwhile
	}
	if !strings.HasPrefix(id, "exec-") {
		return r.Remove(ctx, Container{ID: id, Dir: st.Dir, Cgroup: st.Cgroup})
	}
	if !r.abandoned(id) {
		return nil
	}
	r.endExec(ctx, id, st.Dir)
	r.removeConsole(id)
	return os.RemoveAll(st.Dir)
}

// abandoned reports an exec of this runtime's that no call waits for. Another
// runtime's name may begin with this one's and a hyphen.
func (r *Runtime) abandoned(id string) bool {
	rest, own := strings.CutPrefix(id, r.execPrefix())
	r.mu.Lock()
	defer r.mu.Unlock()
	return own && !strings.Contains(rest, "-") && !r.execs[id]
}

// collectLostExecs ends execs that no keeper knows: the one that did has died
// together with the berthd that had asked for them.
func (r *Runtime) collectLostExecs(ctx context.Context) error {
	dirs, err := os.ReadDir(r.execDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, d := range dirs {
		id := d.Name()
		if _, err := r.Keeper.State(id); err == nil || !r.abandoned(id) {
			continue
		}
		errs = append(errs, r.endLostExec(ctx, id))
	}
	return errors.Join(errs...)
}

func (r *Runtime) endLostExec(ctx context.Context, id string) error {
	dir := filepath.Join(r.execDir(), id)
	// First its runtime, which may still be about to start it.
	if err := r.Keeper.CallRunner(ctx, runner.OpClear, runner.Clear{ID: id, Dir: dir}, nil, nil); err != nil {
		return err
	}
	container, err := os.ReadFile(filepath.Join(dir, cgroupFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if pid, pidfd := openProcess(dir, string(container)); pidfd != nil {
		defer pidfd.Close()
		runner.KillTree(pid, func(sig syscall.Signal) error { return unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0) })
	}
	// What one that ended has left behind stays.
	if _, err := keeper.ReadExit(dir); err != nil && cgroup.Valid(string(container)) {
		if err := cgroup.Kill(ctx, nestPath(string(container), id)); err != nil {
			return err
		}
	}
	r.removeConsole(id)
	return os.RemoveAll(dir)
}
