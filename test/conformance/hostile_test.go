package conformance

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/leak"
	"berth/test/registry"
)

// hostileImage pulls busybox with files put in place of its own.
func (n *node) hostileImage(t *testing.T, name string, config ocispec.ImageConfig, files ...registry.Entry) (ref string) {
	t.Helper()
	entries := slices.DeleteFunc(busyboxFiles(t), func(own registry.Entry) bool {
		return slices.ContainsFunc(files, func(f registry.Entry) bool {
			at, hidden := strings.Trim(own.Name, "/"), strings.Trim(f.Name, "/")
			return at == hidden || strings.HasPrefix(at, hidden+"/")
		})
	})
	config.Env = append(config.Env, "PATH=/bin")
	n.registry.Push(t, name, registry.Layer(t, append(entries, files...)...), config, "1")
	ref = n.registry.Host() + "/" + name + ":1"
	n.pull(t, ref)
	return ref
}

// try creates and starts a container; id is "" if that was refused.
func (n *node) try(t *testing.T, pod string, config *runtimeapi.ContainerConfig) (id string, err error) {
	t.Helper()
	resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
	if err != nil {
		return "", err
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.GetContainerId()}); err != nil {
		return "", err
	}
	return resp.GetContainerId(), nil
}

// A canary is a directory of the host that no container has anything to do with.
type canary string

func newCanary(t *testing.T) canary {
	t.Helper()
	dir := canary(t.TempDir())
	if err := os.WriteFile(dir.file(), []byte("untouched"), 0o640); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (c canary) directory() string { return string(c) }
func (c canary) file() string      { return filepath.Join(string(c), "file") }

// check fails t if anything was made of, in or over the canary.
func (c canary) check(t *testing.T, what string) {
	t.Helper()
	entries, err := os.ReadDir(string(c))
	if err != nil || len(entries) != 1 {
		t.Errorf("%s: the host's directory holds %v, %v", what, entries, err)
	}
	text, err := os.ReadFile(c.file())
	info, statErr := os.Lstat(c.file())
	if err != nil || statErr != nil || string(text) != "untouched" || info.Mode() != 0o640 {
		t.Errorf("%s: the host's file is %q, %v, %v", what, text, info, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), string(c)) {
		t.Errorf("%s: something is mounted on the host's directory: %v", what, err)
	}
}

// Images whose mount points are symlinks to the host, as they would be if the
// host resolved them (CVE-2025-31133, 52565, 2019-19921, 2021-30465, crun's
// 2026-47766): refused or harmless.
func TestImagesWithSymlinkedMountPoints(t *testing.T) {
	directories := []string{"dev", "dev/pts", "proc", "sys", "etc", "dev/shm dev/mqueue dev/fd sys/fs/cgroup"}
	files := []string{"dev/null", "dev/console", "dev/zero dev/ptmx proc/keys etc/hosts etc/resolv.conf"}
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.privilegedPod(t, "web")
		for i, at := range directories {
			n.tryMountPoints(t, pod, fmt.Sprintf("d%d", i), strings.Fields(at), canary.directory)
		}
		for i, at := range files {
			n.tryMountPoints(t, pod, fmt.Sprintf("f%d", i), strings.Fields(at), canary.file)
		}
	})
}

// tryMountPoints runs containers of images that have links to the host at these
// places: absolute ones, and, privileged, ones that climb.
func (n *node) tryMountPoints(t *testing.T, pod, name string, at []string, of func(canary) string) {
	t.Helper()
	for _, up := range []string{"", "../../../../../../../../../.."} {
		host, privileged := newCanary(t), up != ""
		what := fmt.Sprintf("%s → %s, privileged %v", at, up+of(host), privileged)
		var links []registry.Entry
		for _, path := range at {
			links = append(links, registry.Link(path, up+of(host)))
		}
		config := n.shell(fmt.Sprintf("%s-%v", name, privileged), "cat /proc/keys /dev/null; exec sleep 4725")
		config.Image.Image = n.hostileImage(t, config.Metadata.Name, ocispec.ImageConfig{}, links...)
		config.Tty = slices.Contains(at, "dev/console")
		sc := config.Linux.SecurityContext
		sc.Privileged, sc.MaskedPaths, sc.ReadonlyPaths = privileged, []string{"/proc/keys"}, []string{"/proc/sys"}
		if id, err := n.try(t, pod, config); err == nil {
			out := n.exec(t, id, "sh", "-c", "cat /proc/keys; echo >/dev/null; stat -f -c %T /proc")
			if !privileged && out != "proc" {
				t.Errorf("%s: an exec sees %q", what, out)
			}
			if text := n.output(t, id, "stdout"); strings.Contains(text, "untouched") {
				t.Errorf("%s: the host's file was read: %q", what, text)
			}
			n.stopContainer(t, id, 0)
		}
		host.check(t, what)
	}
}

