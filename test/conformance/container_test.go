package conformance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// A program that execve refuses when the runtime has begun: the reason is where
// people look.
func TestProgramThatIsRefusedLate(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.runPod(t, podConfig(t, "refused"))
		ref := n.pullWith(t, "refused", ocispec.ImageConfig{}, registry.File("garbage", 0o755, "\x01\x02\x00"), registry.File("loose", 0o755, "#!/no/such/interpreter\n"))
		for name, want := range map[string]string{"garbage": "exec format error", "loose": "no such file or directory"} {
			config := n.shell(name, "")
			config.Image.Image, config.Command, config.Args = ref, []string{"/" + name}, nil
			c := n.exited(t, n.startContainer(t, pod, config))
			if c.GetExitCode() == 0 || c.GetReason() != "Error" || !strings.Contains(strings.ToLower(c.GetMessage()), want) {
				t.Errorf("%s: code %d, %s, %q; want %q", name, c.GetExitCode(), c.GetReason(), c.GetMessage(), want)
			}
		}
	})
}

func TestContainerLife(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		imageID := n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		config := n.shell("main", "exit 3")
		config.Annotations = map[string]string{"note": "kept"}
		id := n.create(t, pod, config)
		c := n.container(t, id)
		if c.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || c.GetCreatedAt() == 0 || c.GetStartedAt() != 0 {
			t.Errorf("created: %v", c)
		}
		if !proto.Equal(c.GetMetadata(), config.Metadata) || c.GetLabels()["io.kubernetes.container.name"] != "main" || c.GetAnnotations()["note"] != "kept" {
			t.Errorf("identity: %v", c)
		}
		if c.GetImage().GetImage() != n.busybox || c.GetImageRef() != n.repoDigest(t, n.busybox) || c.GetImageId() != imageID {
			t.Errorf("image %v, %q, %q; pulled %q", c.GetImage(), c.GetImageRef(), c.GetImageId(), imageID)
		}
		if !filepath.IsAbs(c.GetLogPath()) || c.GetResources() == nil {
			t.Errorf("log %q, resources %v", c.GetLogPath(), c.GetResources())
		}
		if again := n.create(t, pod, config); again != id {
			t.Errorf("a retry made another container")
		}
		before := time.Now().UnixNano()
		for range 2 {
			if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				break // the second one may be late: it has ended
			}
		}
		c = n.exited(t, id)
		if c.GetExitCode() != 3 || c.GetReason() != "Error" {
			t.Errorf("code %d, reason %q", c.GetExitCode(), c.GetReason())
		}
		if c.GetStartedAt() < before || c.GetFinishedAt() < c.GetStartedAt() || c.GetFinishedAt() > time.Now().UnixNano() {
			t.Errorf("started %d, finished %d, asked %d", c.GetStartedAt(), c.GetFinishedAt(), before)
		}
	})
}

func TestExitCodesAndReasons(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		for script, want := range map[string]string{
			"exit 0":       "0 Completed",
			"exit 1":       "1 Error",
			"exit 255":     "255 Error",
			"frobnicate":   "127 Error",
			"exec sleep 0": "0 Completed",
		} {
			id := n.startContainer(t, pod, n.shell(strings.ReplaceAll(script, " ", "-"), script))
			c := n.exited(t, id)
			if got := fmt.Sprintf("%d %s", c.GetExitCode(), c.GetReason()); got != want {
				t.Errorf("%q ended with %q, want %q", script, got, want)
			}
		}
	})
}

// A start that fails says why, and the container shows it.
func TestFailedStart(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		config := n.shell("main", "")
		config.Command = []string{"/bin/frobnicate"}
		id := n.create(t, pod, config)
		_, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		expect.Code(t, "a program that is not there", err, codes.Unknown, "/bin/frobnicate")
		c := n.exited(t, id)
		if c.GetExitCode() != 128 || c.GetReason() != "StartError" || !strings.Contains(c.GetMessage(), "/bin/frobnicate") {
			t.Errorf("code %d, reason %q, message %q", c.GetExitCode(), c.GetReason(), c.GetMessage())
		}
	})
}

func TestStopContainer(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, polite := n.running(t, forever)
		deaf := n.startContainer(t, pod, n.shell("deaf", `trap '' TERM; echo ready; while :; do sleep 0.1; done`))
		user := n.shell("usr1", `trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done`)
		user.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		usr1 := n.startContainer(t, pod, user)
		for _, test := range []struct {
			id      string
			seconds int64
			code    int32
		}{
			{polite, 20, 7}, {usr1, 20, 9}, {deaf, 1, 137},
		} {
			n.awaitReady(t, test.id)
			n.stopContainer(t, test.id, test.seconds)
			c := n.container(t, test.id)
			if c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || c.GetExitCode() != test.code || c.GetReason() != "Error" {
				t.Errorf("%s: %v, code %d, reason %q; want code %d", c.GetMetadata().GetName(), c.GetState(), c.GetExitCode(), c.GetReason(), test.code)
			}
			n.stopContainer(t, test.id, test.seconds)
		}
		if s := n.container(t, usr1).GetStopSignal(); s != runtimeapi.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("stop_signal %v", s)
		}
	})
}

