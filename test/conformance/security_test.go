package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

const localhost = runtimeapi.SecurityProfile_Localhost

type security = runtimeapi.LinuxContainerSecurityContext

// bothSay runs a script as a container's own process and by an exec in it, and
// returns the container and what each wrote.
func (n *node) bothSay(t *testing.T, pod, name, script string, change func(*security)) (id, run, exec string) {
	t.Helper()
	const end = "\nthat is all\n"
	config := n.shell(name, script+"\nprintf '\nthat is all\n'\nexec sleep 4720")
	if change != nil {
		change(config.Linux.SecurityContext)
	}
	id = n.startContainer(t, pod, config)
	eventually(t, name+" is done", func() bool { return strings.HasSuffix(n.output(t, id, "stdout"), end) })
	run = strings.TrimSuffix(n.output(t, id, "stdout"), end)
	return id, strings.TrimSpace(run), n.exec(t, id, "sh", "-c", script)
}

// wantBoth runs a script as bothSay does and fails t unless both write want.
func (n *node) wantBoth(t *testing.T, pod, name, script, want string, change func(*security)) (id string) {
	t.Helper()
	id, run, exec := n.bothSay(t, pod, name, script, change)
	if run != want {
		t.Errorf("%s: run says\n%s\nwant\n%s", name, run, want)
	}
	if exec != want {
		t.Errorf("%s: exec says\n%s\nwant\n%s", name, exec, want)
	}
	return id
}

// privilegedPod may hold privileged containers.
func (n *node) privilegedPod(t *testing.T, name string) (id string) {
	t.Helper()
	config := podConfig(t, name)
	config.Linux.SecurityContext.Privileged = true
	return n.runPod(t, config)
}

// boundingSet is what this machine can give: berthd runs like this test.
func boundingSet(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "CapBnd:\t")
	mask, _, _ := strings.Cut(rest, "\n")
	return mask
}

// Inheritable capabilities without ambient ones would become permitted to anyone
// who executes a file that has them (CVE-2022-24769, 29162, 27650, 27652).
func TestCapabilitySets(t *testing.T) {
	const script = `sed -n 's/^Cap\(...\):\t0*/\1 /p' /proc/self/status | sed 's/ $/ 0/'`
	sets := func(inheritable, permitted, effective, bounding, ambient string) string {
		return fmt.Sprintf("Inh %s\nPrm %s\nEff %s\nBnd %s\nAmb %s", inheritable, permitted, effective, bounding, ambient)
	}
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.privilegedPod(t, "web")
		all := strings.TrimLeft(boundingSet(t), "0")
		web := func(s *security) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }
		caps := func(c *runtimeapi.Capability) func(*security) { return func(s *security) { s.Capabilities = c } }
		for _, test := range []struct {
			name, want string
			change     func(*security)
		}{
			{"default", sets("0", "a80425fb", "a80425fb", "a80425fb", "0"), nil},
			{"no-root", sets("0", "0", "0", "a80425fb", "0"), web},
			{"add", sets("0", "a80435fb", "a80435fb", "a80435fb", "0"), caps(&runtimeapi.Capability{AddCapabilities: []string{"net_admin"}})},
			{"drop", sets("0", "a80425da", "a80425da", "a80425da", "0"), caps(&runtimeapi.Capability{DropCapabilities: []string{"CAP_CHOWN", "KILL"}})},
			{"drop-all", sets("0", "0", "0", "0", "0"), caps(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}})},
			{"one", sets("0", "400", "400", "400", "0"), caps(&runtimeapi.Capability{AddCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}})},
			{"all", sets("0", all, all, all, "0"), caps(&runtimeapi.Capability{AddCapabilities: []string{"ALL"}})},
			{"privileged", sets("0", all, all, all, "0"), func(s *security) { s.Privileged = true }},
			{"ambient", sets("400", "400", "400", "400", "400"), func(s *security) {
				web(s)
				s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}
			}},
			{"ambient-and-others", sets("400", "400", "400", "a80425fb", "400"), func(s *security) {
				web(s)
				s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
			}},
		} {
			n.wantBoth(t, pod, test.name, script, test.want, test.change)
		}
		// What ambient capabilities are for: a port below 1024 for a process that
		// is not root.
		const bind = `nc -l -p 81 2>/dev/null & while kill -0 $! 2>/dev/null; do netstat -ltn | grep -q ':81 ' && echo bound && break; done; kill $! 2>/dev/null; true`
		config := podConfig(t, "ports")
		config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"}
		pod = n.runPod(t, config)
		n.wantBoth(t, pod, "refused", bind, "", web)
		n.wantBoth(t, pod, "bound", bind, "bound", func(s *security) {
			web(s)
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		})
	})
}