// An image whose /proc has content of its own does not keep what is set through
// procfs from being set (CVE-2019-16884, 2023-27561, 2025-52881).
func TestImageWithItsOwnProc(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		const fake = "fake\n"
		ref := n.hostileImage(t, "proc", ocispec.ImageConfig{Volumes: map[string]struct{}{"/proc": {}, "/proc/sys": {}}},
			registry.Dir("proc", 0o755), registry.Dir("proc/self", 0o755), registry.Dir("proc/self/attr", 0o755), registry.Dir("proc/1", 0o755),
			registry.Dir("proc/sys", 0o755), registry.Dir("proc/sys/kernel", 0o755),
			registry.File("proc/self/attr/exec", 0o666, fake), registry.File("proc/self/oom_score_adj", 0o666, fake), registry.File("proc/self/status", 0o666, fake),
			registry.File("proc/1/oom_score_adj", 0o666, fake), registry.File("proc/sys/kernel/shm_rmid_forced", 0o666, fake), registry.File("proc/keys", 0o666, fake))
		pod := podConfig(t, "web")
		pod.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
		id := n.runPod(t, pod)
		config := n.shell("main", "exec sleep 4726")
		config.Image.Image = ref
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 500}
		config.Linux.SecurityContext = &security{NoNewPrivs: true, MaskedPaths: []string{"/proc/keys"}, ReadonlyPaths: []string{"/proc/sys"}, Seccomp: &runtimeapi.SecurityProfile{}}
		ctr := n.startContainer(t, id, config)
		const script = `cat /proc/sys/kernel/shm_rmid_forced /proc/1/oom_score_adj /proc/keys
			sed -n 's/^NoNewPrivs:\t//p; s/^Seccomp:\t//p' /proc/self/status; echo 0 2>/dev/null >/proc/sys/kernel/shm_rmid_forced || echo read-only`
		if got, want := n.exec(t, ctr, "sh", "-c", script), "1\n500\n1\n2\nread-only"; got != want {
			t.Errorf("seen through /proc:\n%s\nwant\n%s", got, want)
		}
		// The same by a mount that the pod's author asks for.
		host := newCanary(t)
		bound := n.shell("bound", "exec sleep 4727")
		bound.Mounts = []*runtimeapi.Mount{{HostPath: string(host), ContainerPath: "/proc"}}
		if ctr, err := n.try(t, id, bound); err == nil {
			t.Errorf("a directory stands in for /proc: %s", n.exec(t, ctr, "ls", "/proc"))
		}
		host.check(t, "a mount on /proc")
	})
}

