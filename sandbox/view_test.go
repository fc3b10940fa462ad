package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cni"
	"berth/oci"
)

// What a client reads back of what it sent, and what Berth adds.
func TestStatus(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		config := podConfig("a")
		config.LogDirectory = filepath.Join(filepath.Dir(m.run), "logs")
		config.Annotations = map[string]string{"k": "v"}
		config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 53, HostPort: 5353, Protocol: runtimeapi.Protocol_UDP, HostIp: "127.0.0.1"}, {ContainerPort: 1}}
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"net.core.somaxconn": "9"}}
		p, err := m.Run(t.Context(), RunRequest{Config: config, Handler: "test", Builtin: true})
		if err != nil {
			t.Fatal(err)
		}
		wantPod := oci.Pod{
			ID: p.ID(), Dir: filepath.Join(m.Dir, p.ID()), Cgroup: "/kubepods/pod1", SharedPID: true,
			Hostname: "a", Sysctls: config.Linux.Sysctls, ShmSize: 64 << 20,
		}
		if wantPod.FilesSize = m.world.asked.FilesSize; wantPod.FilesSize < filesSpare {
			t.Errorf("its files have room for %d bytes", wantPod.FilesSize)
		}
		if !reflect.DeepEqual(m.world.asked, wantPod) {
			t.Errorf("asked of the runtime: %+v, want %+v", m.world.asked, wantPod)
		}
		wantNet := cni.Pod{
			ID: p.ID(), NetNS: "/run/netns/berth-" + p.ID(), Name: "a", Namespace: "default", UID: "uid-a", Builtin: true,
			Ports: []cni.PortMapping{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, ContainerPort: 53, Protocol: "udp"}},
		}
		if !reflect.DeepEqual(m.world.askedNet, wantNet) {
			t.Errorf("asked of the network: %+v, want %+v", m.world.askedNet, wantNet)
		}
		cc := containerConfig("x")
		cc.LogPath = "x.log"
		cc.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: filepath.Dir(m.run)}}
		c, err := p.CreateContainer(t.Context(), cc)
		if err != nil {
			t.Fatal(err)
		}
		if ps, cs := p.Summary(), c.Summary(); ps.Id != p.ID() || ps.RuntimeHandler != "test" || ps.Metadata.Name != "a" || ps.Labels[UIDLabel] != "uid-a" ||
			cs.Id != c.ID() || cs.PodSandboxId != p.ID() || cs.State != runtimeapi.ContainerState_CONTAINER_CREATED || cs.ImageId == "" {
			t.Errorf("summaries: %v, %v", ps, cs)
		}
		if found, err := m.Container(c.ID()[:12]); err != nil || found != c {
			t.Errorf("by prefix: %v, %v", found, err)
		}
		if _, err := m.Container(""); !errors.Is(err, ErrNotFound) {
			t.Errorf("without an id: %v", err)
		}
		s := p.Status()
		if s.Id != p.ID() || s.RuntimeHandler != "test" || s.Annotations["k"] != "v" || s.Metadata.Uid != "uid-a" || s.CreatedAt == 0 ||
			s.Network.GetIp() != "10.0.0.1" || s.Linux.GetNamespaces().GetOptions() == nil || s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod: %v", s)
		}
		// The image may go at any time; what the container says of it stays.
		id := m.world.images["busybox"].ID.String()
		delete(m.world.images, "busybox")
		m.must("start")
		cs := c.Status()
		if cs.ImageId != id || cs.ImageRef != id || cs.Image.GetImage() != "busybox" || cs.LogPath != filepath.Join(config.LogDirectory, "x.log") ||
			cs.Mounts[0].GetContainerPath() != "/m" || cs.StopSignal != runtimeapi.Signal_SIGNAL_SIGQUIT || cs.StartedAt == 0 || cs.FinishedAt != 0 ||
			cs.User.GetLinux().GetSupplementalGroups()[0] != 0 || cs.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container: %v", cs)
		}
		var pod podInfo
		if err := json.Unmarshal([]byte(p.Info()["info"]), &pod); err != nil || pod.Pid != 1001 || pod.Runtime != "test" ||
			pod.Containers[0] != (containerName{c.ID(), "x", 1001}) || pod.Namespaces.Net == "" || len(pod.Steps) == 0 {
			t.Errorf("info: %+v, %v", pod, err)
		}
		var ctr containerInfo
		if err := json.Unmarshal([]byte(c.Info()["info"]), &ctr); err != nil || ctr.Pid != 1001 || ctr.RuntimeSpec.Root.Path != ctr.RootFS {
			t.Errorf("info: %+v, %v", ctr, err)
		}
		if i := slices.IndexFunc(ctr.Steps, func(s stepInfo) bool { return s.Name == "runtime.Start" }); i < 0 || ctr.Steps[i].Took == "" {
			t.Errorf("the steps of the start: %v", ctr.Steps)
		}
		m.must("stop pod")
		if s := p.Status(); s.Network.GetIp() != "" || s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("stopped pod: %v", s)
		}
	})
}