func TestUsersAndGroups(t *testing.T) {
	const script = "id -u; id -g; id -G"
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		config.Linux.SecurityContext.SupplementalGroups = []int64{4000}
		pod := n.runPod(t, config)
		id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
		const strict = runtimeapi.SupplementalGroupsPolicy_Strict
		for _, test := range []struct {
			name, want string
			sc         *security
		}{
			{"root", "0\n0\n0 4000", &security{}},
			{"merge", "1000\n1000\n1000 2000 3000 4000", &security{RunAsUser: id(1000), SupplementalGroups: []int64{3000}}},
			{"merge-by-name", "1000\n1000\n1000 2000 4000", &security{RunAsUsername: "web"}},
			{"strict", "1000\n1000\n1000 3000 4000", &security{RunAsUser: id(1000), SupplementalGroups: []int64{3000}, SupplementalGroupsPolicy: strict}},
			{"strict-by-name", "1000\n7\n7 4000", &security{RunAsUsername: "web", RunAsGroup: id(7), SupplementalGroupsPolicy: strict}},
			{"group", "1000\n7\n7 2000 4000", &security{RunAsUser: id(1000), RunAsGroup: id(7)}},
			{"no-account", "31\n0\n0 4000", &security{RunAsUser: id(31)}},
			{"largest", "2147483647\n2147483647\n2147483647 4000", &security{RunAsUser: id(1<<31 - 1), RunAsGroup: id(1<<31 - 1)}},
		} {
			ctr := n.wantBoth(t, pod, test.name, script, test.want, func(s *security) { proto.Merge(s, test.sc) })
			user := n.container(t, ctr).GetUser().GetLinux()
			status := strings.Trim(fmt.Sprintln(user.GetUid())+fmt.Sprintln(user.GetGid())+fmt.Sprint(user.GetSupplementalGroups()), "[]")
			if status = strings.Replace(status, "[", "", 1); status != test.want {
				t.Errorf("%s: the status says\n%s\nwant\n%s", test.name, status, test.want)
			}
		}
		s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil || !s.GetFeatures().GetSupplementalGroupsPolicy() {
			t.Errorf("the kubelet refuses pods with a policy: %v, %v", s.GetFeatures(), err)
		}
	})
}

// blocksChmod is a profile of the node.
func blocksChmod(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSeccomp(t *testing.T) {
	const (
		script = `sed -n 's/^Seccomp:\t//p' /proc/self/status
			mkdir -p /tmp/d; chmod 700 /tmp/d 2>/dev/null && echo chmod
			unshare -U true 2>/dev/null && echo unshare
			mount -t tmpfs x /tmp/d 2>/dev/null && echo mount && umount /tmp/d; true`
		unconfined = "0\nchmod\nunshare"
	)
	type profile = runtimeapi.SecurityProfile
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.privilegedPod(t, "web")
		path := blocksChmod(t)
		admin := &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		free := &profile{ProfileType: runtimeapi.SecurityProfile_Unconfined} // the default AppArmor profile forbids mounts
		for _, test := range []struct {
			name, want string
			change     func(*security)
		}{
			{"nothing", unconfined, nil},
			{"unconfined", unconfined, func(s *security) { s.Seccomp = &profile{ProfileType: runtimeapi.SecurityProfile_Unconfined} }},
			{"default", "2\nchmod", func(s *security) { s.Seccomp = &profile{} }},
			{"default-follows-capabilities", "2\nchmod\nunshare\nmount", func(s *security) { s.Seccomp, s.Capabilities, s.Apparmor = &profile{}, admin, free }},
			{"default-without-capabilities", "2\nchmod", func(s *security) {
				s.Seccomp, s.Capabilities = &profile{}, &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			}},
			{"localhost", "2\nunshare", func(s *security) { s.Seccomp = &profile{ProfileType: localhost, LocalhostRef: path} }},
			{"deprecated-default", "2\nchmod", func(s *security) { s.SeccompProfilePath = "runtime/default" }},
			{"deprecated-localhost", "2\nunshare", func(s *security) { s.SeccompProfilePath = "localhost/" + path }},
			{"deprecated-unconfined", unconfined, func(s *security) { s.SeccompProfilePath = "unconfined" }},
			{"deprecated-is-overruled", "2\nunshare", func(s *security) {
				s.Seccomp, s.SeccompProfilePath = &profile{ProfileType: localhost, LocalhostRef: path}, "unconfined"
			}},
			{"privileged", "0\nchmod\nunshare\nmount", func(s *security) {
				s.Privileged, s.Seccomp = true, &profile{ProfileType: localhost, LocalhostRef: path}
			}},
			{"not-root", "2\nchmod", func(s *security) {
				s.RunAsUser, s.Seccomp, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, &profile{}, true
			}},
		} {
			n.wantBoth(t, pod, test.name, script, test.want, test.change)
		}
	})
}

