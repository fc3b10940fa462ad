package conformance

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vishvananda/netns"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/test/expect"
	"berth/test/registry"
)

// pullWith pulls an image of busybox and entries.
func (n *node) pullWith(t *testing.T, name string, config ocispec.ImageConfig, entries ...registry.Entry) (ref string) {
	t.Helper()
	config.Env = []string{"PATH=/bin"}
	n.registry.Push(t, name, registry.Layer(t, append(entries, busyboxPrograms(t)...)...), config, "1")
	ref = n.registry.Host() + "/" + name + ":1"
	n.pull(t, ref)
	return ref
}

// A working directory that is missing is made.
func TestWorkingDirectoryIsMade(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		image := n.pullWith(t, "elsewhere", ocispec.ImageConfig{WorkingDir: "/made/by/image"}, registry.Dir("proc", 0o755), registry.Dir("real", 0o755), registry.Link("way", "/real"))
		for name, test := range map[string]struct {
			change func(*runtimeapi.ContainerConfig)
			want   string
		}{
			"config":  {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/a/b/c" }, "/a/b/c"},
			"unclean": {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/tmp/../a//b/." }, "/a/b"},
			"image":   {func(c *runtimeapi.ContainerConfig) { c.Image.Image = image }, "/made/by/image"},
			"link":    {func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.WorkingDir = image, "/way/new" }, "/real/new"},
			"user": {func(c *runtimeapi.ContainerConfig) {
				c.WorkingDir = "/x/y"
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			}, "/x/y"},
			"read-only": {func(c *runtimeapi.ContainerConfig) {
				c.WorkingDir = "/ro/dir"
				c.Linux.SecurityContext.ReadonlyRootfs = true
			}, "/ro/dir"},
		} {
			if got := n.says(t, pod, name, "pwd -P", test.change); got != test.want {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
	})
}

// Wherever an image's symlinks point: the working directory is made and entered
// within the root, or the start fails (CVE-2024-21626).
func TestHostileWorkingDirectory(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		outside := t.TempDir()
		links := map[string]string{
			"up": "../../../../../../../../.." + outside, "absolute": outside, "loop": "loop", "self": "/proc/self/cwd", "exe": "/proc/1/root" + outside,
		}
		for fd := range 12 {
			links[fmt.Sprint("fd", fd)] = fmt.Sprint("/proc/self/fd/", fd)
		}
		entries := []registry.Entry{registry.Dir("proc", 0o755)}
		for name, target := range links {
			entries = append(entries, registry.Link(name, target))
		}
		image := n.pullWith(t, "hostile", ocispec.ImageConfig{}, entries...)
		for name := range links {
			for _, dir := range []string{"/" + name, "/" + name + "/made", "/" + name + "/../../made"} {
				config := n.shell(fmt.Sprint(name, "-", len(dir)), "pwd -P; ls -d ../../../../../../../.."+outside+"/.; : >made-here")
				config.WorkingDir, config.Image.Image = dir, image
				resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
				if err != nil {
					expect.Code(t, dir, err, codes.InvalidArgument, "working_dir")
					continue
				}
				_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.GetContainerId()})
				if err != nil {
					if status.Code(err) != codes.Unknown {
						t.Errorf("%s: %v", dir, err)
					}
					continue
				}
				c := n.exited(t, resp.GetContainerId())
				if out := n.output(t, c.GetId(), "stdout"); strings.Contains(out, outside+"/.") && !strings.HasPrefix(out, outside) {
					t.Errorf("%s: from %q it sees the host", dir, out)
				}
			}
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Errorf("on the host: %v, %v", left, err)
		}
	})
}

// What an image says of volumes and labels is no instruction (CVE-2022-23648):
// nothing of the host is mounted, copied or made for it. A path of the host is one
// of the container.
func TestHostileImageConfig(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		outside := t.TempDir()
		writeHost(t, filepath.Join(outside, "secret"), "secret\n")
		image := n.pullWith(t, "volumes", ocispec.ImageConfig{
			Volumes: map[string]struct{}{"/../../../../.." + outside: {}, outside + "/made": {}, "/proc/self/root": {}, "/data": {}},
			Labels:  map[string]string{"io.kubernetes.cri.mounts": outside + ":/host", "run.oci.hooks.stdout": outside + "/hook", "org.systemd.property.MemoryMax": "1"},
		}, registry.Dir("proc", 0o755), registry.Dir("data", 0o755))
		script := fmt.Sprintf("ls -A %s /host 2>/dev/null; touch /data/x && echo writable", outside)
		got := n.says(t, pod, "main", script, func(c *runtimeapi.ContainerConfig) { c.Image.Image = image })
		if got != outside+":\nmade\nwritable" {
			t.Errorf("the container says %q", got)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
			t.Errorf("on the host: %v, %v", left, err)
		}
	})
}

