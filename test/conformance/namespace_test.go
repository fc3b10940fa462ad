package conformance

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

const readNamespaces = "for ns in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$ns; done"

// hostNamespaces are the host's, by name.
func hostNamespaces(t *testing.T) map[string]string {
	t.Helper()
	inodes := map[string]string{}
	for _, name := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		link, err := os.Readlink(filepath.Join("/proc/self/ns", name))
		if err != nil {
			t.Fatal(err)
		}
		inodes[name] = link
	}
	return inodes
}

func byName(links string) map[string]string {
	inodes := map[string]string{}
	for _, link := range strings.Fields(links) {
		name, _, _ := strings.Cut(link, ":")
		inodes[name] = link
	}
	return inodes
}

// Each namespace is the host's, the pod's or the container's own, as asked, in
// run and in exec.
func TestWhoseNamespaces(t *testing.T) {
	const pod, ctr, onHost = runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE
	type options = runtimeapi.NamespaceOption
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		host := hostNamespaces(t)
		for _, test := range []struct {
			name    string
			options *options
			hosts   string // namespaces that are the host's
			shared  string // that the pod's containers share, apart from those
		}{
			{"own-pids", &options{Pid: ctr}, "", "ipc net uts"},
			{"shared-pids", &options{Pid: pod}, "", "ipc net pid uts"},
			{"host-pids", &options{Pid: onHost}, "pid", "ipc net uts"},
			{"host-ipc", &options{Pid: ctr, Ipc: onHost}, "ipc", "net uts"},
			{"host-net", &options{Pid: ctr, Network: onHost}, "net uts", "ipc"},
			{"all-the-hosts", &options{Pid: onHost, Network: onHost, Ipc: onHost}, "ipc net pid uts", ""},
		} {
			config := podConfig(t, test.name)
			config.Linux.SecurityContext.NamespaceOptions = test.options
			if test.options.Network == onHost {
				config.Hostname = ""
			}
			id := n.runPod(t, config)
			var seen []map[string]string
			for _, name := range []string{"a", "b"} {
				_, run, exec := n.bothSay(t, id, name, readNamespaces, func(s *security) { s.NamespaceOptions = test.options })
				if run != exec {
					t.Errorf("%s: an exec is elsewhere:\n%s\nthan its container:\n%s", test.name, exec, run)
				}
				seen = append(seen, byName(run))
			}
			for name, own := range host {
				a, b := seen[0][name], seen[1][name]
				isHosts := slices.Contains(strings.Fields(test.hosts), name)
				isShared := isHosts || slices.Contains(strings.Fields(test.shared), name)
				if (a == own) != isHosts || (b == own) != isHosts || (a == b) != isShared {
					t.Errorf("%s: %s of the host %s, of the containers %s and %s", test.name, name, own, a, b)
				}
			}
		}
	})
}

// A container for debugging sees the processes of the one that it targets, and
// ends with it.
func TestTargetedPIDNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		target := n.startContainer(t, pod, n.shell("target", "exec sleep 4721"))
		other := n.startContainer(t, pod, n.shell("other", "exec sleep 4722"))
		at := func(id string) func(*security) {
			return func(s *security) {
				s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
			}
		}
		debug := n.wantBoth(t, pod, "debug", "tr '\\0' ' ' </proc/1/cmdline; echo; ps | grep -c '[s]leep 4722'; true", "sleep 4721 \n0", at(target))
		if got, want := n.exec(t, debug, "readlink", "/proc/self/ns/pid"), n.exec(t, target, "readlink", "/proc/self/ns/pid"); got != want {
			t.Errorf("the pid namespace is %s, want %s", got, want)
		}
		if got, not := n.exec(t, debug, "readlink", "/proc/self/ns/mnt"), n.exec(t, target, "readlink", "/proc/self/ns/mnt"); got == not {
			t.Error("the mount namespace is the target's too")
		}
		// A berthd that comes in between knows the pair as well.
		created := n.shell("later", "exec sleep 4723")
		at(target)(created.Linux.SecurityContext)
		later := n.create(t, pod, created)
		n.killDaemon(t)
		n.startDaemon(t)
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: later}); err != nil {
			t.Fatal(err)
		}
		if got := n.exec(t, later, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"); got != "sleep 4721" {
			t.Errorf("after a restart of berthd, process 1 is %q", got)
		}
		last := n.shell("last", "true")
		at(target)(last.Linux.SecurityContext)
		late := n.create(t, pod, last)
		n.stopContainer(t, target, 0)
		for _, id := range []string{debug, later} {
			if c := n.exited(t, id); c.GetExitCode() != 137 {
				t.Errorf("%s ended with %d", c.GetMetadata().GetName(), c.GetExitCode())
			}
		}
		_, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: late})
		expect.Code(t, "a start after the target's end", err, codes.FailedPrecondition, target)
		if c := n.exited(t, late); c.GetReason() != "StartError" {
			t.Errorf("reason %q", c.GetReason())
		}
		if c := n.container(t, other); c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container beside them is %v", c.GetState())
		}
		n.targetsRefused(t, pod, map[string]string{"stopped": target, "unknown": strings.Repeat("0", 64), "none": ""})
	})
}

