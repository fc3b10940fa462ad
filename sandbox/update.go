package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/oci"
)

// Update changes what a created or running container may use (CRI
// UpdateContainerResources). A field of want that is zero or empty stays as it
// is; a unified key or a page size that want does not name, too. All of it is
// done or nothing: what fails half-way is put back, also after a crash. It may be
// repeated. When ctx ends it is done all the same.
//
// Errors: *InvalidError, also for what contradicts earlier values; ErrIllegal
// (it has exited), ErrNotRunning (it has, just now), ErrNotFound.
func (c *Container) Update(ctx context.Context, want *runtimeapi.LinuxContainerResources) error {
	f := &flight{verb: verbUpdate}
	err := c.do(ctx, f, operationTimeout, func(ctx context.Context) error { return c.update(ctx, want) })
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) update(ctx context.Context, want *runtimeapi.LinuxContainerResources) error {
	rec := c.record()
	switch rec.State {
	case containerCreated, containerRunning:
	case containerGone, containerRemoving:
		return ErrNotFound
	default:
		return fmt.Errorf("%w: it is %s", ErrIllegal, rec.State)
	}
	if err := c.putBack(ctx); err != nil { // of an earlier update
		return err
	}
	node := c.pod.pods.node
	now := c.resources(rec)
	merged := merge(now, want)
	if err := c.pod.checkResources(merged); err != nil {
		return err
	}
	next := node.effective(merged)
	if rec.State == containerCreated { // its spec is read with them when it starts
		return c.change("", func(rec *containerRecord) { rec.Resources = next })
	}
	if err := checkPutBack(want.GetUnified()); err != nil {
		return err
	}
	return c.apply(ctx, kernelUpdate(now, want, next.LinuxContainerResources, node.controls), next)
}

// apply changes the kernel's limits and then the record. What has to be put back
// if it does not come so far is recorded first.
func (c *Container) apply(ctx context.Context, u oci.Update, next *resources) error {
	r, ps := c.pod.runtime(), c.pod.pods
	var was oci.Limits
	err := ps.effect(ctx, "runtime.Limits", func() (err error) {
		was, err = r.Limits(ctx, c.oci(), u)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.change("", func(rec *containerRecord) { rec.Undo = &was }); err != nil {
		return err
	}
	err = ps.effect(ctx, "runtime.Update", func() error { return r.Update(ctx, c.oci(), u) })
	if err == nil {
		err = c.change("", func(rec *containerRecord) { rec.Resources, rec.Undo = next, nil })
	}
	if err == nil || ps.background.ctx.Err() != nil { // closed: the next daemon puts back
		return err
	}
	cleanup, cancel := ps.background.detach(ctx, operationTimeout)
	defer cancel(nil)
	if e := c.putBack(cleanup); e != nil {
		klog.ErrorS(e, "Putting back limits after a failed update; trying again in the background", "container", c.id)
		c.again(verbUpdate, c.putBack)
	}
	return err
}

// putBack undoes an update that was not finished. One whose container has ended
// has nothing left to undo.
func (c *Container) putBack(ctx context.Context) error {
	rec := c.record()
	if rec.Undo == nil || rec.State != containerRunning {
		return nil
	}
	err := c.pod.pods.effect(ctx, "runtime.Restore", func() error { return c.pod.runtime().Restore(ctx, c.oci(), *rec.Undo) })
	if err != nil {
		return fmt.Errorf("put back limits: %w", err)
	}
	return c.change("", func(rec *containerRecord) { rec.Undo = nil })
}

// resources are what the container may use.
func (c *Container) resources(rec containerRecord) *runtimeapi.LinuxContainerResources {
	if rec.Resources == nil {
		return c.config.GetLinux().GetResources()
	}
	return rec.Resources.LinuxContainerResources
}

// merge is now with what want sets.
func merge(now, want *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	r := proto.CloneOf(now)
	if r == nil {
		r = &runtimeapi.LinuxContainerResources{}
	}
	limits := r.HugepageLimits
	r.HugepageLimits = nil
	// Proto's own merge is what an update is: it leaves what is not set, and joins
	// maps. Lists it appends.
	proto.Merge(r, want)
	for _, l := range limits {
		same := func(w *runtimeapi.HugepageLimit) bool { return w.GetPageSize() == l.GetPageSize() }
		if !slices.ContainsFunc(want.GetHugepageLimits(), same) {
			r.HugepageLimits = append(r.HugepageLimits, l)
		}
	}
	return r
}

// kernelUpdate is what the kernel is told of an update from now to next. Only
// what want sets is written, but the kernel's pairs whole.
func kernelUpdate(now, want, next *runtimeapi.LinuxContainerResources, can oci.Controls) oci.Update {
	write := proto.CloneOf(want)
	if write == nil {
		write = &runtimeapi.LinuxContainerResources{}
	}
	if write.CpuQuota != 0 || write.CpuPeriod != 0 {
		write.CpuQuota, write.CpuPeriod = next.GetCpuQuota(), next.GetCpuPeriod()
	}
	if write.MemoryLimitInBytes != 0 || write.MemorySwapLimitInBytes != 0 {
		write.MemoryLimitInBytes, write.MemorySwapLimitInBytes = next.GetMemoryLimitInBytes(), next.GetMemorySwapLimitInBytes()
	}
	u := oci.Update{Resources: limits(write, can)}
	// Not written again when it is the same: a process may have chosen another.
	if next.GetOomScoreAdj() != now.GetOomScoreAdj() {
		adj := int(next.GetOomScoreAdj())
		u.OOMScoreAdj = &adj
	}
	return u
}

// checkPutBack refuses, for a running container, the files whose content cannot
// be written back as it is read: an update of them could end half done.
func checkPutBack(unified map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(unified)) {
		switch controller, _, _ := strings.Cut(key, "."); controller {
		case "dmem", "io", "misc", "rdma":
			return invalid(fmt.Sprintf("%sunified[%.100q]", resourcesField, key), "can be set only before the container starts")
		}
	}
	return nil
}

// resumeUpdate goes on where a crash left an update of a running container: what
// it was about to change is as it was, and its caller tries again.
func (c *Container) resumeUpdate(ctx context.Context) {
	if c.record().Undo == nil {
		return
	}
	_, err := c.begin(ctx, &flight{verb: verbUpdate}, operationTimeout, func(ctx context.Context) error {
		err := c.putBack(ctx)
		if err != nil && !errors.Is(err, ErrClosed) {
			klog.ErrorS(err, "Recovering from an unfinished update; trying again in the background", "container", c.id)
			c.again(verbUpdate, c.putBack)
		}
		return err
	})
	if err != nil {
		klog.ErrorS(err, "Recovering a container", "container", c.id)
	}
}