// Neither the working directory nor a file that a runtime left open leads to the
// host (CVE-2024-21626).
func TestNothingLeadsOutOfTheRoot(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		const first, last = 3, 15
		var links []registry.Entry
		for fd := first; fd <= last; fd++ {
			links = append(links, registry.Link(fmt.Sprintf("fd%d", fd), fmt.Sprintf("/proc/self/fd/%d", fd)))
		}
		ref := n.hostileImage(t, "links", ocispec.ImageConfig{}, links...)
		pod := n.runPod(t, podConfig(t, "web"))
		escape := fmt.Sprintf("cat ../../../../../../../../../..%s/berthd.toml 2>/dev/null; true", n.data)
		for fd := first; fd <= last; fd++ {
			config := n.shell(fmt.Sprintf("c%d", fd), escape)
			config.Image.Image, config.WorkingDir = ref, fmt.Sprintf("/fd%d", fd)
			id, err := n.try(t, pod, config)
			if err != nil {
				continue // refused
			}
			n.exited(t, id)
			if out := n.output(t, id, "stdout"); out != "" {
				t.Errorf("from file %d the host is seen: %q", fd, out)
			}
		}
		// A container that turns its directory into a link before an exec.
		config := n.shell("turns", "exec sleep 4728")
		config.WorkingDir = "/there"
		n.pull(t, n.busybox)
		id := n.startContainer(t, pod, config)
		if fds := n.exec(t, id, "ls", "/proc/1/fd"); fds != "0\n1\n2" {
			t.Errorf("the first process has files %q", fds)
		}
		root := fmt.Sprintf("/proc/%s/root", strings.Join(processesNamed("sleep 4728"), ""))
		for fd := first; fd <= last; fd++ {
			if err := os.RemoveAll(root + "/there"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), root+"/there"); err != nil {
				t.Fatal(err)
			}
			resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", escape}})
			if err == nil && len(resp.GetStdout()) > 0 {
				t.Errorf("an exec sees the host from file %d: %q", fd, resp.GetStdout())
			}
		}
		for _, dir := range []string{"/proc/self/fd/7", "/proc/1/root", "/x/../proc/self/cwd"} {
			ref := n.hostileImage(t, "workdir", ocispec.ImageConfig{WorkingDir: dir})
			config := n.shell("workdir", "true")
			config.Image.Image = ref
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, "an image with WORKDIR "+dir, err, codes.InvalidArgument, "working_dir")
		}
	})
}

// A program of the image that is the OCI runtime itself, by way of
// /proc/self/exe, lets the container open the runtime's file (CVE-2019-5736).
func TestContainerCannotOverwriteItsRuntime(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		original := leak.NeedTool(t, n.handler)
		program, err := os.ReadFile(original)
		if err != nil {
			t.Fatal(err)
		}
		stake := filepath.Join(t.TempDir(), n.handler) // not the machine's own
		if err := os.WriteFile(stake, program, 0o755); err != nil {
			t.Fatal(err)
		}
		n.useRuntime(t, stake)
		ref := n.hostileImage(t, "evil", ocispec.ImageConfig{},
			registry.File("script", 0o755, "#!/proc/self/exe\n"), registry.Link("link", "/proc/self/exe"),
			registry.File("attack", 0o755, `#!/bin/sh
echo ready
while :; do
	for p in /proc/[0-9]*; do
		case $(readlink $p/exe) in ""|/bin/*) continue;; esac
		echo seen >>/tmp/seen
		( exec 5<$p/exe; n=0; while [ $n -lt 500 ]; do n=$((n+1)); echo broken >/proc/self/fd/5 && echo won >>/tmp/won; done ) 2>/dev/null &
	done
	wait
done
`))
		pod := n.privilegedPod(t, "web")
		for _, privileged := range []bool{false, true} {
			config := n.shell(fmt.Sprintf("attacker-%v", privileged), "exec /attack")
			config.Image.Image = ref
			config.Linux.SecurityContext.Privileged = privileged
			id := n.startContainer(t, pod, config)
			n.awaitReady(t, id)
			execs := func() {
				for _, cmd := range [][]string{{"/script"}, {"/link"}, {"/script", "--help"}, {"/link", "--help"}} {
					// Whatever becomes of it.
					_, _ = n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 5})
				}
			}
			execs()
			if privileged { // else the runtime is not even seen
				eventually(t, "the runtime is seen in the container", func() bool {
					execs()
					return n.exec(t, id, "sh", "-c", "cat /tmp/seen 2>/dev/null; true") != ""
				})
			}
			for _, command := range []string{"/script", "/link"} {
				config := n.shell(fmt.Sprintf("itself%s-%v", strings.ReplaceAll(command, "/", "-"), privileged), "")
				config.Image.Image, config.Command = ref, []string{command}
				if id, err := n.try(t, pod, config); err == nil {
					n.exited(t, id)
				}
			}
			n.stopContainer(t, id, 0)
			now, err := os.ReadFile(stake)
			if err != nil || sha256.Sum256(now) != sha256.Sum256(program) {
				t.Fatalf("the runtime was overwritten: %d bytes, had %d, %v", len(now), len(program), err)
			}
		}
	})
}