// targetsRefused creates a container for each of these targets, and one for a
// container of another pod.
func (n *node) targetsRefused(t *testing.T, pod string, targets map[string]string) {
	t.Helper()
	stranger := n.startContainer(t, n.runPod(t, podConfig(t, "stranger")), n.shell("main", "exec sleep 4724"))
	targets["another pod's"] = stranger
	for what, id := range targets {
		config := n.shell("bad", "true")
		config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		expect.Code(t, what, err, codes.InvalidArgument, "namespace_options.target_id")
	}
}

// Sysctls are the pod's: its containers see them, the host keeps its own, and a
// container cannot change them (CRI-O's CVE-2022-0811, 2022-0532).
func TestSysctlsAreThePodsAlone(t *testing.T) {
	sysctls := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.tcp_keepalive_time": "601", "net.core.somaxconn": "77",
		"kernel.shm_rmid_forced": "1", "kernel.msgmax": "9000", "fs.mqueue.msg_max": "20",
	}
	host := func() (text string) {
		for _, name := range slices.Sorted(maps.Keys(sysctls)) {
			value, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
			if err != nil {
				t.Fatal(err)
			}
			text += name + " = " + string(value)
		}
		return text
	}
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		before := host()
		config := podConfig(t, "web")
		config.Linux.Sysctls = sysctls
		pod := n.runPod(t, config)
		var want, scripts []string
		for _, name := range slices.Sorted(maps.Keys(sysctls)) {
			want = append(want, sysctls[name]+"\nkept")
			scripts = append(scripts, fmt.Sprintf("cat /proc/sys/%[1]s; echo 1 2>/dev/null >/proc/sys/%[1]s || echo kept", strings.ReplaceAll(name, ".", "/")))
		}
		n.wantBoth(t, pod, "main", strings.Join(scripts, "; "), strings.Join(want, "\n"), func(s *security) { s.ReadonlyPaths = []string{"/proc/sys"} })
		if after := host(); after != before {
			t.Errorf("the host had\n%s\nand has\n%s", before, after)
		}
	})
}

// A pod's interface believes no router on its network (CVE-2020-10749), unless the
// pod asks for that.
func TestPodsBelieveNoRouter(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("the host has no IPv6, so pods have none")
	}
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		const script = "cat /proc/sys/net/ipv6/conf/eth0/accept_ra"
		none := func(*security) {}
		n.wantBoth(t, n.runPod(t, podConfig(t, "careful")), "main", script, "0", none)
		config := podConfig(t, "gullible")
		config.Linux.Sysctls = map[string]string{"net.ipv6.conf.default.accept_ra": "1"}
		n.wantBoth(t, n.runPod(t, config), "main", script, "1", none)
	})
}

// The sysctls of eth0 come after the plugin that makes it, under either spelling of
// their names; those of a pod's uts namespace work in a user namespace, too.
func TestSysctlsOfInterfaces(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		const script = "cat /proc/sys/net/ipv4/conf/eth0/rp_filter /proc/sys/net/ipv4/conf/eth0/arp_ignore /proc/sys/net/ipv4/conf/eth0/arp_announce /proc/sys/kernel/domainname"
		sysctls := map[string]string{
			"net.ipv4.conf.eth0.rp_filter": "2", "net/ipv4/conf/eth0/arp_ignore": "3", "net.ipv4.conf.default.arp_announce": "1", "kernel.domainname": "example.org",
		}
		config := podConfig(t, "web")
		config.Linux.Sysctls = sysctls
		if got, want := n.says(t, n.runPod(t, config), "main", script, nil), "2\n3\n1\nexample.org"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// Without a privilege, a container's process listens on port 80, and may ping, as with
// the peers, unless its pod wants it otherwise.
func TestPortsAndPingWithoutPrivilege(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		const script = `httpd -p 80 -h / 2>/dev/null && echo listens; tr '\t' ' ' </proc/sys/net/ipv4/ping_group_range`
		check := func(config *runtimeapi.PodSandboxConfig, want string) {
			t.Helper()
			got := n.says(t, n.runPod(t, config), "main", script, func(c *runtimeapi.ContainerConfig) {
				member(c, config)
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			})
			if got != want {
				t.Errorf("%s: %q, want %q", config.Metadata.Name, got, want)
			}
		}
		check(podConfig(t, "web"), "listens\n0 2147483647")
		check(usersOf(podConfig(t, "mapped")), "listens\n0 65535")
		strict := podConfig(t, "strict")
		strict.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "net.ipv4.ping_group_range": "1 0"}
		check(strict, "1 0")
	})
}

// What only the kernel can tell of a sysctl is told as any other mistake is, and
// leaves nothing.
func TestSysctlThatTheKernelRefuses(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		config := podConfig(t, "web")
		for name, value := range map[string]string{
			"net.ipv4.no_such_thing": "1", "net.ipv4.ip_unprivileged_port_start": "70000", "kernel.shm_rmid_forced": "2", "kernel.sem": "many",
		} {
			config.Linux.Sysctls = map[string]string{name: value}
			_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			expect.Code(t, name+"="+value, err, codes.InvalidArgument, fmt.Sprintf("linux.sysctls[%q]", name))
		}
		if pods := n.pods(t, nil); len(pods) != 0 {
			t.Errorf("listed %v", pods)
		}
		config.Linux.Sysctls = nil
		n.runPod(t, config) // the same identity: nothing of the others is in its way
	})
}