// AppArmor profiles that this kernel cannot enforce are refused by the name of the
// field: the kubelet asks first. SELinux options have no effect here, and crictl
// inspect says so: charts send them to every node.
func TestAppArmorAndSELinuxOfAnotherKernel(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err == nil {
		t.Skip("this kernel has AppArmor")
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this kernel has SELinux")
	}
	type profile = runtimeapi.SecurityProfile
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		for _, test := range []struct {
			field, says string
			change      func(*security)
		}{
			{"apparmor", "AppArmor is not enabled", func(s *security) { s.Apparmor = &profile{ProfileType: localhost, LocalhostRef: "x"} }},
			{"apparmor_profile", "AppArmor is not enabled", func(s *security) { s.ApparmorProfile = "localhost/x" }},
		} {
			config := n.shell("refused", "true")
			test.change(config.Linux.SecurityContext)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, test.field, err, codes.InvalidArgument, "linux.security_context."+test.field, test.says)
		}
		for i, test := range []struct {
			ignored bool
			change  func(*security)
		}{
			{false, func(s *security) { s.Apparmor = &profile{} }},
			{false, func(s *security) { s.Apparmor = &profile{ProfileType: runtimeapi.SecurityProfile_Unconfined} }},
			{false, func(s *security) { s.ApparmorProfile = "runtime/default" }},
			{false, func(s *security) { s.SelinuxOptions = &runtimeapi.SELinuxOption{} }},
			{true, func(s *security) { s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0"} }},
			{true, func(s *security) { s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "spc_t"} }},
		} {
			config := n.shell(fmt.Sprintf("c%d", i), "echo runs")
			test.change(config.Linux.SecurityContext)
			id := n.startContainer(t, pod, config)
			n.exited(t, id)
			if got := n.output(t, id, "stdout"); got != "runs\n" {
				t.Errorf("%d: %q", i, got)
			}
			resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
			if err != nil {
				t.Fatal(err)
			}
			const says = "linux.security_context.selinux_options: SELinux is not enabled"
			if info := resp.GetInfo()["info"]; strings.Contains(info, says) != test.ignored {
				t.Errorf("%d: says that the options have no effect: %v, want %v: %s", i, !test.ignored, test.ignored, info)
			}
		}
		config := podConfig(t, "selinux")
		config.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0"}
		n.runPod(t, config)
	})
}

