package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// entry is a container with its pod, or a pod that has no container.
type entry struct {
	pod       *runtimeapi.PodSandbox
	container *runtimeapi.Container // nil in a pod without containers
}

// entries returns everything on this node, newest first.
func (c *client) entries(ctx context.Context) ([]entry, error) {
	pods, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	return join(pods.GetItems(), containers.GetContainers()), nil
}

func join(pods []*runtimeapi.PodSandbox, containers []*runtimeapi.Container) []entry {
	byPod := map[string][]*runtimeapi.Container{}
	for _, c := range containers {
		byPod[c.GetPodSandboxId()] = append(byPod[c.GetPodSandboxId()], c)
	}
	var all []entry
	for _, p := range pods {
		if len(byPod[p.GetId()]) == 0 {
			all = append(all, entry{pod: p})
		}
		for _, c := range byPod[p.GetId()] {
			all = append(all, entry{pod: p, container: c})
		}
	}
	return all
}

// byHand reports whether `berth run` made the pod.
func (e entry) byHand() bool { return e.pod.GetLabels()[runLabel] != "" }

// name is what people call the entry: the one name that run gave to pod and
// container, or namespace/pod/container for those of a kubelet.
func (e entry) name() string {
	m := e.pod.GetMetadata()
	if e.byHand() {
		return m.GetName()
	}
	parts := []string{m.GetNamespace(), m.GetName()}
	if e.container != nil {
		parts = append(parts, e.container.GetMetadata().GetName())
	}
	return strings.Join(parts, "/")
}

func (e entry) running() bool {
	return e.container.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
}

func (e entry) named(ref string) bool {
	return ref == e.name() || ref == e.pod.GetMetadata().GetName() || ref == e.container.GetMetadata().GetName()
}

func (e entry) hasID(prefix string) bool {
	return strings.HasPrefix(e.pod.GetId(), prefix) || strings.HasPrefix(e.container.GetId(), prefix)
}

// find returns the entry that ref names. A whole name comes before the
// beginning of an id.
func find(all []entry, ref string) (entry, error) {
	if ref == "" {
		return entry{}, usageError{fmt.Errorf("a name or an id is needed, not an empty text")}
	}
	matches := slices.DeleteFunc(slices.Clone(all), func(e entry) bool { return !e.named(ref) })
	if len(matches) == 0 {
		matches = slices.DeleteFunc(slices.Clone(all), func(e entry) bool { return !e.hasID(ref) })
	}
	switch len(matches) {
	case 0:
		return entry{}, fmt.Errorf("no container %q: `berth ps -a` lists them all", ref)
	case 1:
		return matches[0], nil
	}
	var names []string
	for _, m := range matches {
		names = append(names, fmt.Sprintf("%s (%s)", m.name(), shortID(m.container.GetId())))
	}
	return entry{}, fmt.Errorf("%q is not clear, use an id: %s", ref, strings.Join(names, ", "))
}

// findContainer is find for the commands that need a container.
func (c *client) findContainer(ctx context.Context, ref string) (entry, error) {
	all, err := c.entries(ctx)
	if err != nil {
		return entry{}, err
	}
	e, err := find(all, ref)
	if err == nil && e.container == nil {
		err = fmt.Errorf("pod %s has no container: remove it with `berth rm %s`", e.name(), ref)
	}
	return e, err
}

// findRunning is find for the commands that need a running container.
func (c *client) findRunning(ctx context.Context, ref string) (entry, error) {
	e, err := c.findContainer(ctx, ref)
	if err == nil && !e.running() {
		err = fmt.Errorf("container %s is not running: `berth ps -a` shows its state", e.name())
	}
	return e, err
}
