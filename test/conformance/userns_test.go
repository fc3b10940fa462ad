package conformance

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/leak"
	"berth/test/registry"
)

// The ids that the pods below have on the host.
const (
	hostUIDs = 1 << 20
	hostGIDs = 3 << 20
)

// usersOf gives a pod a user namespace.
func usersOf(config *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD,
		Uids: []*runtimeapi.IDMapping{{HostId: hostUIDs, Length: 1 << 16}},
		Gids: []*runtimeapi.IDMapping{{HostId: hostGIDs, Length: 1 << 16}},
	}
	return config
}

// member gives a container what its pod's user namespace asks of it.
func member(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) *runtimeapi.ContainerConfig {
	options := proto.Clone(pod.Linux.SecurityContext.NamespaceOptions).(*runtimeapi.NamespaceOption)
	config.Linux.SecurityContext.NamespaceOptions = options
	for _, m := range config.Mounts {
		m.UidMappings, m.GidMappings = options.UsernsOptions.Uids, options.UsernsOptions.Gids
	}
	return config
}

func wantHostOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		t.Errorf("on the host, %s is %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// capableImage has a program with a file capability (NET_BIND_SERVICE).
func (n *node) capableImage(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(leak.NeedTool(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // VFS_CAP_REVISION_2, effective
	layer := registry.Layer(t,
		registry.Entry{Header: tar.Header{Name: "capable/busybox", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}}, Content: program},
		registry.Dir("home", 0o755), registry.Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "home/web/", Mode: 0o700, Uid: 1000, Gid: 1000}},
		registry.Dir("dev", 0o755), registry.Dir("etc", 0o755), registry.Dir("proc", 0o755), registry.Dir("sys", 0o755))
	n.registry.Push(t, "capable", layer, ocispec.ImageConfig{Cmd: []string{"/capable/busybox"}}, "1")
	return n.registry.Host() + "/capable:1"
}

func TestUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		status, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range status.GetRuntimeHandlers() {
			if !h.GetFeatures().GetUserNamespaces() {
				t.Errorf("handler %q gives no user namespaces", h.GetName())
			}
		}
		if status.GetFeatures().GetUserNamespacesHostNetwork() {
			t.Error("user namespaces on the host's network are promised")
		}
		config := usersOf(podConfig(t, "web"))
		config.Linux.Sysctls = map[string]string{"kernel.shmmni": "1234", "net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "9000"}
		pod := n.runPod(t, config)
		p := n.pod(t, pod)
		if !proto.Equal(p.GetLinux().GetNamespaces().GetOptions(), config.Linux.SecurityContext.NamespaceOptions) || p.GetNetwork().GetIp() == "" {
			t.Errorf("status %v", p)
		}
		volume := t.TempDir()
		if err := errors.Join(os.Chmod(volume, 0o700), os.WriteFile(filepath.Join(volume, "old"), []byte("old"), 0o600), os.Chown(filepath.Join(volume, "old"), 1000, 1000)); err != nil {
			t.Fatal(err)
		}
		c := n.shell("main", `
			tr -s ' ' </proc/self/uid_map; tr -s ' ' </proc/self/gid_map
			hostname; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax
			stat -c %u:%g:%a / /bin/busybox /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /volume /volume/old
			touch /new /tmp/new /volume/new /dev/shm/new && stat -c %u:%g /new /tmp/new /volume/new /dev/shm/new
			echo out >/dev/stdout; echo err >/dev/stderr
			ls /sys/class/net
			echo changed >/etc/hostname
			cat /etc/hostname /volume/old; echo
			cat /proc/sys/kernel/ngroups_max >/dev/null && (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo denied
			echo ready; sleep 1000`)
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume}}
		id := n.startContainer(t, pod, member(c, config))
		eventually(t, "the container is ready", func() bool { return strings.HasSuffix(n.output(t, id, "stdout"), "ready\n") })
		want := fmt.Sprintf(" 0 %d 65536\n 0 %d 65536\nweb\n1234\n77\n9000\n", hostUIDs, hostGIDs) +
			"0:0:755\n0:0:755\n0:0:644\n0:0:644\n0:0:644\n0:0:644\n0:0:1777\n0:0:700\n1000:1000:600\n" +
			"0:0\n0:0\n0:0\n0:0\nout\neth0\nlo\nchanged\nold\ndenied\nready\n"
		if got := n.output(t, id, "stdout"); got != want {
			t.Errorf("seen\n%s\nwant\n%s", got, want)
		}
		if got := n.output(t, id, "stderr"); got != "err\n" {
			t.Errorf("stderr %q", got)
		}
		pid := n.pidOf(t, id)
		wantHostOwner(t, fmt.Sprintf("/proc/%d", pid), hostUIDs, hostGIDs)
		wantHostOwner(t, filepath.Join(volume, "new"), 0, 0)
		wantHostOwner(t, filepath.Join(volume, "old"), 1000, 1000)
		if got, want := n.exec(t, id, "sh", "-c", "id -u; tr -s ' ' </proc/self/uid_map; echo again >/dev/stdout; echo x >>/new; stat -c %u /new"), fmt.Sprintf("0\n 0 %d 65536\nagain\n0", hostUIDs); got != want {
			t.Errorf("exec: %q, want %q", got, want)
		}
		var net, user uint64
		for name, ino := range map[string]*uint64{"net": &net, "user": &user} {
			st, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
			if err != nil {
				t.Fatal(err)
			}
			*ino = st.Sys().(*syscall.Stat_t).Ino
		}

		// A second container, of another user, after all of Berth has died.
		n.killDaemon(t)
		if err := syscall.Kill(n.runner(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.startDaemon(t)
		second := member(n.shell("second", `id -u; id -g; stat -Lc %i /proc/self/ns/net /proc/self/ns/user; cat /dev/shm/new; touch /tmp/mine; stat -c %u /tmp/mine; echo out >/dev/stdout
			touch /etc/mine 2>/dev/null || echo denied`), config)
		second.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		second.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}
		secondID := n.startContainer(t, pod, second)
		n.exited(t, secondID)
		if got, want := n.output(t, secondID, "stdout")+n.output(t, secondID, "stderr"), fmt.Sprintf("1000\n1000\n%d\n%d\n1000\nout\ndenied\n", net, user); got != want {
			t.Errorf("the second container has seen %q, want %q", got, want)
		}
		if s := n.container(t, id).GetState(); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the first container is %v", s)
		}
		n.stopPod(t, pod)
		if got := n.pods(t, nil); !slices.Equal(got, []string{pod}) {
			t.Errorf("listed %v", got)
		}
		n.removePod(t, pod)
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// pidOf is the container's first process on the host.
func (n *node) pidOf(t *testing.T, id string) int {
	t.Helper()
	resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("the pid of the container: %d, %v", info.Pid, err)
	}
	return info.Pid
}

// mountsBelow lists mounts in dir.
func mountsBelow(t *testing.T, dir string) (at []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			at = append(at, f[4])
		}
	}
	return at
}

// A pid namespace that the containers share is the pod's user namespace's too:
// a container cannot look into its first process, nor signal what is not its own.
func TestUserNamespaceWithASharedPIDNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := usersOf(podConfig(t, "web"))
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		pod := n.runPod(t, config)
		n.startContainer(t, pod, member(n.shell("first", "exec sleep 4321"), config))
		second := n.startContainer(t, pod, member(n.shell("second", `
			until ps -o args | grep -q "sleep 432[1]"; do :; done
			cat /proc/1/comm; stat -c %u /proc/1; ls /proc/1/root/ 2>/dev/null || echo denied; umount /proc 2>/dev/null || echo denied`), config))
		n.exited(t, second)
		if got, want := n.output(t, second, "stdout"), "berth-init\n0\ndenied\ndenied\n"; got != want && got != strings.Replace(want, "\n0\n", "\n65534\n", 1) {
			t.Errorf("seen %q, want %q", got, want)
		}
	})
}

