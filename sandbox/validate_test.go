package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

// The shortest names for what the tables below are made of.
type (
	podC  = runtimeapi.PodSandboxConfig
	ctrC  = runtimeapi.ContainerConfig
	podSC = runtimeapi.LinuxSandboxSecurityContext
	ctrSC = runtimeapi.LinuxContainerSecurityContext
	nsOpt = runtimeapi.NamespaceOption
	res   = runtimeapi.LinuxContainerResources
	mount = runtimeapi.Mount
)

const (
	nsPod       = runtimeapi.NamespaceMode_POD
	nsContainer = runtimeapi.NamespaceMode_CONTAINER
	nsNode      = runtimeapi.NamespaceMode_NODE
	nsTarget    = runtimeapi.NamespaceMode_TARGET
)

func podLinux(c *podC) *runtimeapi.LinuxPodSandboxConfig {
	if c.Linux == nil {
		c.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &podSC{NamespaceOptions: &nsOpt{}}}
	}
	return c.Linux
}

func refused(t *testing.T, err error, field string) {
	t.Helper()
	if field == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	var invalid *InvalidError
	if !errors.As(err, &invalid) || invalid.Field != field || invalid.Reason == "" || !strings.Contains(err.Error(), field) {
		t.Errorf("got %v, want %s refused", err, field)
	}
}

func testPods() *Pods {
	return &Pods{DefaultRuntime: "runc", Runtimes: map[string]Runtime{"runc": nil}, node: node{hostname: "node", seccomp: true}}
}

