package cri

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

// calls are all RPCs that name a pod or a container, with the id given.
func (n *node) calls(ctx context.Context, id string) map[string]error {
	errOf := func(_ any, err error) error { return err }
	config := containerConfig("c", "busybox")
	return map[string]error{
		"StopPodSandbox":           errOf(n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})),
		"RemovePodSandbox":         errOf(n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})),
		"StopContainer":            errOf(n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})),
		"RemoveContainer":          errOf(n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})),
		"PodSandboxStatus":         errOf(n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})),
		"ContainerStatus":          errOf(n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})),
		"CreateContainer":          errOf(n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config})),
		"StartContainer":           errOf(n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})),
		"ExecSync":                 errOf(n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})),
		"UpdateContainerResources": errOf(n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id})),

		"ReopenContainerLog": errOf(n.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})),
	}
}

func TestUnknownIDs(t *testing.T) {
	n := newNode(t)
	for name, err := range n.calls(t.Context(), strings.Repeat("0", 64)) {
		if strings.HasPrefix(name, "Stop") || strings.HasPrefix(name, "Remove") {
			expect.Code(t, name, err, codes.OK)
		} else {
			expect.Code(t, name, err, codes.NotFound)
		}
	}
}

// An empty id is a mistake, and never the beginning of every id.
func TestEmptyIDs(t *testing.T) {
	n := newNode(t)
	pod, ctr := n.startContainer(t, "web")
	for name, err := range n.calls(t.Context(), "") {
		field := "container_id"
		if strings.HasSuffix(name, "PodSandbox") || strings.HasPrefix(name, "PodSandbox") || name == "CreateContainer" {
			field = "pod_sandbox_id"
		}
		expect.Code(t, name, err, codes.InvalidArgument, field)
	}
	s := must[*runtimeapi.PodSandboxStatusResponse](t)(n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod}))
	if s.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Error("an empty id stopped the pod")
	}
	must[*runtimeapi.ContainerStatusResponse](t)(n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: ctr}))
}

func TestInvalidRequests(t *testing.T) {
	n := newNode(t)
	pod, ctr := n.startContainer(t, "web")
	errOf := func(_ any, err error) error { return err }
	run := func(c *runtimeapi.PodSandboxConfig, handler string) error {
		return errOf(n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler}))
	}
	create := func(c *runtimeapi.ContainerConfig) error {
		return errOf(n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c}))
	}
	noMetadata := containerConfig("c", "busybox")
	noMetadata.Metadata = nil
	for _, test := range []struct {
		name, field string
		err         error
	}{
		{"pod without config", "config", run(nil, "")},
		{"pod without metadata", "metadata", run(&runtimeapi.PodSandboxConfig{}, "")},
		{"unknown handler", "runtime_handler", run(podConfig("x"), "kata")},
		{"container without config", "config", create(nil)},
		{"container without metadata", "metadata", create(noMetadata)},
		{"container without image", "image", create(containerConfig("c", ""))},
		{"exec of nothing", "cmd", errOf(n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ctr}))},
		{"exec with a negative timeout", "timeout", errOf(n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: -1}))},
		{"stop with a negative timeout", "timeout", errOf(n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: ctr, Timeout: -1}))},
		{"pull of nothing", "image.image", errOf(n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{}))},
		{"status of no image", "image.image", errOf(n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{}}))},
		{"removal of no image", "image.image", errOf(n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{}))},
		{"pull of no reference", "reference", errOf(n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "UPPER case"}}))},
	} {
		expect.Code(t, test.name, test.err, codes.InvalidArgument, test.field)
	}
}
