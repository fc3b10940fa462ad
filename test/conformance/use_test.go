package conformance

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podConfig is a pod as the kubelet describes it, on the pod network, with a
// log directory.
func podConfig(t *testing.T, name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: t.TempDir(),
		Labels:       map[string]string{"io.kubernetes.pod.uid": "uid-" + name, "app": name},
		Annotations:  map[string]string{"note": "of " + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
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

func (n *node) pod(t *testing.T, id string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	resp, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetStatus()
}

func (n *node) stopPod(t *testing.T, id string) {
	t.Helper()
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) removePod(t *testing.T, id string) {
	t.Helper()
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) pods(t *testing.T, filter *runtimeapi.PodSandboxFilter) (ids []string) {
	t.Helper()
	resp, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.GetItems() {
		ids = append(ids, p.GetId())
	}
	return ids
}

func (n *node) pull(t *testing.T, ref string) (id string) {
	t.Helper()
	resp, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImageRef()
}

// repoDigest is the one reference by digest of an image.
func (n *node) repoDigest(t *testing.T, ref string) string {
	t.Helper()
	digests := n.image(t, ref).GetRepoDigests()
	if len(digests) != 1 {
		t.Fatalf("image %s has the digests %q, want one", ref, digests)
	}
	return digests[0]
}

// shell is a container that runs a script of busybox's shell.
func (n *node) shell(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: n.busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
}

func (n *node) create(t *testing.T, pod string, config *runtimeapi.ContainerConfig) (id string) {
	t.Helper()
	resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetContainerId()
}

func (n *node) startContainer(t *testing.T, pod string, config *runtimeapi.ContainerConfig) (id string) {
	t.Helper()
	id = n.create(t, pod, config)
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

// running is a pod with one container that does what script says.
func (n *node) running(t *testing.T, script string) (pod, ctr string) {
	t.Helper()
	n.pull(t, n.busybox)
	pod = n.runPod(t, podConfig(t, "web"))
	return pod, n.startContainer(t, pod, n.shell("main", script))
}

// forever is a script that ends at SIGTERM with code 7.
const forever = `trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done`

// awaitReady waits until a container has written that it is ready: before that,
// the first process of a pid namespace ignores its stop signal.
func (n *node) awaitReady(t *testing.T, id string) {
	t.Helper()
	eventually(t, "the container is ready", func() bool { return n.output(t, id, "stdout") == "ready\n" })
}

func (n *node) container(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetStatus()
}

func (n *node) stopContainer(t *testing.T, id string, seconds int64) {
	t.Helper()
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds}); err != nil {
		t.Fatal(err)
	}
}

// exited waits until the container has ended.
func (n *node) exited(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	var s *runtimeapi.ContainerStatus
	eventually(t, "the container ends", func() bool {
		s = n.container(t, id)
		return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

// eventually asks until it is true.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	within(t, patience, what, ask)
}

// within is eventually with another bound.
func within(t *testing.T, bound time.Duration, what string, ask func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !ask() {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("not in %v: %s", bound, what)
		}
	}
}

// output is what the container has written to stream, from its log.
func (n *node) output(t *testing.T, id, stream string) string {
	t.Helper()
	var text strings.Builder
	for _, e := range readLog(t, n.container(t, id).GetLogPath()) {
		if e.stream == stream {
			text.WriteString(e.content)
			if e.tag == "F" {
				text.WriteByte('\n')
			}
		}
	}
	return text.String()
}

// says runs a script in a pod of its own, from create to exit, and returns what
// it wrote.
func (n *node) says(t *testing.T, pod, name, script string, change func(*runtimeapi.ContainerConfig)) string {
	t.Helper()
	config := n.shell(name, script)
	if change != nil {
		change(config)
	}
	id := n.startContainer(t, pod, config)
	n.exited(t, id)
	return strings.TrimSpace(n.output(t, id, "stdout") + n.output(t, id, "stderr"))
}

// exec runs a command in a container and returns its output.
func (n *node) exec(t *testing.T, id string, cmd ...string) string {
	t.Helper()
	resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(patience / time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetExitCode() != 0 {
		t.Fatalf("%q ended with %d: %s", cmd, resp.GetExitCode(), resp.GetStderr())
	}
	return strings.TrimSpace(string(resp.GetStdout()))
}

// entry is one line of a container's log.
type entry struct {
	time                 time.Time
	stream, tag, content string
}

func readLog(t *testing.T, path string) []entry {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(parts) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%s: %.200q is no log entry", filepath.Base(path), line)
		}
		at, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil || parts[1] != "stdout" && parts[1] != "stderr" || parts[2] != "P" && parts[2] != "F" {
			t.Fatalf("%s: %.200q is no log entry", filepath.Base(path), line)
		}
		entries = append(entries, entry{at, parts[1], parts[2], parts[3]})
	}
	return entries
}