// A stop ends the whole container, not only its first process.
func TestStopKillsDescendants(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `sleep 4712 & setsid sleep 4712 & echo ready; wait`)
		n.awaitReady(t, id)
		n.stopContainer(t, id, 0)
		if left := processesNamed("sleep 4712"); len(left) != 0 {
			t.Errorf("processes of the container live on: %v", left)
		}
	})
}

// processesNamed lists the processes of this machine with this command line.
func processesNamed(cmdline string) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		text, _ := os.ReadFile(dir + "/cmdline")
		if strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " ")) == cmdline {
			pids = append(pids, filepath.Base(dir))
		}
	}
	return pids
}

func TestRemoveContainer(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		log := n.container(t, id).GetLogPath()
		var removals sync.WaitGroup
		for range 3 {
			removals.Go(func() {
				if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
					t.Error(err)
				}
			})
		}
		removals.Wait()
		_, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		expect.Code(t, "status of a removed container", err, codes.NotFound)
		if _, err := os.Stat(log); err != nil {
			t.Errorf("the log is the kubelet's: %v", err)
		}
	})
}

func TestListContainersFilters(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		imageID := n.pull(t, n.busybox)
		p, q := n.runPod(t, podConfig(t, "p")), n.runPod(t, podConfig(t, "q"))
		a, b := n.create(t, p, n.shell("a", "true")), n.startContainer(t, p, n.shell("b", forever))
		c := n.create(t, q, n.shell("c", "true"))
		type filter = runtimeapi.ContainerFilter
		running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
		named := func(name string) map[string]string { return map[string]string{"io.kubernetes.container.name": name} }
		for _, test := range []struct {
			name   string
			filter *filter
			want   []string
		}{
			{"none", nil, []string{c, b, a}},
			{"id", &filter{Id: a}, []string{a}},
			{"unknown id", &filter{Id: strings.Repeat("0", 64)}, nil},
			{"pod", &filter{PodSandboxId: p}, []string{b, a}},
			{"unknown pod", &filter{PodSandboxId: strings.Repeat("0", 64)}, nil},
			{"state", &filter{State: running}, []string{b}},
			{"label", &filter{LabelSelector: named("c")}, []string{c}},
			{"pod and state", &filter{PodSandboxId: q, State: running}, nil},
			{"id and another pod", &filter{Id: a, PodSandboxId: q}, nil},
			{"pod and another's label", &filter{PodSandboxId: p, LabelSelector: named("c")}, nil},
		} {
			resp, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: test.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range resp.GetContainers() {
				got = append(got, c.GetId())
				if c.GetMetadata() == nil || c.GetImage() == nil || c.GetImageId() != imageID || c.GetImageRef() != n.repoDigest(t, n.busybox) {
					t.Errorf("%s: incomplete: %v", test.name, c)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s: listed %v, want %v", test.name, got, test.want)
			}
		}
	})
}

func TestContainersEnvironment(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		sc := func(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
			return c.Linux.SecurityContext
		}
		for _, test := range []struct {
			name, script, want string
			change             func(*runtimeapi.ContainerConfig)
		}{
			{"env", `echo "$A|$B|$PATH"`, "x=y||/bin", func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("x=y")}, {Key: "B"}}
			}},
			{"nothing-of-ours", `env | grep -c NOTIFY_SOCKET; umask`, "0\n0022", nil},
			{"directory", "pwd", "/tmp", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/tmp" }},
			{"user", "id -u; id -g; id -G", "1000\n1000\n1000 2000", func(c *runtimeapi.ContainerConfig) {
				sc(c).RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			}},
			{"user-by-name", "id -u; id -g", "1000\n1000", func(c *runtimeapi.ContainerConfig) { sc(c).RunAsUsername = "web" }},
			{"groups", "id -u; id -g; id -G", "1000\n5\n5 77", func(c *runtimeapi.ContainerConfig) {
				sc(c).RunAsUser, sc(c).RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 5}
				sc(c).SupplementalGroups, sc(c).SupplementalGroupsPolicy = []int64{77}, runtimeapi.SupplementalGroupsPolicy_Strict
			}},
			{"read-only", "touch /f 2>/dev/null; echo $?", "1", func(c *runtimeapi.ContainerConfig) { sc(c).ReadonlyRootfs = true }},
			{"writable", "touch /f; echo $?", "0", nil},
			{"no-new-privs", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1", func(c *runtimeapi.ContainerConfig) { sc(c).NoNewPrivs = true }},
			{"no-capabilities", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000", func(c *runtimeapi.ContainerConfig) {
				sc(c).Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			}},
			{"capabilities-are-not-inherited", "grep -E 'CapInh|CapAmb' /proc/self/status", "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000", nil},
			{"masked", "cat /proc/keys | wc -c; touch /proc/sys/x 2>/dev/null; echo $?", "0\n1", func(c *runtimeapi.ContainerConfig) {
				sc(c).MaskedPaths, sc(c).ReadonlyPaths = []string{"/proc/keys"}, []string{"/proc/sys"}
			}},
			{"standard-files", "ls /proc/self/fd | wc -l", "4", nil}, // 0, 1, 2 and the directory itself
		} {
			if got := n.says(t, pod, test.name, test.script, test.change); got != test.want {
				t.Errorf("%s: %q, want %q", test.name, got, test.want)
			}
		}
	})
}