// Every field of CRI's summaries and statuses of a pod and a container is filled in
// at some moment of their lives. A newer cri-api that adds one fails here: what it shows has its place
// in status.go and, where it is not of the config, in record.go; one of the config
// outlives the boot only if mirror.go keeps it.
func TestEveryStatusFieldIsShown(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		pc := podConfig("a")
		pc.LogDirectory = filepath.Join(filepath.Dir(m.run), "logs")
		pc.Annotations = map[string]string{"k": "v"}
		p, err := m.Run(t.Context(), RunRequest{Config: pc, Handler: "test"})
		if err != nil {
			t.Fatal(err)
		}
		cc := containerConfig("x")
		cc.Labels, cc.Annotations = pc.Annotations, pc.Annotations
		cc.LogPath = "x.log"
		cc.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: filepath.Dir(m.run)}}
		c, err := p.CreateContainer(t.Context(), cc)
		if err != nil {
			t.Fatal(err)
		}
		shown := map[protoreflect.FullName]bool{}
		look := func() {
			for _, message := range []proto.Message{p.Summary(), p.Status(), c.Summary(), c.Status()} {
				fields := message.ProtoReflect().Descriptor().Fields()
				for i := range fields.Len() {
					f := fields.Get(i)
					shown[f.FullName()] = shown[f.FullName()] || message.ProtoReflect().Has(f)
				}
			}
		}
		look()
		m.must("start")
		m.command([]string{"exit", "x", "?"})
		m.must("stop pod")
		look()
		for name, was := range shown {
			if !was {
				t.Errorf("nothing ever fills in %s", name)
			}
		}
	})
}

func TestExec(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		c := m.container("x")
		var out bytes.Buffer
		if _, err := c.Exec(t.Context(), Exec{Cmd: []string{"id"}, Stdout: &out}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("before the start: %v", err)
		}
		m.must("start")
		if code, err := c.Exec(t.Context(), Exec{Cmd: []string{"id", "-u"}, Stdout: &out}); code != 0 || err != nil || out.String() != "id -u" {
			t.Errorf("%d, %v, %q", code, err, &out)
		}
		_, err := c.Exec(t.Context(), Exec{})
		refused(t, err, "cmd")
	})
}

// A terminal without TERM is no terminal to most programs.
func TestExecHasTERM(t *testing.T) {
	for _, tt := range []struct {
		term string // of the container; empty: none
		tty  bool   // of the container
		exec bool   // has a terminal
		want string
	}{
		{"", false, true, "xterm"},
		{"", false, false, ""},
		{"", true, true, "xterm"},
		{"vt100", false, true, "vt100"},
		{"vt100", false, false, "vt100"},
	} {
		inBubble(t, func(t *testing.T, m *machine) {
			m.must("run")
			config := containerConfig("x")
			config.Tty = tt.tty
			if tt.term != "" {
				config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(tt.term)})
			}
			c, err := m.pod("a").CreateContainer(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if _, err := c.Exec(t.Context(), Exec{Cmd: []string{"env"}, TTY: tt.exec, Stdout: &out}); err != nil {
				t.Fatal(err)
			}
			_, got, found := strings.Cut("\n"+out.String()+"\n", "\nTERM=")
			got, _, _ = strings.Cut(got, "\n")
			if got != tt.want || found != (tt.want != "") {
				t.Errorf("%+v: TERM is %q, %v", tt, got, found)
			}
		})
	}
}

// A config that only the image or the host can refuse leaves nothing either.
func TestRefusedLate(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run")
		for field, edit := range map[string]func(*runtimeapi.ContainerConfig){
			"mounts[0].host_path": func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: "/does/not/exist"}}
			},
			"linux.security_context.run_as_username": func(c *runtimeapi.ContainerConfig) {
				c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody"}}
			},
		} {
			config := containerConfig("x")
			edit(config)
			_, err := m.pod("a").CreateContainer(t.Context(), config)
			refused(t, err, field)
		}
		m.check()
		if len(m.containers) != 0 {
			t.Error("a refused container is left")
		}
	})
}

// No secret survives a reboot, no stranger reads a record, and the pod's own
// files can be read by its containers.
func TestSecretsAndModes(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run")
		config := containerConfig("x")
		config.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte("hunter2")}}
		config.Args = []string{"--token=hunter2"}
		if _, err := m.pod("a").CreateContainer(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		m.must("start")
		pass(time.Minute)
		found := 0
		err := filepath.WalkDir(filepath.Dir(m.run), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			ours := strings.HasPrefix(path, m.Dir) || strings.HasPrefix(path, m.Mirror)
			want := fs.FileMode(0o600)
			switch base := filepath.Base(path); {
			case path == m.Dir:
				want = 0o711
			case d.IsDir():
				want = 0o700
			case base == hostsFile || base == hostnameFile || base == resolvFile:
				want = 0o644
			}
			if ours && info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, want %v", path, info.Mode().Perm(), want)
			}
			if !strings.HasPrefix(path, m.Mirror) || d.IsDir() {
				return nil
			}
			found++
			data, err := os.ReadFile(path)
			if strings.Contains(string(data), "hunter2") {
				t.Errorf("the mirror has a secret: %s", data)
			}
			return err
		})
		if err != nil || found != 1 {
			t.Errorf("%d files in the mirror, %v", found, err)
		}
		if text := m.pod("a").Info()["info"]; strings.Contains(text, "hunter2") {
			t.Errorf("the pod's info has a secret: %s", text)
		}
	})
}

// An exit whose code nobody saw.
func TestUnknownExit(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create", "start")
		m.command([]string{"exit", "x", "?"})
		if seen := m.seen(); seen != "ready/exited Unknown 255" {
			t.Errorf("seen: %s", seen)
		}
	})
}
