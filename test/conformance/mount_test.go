package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

const (
	private         = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	hostToContainer = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional   = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// mountPoint is a directory that is a mount of its own, with this propagation.
func mountPoint(t *testing.T, propagation uintptr) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mountAt(t, dir, "tmpfs")
	if err := unix.Mount("", dir, "", propagation, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mountAt mounts a tmpfs until the end of the test; what is on it, too.
func mountAt(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(name, dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func mounting(mounts ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts }
}

func writeHost(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is mounted on the host later appears in the container, or does not; and
// the other way.
func TestMountPropagation(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := mountPoint(t, unix.MS_SHARED)
		ids := map[runtimeapi.MountPropagation]string{}
		for _, p := range []runtimeapi.MountPropagation{private, hostToContainer, bidirectional} {
			config := n.shell(strings.ToLower(p.String()), forever)
			config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/vol", Propagation: p}}
			// Mounting needs the capability, and no AppArmor profile that forbids it.
			config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			config.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
			ids[p] = n.startContainer(t, pod, config)
		}
		mountAt(t, filepath.Join(dir, "late"), "late")
		writeHost(t, filepath.Join(dir, "late", "file"), "from the host\n")
		for p, want := range map[runtimeapi.MountPropagation]string{private: "", hostToContainer: "from the host", bidirectional: "from the host"} {
			if got := n.exec(t, ids[p], "sh", "-c", "cat /vol/late/file 2>/dev/null; true"); got != want {
				t.Errorf("%v: the container sees %q, want %q", p, got, want)
			}
		}
		for p, want := range map[runtimeapi.MountPropagation]bool{private: false, hostToContainer: false, bidirectional: true} {
			name := fmt.Sprint("own", int(p))
			n.exec(t, ids[p], "sh", "-c", fmt.Sprintf("mkdir -p /vol/%s && mount -t tmpfs own /vol/%s && echo hello >/vol/%s/file", name, name, name))
			_, err := os.Stat(filepath.Join(dir, name, "file"))
			if (err == nil) != want {
				t.Errorf("%v: the host sees what the container mounted: %v, want %v", p, err == nil, want)
			}
			if want {
				if err := unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
			n.stopContainer(t, ids[p], 0)
		}
	})
}

// What cannot be propagated is refused by name, and a source that is not there.
func TestInvalidMounts(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		alone := mountPoint(t, unix.MS_PRIVATE)
		type mount = runtimeapi.Mount
		for field, m := range map[string]*mount{
			"mounts[0].propagation: " + alone: {HostPath: alone, ContainerPath: "/a", Propagation: hostToContainer},
			"make-rshared":                    {HostPath: alone, ContainerPath: "/a", Propagation: bidirectional},
			"mounts[0].host_path":             {HostPath: alone + "/never", ContainerPath: "/a"},
			"needs readonly":                  {HostPath: alone, ContainerPath: "/a", RecursiveReadOnly: true},
			"needs PROPAGATION_PRIVATE":       {HostPath: alone, ContainerPath: "/a", RecursiveReadOnly: true, Readonly: true, Propagation: hostToContainer},
			"mounts[0].mount_options":         {HostPath: alone, ContainerPath: "/a", MountOptions: []string{"noexec", "dev"}},
		} {
			config := n.shell("bad", "true")
			mounting(m)(config)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, field, err, codes.InvalidArgument, "mounts[0]", field)
		}
		// Nothing is made where a source should have been.
		if left, err := os.ReadDir(alone); err != nil || len(left) > 0 {
			t.Errorf("on the host: %v, %v", left, err)
		}
	})
}

