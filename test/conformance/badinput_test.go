package conformance

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

func TestUnknownIDs(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		for _, id := range []string{strings.Repeat("0", 64), "web", "../../../etc", "\x00"} {
			for name, err := range expect.Calls(t.Context(), n, id, n.shell("c", "true")) {
				if strings.HasPrefix(name, "Stop") || strings.HasPrefix(name, "Remove") {
					expect.Code(t, name, err, codes.OK)
				} else {
					expect.Code(t, name, err, codes.NotFound)
				}
			}
		}
	})
}

func TestEmptyIDsNameNothing(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		pod, ctr := n.running(t, forever)
		for name, err := range expect.Calls(t.Context(), n, "", n.shell("c", "true")) {
			expect.Code(t, name, err, codes.InvalidArgument)
		}
		if n.pod(t, pod).GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || n.container(t, ctr).GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Error("an empty id was taken for the only one")
		}
	})
}

// Whatever is not honoured is refused by the name of its field, and leaves
// nothing.
func TestInvalidPods(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		type config = runtimeapi.PodSandboxConfig
		node := runtimeapi.NamespaceMode_NODE
		for field, change := range map[string]func(*config){
			"metadata":         func(c *config) { c.Metadata = nil },
			"metadata.name":    func(c *config) { c.Metadata.Name = "a;b=c" },
			"metadata.uid":     func(c *config) { c.Metadata.Uid = "" },
			"hostname":         func(c *config) { c.Hostname = "a b" },
			"log_directory":    func(c *config) { c.LogDirectory = "relative" },
			"dns_config":       func(c *config) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}} },
			"port_mappings[0]": func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 70000}} },
			"linux.sysctls": func(c *config) {
				c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/evil"}
			},
			"kernel.core_pattern": func(c *config) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "x"} },
			"host's network": func(c *config) {
				c.Hostname = ""
				c.Linux.SecurityContext.NamespaceOptions.Network = node
				c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
			},
			"linux.cgroup_parent": func(c *config) { c.Linux.CgroupParent = "/../../x" },
			"userns_options": func(c *config) {
				c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
			},
			"run_as_group": func(c *config) { c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1} },
			"windows":      func(c *config) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} },
		} {
			c := podConfig(t, "bad")
			change(c)
			_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
			expect.Code(t, field, err, codes.InvalidArgument, field)
		}
		_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{})
		expect.Code(t, "no config", err, codes.InvalidArgument, "config")
		if pods := n.pods(t, nil); len(pods) != 0 {
			t.Errorf("listed %v", pods)
		}
	})
}

func TestInvalidContainers(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		type config = runtimeapi.ContainerConfig
		mount := func(m *runtimeapi.Mount) func(*config) {
			return func(c *config) { c.Mounts = []*runtimeapi.Mount{m} }
		}
		for field, change := range map[string]func(*config){
			"metadata":            func(c *config) { c.Metadata = nil },
			"image":               func(c *config) { c.Image = nil },
			"working_dir":         func(c *config) { c.WorkingDir = "relative" },
			"envs[0].key":         func(c *config) { c.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} },
			"log_path":            func(c *config) { c.LogPath = "../../../etc/cron.d/x" },
			"mounts[0].host_path": mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/no/such/path"}),
			"container_path":      mount(&runtimeapi.Mount{ContainerPath: "/a/../..", HostPath: "/tmp"}),
			"propagation":         mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/tmp", Propagation: 3}),
			"recursive_read_only": mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/tmp", RecursiveReadOnly: true}),
			"mount_options":       mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/tmp", MountOptions: []string{"suid"}}),
			"devices":             func(c *config) { c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/dev/null"}} },
			"CDI_devices":         func(c *config) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "a/b=c"}} },
			"privileged":          func(c *config) { c.Linux.SecurityContext.Privileged = true },
			"run_as_user":         func(c *config) { c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32} },
			"run_as_group":        func(c *config) { c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1} },
			"run_as_username":     func(c *config) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" },
			"add_capabilities": func(c *config) {
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"EVERYTHING"}}
			},
			"seccomp.localhost_ref": func(c *config) {
				c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "/no/such/profile"}
			},
			"seccomp_profile_path": func(c *config) { c.Linux.SecurityContext.SeccompProfilePath = "localhost/relative" },
			"masked_paths[0]":      func(c *config) { c.Linux.SecurityContext.MaskedPaths = []string{"/"} },
			"add_ambient_capabilities": func(c *config) {
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}
			},
			"supplemental_groups[0]": func(c *config) { c.Linux.SecurityContext.SupplementalGroups = []int64{1 << 31} },
			"memory_limit_in_bytes":  func(c *config) { c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20} },
			"stop_signal":            func(c *config) { c.StopSignal = 1000 },
		} {
			c := n.shell("bad", "true")
			change(c)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
			expect.Code(t, field, err, codes.InvalidArgument, field)
		}
		other := n.shell("bad", "true")
		other.Image.Image = n.registry.Host() + "/other:1"
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: other})
		expect.Code(t, "an image that was not pulled", err, codes.NotFound, "/other:1")
		resp, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil || len(resp.GetContainers()) != 0 {
			t.Errorf("listed %v, %v", resp.GetContainers(), err)
		}
	})
}

func TestInvalidImageRequests(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		expect.Code(t, "no reference", n.tryPull(t.Context(), ""), codes.InvalidArgument, "image")
		for _, ref := range []string{"a/UPPER", "a b", "a@sha256:short", "http://a/b", "../a"} {
			expect.Code(t, ref, n.tryPull(t.Context(), ref), codes.InvalidArgument)
		}
		_, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{})
		expect.Code(t, "status of nothing", err, codes.InvalidArgument, "image")
		_, err = n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{})
		expect.Code(t, "removal of nothing", err, codes.InvalidArgument, "image")
		n.removeImage(t, n.registry.Host()+"/never:1")
	})
}