func TestValidatePod(t *testing.T) {
	long := strings.Repeat("x", 300)
	sysctl := func(name, value string) func(*podC) {
		return func(c *podC) { podLinux(c).Sysctls = map[string]string{name: value} }
	}
	ns := func(o *nsOpt) func(*podC) { return func(c *podC) { podLinux(c).SecurityContext.NamespaceOptions = o } }
	port := func(p *runtimeapi.PortMapping) func(*podC) {
		return func(c *podC) { c.PortMappings = []*runtimeapi.PortMapping{p} }
	}
	const sc = "linux.security_context."
	for _, tt := range []struct {
		field string // "": accepted
		edit  func(*podC)
	}{
		{"", func(c *podC) {}},
		{"", func(c *podC) { podLinux(c).Resources, podLinux(c).Overhead = &res{CpuShares: 2}, &res{CpuShares: 2} }},
		{"", func(c *podC) { podLinux(c).SecurityContext.Seccomp = &runtimeapi.SecurityProfile{} }},
		{"", func(c *podC) { podLinux(c).SecurityContext.Privileged = true }},
		{"", func(c *podC) { podLinux(c).CgroupParent = "/kubepods/pod1" }},
		{"metadata.name", func(c *podC) { c.Metadata = nil }},
		{"metadata.name", func(c *podC) { c.Metadata.Name = "a;K8S_POD_NAME=b" }},
		{"metadata.name", func(c *podC) { c.Metadata.Name = long }},
		{"metadata.namespace", func(c *podC) { c.Metadata.Namespace = "" }},
		{"metadata.uid", func(c *podC) { c.Metadata.Uid = "a b" }},
		{"config", func(c *podC) { c.Annotations = map[string]string{"a": strings.Repeat("x", maxConfig)} }},
		{"hostname", func(c *podC) { c.Hostname = "a\nb" }},
		{"hostname", func(c *podC) { c.Hostname = strings.Repeat("x", 65) }},
		{"", func(c *podC) { c.Hostname = strings.Repeat("x", 64) }},
		{"hostname", func(c *podC) { c.Hostname = "-a" }},
		{"hostname", func(c *podC) { c.Hostname = "a.." }},
		{"", func(c *podC) { c.Hostname = "web.t.ns.svc." }},
		{"hostname", func(c *podC) { ns(&nsOpt{Network: nsNode})(c) }},
		{"", func(c *podC) { c.Hostname = ""; ns(&nsOpt{Network: nsNode})(c) }},
		{"", func(c *podC) { c.Hostname = "node"; ns(&nsOpt{Network: nsNode})(c) }},
		{"log_directory", func(c *podC) { c.LogDirectory = "logs" }},
		{"log_directory", func(c *podC) { c.LogDirectory = "/var/../etc" }},
		{"dns_config.servers[0]", func(c *podC) { c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\noptions x"}} }},
		{"dns_config.searches[1]", func(c *podC) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a", "b c"}} }},
		{"dns_config.options[0]", func(c *podC) { c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{""}} }},
		{"", port(&runtimeapi.PortMapping{ContainerPort: 80})},
		{"", port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: 80, HostIp: "::1", Protocol: runtimeapi.Protocol_SCTP})},
		{"port_mappings[0].container_port", port(&runtimeapi.PortMapping{HostPort: 80})},
		{"port_mappings[0].host_port", port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: 65536})},
		{"port_mappings[0].host_port", port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: -1})},
		{"port_mappings[0].host_ip", port(&runtimeapi.PortMapping{ContainerPort: 80, HostIp: "localhost"})},
		{"port_mappings[0].protocol", port(&runtimeapi.PortMapping{ContainerPort: 80, Protocol: 9})},
		{"linux.cgroup_parent", func(c *podC) { podLinux(c).CgroupParent = "/a/../../b" }},
		{"linux.cgroup_parent", func(c *podC) { podLinux(c).CgroupParent = "kubepods-pod1.slice" }},
		{"linux.cgroup_parent", func(c *podC) { podLinux(c).CgroupParent = "/kubepods.slice/kubepods-pod1.slice" }},
		{"linux.cgroup_parent", func(c *podC) { podLinux(c).CgroupParent = "/" }},
		{"", sysctl("net.ipv4.ip_local_port_range", "1024 65535")},
		{"", sysctl("kernel.shm_rmid_forced", "1")},
		{"", sysctl("fs.mqueue.msg_max", "100")},
		{"", sysctl("kernel.domainname", "example.org")},
		{"", sysctl("net/ipv4/conf/eth0.100/forwarding", "1")},
		{"", sysctl("net.ipv4.conf.eth0/100.forwarding", "1")},
		{`linux.sysctls["net.ipv4.conf.//.forwarding"]`, sysctl("net.ipv4.conf.//.forwarding", "1")},
		{`linux.sysctls["net.ipv4./..x"]`, sysctl("net.ipv4./..x", "1")},
		{`linux.sysctls["kernel/core_pattern"]`, sysctl("kernel/core_pattern", "1")},
		{`linux.sysctls["kernel.domainname"]`, func(c *podC) { c.Hostname = ""; ns(&nsOpt{Network: nsNode})(c); sysctl("kernel.domainname", "a")(c) }},
		{`linux.sysctls["kernel.shm_rmid_forced"]`, sysctl("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x")},
		{`linux.sysctls["kernel.shm_rmid_forced"]`, sysctl("kernel.shm_rmid_forced", "1\n")},
		{`linux.sysctls["kernel.shm_rmid_forced"]`, sysctl("kernel.shm_rmid_forced", "")},
		{`linux.sysctls["kernel.core_pattern"]`, sysctl("kernel.core_pattern", "x")},
		{`linux.sysctls["net/../kernel/core_pattern"]`, sysctl("net/../kernel/core_pattern", "x")},
		{`linux.sysctls["net...kernel.core_pattern"]`, sysctl("net...kernel.core_pattern", "x")},
		{`linux.sysctls["net."]`, sysctl("net.", "x")},
		{`linux.sysctls["net.x=1"]`, sysctl("net.x=1", "x")},
		{`linux.sysctls["net.a.b"]`, func(c *podC) { c.Hostname = ""; ns(&nsOpt{Network: nsNode})(c); sysctl("net.a.b", "1")(c) }},
		{`linux.sysctls["kernel.msgmax"]`, func(c *podC) { ns(&nsOpt{Ipc: nsNode})(c); sysctl("kernel.msgmax", "1")(c) }},
		{"", ns(&nsOpt{Pid: nsContainer})},
		{"", ns(nil)},
		{"", ns(&nsOpt{UsernsOptions: &runtimeapi.UserNamespace{Mode: nsNode}})},
		{sc + "namespace_options.network", ns(&nsOpt{Network: nsContainer})},
		{sc + "namespace_options.ipc", ns(&nsOpt{Ipc: nsContainer})},
		{sc + "namespace_options.pid", ns(&nsOpt{Pid: nsTarget})},
		{sc + "namespace_options.target_id", ns(&nsOpt{TargetId: "x"})},
		{sc + "run_as_group", func(c *podC) { podLinux(c).SecurityContext.RunAsGroup = &runtimeapi.Int64Value{} }},
		{"", func(c *podC) { podLinux(c).SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0"} }},
		{sc + "run_as_user", func(c *podC) { podLinux(c).SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: -1} }},
		{sc + "supplemental_groups[0]", func(c *podC) { podLinux(c).SecurityContext.SupplementalGroups = []int64{1 << 31} }},
		{sc + "supplemental_groups_policy", func(c *podC) { podLinux(c).SecurityContext.SupplementalGroupsPolicy = 7 }},
		{sc + "seccomp.profile_type", func(c *podC) { podLinux(c).SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 3} }},
		{sc + "seccomp_profile_path", func(c *podC) { podLinux(c).SecurityContext.SeccompProfilePath = "default" }},
		{sc + "apparmor", func(c *podC) {
			podLinux(c).SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "x"}
		}},
		{"windows", func(c *podC) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} }},
	} {
		c := podConfig("a")
		tt.edit(c)
		refused(t, testPods().validatePod(RunRequest{Config: c}), tt.field)
	}
	refused(t, testPods().validatePod(RunRequest{}), "config")
	refused(t, testPods().validatePod(RunRequest{Config: podConfig("a"), Handler: "runsc"}), "runtime_handler")
	refused(t, testPods().validatePod(RunRequest{Config: podConfig("a"), Handler: "runc"}), "")
}