// Every byte that a spec can hold arrives as it was.
func TestEnvironmentBytes(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		value := "a\nb\t\\\"'$x`=äöü€😀\x01\x7f\u2028</script>" + strings.Repeat("long", 5000)
		config := n.shell("main", "")
		config.Command = []string{"sh", "-c", `printf %s "$A" >/vol/a; printf %s "${B-unset}" >/vol/b; printf %s "$C" >/vol/c`}
		dir := t.TempDir()
		config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/vol"}}
		config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("first")}, {Key: "A", Value: []byte(value)}, {Key: "B"}, {Key: "C", Value: []byte("$(A) ${A}")}}
		n.exited(t, n.startContainer(t, pod, config))
		for name, want := range map[string]string{"a": value, "b": "", "c": "$(A) ${A}"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s: %.60q, %v, want %.60q", name, got, err, want)
			}
		}
		for _, bad := range []string{"nul\x00", "latin1 \xe4", "cut \xe2\x82"} {
			config := n.shell("bad", "true")
			config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte(bad)}}
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, bad, err, codes.InvalidArgument, "envs[0].value")
		}
	})
}

// A host port is that of its protocol and its address alone, and goes with the
// pod.
func TestHostPortsByProtocolAndAddress(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		port := freePort(t)
		config := podConfig(t, "web")
		config.PortMappings = []*runtimeapi.PortMapping{
			{HostPort: port, ContainerPort: 5300, Protocol: runtimeapi.Protocol_UDP},
			{HostPort: port, ContainerPort: 80, Protocol: runtimeapi.Protocol_TCP, HostIp: "127.0.0.2"},
		}
		pod := n.runPod(t, config)
		echoUDP(t, pod, ":5300")
		n.startContainer(t, pod, n.shell("tcp", "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"))
		eventually(t, "the UDP port answers", func() bool {
			return ask("udp", fmt.Sprintf("127.0.0.1:%d", port), "echo\n") == "echo\n"
		})
		get := func(ip string) string { return ask("tcp", fmt.Sprintf("%s:%d", ip, port), "GET / HTTP/1.0\r\n\r\n") }
		eventually(t, "the TCP port answers", func() bool { return strings.HasSuffix(get("127.0.0.2"), "hello\n") })
		if got := get("127.0.0.1"); got != "" {
			t.Errorf("on an address that was not asked for: %q", got)
		}
		n.stopPod(t, pod)
		if got := get("127.0.0.2"); got != "" {
			t.Errorf("after the pod has stopped: %q", got)
		}
	})
}

// echoUDP answers in the pod's network until the end of the test.
func echoUDP(t *testing.T, pod, address string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	there, err := netns.GetFromPath(oci.NetNSDir + "/berth-" + pod)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	conn, listenErr := net.ListenPacket("udp4", address)
	if err := netns.Set(own); err != nil {
		t.Fatal(err)
	}
	if listenErr != nil {
		t.Fatal(listenErr)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1024)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
}

// ask sends a request and returns the beginning of the answer, "" without one.
func ask(network, address, request string) string {
	conn, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return ""
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return ""
	}
	b := make([]byte, 4096)
	if network == "udp" {
		n, _ := conn.Read(b)
		return string(b[:n])
	}
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// A container may rename a directory of its image, which stays the same one: not
// EXDEV, after which mv would copy it.
func TestRenameOfAnImagesDirectory(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.pullWith(t, "rename", ocispec.ImageConfig{}, registry.Dir("proc", 0o755), registry.Dir("lib", 0o755), registry.Dir("lib/deep", 0o755), registry.File("lib/deep/f", 0o644, "found"))
		const script = `a=$(stat -c %i /lib); mv /lib /old && [ $a = $(stat -c %i /old) ] && echo renamed; a=$(stat -c %i /old/deep); mv /old/deep / && [ $a = $(stat -c %i /deep) ] && echo renamed; cat /deep/f`
		users := usersOf(podConfig(t, "users"))
		for name, pod := range map[string]*runtimeapi.PodSandboxConfig{"web": podConfig(t, "web"), "users": users} {
			got := n.says(t, n.runPod(t, pod), "main", script, func(c *runtimeapi.ContainerConfig) {
				c.Image.Image = image
				if pod == users {
					member(c, pod)
				}
			})
			if got != "renamed\nrenamed\nfound" {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}
