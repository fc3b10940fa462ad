package sandbox

import (
	"cmp"
	"net/netip"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Everything here reads memory alone. The messages are new; what they share with
// a config (maps, metadata, mounts) never changes, so they may be marshalled
// without a lock.

// Summary is the pod as ListPodSandbox shows it.
func (p *Pod) Summary() *runtimeapi.PodSandbox {
	rec := p.record()
	return &runtimeapi.PodSandbox{
		Id:             p.id,
		Metadata:       p.config.GetMetadata(),
		State:          rec.state(),
		CreatedAt:      nanoseconds(rec.CreatedAt),
		Labels:         p.config.GetLabels(),
		Annotations:    p.config.GetAnnotations(),
		RuntimeHandler: rec.Handler,
	}
}

// Status is the pod as PodSandboxStatus shows it.
func (p *Pod) Status() *runtimeapi.PodSandboxStatus {
	rec := p.record()
	options := p.namespaces()
	if options == nil {
		options = &runtimeapi.NamespaceOption{}
	}
	status := &runtimeapi.PodSandboxStatus{
		Id:             p.id,
		Metadata:       p.config.GetMetadata(),
		State:          rec.state(),
		CreatedAt:      nanoseconds(rec.CreatedAt),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: options}},
		Labels:         p.config.GetLabels(),
		Annotations:    p.config.GetAnnotations(),
		RuntimeHandler: rec.Handler,
	}
	if rec.State == podReady { // a stopped pod's addresses may be another's by now
		status.Network = network(rec.Attachment.IPs)
	}
	return status
}

func (rec *podRecord) state() runtimeapi.PodSandboxState {
	if rec.State == podReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func network(ips []netip.Addr) *runtimeapi.PodSandboxNetworkStatus {
	status := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range ips {
		if i == 0 {
			status.Ip = ip.String()
			continue
		}
		status.AdditionalIps = append(status.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return status
}

// Summary is the container as ListContainers shows it.
func (c *Container) Summary() *runtimeapi.Container {
	rec := c.record()
	return &runtimeapi.Container{
		Id:           c.id,
		PodSandboxId: c.pod.id,
		Metadata:     c.config.GetMetadata(),
		Image:        c.image(rec),
		ImageRef:     rec.Image.ref(),
		ImageId:      rec.Image.ID.String(),
		State:        rec.state(),
		CreatedAt:    nanoseconds(rec.CreatedAt),
		Labels:       c.config.GetLabels(),
		Annotations:  c.config.GetAnnotations(),
	}
}

// Status is the container as ContainerStatus shows it.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	rec := c.record()
	status := &runtimeapi.ContainerStatus{
		Id:          c.id,
		Metadata:    c.config.GetMetadata(),
		State:       rec.state(),
		CreatedAt:   nanoseconds(rec.CreatedAt),
		StartedAt:   nanoseconds(rec.StartedAt),
		FinishedAt:  nanoseconds(rec.FinishedAt),
		ExitCode:    int32(rec.ExitCode),
		Image:       c.image(rec),
		ImageRef:    rec.Image.ref(),
		ImageId:     rec.Image.ID.String(),
		Reason:      rec.Reason,
		Message:     rec.Message,
		Labels:      c.config.GetLabels(),
		Annotations: c.config.GetAnnotations(),
		Mounts:      c.mounts(rec),
		LogPath:     c.logPath(),
		Resources:   &runtimeapi.ContainerResources{Linux: c.resources(rec)},
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(rec.User.UID),
			Gid: int64(rec.User.GID),
		}},
		StopSignal: c.signal(),
	}
	for _, gid := range rec.User.AdditionalGids {
		status.User.Linux.SupplementalGroups = append(status.User.Linux.SupplementalGroups, int64(gid))
	}
	return status
}

// state: one whose runtime is at work is still what it was before.
func (rec *containerRecord) state() runtimeapi.ContainerState {
	switch {
	case !rec.FinishedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case rec.State == containerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

// image is the config's, by the name that people know it by.
func (c *Container) image(rec containerRecord) *runtimeapi.ImageSpec {
	spec := c.config.GetImage()
	return &runtimeapi.ImageSpec{
		Image:              cmp.Or(rec.Image.Name, spec.GetImage()),
		Annotations:        spec.GetAnnotations(),
		UserSpecifiedImage: spec.GetUserSpecifiedImage(),
		RuntimeHandler:     spec.GetRuntimeHandler(),
	}
}

// ref is CRI's image_ref: what Kubernetes shows as imageID, and tools pull by.
func (r imageRecord) ref() string { return cmp.Or(r.Ref, r.ID.String()) }

// nanoseconds is CRI's timestamp; 0 is "not yet".
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
