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