// Read-only is that of the mount alone, or of all below it; Status promises only
// what is done.
func TestReadOnlyMounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := mountPoint(t, unix.MS_PRIVATE)
		mountAt(t, filepath.Join(dir, "below"), "below")
		const script = `touch /vol/x 2>/dev/null && echo top; touch /vol/below/x 2>/dev/null && echo below; true`
		if got := n.says(t, pod, "rw", script, mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/vol"})); got != "top\nbelow" {
			t.Errorf("read-write: %q", got)
		}
		if got := n.says(t, pod, "ro", script, mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/vol", Readonly: true})); got != "below" {
			t.Errorf("read-only: %q", got)
		}
		status, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil || !status.GetFeatures().GetMountOptions() {
			t.Fatalf("features %v, %v", status.GetFeatures(), err)
		}
		config := n.shell("rro", script)
		config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true}}
		resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		for _, h := range status.GetRuntimeHandlers() {
			if h.GetName() == "" && !h.GetFeatures().GetRecursiveReadOnlyMounts() {
				expect.Code(t, "not offered", err, codes.InvalidArgument, "recursive_read_only")
				return
			}
			if h.GetName() == "runc" && !h.GetFeatures().GetRecursiveReadOnlyMounts() {
				t.Error("runc can, and this is not offered")
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.GetContainerId()}); err != nil {
			t.Fatal(err)
		}
		c := n.exited(t, resp.GetContainerId())
		if got := n.output(t, c.GetId(), "stdout"); got != "" {
			t.Errorf("recursively read-only: wrote %q", got)
		}
		if !proto.Equal(c.GetMounts()[0], config.Mounts[0]) {
			t.Errorf("shows %v", c.GetMounts())
		}
	})
}

func TestMountOptions(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := mountPoint(t, unix.MS_PRIVATE)
		if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
			t.Fatal(err)
		}
		const script = `/vol/run 2>/dev/null; head -c 1 /vol/zero >/dev/null 2>&1 && echo device; grep ' /vol ' /proc/mounts | cut -d' ' -f4 | tr , '\n' | grep -E '^(no(suid|exec|dev)|ro|rw)$' | sort | tr '\n' ' '`
		for name, test := range map[string]struct {
			mount *runtimeapi.Mount
			want  string
		}{
			"none":   {&runtimeapi.Mount{}, "ran\ndevice\nrw"},
			"noexec": {&runtimeapi.Mount{MountOptions: []string{"noexec"}}, "device\nnoexec rw"},
			"all":    {&runtimeapi.Mount{MountOptions: []string{"nosuid", "nodev", "noexec"}, Readonly: true}, "nodev noexec nosuid ro"},
		} {
			test.mount.HostPath, test.mount.ContainerPath = dir, "/vol"
			if got := n.says(t, pod, name, script, mounting(test.mount)); got != test.want {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
	})
}

// The host's symlinks are followed on the host; a file is mounted as well as a
// directory; what the config mounts comes over what would be there, parents
// before children whatever their order; and ContainerStatus shows all as given.
func TestMountsOfEveryKind(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := t.TempDir()
		writeHost(t, filepath.Join(dir, "real", "file"), "real\n")
		writeHost(t, filepath.Join(dir, "hosts"), "1.2.3.4 kubelet\n")
		writeHost(t, filepath.Join(dir, "child", "name"), "child\n")
		writeHost(t, filepath.Join(dir, "shm", "name"), "own shm\n")
		for link, target := range map[string]string{"link": "real", "again": "link/file"} {
			if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		writeHost(t, filepath.Join(dir, "real", "below", "old"), "hidden\n")
		mounts := []*runtimeapi.Mount{
			{HostPath: dir + "/child", ContainerPath: "/vol/below"},
			{HostPath: dir + "/link", ContainerPath: "/vol/"},
			{HostPath: dir + "/again", ContainerPath: "/new/dir/file", Readonly: true},
			{HostPath: dir + "/hosts", ContainerPath: "/etc/hosts"},
			{HostPath: dir + "/shm", ContainerPath: "/dev/shm"},
		}
		id := n.startContainer(t, pod, func() *runtimeapi.ContainerConfig {
			c := n.shell("main", `cat /vol/file /vol/below/name /new/dir/file /etc/hosts /dev/shm/name; ls /vol/below; grep -c web /etc/hostname`)
			c.Mounts = mounts
			return c
		}())
		c := n.exited(t, id)
		if got, want := n.output(t, id, "stdout"), "real\nchild\nreal\n1.2.3.4 kubelet\nown shm\nname\n1\n"; got != want {
			t.Errorf("saw %q (%s), want %q", got, n.output(t, id, "stderr"), want)
		}
		for i, m := range c.GetMounts() {
			if !proto.Equal(m, mounts[i]) {
				t.Errorf("shows %v, want %v", m, mounts[i])
			}
		}
	})
}