func TestValidateContainer(t *testing.T) {
	security := func(edit func(*ctrSC)) func(*ctrC) {
		return func(c *ctrC) {
			c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &ctrSC{}}
			edit(c.Linux.SecurityContext)
		}
	}
	mounts := func(m *mount) func(*ctrC) { return func(c *ctrC) { c.Mounts = []*mount{m} } }
	env := func(key, value string) func(*ctrC) {
		return func(c *ctrC) { c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}} }
	}
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	const sc, ns = "linux.security_context.", "linux.security_context.namespace_options."
	good := func() *mount { return &mount{ContainerPath: "/x", HostPath: "/y"} }
	with := func(edit func(*mount)) func(*ctrC) { m := good(); edit(m); return mounts(m) }
	for _, tt := range []struct {
		field string
		edit  func(*ctrC)
	}{
		{"", func(c *ctrC) {}},
		{"metadata.name", func(c *ctrC) { c.Metadata = nil }},
		{"metadata.name", func(c *ctrC) { c.Metadata.Name = "../x" }},
		{"image.image", func(c *ctrC) { c.Image = nil }},
		{"config", func(c *ctrC) { c.Args = []string{strings.Repeat("x", maxConfig)} }},
		{"command[0]", func(c *ctrC) { c.Command = []string{"a\x00b"} }},
		{"working_dir", func(c *ctrC) { c.WorkingDir = "work" }},
		{"", env("A", "ä\n=")},
		{"envs[0].key", env("", "")},
		{"envs[0].key", env("A=B", "")},
		{"envs[0].value", env("A", "x\x00")},
		{"envs[0].value", env("A", "\xff")},
		{"stop_signal", func(c *ctrC) { c.StopSignal = 66 }},
		{"", func(c *ctrC) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGRTMAX }},
		{"log_path", func(c *ctrC) { c.LogPath = "../x" }},
		{"log_path", func(c *ctrC) { c.LogPath = "/x" }},
		{"log_path", func(c *ctrC) { c.LogPath = "a//b" }},
		{"log_path", func(c *ctrC) { c.LogPath = "." }},
		{"", func(c *ctrC) { c.LogPath = "web/0.log" }},
		{"", func(c *ctrC) { c.Stdin, c.Tty = true, true }},
		{"CDI_devices", func(c *ctrC) { c.CDIDevices = []*runtimeapi.CDIDevice{{}} }},
		{"windows", func(c *ctrC) { c.Windows = &runtimeapi.WindowsContainerConfig{} }},

		{"", mounts(good())},
		{"mounts[0].container_path", with(func(m *mount) { m.ContainerPath = "x" })},
		{"mounts[0].container_path", with(func(m *mount) { m.ContainerPath = "/" })},
		{"mounts[0].container_path", with(func(m *mount) { m.ContainerPath = "/a/../.." })},
		{"", with(func(m *mount) { m.ContainerPath = "/a/../../x" })}, // as Kubernetes and the peers
		{"mounts[0].host_path", with(func(m *mount) { m.HostPath = "" })},
		{"mounts[0].image", with(func(m *mount) { m.Image = &runtimeapi.ImageSpec{} })},
		{"mounts[0].image_sub_path", with(func(m *mount) { m.ImageSubPath = "x" })},
		{"mounts", func(c *ctrC) {
			for i := range oci.MaxViews + 1 {
				c.Mounts = append(c.Mounts, &mount{ContainerPath: fmt.Sprint("/x", i), Readonly: true, Image: &runtimeapi.ImageSpec{Image: fmt.Sprint(i)}})
			}
		}},
		{"", func(c *ctrC) {
			for i := range oci.MaxViews + 1 {
				c.Mounts = append(c.Mounts, &mount{ContainerPath: fmt.Sprint("/x", i), Readonly: true, Image: &runtimeapi.ImageSpec{Image: "one"}})
			}
		}},
		{"", with(func(m *mount) { m.SelinuxRelabel = true })}, // the kubelet asks for it on every node
		{"mounts[0].uidMappings", with(func(m *mount) { m.UidMappings = []*runtimeapi.IDMapping{{}} })},
		{"mounts[0].gidMappings", with(func(m *mount) { m.GidMappings = []*runtimeapi.IDMapping{{}} })},

		{sc + "privileged", security(func(s *ctrSC) { s.Privileged = true })},
		{sc + "run_as_username", security(func(s *ctrSC) { s.RunAsUser, s.RunAsUsername = id(1), "a" })},
		{sc + "run_as_username", security(func(s *ctrSC) { s.RunAsUsername = "app:root" })},
		{sc + "run_as_group", security(func(s *ctrSC) { s.RunAsGroup = id(1) })},
		{"", security(func(s *ctrSC) { s.RunAsGroup, s.RunAsUser = id(1), id(1<<31-1) })},
		{sc + "run_as_user", security(func(s *ctrSC) { s.RunAsUser = id(1 << 31) })},
		{sc + "run_as_user", security(func(s *ctrSC) { s.RunAsUser = id(-1) })},
		{sc + "run_as_group", security(func(s *ctrSC) { s.RunAsUser, s.RunAsGroup = id(0), id(1<<32) })},
		{sc + "supplemental_groups[1]", security(func(s *ctrSC) { s.SupplementalGroups = []int64{1, 1 << 32} })},
		{sc + "supplemental_groups_policy", security(func(s *ctrSC) { s.SupplementalGroupsPolicy = 2 })},
		{"", security(func(s *ctrSC) { s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"KILL"}} })},
		{sc + "capabilities.add_ambient_capabilities", security(func(s *ctrSC) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"FLY"}}
		})},
		{sc + "capabilities.add_ambient_capabilities", security(func(s *ctrSC) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"CAP_kill"}}
		})},
		{sc + "capabilities.add_capabilities", security(func(s *ctrSC) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}} })},
		{sc + "capabilities.drop_capabilities", security(func(s *ctrSC) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{""}} })},
		{"", security(func(s *ctrSC) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}} })},
		{"", security(func(s *ctrSC) { s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t"} })},
		{sc + "masked_paths[0]", security(func(s *ctrSC) { s.MaskedPaths = []string{"proc"} })},
		{sc + "masked_paths[0]", security(func(s *ctrSC) { s.MaskedPaths = []string{"/"} })},
		{sc + "readonly_paths[1]", security(func(s *ctrSC) { s.ReadonlyPaths = []string{"/proc", "/a/.."} })},

		{"", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{} })},
		{"", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Pid: nsContainer} })},
		{ns + "network", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Network: nsNode} })},
		{ns + "ipc", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Ipc: nsNode} })},
		{ns + "pid", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Pid: nsNode} })},
		{ns + "target_id", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Pid: nsTarget} })},
		{ns + "target_id", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{Pid: nsTarget, TargetId: "../" + newID()} })},
		{ns + "target_id", security(func(s *ctrSC) { s.NamespaceOptions = &nsOpt{TargetId: "x"} })},
	} {
		pod := podConfig("a")
		pod.LogDirectory = "/var/log/pods/a"
		p := testPods().newPod(newID(), RunRequest{Config: pod})
		c := containerConfig("x")
		tt.edit(c)
		refused(t, p.validateContainer(c), tt.field)
	}
	p := testPods().newPod(newID(), RunRequest{Config: podConfig("a")})
	refused(t, p.validateContainer(nil), "config")
	c := containerConfig("x")
	c.LogPath = "x.log"
	refused(t, p.validateContainer(c), "log_path")
}
