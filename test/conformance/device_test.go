package conformance

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

// The devices that every container has, and no others, but for those it is
// given; what it may do with these is what it was given.
func TestDevices(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := t.TempDir()
		for name, minor := range map[string]uint32{"full": 7, "zero": 5} {
			if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
				t.Fatal(err)
			}
		}
		const usual = `for d in null zero full random urandom tty; do [ -c /dev/$d ] && echo $d; done; ls -l /dev/ptmx | sed 's/.*-> //'; echo x >/dev/null && head -c 2 /dev/zero | wc -c`
		if got, want := n.says(t, pod, "usual", usual, nil), "null\nzero\nfull\nrandom\nurandom\ntty\npts/ptmx\n2"; got != want {
			t.Errorf("usual devices: %q, want %q", got, want)
		}
		console := func(c *runtimeapi.ContainerConfig) { c.Tty = true }
		if got := n.says(t, pod, "console", `[ -c /dev/console ] && echo yes`, console); got != "yes" {
			t.Errorf("with a terminal: %q", got)
		}
		// 10:229 is fuse: not allowed to anybody who was not given it.
		if got := n.says(t, pod, "other", `mknod /x c 10 229 && cat /x`, nil); got != "cat: can't open '/x': Operation not permitted" {
			t.Errorf("a device that was not given: %q", got)
		}
		given := func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: dir, ContainerPath: "/dev/set", Permissions: "r"}}
		}
		if got := n.says(t, pod, "directory", `ls /dev/set; head -c 3 /dev/set/zero | wc -c`, given); got != "full\nzero\n3" {
			t.Errorf("a directory of devices: %q", got)
		}
	})
}

// Permissions are the cgroup's: a device that nobody else may use.
func TestDevicePermissions(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		fuse := filepath.Join(t.TempDir(), "fuse")
		if err := unix.Mknod(fuse, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
			t.Fatal(err)
		}
		for permissions, want := range map[string]string{"r": "read", "w": "write", "rwm": "read write mknod", "m": "mknod", "wr": "read write"} {
			const script = `(: </dev/own) 2>/dev/null && printf 'read '; (: >/dev/own) 2>/dev/null && printf 'write '; mknod /dev/two c 10 229 2>/dev/null && printf mknod; true`
			got := n.says(t, pod, "may-"+permissions, script, func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: fuse, ContainerPath: "/dev/own", Permissions: permissions}}
			})
			// Every container may make any node; it cannot open what it was not given.
			if want != "mknod" && got != want && got != want+" mknod" || want == "mknod" && got != want {
				t.Errorf("%s: may %q, want %q", permissions, got, want)
			}
		}
	})
}

func TestInvalidDevices(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		for field, d := range map[string]*runtimeapi.Device{
			"devices[0].host_path":      {HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "r"},
			"devices[0].container_path": {HostPath: "/dev/null", ContainerPath: "/dev/../../x", Permissions: "r"},
			"devices[0].permissions":    {HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"},
		} {
			config := n.shell("bad", "true")
			config.Devices = []*runtimeapi.Device{d}
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, field, err, codes.InvalidArgument, field)
		}
	})
}
