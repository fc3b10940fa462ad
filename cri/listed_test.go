package cri

import (
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

const receivable = 16 << 20 // of a client of CRI

// wantLists asks for everything that is listed.
func (n *node) wantLists(t *testing.T) {
	t.Helper()
	for name, list := range map[string]proto.Message{
		"pods":       must[*runtimeapi.ListPodSandboxResponse](t)(n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})),
		"containers": must[*runtimeapi.ListContainersResponse](t)(n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})),
		"pod stats":  must[*runtimeapi.ListPodSandboxStatsResponse](t)(n.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})),
		"stats":      must[*runtimeapi.ListContainerStatsResponse](t)(n.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})),
		"images":     must[*runtimeapi.ListImagesResponse](t)(n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})),
	} {
		if size := proto.Size(list); size > receivable {
			t.Errorf("the list of %s has %d bytes", name, size)
		}
	}
}

// Guards against a node that the kubelet cannot see any more: pods and containers
// are refused before the list of all is longer than a message, and removing one
// makes room.
func TestListsStayReceivable(t *testing.T) {
	const size = 256 << 10 // what Kubernetes allows a pod's annotations
	n := newNode(t)
	ref, _ := n.pullBusybox(t)
	annotations := map[string]string{"note": strings.Repeat("x", size)}
	pod := func(i int) (string, error) {
		config := podConfig(fmt.Sprint("pod-", i))
		config.LogDirectory = t.TempDir()
		config.Annotations = annotations
		resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		return resp.GetPodSandboxId(), err
	}
	container := func(pod string, i int) (string, error) {
		config := containerConfig(fmt.Sprint("main-", i), ref)
		config.LogPath, config.Annotations = config.Metadata.Name+".log", annotations
		resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		return resp.GetContainerId(), err
	}
	var pods, containers []string
	for i := range 2 * receivable / size {
		made, err := pod(i)
		if err == nil {
			pods = append(pods, made)
			var id string
			if id, err = container(made, i); err == nil {
				containers = append(containers, id)
				must[*runtimeapi.StartContainerResponse](t)(n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}))
			}
		}
		if err != nil {
			expect.Code(t, "the first that is too many", err, codes.ResourceExhausted, "remove pods", "annotations")
			break
		}
	}
	_, err := pod(1000)
	expect.Code(t, "another pod", err, codes.ResourceExhausted, "remove pods")
	_, err = container(pods[0], 1000)
	expect.Code(t, "another container", err, codes.ResourceExhausted, "remove pods")
	if len(pods)+len(containers) < receivable/size*8/10 {
		t.Errorf("only %d pods and %d containers could be made", len(pods), len(containers))
	}
	n.wantLists(t)
	if _, err := pod(0); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	must[*runtimeapi.RemoveContainerResponse](t)(n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: containers[0]}))
	must[*runtimeapi.RemovePodSandboxResponse](t)(n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pods[1]}))
	if _, err := pod(1000); err != nil {
		t.Errorf("after a removal: %v", err)
	}
	n.wantLists(t)
}

func TestListOfImagesStaysReceivable(t *testing.T) {
	const size = 3 << 20
	n := newNode(t)
	pull := func(i int) error {
		name := fmt.Sprint("image-", i)
		user := fmt.Sprint("u", i, strings.Repeat("x", size))
		n.registry.Push(t, name, registry.Layer(t, registry.File("name", 0o644, name)), ocispec.ImageConfig{User: user}, "1")
		_, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.registry.Host() + "/" + name + ":1"}})
		return err
	}
	const most = 15 << 20 / size
	for i := range most - 1 {
		if err := pull(i); err != nil {
			t.Fatal(err)
		}
	}
	err := pull(most)
	expect.Code(t, "one too many", err, codes.ResourceExhausted, "remove images")
	n.wantLists(t)
	must[*runtimeapi.RemoveImageResponse](t)(n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.registry.Host() + "/image-0:1"}}))
	if err := pull(most); err != nil {
		t.Errorf("after a removal: %v", err)
	}
}
