package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

func testFacts() Facts {
	return Facts{
		Image: ocispec.ImageConfig{
			Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, WorkingDir: "/srv",
			Env:    []string{"PATH=/image/bin", "A=image", "B=image"},
			Labels: map[string]string{"org.example.hook": "/bin/evil", "io.kubernetes.cri.container-type": "sandbox"},
		},
		User:         specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000}},
		Hostname:     "pod",
		Capabilities: slices.DeleteFunc(slices.Clone(capabilityNames), func(c string) bool { return c == "CAP_SYS_RESOURCE" }),
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 4096, Soft: 4096}},
		Controls:     oci.Controls{Unified: true, Swap: true, HugePages: true, PageSizes: []string{"2MB", "1GB"}},

		SeccompProfile: []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}`),
		NodeDevices:    []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
	}
}

func testPod() oci.Pod {
	id := strings.Repeat("a", 64)
	return oci.Pod{ID: id, Dir: "/run/berth/pods/" + id, Cgroup: "/kubepods/pod1"}
}

func testContainer(p oci.Pod) oci.Container {
	id := strings.Repeat("c", 64)
	return oci.Container{ID: id, Dir: p.Dir + "/c/" + id, Cgroup: p.Cgroup + "/" + id}
}

// Each testdata/spec/*.json is a ContainerConfig; the spec that becomes of it
// lies beside it.
func TestSpec(t *testing.T) {
	node := func(p *oci.Pod) { p.HostNet, p.HostIPC = true, true }
	for name, pod := range map[string]func(*oci.Pod){
		"least":   func(*oci.Pod) {},
		"full":    func(p *oci.Pod) { p.SharedPID = true },
		"host":    node,
		"mounts":  func(p *oci.Pod) { p.SharedPID = true },
		"own-pid": func(p *oci.Pod) { p.SharedPID = true },
		"target":  func(p *oci.Pod) { p.SharedPID = true },

		"resources":  func(*oci.Pod) {},
		"confined":   func(*oci.Pod) {},
		"privileged": func(*oci.Pod) {},
		"userns": func(p *oci.Pod) {
			p.SharedPID = true
			p.Users = &oci.UserNamespace{UIDs: oci.IDs{Host: 65536, Size: 65536}, GIDs: oci.IDs{Host: 131072, Size: 65536}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "spec", name+".json")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			config := new(runtimeapi.ContainerConfig)
			if err := protojson.Unmarshal(data, config); err != nil {
				t.Fatal(err)
			}
			p, facts := testPod(), testFacts()
			pod(&p)
			if name == "confined" {
				facts.AppArmor = "profile"
				facts.ProcessLabel, facts.MountLabel = "u:r:container_t:s0:c1,c2", "u:r:container_file_t:s0:c1,c2"
			}
			if name == "mounts" {
				facts.Volumes = []string{"/srv", "/etc/app"}
			}
			for _, m := range config.GetMounts() {
				facts.HostPaths = append(facts.HostPaths, "/resolved"+m.GetHostPath())
			}
			for _, d := range config.GetDevices() {
				facts.Devices = append(facts.Devices, []specs.LinuxDevice{{Path: d.GetContainerPath(), Type: "c", Major: 10, Minor: 229}})
			}
			spec, err := Spec(p, testContainer(p), config, facts)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(path, ".json")+".golden", string(got)+"\n")
		})
	}
}

// What only image or node can tell is refused by name as well.
func TestSpecRefuses(t *testing.T) {
	for field, spoil := range map[string]func(*runtimeapi.ContainerConfig, *Facts){
		"command": func(c *runtimeapi.ContainerConfig, f *Facts) { f.Image.Entrypoint, f.Image.Cmd = nil, nil },
		"the image's Cmd[1]": func(c *runtimeapi.ContainerConfig, f *Facts) {
			f.Image.Cmd = []string{"sh", strings.Repeat("x", 200_000)}
		},
		"the image's Entrypoint[0]": func(c *runtimeapi.ContainerConfig, f *Facts) { f.Image.Entrypoint = []string{"a\x00b"} },
		"the image's Env[2]":        func(c *runtimeapi.ContainerConfig, f *Facts) { f.Image.Env = []string{"A=1", "=\x00", "B=\x00"} },
		"the image's WorkingDir":    func(c *runtimeapi.ContainerConfig, f *Facts) { f.Image.WorkingDir = "/a\x00b" },
		"working_dir":               func(c *runtimeapi.ContainerConfig, f *Facts) { f.Image.WorkingDir = "/x/../proc/self/fd/7" },
		"linux.security_context.capabilities.add_capabilities": func(c *runtimeapi.ContainerConfig, f *Facts) {
			c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"sys_resource"}},
			}}
		},
	} {
		config, facts := &runtimeapi.ContainerConfig{}, testFacts()
		spoil(config, &facts)
		_, err := Spec(testPod(), testContainer(testPod()), config, facts)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// Runtimes disagree about what is no variable: one refuses it, the other passes it
// on.
func TestImageEnvironment(t *testing.T) {
	facts := testFacts()
	facts.Image.Env = []string{"FOO", "=bar", "", "=", "A=1", "PATH=/image", "B=", "C==x"}
	config := &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("2")}}}
	got, err := environment(config, facts)
	if want := []string{"PATH=/image", "HOSTNAME=" + facts.Hostname, "A=2", "B=", "C==x"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestCommand(t *testing.T) {
	for _, tt := range []struct{ command, args, want string }{
		{"", "", "/entry serve"},
		{"", "a b", "/entry a b"},
		{"sh -c", "", "sh -c"},
		{"sh -c", "x", "sh -c x"},
	} {
		config := &runtimeapi.ContainerConfig{Command: strings.Fields(tt.command), Args: strings.Fields(tt.args)}
		got, err := command(config, testFacts())
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%q %q: %q, %v, want %q", tt.command, tt.args, got, err, tt.want)
		}
	}
}
