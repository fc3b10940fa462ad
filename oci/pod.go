package oci

import (
	"context"
	"path/filepath"

	"berth/oci/keeper/runner"
)

// MakePod makes and pins the pod's namespaces, mounts its /dev/shm and its Files and, for a
// shared pid namespace, starts the tiny init that holds it. What is there
// already stays. The error is a *SysctlError when the kernel refuses one of the
// pod's sysctls; one of the network that is missing may be an interface's and is left
// to TuneNetwork.
func (r *Runtime) MakePod(ctx context.Context, p Pod) error {
	return r.setUpPod(ctx, runner.OpMakePod, p.parts())
}

// TuneNetwork writes sysctls in the pod's network namespace: those of interfaces,
// which are there only when plugins have made them, and others that plugins may have
// changed. The error is a *SysctlError when the kernel refuses one.
func (r *Runtime) TuneNetwork(ctx context.Context, p Pod, sysctls map[string]string) error {
	return r.setUpPod(ctx, runner.OpTuneNetwork, runner.Pod{ID: p.ID, NetNS: p.NetNS(), Sysctls: sysctls})
}

// setUpPod calls the runner for an operation that may meet a sysctl that the kernel
// refuses.
func (r *Runtime) setUpPod(ctx context.Context, op string, p runner.Pod) error {
	var made runner.Made
	if err := r.Keeper.CallRunner(ctx, op, p, nil, &made); err != nil {
		return err
	}
	if made.Refused != nil {
		return &SysctlError{Name: made.Refused.Sysctl, Reason: made.Refused.Reason}
	}
	return nil
}

// SysctlError says that the kernel has no such sysctl in the pod's namespaces, or
// does not take its value.
type SysctlError struct{ Name, Reason string }

func (e *SysctlError) Error() string { return "sysctl " + e.Name + ": " + e.Reason }

// RemovePod undoes MakePod, also half of it, and kills every process in the
// cgroup that the pod owns. Nil if there is nothing.
func (r *Runtime) RemovePod(ctx context.Context, p Pod) error {
	// All parts are named, whatever the pod is said to have: a record may be
	// wrong, the kernel is not.
	p.HostNet, p.HostIPC, p.SharedPID, p.Users = false, false, true, &UserNamespace{}
	// Before: what is open keeps the network namespace alive. After: somebody may
	// have opened it again in between, and now nobody can.
	r.gauges.drop(p.ID)
	defer r.gauges.drop(p.ID)
	return r.Keeper.CallRunner(ctx, runner.OpClearPod, p.parts(), nil, nil)
}

// parts tells the runner what the pod has.
func (p Pod) parts() runner.Pod {
	w := runner.Pod{ID: p.ID, Hostname: p.Hostname, Sysctls: p.Sysctls, Files: p.Files(), FilesSize: p.FilesSize}
	if p.Users != nil {
		w.UserNS, w.UIDs, w.GIDs = p.UserNS(), runner.IDs(p.Users.UIDs), runner.IDs(p.Users.GIDs)
	}
	if !p.HostNet {
		w.NetNS, w.UTSNS = p.NetNS(), p.UTSNS()
	}
	if !p.HostIPC {
		w.IPCNS, w.Shm, w.ShmSize = p.IPCNS(), p.Shm(), p.ShmSize
	}
	if p.SharedPID {
		w.PIDNS, w.Init = p.PIDNS(), filepath.Join(p.Dir, "init")
		if p.Cgroup != "" {
			w.InitCgroup = filepath.Join(p.Cgroup, p.ID)
		}
	}
	if p.OwnsCgroup {
		w.Cgroup = p.Cgroup
	}
	return w
}