// useRuntime makes berthd run another program for the node's handler.
func (n *node) useRuntime(t *testing.T, path string) {
	t.Helper()
	n.killDaemon(t)
	file := filepath.Join(n.data, "berthd.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = fmt.Appendf(text, "[runtime.handlers.%s]\npath = %q\n", n.handler, path)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n.startDaemon(t)
}

// Users of images that look like other users (containerd's CVE-2024-40635,
// crun's 2026-30892). The kubelet decides runAsNonRoot by what the image's status
// says: a container is never another user than that.
func TestUsersOfImages(t *testing.T) {
	const refused = "refused"
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.runPod(t, podConfig(t, "web"))
		accounts := registry.File("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n1001:x:0:0::/:/bin/sh\n"+
			"big:x:4294967296:0::/:/bin/sh\nnegative:x:-1:0::/:/bin/sh\nnull:x::0::/:/bin/sh\n")
		for i, test := range []struct{ user, want string }{
			{"", "0"}, {"0", "0"}, {"00", "0"}, {"web", "1000"}, {"1000", "1000"}, {"1001", "1001"}, {"1:0", "1"}, {"1000:web", "1000"},
			{"2147483647", "2147483647"}, {"2147483648", refused}, {"4294967296", refused}, {"4294967295", refused}, {"18446744073709551616", refused},
			{"-1", refused}, {"+0", refused}, {"0x0", refused}, {" 0", refused}, {"big", refused}, {"negative", refused}, {"null", refused}, {"nobody", refused},
			{"1:4294967296", refused}, {"web:nothing", refused}, {"web:", refused}, {":0", refused},
		} {
			name := fmt.Sprintf("u%d", i)
			ref := n.hostileImage(t, name, ocispec.ImageConfig{User: test.user}, accounts)
			config := n.shell(name, "id -u")
			config.Image.Image = ref
			id, err := n.try(t, pod, config)
			if test.want == refused {
				expect.Code(t, fmt.Sprintf("user %q", test.user), err, codes.InvalidArgument, "image.config.User")
				continue
			}
			if err != nil {
				t.Errorf("user %q: %v", test.user, err)
				continue
			}
			n.exited(t, id)
			if got := strings.TrimSpace(n.output(t, id, "stdout")); got != test.want {
				t.Errorf("user %q became %s, want %s", test.user, got, test.want)
			}
			resp, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			if err != nil {
				t.Fatal(err)
			}
			if uid := resp.GetImage().GetUid(); uid != nil && fmt.Sprint(uid.GetValue()) != test.want {
				t.Errorf("user %q: the status says %d", test.user, uid.GetValue())
			} else if uid == nil && resp.GetImage().GetUsername() == "" && test.want != "0" {
				t.Errorf("user %q: the status says root", test.user)
			}
		}
	})
}

// The kubelet asks for the user that the image's status has, and CRI has no place for
// the image's group: it is not lost.
func TestGroupOfTheImagesUser(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.runPod(t, podConfig(t, "web"))
		ref := n.hostileImage(t, "grouped", ocispec.ImageConfig{User: "999:888"})
		got := n.says(t, pod, "main", "id -u; id -g", func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = ref
			c.Linux.SecurityContext.RunAsUser = n.image(t, ref).GetUid()
		})
		if got != "999\n888" {
			t.Errorf("user and group %q, want 999 and 888", got)
		}
	})
}

// An image may have the accounts of a whole company: 20,000 of them are more than a
// megabyte.
func TestImageWithManyAccounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.runPod(t, podConfig(t, "web"))
		passwd := &strings.Builder{}
		for i := range 20_000 {
			fmt.Fprintf(passwd, "user%d:x:%d:%d:one of many who work here:/home/user%d:/bin/sh\n", i, 10_000+i, 10_000+i, i)
		}
		accounts := registry.File("etc/passwd", 0o644, passwd.String())
		for user, want := range map[string]string{"": "0", "user19999": "29999"} {
			name := "many" + user
			ref := n.hostileImage(t, name, ocispec.ImageConfig{User: user}, accounts)
			if got := n.says(t, pod, name, "id -u", func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref }); got != want {
				t.Errorf("user %q became %s, want %s", user, got, want)
			}
		}
	})
}