// A program's file capability holds in a user namespace, and so does the
// ownership of an image's directories.
func TestFileCapabilityInAUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		ref := n.capableImage(t)
		n.pull(t, ref)
		for name, config := range map[string]*runtimeapi.PodSandboxConfig{"host": podConfig(t, "host"), "own": usersOf(podConfig(t, "own"))} {
			pod := n.runPod(t, config)
			c := n.shell("main", "/capable/busybox grep CapEff /proc/self/status; /capable/busybox touch /home/web/mine; /capable/busybox stat -c %u:%g /home/web /home/web/mine")
			c.Image.Image, c.Command[0] = ref, "/capable/busybox"
			c.Command = slices.Insert(c.Command, 1, "sh")
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}
			if name == "own" {
				member(c, config)
			}
			id := n.startContainer(t, pod, c)
			n.exited(t, id)
			if got, want := n.output(t, id, "stdout")+n.output(t, id, "stderr"), "CapEff:\t0000000000000400\n1000:1000\n1000:1000\n"; got != want {
				t.Errorf("user namespace %s: seen %q, want %q", name, got, want)
			}
		}
	})
}

// A terminal, its user and its device nodes in a user namespace.
func TestTerminalInAUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := usersOf(podConfig(t, "web"))
		pod := n.runPod(t, config)
		c := member(n.shell("main", "tty >/dev/null && echo tty >/dev/tty; echo out >/dev/stdout; echo null >/dev/null; head -c 4 /dev/zero | wc -c; exit 6"), config)
		c.Tty, c.Stdin = true, true
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		id := n.startContainer(t, pod, c)
		if s := n.exited(t, id); s.GetExitCode() != 6 {
			t.Errorf("exit code %d", s.GetExitCode())
		}
		if got, want := n.output(t, id, "stdout"), "tty\r\nout\r\n4\r\n"; got != want {
			t.Errorf("seen %q, want %q", got, want)
		}
	})
}

// What does not fit the pod's user namespace is refused by name when it is
// created, and leaves nothing.
func TestInvalidContainersInAUserNamespace(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := usersOf(podConfig(t, "web"))
		pod := n.runPod(t, config)
		type container = runtimeapi.ContainerConfig
		for field, change := range map[string]func(*container){
			"userns_options": func(c *container) {
				c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0].Length--
			},
			"the pod has a user namespace": func(c *container) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = nil },
			"run_as_user": func(c *container) {
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 16}
			},
			"supplemental_groups": func(c *container) { c.Linux.SecurityContext.SupplementalGroups = []int64{1 << 16} },
			"mounts[0].uidMappings": func(c *container) {
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/", UidMappings: []*runtimeapi.IDMapping{{HostId: 1, Length: 1}}}}
			},
		} {
			c := member(n.shell("bad", "true"), config)
			change(c)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
			expect.Code(t, field, err, codes.InvalidArgument, field)
		}
		list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil || len(list.GetContainers()) > 0 {
			t.Errorf("listed %v, %v", list.GetContainers(), err)
		}
	})
}

// Options of a mount whose ids are mapped are in effect, or refused by name where
// the OCI runtime would leave them out.
func TestOptionsOfMappedMounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := usersOf(podConfig(t, "web"))
		pod := n.runPod(t, config)
		c := n.shell("main", `grep -o " /vol .*" /proc/self/mounts`)
		c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/vol", MountOptions: []string{"nosuid", "nodev", "noexec"}}}
		created, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: member(c, config)})
		if status.Code(err) == codes.InvalidArgument && n.handler == "crun" {
			expect.Code(t, "what crun leaves out", err, codes.InvalidArgument, "mounts[0].mount_options")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		id := created.GetContainerId()
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		n.exited(t, id)
		if seen := n.output(t, id, "stdout"); !strings.Contains(seen, "nosuid,nodev,noexec") {
			t.Errorf("seen %q", seen)
		}
	})
}
