package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/oci"
)

// Stats is what the container uses, as ContainerStats shows it. One that does not
// run has only its attributes and its writable layer.
//
// Errors: ErrNotFound (it was removed meanwhile), and what the kernel says.
func (c *Container) Stats(ctx context.Context) (*runtimeapi.ContainerStats, error) {
	stats, err := c.stats(ctx)
	if errors.Is(err, ErrNotRunning) {
		err = nil
	}
	return stats, err
}

// stats is Stats, with ErrNotRunning beside what there is of one that does not
// run.
func (c *Container) stats(ctx context.Context) (*runtimeapi.ContainerStats, error) {
	state := c.record().State
	if state == containerGone {
		return nil, fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	}
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          c.id,
			Metadata:    c.config.GetMetadata(),
			Labels:      c.config.GetLabels(),
			Annotations: c.config.GetAnnotations(),
		},
		WritableLayer: c.writableLayer(),
	}
	if state != containerRunning {
		return stats, ErrNotRunning
	}
	u, err := c.pod.runtime().Stats(ctx, c.oci())
	if err != nil {
		return stats, err
	}
	stats.Cpu, stats.Memory, stats.Swap, stats.Io = cpuUsage(u), memoryUsage(u), swapUsage(u), ioUsage(u)
	return stats, nil
}

// writableLayer has no numbers until the layer was measured for the first time
// after a start of the daemon.
func (c *Container) writableLayer() *runtimeapi.FilesystemUsage {
	u := c.pod.pods.Images.RootUsage(c.id)
	layer := &runtimeapi.FilesystemUsage{
		Timestamp: time.Now().UnixNano(),
		FsId:      &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
	}
	if !u.At.IsZero() {
		layer.Timestamp = u.At.UnixNano()
		layer.UsedBytes, layer.InodesUsed = number64(u.Bytes), number64(u.Inodes)
	}
	return layer
}

// ContainerStats is Stats of those that run, in their order. One whose numbers
// cannot be read is missing, and the log says why; the only error is ctx's.
func ContainerStats(ctx context.Context, containers []*Container) ([]*runtimeapi.ContainerStats, error) {
	var all []*runtimeapi.ContainerStats
	for _, c := range containers {
		stats, err := c.stats(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, ErrNotRunning), errors.Is(err, ErrNotFound):
		case err != nil:
			klog.ErrorS(err, "Reading what a container uses", "container", c.id)
		default:
			all = append(all, stats)
		}
	}
	return all, nil
}

// Stats is what the pod uses, as PodSandboxStats shows it: its cgroup as a whole,
// its network unless that is the host's, and its running containers. A pod that
// is not READY has only its attributes.
//
// Errors: ErrNotFound (it was removed meanwhile), and what the kernel says. A
// container whose numbers cannot be read is missing.
func (p *Pod) Stats(ctx context.Context) (*runtimeapi.PodSandboxStats, error) {
	stats, err := p.stats(ctx)
	if errors.Is(err, ErrNotReady) {
		err = nil
	}
	return stats, err
}

// stats is Stats, with ErrNotReady beside what there is of one that is not ready.
func (p *Pod) stats(ctx context.Context) (*runtimeapi.PodSandboxStats, error) {
	state := p.record().State
	if state == podGone {
		return nil, fmt.Errorf("pod %s: %w", p.id, ErrNotFound)
	}
	linux := &runtimeapi.LinuxPodSandboxStats{}
	stats := &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.id,
			Metadata:    p.config.GetMetadata(),
			Labels:      p.config.GetLabels(),
			Annotations: p.config.GetAnnotations(),
		},
		Linux: linux,
	}
	if state != podReady {
		return stats, ErrNotReady
	}
	running := p.running()
	containers := make([]oci.Container, len(running))
	for i, c := range running {
		containers[i] = c.oci()
	}
	u, err := p.runtime().PodStats(ctx, p.oci(), containers)
	if err != nil {
		return stats, err
	}
	linux.Cpu, linux.Memory, linux.Io = cpuUsage(u.Usage), memoryUsage(u.Usage), ioUsage(u.Usage)
	linux.Network = networkUsage(u)
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: number64(u.Processes)}
	linux.Containers, err = ContainerStats(ctx, running)
	return stats, err
}

func (p *Pod) running() []*Container {
	return slices.DeleteFunc(p.Containers(), func(c *Container) bool { return c.record().State != containerRunning })
}

// PodStats is Stats of those that are READY, in their order, as ContainerStats.
func PodStats(ctx context.Context, pods []*Pod) ([]*runtimeapi.PodSandboxStats, error) {
	var all []*runtimeapi.PodSandboxStats
	for _, p := range pods {
		stats, err := p.stats(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, ErrNotReady), errors.Is(err, ErrNotFound):
		case err != nil:
			klog.ErrorS(err, "Reading what a pod uses", "pod", p.id)
		default:
			all = append(all, stats)
		}
	}
	return all, nil
}