// The kubelet finds termination messages by the mounts that it gave.
func TestMountsAreEchoed(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		dir := t.TempDir()
		config := n.shell("main", "echo done >/dev/termination-log; echo no >/ro/file; echo $?")
		config.Mounts = []*runtimeapi.Mount{
			{HostPath: filepath.Join(dir, "message"), ContainerPath: "/dev/termination-log"},
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		}
		if err := os.WriteFile(filepath.Join(dir, "message"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		id := n.startContainer(t, pod, config)
		c := n.exited(t, id)
		if len(c.GetMounts()) != 2 || !proto.Equal(c.GetMounts()[0], config.Mounts[0]) || !proto.Equal(c.GetMounts()[1], config.Mounts[1]) {
			t.Errorf("mounts %v, want %v", c.GetMounts(), config.Mounts)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "message")); string(text) != "done\n" {
			t.Errorf("termination message %q, %v", text, err)
		}
		if out := n.output(t, id, "stdout"); out != "1\n" {
			t.Errorf("writing to a read-only mount: %q", out)
		}
	})
}

func TestUserInStatus(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		config := n.shell("main", "true")
		config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		config.Linux.SecurityContext.SupplementalGroups = []int64{3000}
		u := n.container(t, n.create(t, pod, config)).GetUser().GetLinux()
		if u.GetUid() != 1000 || u.GetGid() != 1000 || !slices.Contains(u.GetSupplementalGroups(), 3000) {
			t.Errorf("user %v", u)
		}
	})
}

// The kubelet makes a container by its image's id. What Kubernetes shows of it is
// the pod's word for the image, and the digest by which tools pull it, also when the
// image is gone.
func TestImageOfAContainerMadeByID(t *testing.T) { onOneNode(t, testImageOfAContainerMadeByID) }

func testImageOfAContainerMadeByID(t *testing.T, n *node) {
	imageID := n.pull(t, n.busybox)
	digest := n.repoDigest(t, n.busybox)
	pod := n.runPod(t, podConfig(t, "web"))
	asKubelet := n.shell("kubelet", "true")
	asKubelet.Image = &runtimeapi.ImageSpec{Image: imageID, UserSpecifiedImage: n.busybox}
	byDigest := n.shell("digest", "true")
	byDigest.Image = &runtimeapi.ImageSpec{Image: imageID, UserSpecifiedImage: digest}
	byID := n.shell("id", "true")
	byID.Image = &runtimeapi.ImageSpec{Image: imageID}
	made := map[string]string{ // by container, the name of its image
		n.create(t, pod, asKubelet): n.busybox,
		n.create(t, pod, byDigest):  digest,
		n.create(t, pod, byID):      n.busybox,
	}
	check := func(when string) {
		t.Helper()
		for id, name := range made {
			c := n.container(t, id)
			if c.GetImage().GetImage() != name || c.GetImageRef() != digest || c.GetImageId() != imageID {
				t.Errorf("%s: status has %q, %q, %q; want %q, %q, %q", when, c.GetImage().GetImage(), c.GetImageRef(), c.GetImageId(), name, digest, imageID)
			}
			resp, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
			if err != nil {
				t.Fatal(err)
			}
			if l := resp.GetContainers()[0]; l.GetImage().GetImage() != name || l.GetImageRef() != digest || l.GetImageId() != imageID {
				t.Errorf("%s: list has %q, %q, %q; want %q, %q, %q", when, l.GetImage().GetImage(), l.GetImageRef(), l.GetImageId(), name, digest, imageID)
			}
		}
	}
	check("created")
	if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: imageID}}); err != nil {
		t.Fatal(err)
	}
	n.killDaemon(t)
	n.startDaemon(t)
	check("after the image was removed and berthd was killed")
}

// ContainerStatus goes on naming the image after it was removed: the kubelet's
// image garbage collection asks every container.
func TestImageOfAContainerMayGo(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, id := n.running(t, forever)
		want := n.container(t, id).GetImageRef()
		if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.busybox}}); err != nil {
			t.Fatal(err)
		}
		if c := n.container(t, id); c.GetImageRef() != want || c.GetImage().GetImage() != n.busybox {
			t.Errorf("image %v, %q", c.GetImage(), c.GetImageRef())
		}
		if out := n.exec(t, id, "busybox", "echo", "still there"); out != "still there" {
			t.Errorf("its files are gone: %q", out)
		}
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.shell("next", "true")})
		expect.Code(t, "a container of a removed image", err, codes.NotFound, n.busybox)
	})
}
