package cri

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
	"berth/test/registry"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Labels:   map[string]string{sandbox.UIDLabel: "uid-" + name, "app": name},
	}
}

func (n *node) runPod(t *testing.T, config *runtimeapi.PodSandboxConfig) (id string) {
	t.Helper()
	resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetPodSandboxId()
}

// pullBusybox pulls an image and returns its reference and id.
func (n *node) pullBusybox(t *testing.T) (ref, id string) {
	t.Helper()
	n.registry.Push(t, "busybox", registry.Layer(t, registry.File("name", 0o644, "busybox")), ocispec.ImageConfig{Cmd: []string{"/bin/sh"}}, "1")
	ref = n.registry.Host() + "/busybox:1"
	resp, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return ref, resp.GetImageRef()
}

func (n *node) createContainer(t *testing.T, pod string, config *runtimeapi.ContainerConfig) (id string) {
	t.Helper()
	resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetContainerId()
}

func containerConfig(name, image string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Labels:   map[string]string{"part": name},
	}
}

// startContainer makes a pod of this name with one running container.
func (n *node) startContainer(t *testing.T, name string) (pod, ctr string) {
	t.Helper()
	ref, _ := n.pullBusybox(t)
	config := podConfig(name)
	config.LogDirectory = t.TempDir()
	pod = n.runPod(t, config)
	ctrConfig := containerConfig("main", ref)
	ctrConfig.LogPath = "main.log"
	ctr = n.createContainer(t, pod, ctrConfig)
	must[*runtimeapi.StartContainerResponse](t)(n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: ctr}))
	return pod, ctr
}

func (n *node) imageStatus(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	resp, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImage()
}