// A container that turns the place where another is about to mount into a way
// out of its root gets nothing mounted or made there (CVE-2021-30465,
// CVE-2023-0778, CVE-2024-45310).
func TestSwappedMountTarget(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		volume, outside, source := t.TempDir(), t.TempDir(), t.TempDir()
		writeHost(t, filepath.Join(source, "file"), "mounted\n")
		config := n.shell("swap", fmt.Sprintf(`echo ready; while :; do mkdir -p /vol/a; mv /vol/a /vol/b; ln -s %s /vol/a; rm /vol/a; mv /vol/b /vol/a; done`, outside))
		config.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/vol"}}
		swap := n.startContainer(t, pod, config)
		n.awaitReady(t, swap)
		before := expect.Mounts(t)
		var starts sync.WaitGroup
		for i := range 2 {
			starts.Go(func() {
				for j := range 15 {
					c := n.shell(fmt.Sprintf("victim-%d-%d", i, j), "true")
					c.Mounts = []*runtimeapi.Mount{
						{HostPath: volume, ContainerPath: "/vol"},
						{HostPath: source, ContainerPath: "/vol/a/target/deep"},
						{HostPath: filepath.Join(source, "file"), ContainerPath: "/vol/a/made"},
					}
					resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
					if err != nil {
						t.Error(err)
						return
					}
					// It may fail, and it may win: both are harmless.
					_, _ = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.GetContainerId()})
					if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
						t.Errorf("outside of all roots: %v, %v", left, err)
					}
				}
			})
		}
		starts.Wait()
		n.stopPod(t, pod)
		for _, m := range expect.Mounts(t) {
			if strings.HasPrefix(m, outside) && !strings.Contains(strings.Join(before, "\n"), m) {
				t.Errorf("mounted on the host: %s", m)
			}
		}
	})
}

// Kubernetes lets a pod mount several volumes at one path, which differs in its
// spelling at most: the last one counts, and all are in the status.
func TestOnePathTwice(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		first, last := t.TempDir(), t.TempDir()
		writeHost(t, filepath.Join(first, "below", "first"), "")
		writeHost(t, filepath.Join(last, "below", "last"), "")
		writeHost(t, filepath.Join(last, "file"), "a file\n")
		config := n.shell("main", "ls /data /data/below; cat /one; umount /data 2>/dev/null; ls /data")
		config.Mounts = []*runtimeapi.Mount{
			{HostPath: first, ContainerPath: "/data"},
			{HostPath: first, ContainerPath: "/data/below"},
			{HostPath: first, ContainerPath: "/one"},
			{HostPath: filepath.Join(last, "file"), ContainerPath: "/one"},
			{HostPath: last, ContainerPath: "/data/", Readonly: true},
			{HostPath: filepath.Join(last, "below"), ContainerPath: "//data/./below/"},
		}
		config.Devices = []*runtimeapi.Device{
			{HostPath: "/dev/full", ContainerPath: "/dev/own", Permissions: "rw"},
			{HostPath: "/dev/zero", ContainerPath: "/dev/own", Permissions: "r"},
		}
		config.Command[2] += "; stat -c %t:%T /dev/own"
		id := n.startContainer(t, pod, config)
		c := n.exited(t, id)
		if got, want := n.output(t, id, "stdout"), "/data:\nbelow\nfile\n\n/data/below:\nlast\na file\nbelow\nfile\n1:5\n"; got != want {
			t.Errorf("it sees\n%s\nwant\n%s", got, want)
		}
		if len(c.GetMounts()) != len(config.Mounts) {
			t.Fatalf("the status has %v", c.GetMounts())
		}
		for i, m := range config.Mounts {
			if !proto.Equal(c.GetMounts()[i], m) {
				t.Errorf("the status has %v, want %v", c.GetMounts()[i], m)
			}
		}
	})
}

// A path with dots in it is where it leads to within the container, and the status
// has it as it came.
func TestMountPathWithDots(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		source := t.TempDir()
		if err := os.WriteFile(filepath.Join(source, "file"), []byte("inside"), 0o644); err != nil {
			t.Fatal(err)
		}
		config := n.shell("main", "cat /srv/data/file")
		config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a/../../srv/./data", HostPath: source}}
		id := n.startContainer(t, pod, config)
		n.exited(t, id)
		if got := n.output(t, id, "stdout"); strings.TrimSpace(got) != "inside" {
			t.Errorf("read %q", got)
		}
		if got := n.container(t, id).GetMounts()[0].GetContainerPath(); got != "/a/../../srv/./data" {
			t.Errorf("the status has %q", got)
		}
	})
}
