package cri

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/test/expect"
)

func TestContainerLife(t *testing.T) {
	n := newNode(t)
	ref, imageID := n.pullBusybox(t)
	pod := n.runPod(t, podConfig("web"))
	id := n.createContainer(t, pod, containerConfig("main", ref))
	state := func() *runtimeapi.ContainerStatus {
		t.Helper()
		resp := must[*runtimeapi.ContainerStatusResponse](t)(n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}))
		return resp.GetStatus()
	}
	s := state()
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetImageRef() != n.imageStatus(t, ref).GetRepoDigests()[0] || s.GetImageId() != imageID || s.GetImage().GetImage() == "" {
		t.Errorf("created: %v; the image is %s", s, imageID)
	}
	for range 2 {
		must[*runtimeapi.StopContainerResponse](t)(n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}))
	}
	id = n.createContainer(t, pod, containerConfig("second", ref))
	must[*runtimeapi.StartContainerResponse](t)(n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}))
	if s := state(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() == 0 {
		t.Errorf("started: %v", s)
	}
	for range 2 {
		must[*runtimeapi.StopContainerResponse](t)(n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}))
	}
	if s := state(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 143 || s.GetFinishedAt() == 0 {
		t.Errorf("stopped: %v", s)
	}
	for range 2 {
		must[*runtimeapi.RemoveContainerResponse](t)(n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}))
	}
	_, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	expect.Code(t, "status of a removed container", err, codes.NotFound)
}

// A node whose kernel is too old says so, and not that nobody knows what is wrong.
func TestContainerThatTheKernelCannotMount(t *testing.T) {
	n := newNode(t)
	ref, _ := n.pullBusybox(t)
	pod := n.runPod(t, podConfig("web"))
	n.roots.broken = fmt.Errorf("%w: overlay layers one by one (lowerdir+) need Linux 6.8", image.ErrNotSupported)
	_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: containerConfig("main", ref)})
	expect.Code(t, "a root that cannot be mounted", err, codes.FailedPrecondition, "main", "need Linux 6.8")
	resp := must[*runtimeapi.ListContainersResponse](t)(n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}))
	if left := resp.GetContainers(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestListContainers(t *testing.T) {
	n := newNode(t)
	ref, imageID := n.pullBusybox(t)
	p, q := n.runPod(t, podConfig("p")), n.runPod(t, podConfig("q"))
	a := n.createContainer(t, p, containerConfig("a", ref))
	b := n.createContainer(t, p, containerConfig("b", ref))
	c := n.createContainer(t, q, containerConfig("c", ref))
	must[*runtimeapi.StartContainerResponse](t)(n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: b}))
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	type filter = runtimeapi.ContainerFilter
	for _, test := range []struct {
		name   string
		filter *filter
		want   []string
	}{
		{"all, newest first", nil, []string{c, b, a}},
		{"id", &filter{Id: a}, []string{a}},
		{"prefix", &filter{Id: c[:20]}, []string{c}},
		{"unknown id", &filter{Id: "0123"}, nil},
		{"pod", &filter{PodSandboxId: p}, []string{b, a}},
		{"unknown pod", &filter{PodSandboxId: "0123"}, nil},
		{"pod and id", &filter{PodSandboxId: p, Id: a}, []string{a}},
		{"another pod and id", &filter{PodSandboxId: q, Id: a}, nil},
		{"state", &filter{State: running}, []string{b}},
		{"pod and state", &filter{PodSandboxId: q, State: running}, nil},
		{"label", &filter{LabelSelector: map[string]string{"part": "c"}}, []string{c}},
		{"pod and label", &filter{PodSandboxId: p, LabelSelector: map[string]string{"part": "c"}}, nil},
	} {
		resp := must[*runtimeapi.ListContainersResponse](t)(n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: test.filter}))
		var got []string
		for _, c := range resp.GetContainers() {
			got = append(got, c.GetId())
			if c.GetMetadata() == nil || c.GetImage() == nil || c.GetImageRef() != n.imageStatus(t, ref).GetRepoDigests()[0] || c.GetImageId() != imageID {
				t.Errorf("%s: incomplete container %v", test.name, c)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: listed %v, want %v", test.name, got, test.want)
		}
	}
}

func TestReopenContainerLog(t *testing.T) {
	n := newNode(t)
	_, id := n.startContainer(t, "web")
	must[*runtimeapi.ReopenContainerLogResponse](t)(n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}))
	if n.runtime.reopened != 1 {
		t.Errorf("the log was reopened %d times", n.runtime.reopened)
	}
	must[*runtimeapi.StopContainerResponse](t)(n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}))
	_, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	expect.Code(t, "log of an ended container", err, codes.FailedPrecondition)
}