func TestPathsAndRootFS(t *testing.T) {
	const script = `while read _ at _; do case $at in /proc/?*|/sys/firmware) echo $at;; esac; done </proc/mounts | sort
		touch /f 2>/dev/null && echo writable; sed -n 's/^NoNewPrivs:\t//p' /proc/self/status`
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.privilegedPod(t, "web")
		for _, test := range []struct {
			name, want string
			change     func(*security)
		}{
			{"unmasked", "writable\n0", nil}, // empty lists are no defaults
			{"masked", "/proc/keys\n/proc/sys\n/sys/firmware\nwritable\n0", func(s *security) {
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys", "/sys/firmware", "/proc/no-such-file"}, []string{"/proc/sys", "/proc/none"}
			}},
			{"read-only", "1", func(s *security) { s.ReadonlyRootfs, s.NoNewPrivs = true, true }},
			{"privileged", "writable\n0", func(s *security) {
				s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, []string{"/proc/keys"}, []string{"/proc/sys"}
			}},
			{"privileged-read-only", "0", func(s *security) { s.Privileged, s.ReadonlyRootfs = true, true }},
		} {
			n.wantBoth(t, pod, test.name, script, test.want, test.change)
		}
		n.wantBoth(t, pod, "hidden", "wc -c </proc/keys; ls /sys/firmware | wc -l; echo 1 2>/dev/null >/proc/sys/vm/compact_memory || echo refused", "0\n0\nrefused", func(s *security) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys", "/sys/firmware"}, []string{"/proc/sys"}
		})
	})
}

// All of it at once, as the kubelet sends it for a pod of the restricted
// standard.
func TestRestrictedContainer(t *testing.T) {
	const script = `id -u; id -G; touch /f /tmp/f 2>/dev/null || echo read-only; echo x 2>/dev/null >/dev/shm/f && echo shared
		sed -n 's/^\(CapInh\|CapBnd\|CapAmb\|Seccomp\|NoNewPrivs\):\t//p' /proc/self/status
		wc -c </proc/keys; unshare -U true 2>/dev/null || echo confined`
	const none = "0000000000000000"
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := podConfig(t, "web")
		pod.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
		pod.Linux.SecurityContext.SupplementalGroups = []int64{2500}
		want := strings.Join([]string{"1000", "1000 2000 2500", "read-only", "shared", none, none, none, "1", "2", "0", "confined"}, "\n")
		n.wantBoth(t, n.runPod(t, pod), "main", script, want, func(s *security) {
			s.RunAsUser, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{2500}
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			s.ReadonlyRootfs, s.NoNewPrivs, s.Seccomp, s.Apparmor = true, true, &runtimeapi.SecurityProfile{}, &runtimeapi.SecurityProfile{}
			s.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
			s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
		})
	})
}

func TestPrivileged(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		privileged := func(s *security) { s.Privileged = true }
		config := n.shell("main", "true")
		privileged(config.Linux.SecurityContext)
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: n.runPod(t, podConfig(t, "plain")), Config: config})
		expect.Code(t, "a privileged container in a pod that is not", err, codes.InvalidArgument, "linux.security_context.privileged")

		pod := n.privilegedPod(t, "web")
		name, major, minor := unusualDevice(t)
		node := fmt.Sprintf("stat -c '%%t:%%T' %s 2>/dev/null; mknod /own c %d %d && head -c 0 /own && rm /own && echo usable", name, major, minor)
		open := node + `
			for at in /sys /sys/fs/cgroup; do grep " $at " /proc/mounts | grep -o ' r[wo],' | head -n 1; done
			cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup; mkdir x && rmdir x && echo cgroups`
		want := fmt.Sprintf("%x:%x\nusable\n rw,\n rw,\ncgroups", major, minor)
		if n.handler == "crun" {
			// Its cgroup mount is a tmpfs with the hierarchies below it, of which
			// the last line tells.
			open = strings.Replace(open, "/sys /sys/fs/cgroup;", "/sys /sys;", 1)
		}
		n.wantBoth(t, pod, "privileged", open, want, privileged)

		_, run, exec := n.bothSay(t, pod, "plain", node+" 2>/dev/null; true", nil)
		if run != "" || exec != "" {
			t.Errorf("%s in a container that is not privileged: run %q, exec %q", name, run, exec)
		}
	})
}

// unusualDevice is a character device of this machine that containers do not get
// otherwise, and that may be opened.
func unusualDevice(t *testing.T) (path string, major, minor uint64) {
	t.Helper()
	usual := []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
	entries, err := os.ReadDir("/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode()&os.ModeCharDevice == 0 || slices.Contains(usual, e.Name()) {
			continue
		}
		path := filepath.Join("/dev", e.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		f.Close()
		rdev := info.Sys().(*syscall.Stat_t).Rdev
		return path, rdev >> 8 & 0xfff, rdev&0xff | rdev>>12&0xffffff00
	}
	t.Fatal("/dev has only the usual devices")
	return "", 0, 0
}
