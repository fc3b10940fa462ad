package oci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/oci/cgroup"
)

// The parts of Usage.
type (
	CPU      = cgroup.CPU
	Memory   = cgroup.Memory
	Swap     = cgroup.Swap
	Pressure = cgroup.Pressure
	Stall    = cgroup.Stall
)

// NoLimit is the limit of what has none.
const NoLimit = cgroup.NoLimit

// Usage is what a container or pod has used up to now; what the kernel does not
// count is nil.
type Usage struct {
	cgroup.Stats
	NanoCores *uint64 // CPU time of late, in nanoseconds per second; nil before it was asked for twice
}

// PodUsage is Usage of a pod's whole cgroup, and what a container has none of.
type PodUsage struct {
	Usage
	// Processes are those of the pod and its containers, without zombies. Of a
	// container with a tree of cgroups below its own (a systemd in it), they are the
	// kernel's count of its threads, which needs no walk; the kubelet's own count of
	// such a container leaves out what is below.
	Processes  uint64
	Interfaces []Interface // of the pod's network namespace but loopback; none on the host's network
}

// Stats reads what a running container uses. Its files are opened at the first
// call and stay open until Wait returns, or Remove. ErrNotRunning if its cgroup is
// gone.
func (r *Runtime) Stats(ctx context.Context, c Container) (u Usage, err error) {
	if err := ctx.Err(); err != nil {
		return Usage{}, err
	}
	r.gauges.use(c.ID, func(g *gauge) { u, err = g.usage(c.Cgroup) })
	if errors.Is(err, cgroup.ErrGone) {
		return Usage{}, ErrNotRunning
	}
	if err != nil {
		return Usage{}, fmt.Errorf("stats of container %s: %w", c.ID, err)
	}
	return u, nil
}

// PodStats reads what a pod uses. Its processes are its own and those of the
// containers that are named; one that has gone has none. Files stay open until
// RemovePod. A pod in which nothing has run yet may have no cgroup: then all of
// Usage but the time is missing.
func (r *Runtime) PodStats(ctx context.Context, p Pod, containers []Container) (u PodUsage, err error) {
	if err := ctx.Err(); err != nil {
		return PodUsage{}, err
	}
	r.gauges.use(p.ID, func(g *gauge) { u, err = g.podUsage(p) })
	for _, c := range containers {
		if err != nil {
			break
		}
		var n uint64
		r.gauges.use(c.ID, func(g *gauge) { n, err = g.processes(c.Cgroup) })
		if errors.Is(err, cgroup.ErrGone) {
			err = nil
		}
		u.Processes += n
	}
	if err != nil {
		return PodUsage{}, fmt.Errorf("stats of pod %s: %w", p.ID, err)
	}
	return u, nil
}

// podUsage is all of PodUsage but the processes of the containers.
func (g *gauge) podUsage(p Pod) (u PodUsage, err error) {
	if u.Usage, err = g.usage(p.Cgroup); errors.Is(err, cgroup.ErrGone) {
		u.At = time.Now()
	} else if err != nil {
		return PodUsage{}, err
	}
	if u.Processes, err = g.own(&g.cgroup, p.Cgroup); err != nil && !errors.Is(err, cgroup.ErrGone) {
		return PodUsage{}, err
	}
	if p.SharedPID {
		n, err := g.own(&g.init, p.parts().InitCgroup)
		if err != nil && !errors.Is(err, cgroup.ErrGone) {
			return PodUsage{}, err
		}
		u.Processes += n
	}
	if p.HostNet {
		return u, nil
	}
	u.Interfaces, err = g.interfaces(p.NetNS())
	return u, err
}