// Accounts that would be read without end, or from elsewhere (CRI-O's
// CVE-2024-3727, 2024-9676).
func TestHostileAccounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod := n.runPod(t, podConfig(t, "web"))
		host := newCanary(t)
		huge := registry.File("etc/passwd", 0o644, strings.Repeat("x", 2<<20))
		before := n.peakMemory(t)
		for name, file := range map[string]registry.Entry{
			"zero": registry.Link("etc/passwd", "/dev/zero"), "itself": registry.Link("etc/passwd", "passwd"), "directory": registry.Dir("etc/passwd", 0o755),
			"host": registry.Link("etc/passwd", host.file()), "above": registry.Link("etc/passwd", "../../../../../../../.."+host.file()), "huge": huge,
		} {
			config := n.shell(name, "true")
			config.Image.Image = n.hostileImage(t, name, ocispec.ImageConfig{User: "web"}, file)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, name, err, codes.InvalidArgument, "image.config.User")
		}
		if grown := n.peakMemory(t) - before; grown > 64<<20 {
			t.Errorf("berthd took %d MiB for it", grown>>20)
		}
		host.check(t, "accounts")
	})
}

// Nothing that an image, or a pod's author, writes into labels, annotations or
// the environment is an instruction to Berth or to a runtime (containerd's
// CVE-2026-53488).
func TestWordsAreNotInstructions(t *testing.T) {
	words := map[string]string{
		"run.oci.keep_original_groups": "1", "run.oci.hooks.stdout": "/tmp/hook", "run.oci.systemd.force_cgroup_v1": "/sys/fs/cgroup", "run.oci.seccomp.runtime": "/x",
		"module.wasm.image/variant": "compat", "org.criu.config": "/x", "io.kubernetes.cri-o.Devices": "/dev/kmsg", "io.kubernetes.cri-o.userns-mode": "auto",
		"io.katacontainers.config.hypervisor.path": "/bin/evil", "io.kubernetes.cri.container-type": "sandbox", "io.containerd.runc.v2.group": "x",
		"cdi.k8s.io/x": "vendor.com/device=all", "container.apparmor.security.beta.kubernetes.io/main": "localhost/x", "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
		"berth.network": "builtin", "berth.privileged": "true",
	}
	forEachRuntime(t, func(t *testing.T, n *node) {
		var env []string
		for name, value := range words {
			env = append(env, strings.NewReplacer(".", "_", "/", "_", "-", "_").Replace(name)+"="+value)
		}
		ref := n.hostileImage(t, "words", ocispec.ImageConfig{Labels: words, Env: append(env, "_LIBCONTAINER_LOGLEVEL=x", "LD_PRELOAD=/evil.so")})
		plain := n.runPod(t, podConfig(t, "plain"))
		const script = `sed -n 's/^\(Cap...\|Seccomp\|NoNewPrivs\|Groups\|Uid\):/\1/p' /proc/self/status; ls /dev; cat /proc/1/cgroup | wc -l; ls /sys/fs/cgroup | wc -l`
		n.pull(t, n.busybox)
		_, want, _ := n.bothSay(t, plain, "plain", script, nil)

		config := podConfig(t, "words")
		for name, value := range words {
			config.Annotations[name], config.Labels[name] = value, value
		}
		pod := n.runPod(t, config)
		ctr := n.shell("words", script+"; exec sleep 4729")
		ctr.Image.Image, ctr.Annotations = ref, words
		for name, value := range words {
			ctr.Labels[name] = value
		}
		id := n.startContainer(t, pod, ctr)
		if got := n.exec(t, id, "sh", "-c", script); got != want {
			t.Errorf("with words the container is\n%s\nwithout\n%s", got, want)
		}
		text, err := os.ReadFile(filepath.Join(n.run, "pods", pod, "c", id, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		var spec map[string]any
		if err := json.Unmarshal(text, &spec); err != nil {
			t.Fatal(err)
		}
		if spec["annotations"] != nil || spec["hooks"] != nil {
			t.Errorf("the runtime is told %v, %v", spec["annotations"], spec["hooks"])
		}
	})
}
