package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

const writeEtc = `for f in hosts hostname resolv.conf; do (echo "# own" >>/etc/$f) 2>/dev/null && echo wrote $f; done
	stat -c '%n %u:%g %a' /etc/hosts /etc/hostname /etc/resolv.conf
	for f in hosts hostname resolv.conf; do grep " /etc/$f " /proc/mounts | cut -d' ' -f4 | tr , '\n' | grep -E '^(no(suid|exec|dev))$' | sort | tr '\n' ' '; done`

const (
	etcAsItIs = `/etc/hosts 0:0 644
/etc/hostname 0:0 644
/etc/resolv.conf 0:0 644
nodev noexec nosuid nodev noexec nosuid nodev noexec nosuid`
	etcWritten = "wrote hosts\nwrote hostname\nwrote resolv.conf\n"
)

// A container's root writes to the pod's own files unless its root is read-only;
// the pod's other containers see it, and nobody else does.
func TestPodFilesAreTheirRootsToWrite(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		var host [3]string
		for i, name := range []string{"hosts", "hostname", "resolv.conf"} {
			text, _ := os.ReadFile("/etc/" + name) // it need not exist
			host[i] = string(text)
		}
		users, hostNet := usersOf(podConfig(t, "users")), podConfig(t, "host")
		hostNet.Hostname = ""
		hostNet.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		for name, config := range map[string]*runtimeapi.PodSandboxConfig{"web": podConfig(t, "web"), "users": users, "host": hostNet} {
			pod := n.runPod(t, config)
			of := func(change func(*runtimeapi.ContainerConfig)) func(*runtimeapi.ContainerConfig) {
				return func(c *runtimeapi.ContainerConfig) {
					switch name {
					case "users":
						member(c, config)
					case "host":
						c.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
					}
					change(c)
				}
			}
			for _, test := range []struct {
				name   string
				change func(*runtimeapi.ContainerConfig)
				want   string
			}{
				{"readonly", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }, etcAsItIs},
				{"user", func(c *runtimeapi.ContainerConfig) {
					c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
				}, etcAsItIs},
				{"root", func(c *runtimeapi.ContainerConfig) {}, etcWritten + etcAsItIs},
			} {
				if got := n.says(t, pod, test.name, writeEtc, of(test.change)); got != test.want {
					t.Errorf("%s, %s: it says\n%s\nwant\n%s", name, test.name, got, test.want)
				}
			}
			if got := n.says(t, pod, "later", "cat /etc/hosts /etc/hostname /etc/resolv.conf | grep -c own", of(func(*runtimeapi.ContainerConfig) {})); got != "3" {
				t.Errorf("%s: another container of the pod sees %s", name, got)
			}
			n.removePod(t, pod)
		}
		for i, name := range []string{"hosts", "hostname", "resolv.conf"} {
			if text, _ := os.ReadFile("/etc/" + name); string(text) != host[i] {
				t.Errorf("the host's %s was written to: %q", name, text)
			}
		}
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// Whoever fills its pod's files hurts its pod alone: the records have their room.
func TestPodFilesAreSmall(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		free := func() uint64 {
			var st unix.Statfs_t
			if err := unix.Statfs(n.run, &st); err != nil {
				t.Fatal(err)
			}
			return st.Bfree * uint64(st.Bsize)
		}
		before := free()
		got := n.says(t, pod, "main", `for f in hosts hostname resolv.conf; do dd if=/dev/zero of=/etc/$f bs=64k count=1000 2>&1 | grep -o "No space left on device"; done
			for f in hosts hostname resolv.conf; do stat -c %s /etc/$f; done | { s=0; while read n; do s=$((s+n)); done; [ $s -lt 2097152 ] && echo small; }`, nil)
		if want := strings.Repeat("No space left on device\n", 3) + "small"; got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
		if after := free(); before > after && before-after > 16<<20 {
			t.Errorf("the records have %d bytes less", before-after)
		}
		n.removePod(t, n.runPod(t, podConfig(t, "other")))
	})
}

// Where a volume is mounted over /etc, the pod's files are mounted on top as far as
// there is a place for them; nothing of it keeps a container from starting.
func TestMountOverEtc(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		n.registry.PushLayers(t, "etc", [][]byte{registry.Layer(t, registry.Dir("conf", 0o755), registry.File("conf/hosts", 0o644, "of the image"), registry.Dir("conf/hostname", 0o755),
			registry.Link("conf/resolv.conf", "hosts"), registry.Link("way", "/conf"))}, ocispec.ImageConfig{}, "1")
		n.pull(t, n.registry.Host()+"/etc:1")
		pod := n.runPod(t, podConfig(t, "web"))
		const look = `cd /etc; grep -q "$(hostname)" hosts 2>/dev/null && echo hosts; [ "$(cat hostname 2>/dev/null)" = "$(hostname)" ] && echo hostname
			grep -q " /etc/resolv.conf " /proc/mounts && echo resolv.conf; cat own; true`
		for name, test := range map[string]struct {
			mount *runtimeapi.Mount
			files map[string]string // "->x": a symlink to x
			want  string
			made  string
		}{
			"empty":         {&runtimeapi.Mount{}, nil, "hosts hostname resolv.conf", "hostname hosts own resolv.conf"},
			"with files":    {&runtimeapi.Mount{}, map[string]string{"hosts": "old", "hostname": "old"}, "hosts hostname resolv.conf", "hostname hosts own resolv.conf"},
			"config map":    {&runtimeapi.Mount{Readonly: true}, nil, "", "own"},
			"read-only":     {&runtimeapi.Mount{Readonly: true}, map[string]string{"hosts": "old", "resolv.conf": ""}, "hosts resolv.conf", "hosts own resolv.conf"},
			"symlinks":      {&runtimeapi.Mount{}, map[string]string{"hosts": "->own", "resolv.conf": "->/never", "hostname": "->../../../../etc/hostname"}, "", "hostname hosts own resolv.conf"},
			"bidirectional": {&runtimeapi.Mount{Propagation: bidirectional}, map[string]string{"hosts": "old"}, "", "hosts own"},
			"from the host": {&runtimeapi.Mount{Propagation: hostToContainer}, map[string]string{"hosts": "old"}, "hosts hostname resolv.conf", "hostname hosts own resolv.conf"},
			"unclean":       {&runtimeapi.Mount{ContainerPath: "//etc/./"}, nil, "hosts hostname resolv.conf", "hostname hosts own resolv.conf"},
		} {
			dir := mountPoint(t, unix.MS_SHARED)
			writeHost(t, filepath.Join(dir, "own"), "")
			for file, text := range test.files {
				if target, ok := strings.CutPrefix(text, "->"); ok {
					if err := os.Symlink(target, filepath.Join(dir, file)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				writeHost(t, filepath.Join(dir, file), text)
			}
			m := test.mount
			if m.HostPath = dir; m.ContainerPath == "" {
				m.ContainerPath = "/etc"
			}
			got := n.says(t, pod, strings.ReplaceAll(name, " ", "-"), look, func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} })
			if got = strings.ReplaceAll(got, "\n", " "); got != test.want {
				t.Errorf("%s: on top are %q, want %q", name, got, test.want)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var made []string
			for _, e := range entries {
				made = append(made, e.Name())
				if text, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && e.Type().IsRegular() && string(text) != test.files[e.Name()] {
					t.Errorf("%s: on the host, %s holds %q", name, e.Name(), text)
				}
			}
			if got := strings.Join(made, " "); got != test.made {
				t.Errorf("%s: on the host are %q, want %q", name, got, test.made)
			}
			for _, m := range expect.Mounts(t) {
				if strings.Contains(m, dir+"/") {
					t.Errorf("%s: on the host is mounted %s", name, m)
				}
			}
		}
		image := ofImage(n.registry.Host()+"/etc:1", "way", "/etc")
		if got := n.says(t, pod, "image", "grep -q $(hostname) /etc/hosts && echo hosts; ls -d /etc/hostname; grep -c ' /etc/resolv.conf ' /proc/mounts", mounting(image)); got != "hosts\n/etc/hostname\n0" {
			t.Errorf("over an image: %s", got)
		}
		own := t.TempDir()
		writeHost(t, filepath.Join(own, "hosts"), "asked for")
		// A config map, and the hosts file that the kubelet mounts in each container.
		conf := t.TempDir()
		writeHost(t, filepath.Join(conf, "app.conf"), "configured")
		if got := n.says(t, pod, "kubelet", "ls /etc; cat /etc/app.conf", mounting(&runtimeapi.Mount{HostPath: own + "/hosts", ContainerPath: "/etc/hosts"}, &runtimeapi.Mount{HostPath: conf, ContainerPath: "/etc", Readonly: true})); got != "app.conf\nconfigured" {
			t.Errorf("a config map under the kubelet's hosts: %s", got)
		}
		if got := n.says(t, pod, "own", "cat /etc/hosts", mounting(&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/etc"}, &runtimeapi.Mount{HostPath: own + "/hosts", ContainerPath: "/etc/hosts"})); got != "asked for" {
			t.Errorf("with hosts of its own: %s", got)
		}
	})
}
