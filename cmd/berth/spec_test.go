package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParsePort(t *testing.T) {
	const tcp, udp, sctp = runtimeapi.Protocol_TCP, runtimeapi.Protocol_UDP, runtimeapi.Protocol_SCTP
	for _, test := range []struct {
		text  string
		want  *runtimeapi.PortMapping // nil: an error
		shown string                  // how ps shows it
	}{
		{"8080:80", &runtimeapi.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: tcp}, "8080:80/tcp"},
		{"53:53/udp", &runtimeapi.PortMapping{HostPort: 53, ContainerPort: 53, Protocol: udp}, "53:53/udp"},
		{"1:65535/SCTP", &runtimeapi.PortMapping{HostPort: 1, ContainerPort: 65535, Protocol: sctp}, "1:65535/sctp"},
		{"127.0.0.1:8080:80", &runtimeapi.PortMapping{HostIp: "127.0.0.1", HostPort: 8080, ContainerPort: 80}, "127.0.0.1:8080:80/tcp"},
		{"[::1]:8080:80/tcp", &runtimeapi.PortMapping{HostIp: "::1", HostPort: 8080, ContainerPort: 80}, "[::1]:8080:80/tcp"},
		{"80", nil, ""}, {"", nil, ""}, {":80", nil, ""}, {"80:", nil, ""}, {"0:80", nil, ""}, {"80:0", nil, ""}, {"65536:80", nil, ""},
		{"-1:80", nil, ""}, {"a:80", nil, ""}, {"80:80/icmp", nil, ""}, {"80:80/", nil, ""}, {"host:80:80", nil, ""}, {"1:2:3:4", nil, ""},
	} {
		got, err := parsePort(test.text)
		if test.want == nil {
			if err == nil || !strings.Contains(err.Error(), "HOST:CONTAINER") {
				t.Errorf("parsePort(%q) = %v, %v; want an error that tells the form", test.text, got, err)
			}
			continue
		}
		if err != nil || !proto.Equal(got, test.want) {
			t.Errorf("parsePort(%q) = %v, %v; want %v", test.text, got, err, test.want)
			continue
		}
		if shown := showPort(got); shown != test.shown {
			t.Errorf("%q is shown as %q, want %q", test.text, shown, test.shown)
		}
	}
}

func TestParseVolume(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		text string
		want *runtimeapi.Mount // nil: an error
	}{
		{"/srv:/data", &runtimeapi.Mount{HostPath: "/srv", ContainerPath: "/data"}},
		{"/srv:/data:ro", &runtimeapi.Mount{HostPath: "/srv", ContainerPath: "/data", Readonly: true}},
		{"/srv:/data:rw", &runtimeapi.Mount{HostPath: "/srv", ContainerPath: "/data"}},
		{"./a:/data", &runtimeapi.Mount{HostPath: filepath.Join(here, "a"), ContainerPath: "/data"}},
		{"..:/data", &runtimeapi.Mount{HostPath: filepath.Dir(here), ContainerPath: "/data"}},
		{"data:/data", nil}, {"/srv", nil}, {"/srv:", nil}, {"/srv:data", nil}, {":/data", nil}, {"/srv:/data:z", nil}, {"/a:/b:ro:rw", nil},
	} {
		got, err := parseVolume(test.text)
		if (err != nil) != (test.want == nil) || test.want != nil && !proto.Equal(got, test.want) {
			t.Errorf("parseVolume(%q) = %v, %v; want %v", test.text, got, err, test.want)
		}
	}
}

func TestPodRequest(t *testing.T) {
	own := &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
	}}
	host := proto.CloneOf(own)
	host.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	metadata := &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: podNamespace, Uid: "u"}
	labels := map[string]string{runLabel: "true"}
	for _, test := range []struct {
		name string
		o    runOptions
		want *runtimeapi.RunPodSandboxRequest
	}{
		{"plain", runOptions{name: "web", network: "builtin"}, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
			Metadata: metadata, Hostname: "web", LogDirectory: "/logs", Labels: labels, Linux: own,
		}}},
		{"all", runOptions{name: "web", network: "builtin", hostname: "h", handler: "crun", ports: []string{"1:2", "3:4/udp"}},
			&runtimeapi.RunPodSandboxRequest{RuntimeHandler: "crun", Config: &runtimeapi.PodSandboxConfig{
				Metadata: metadata, Hostname: "h", LogDirectory: "/logs", Labels: labels, Linux: own,
				Annotations: map[string]string{portsAnnotation: "1:2/tcp, 3:4/udp"},
				PortMappings: []*runtimeapi.PortMapping{
					{HostPort: 1, ContainerPort: 2}, {HostPort: 3, ContainerPort: 4, Protocol: runtimeapi.Protocol_UDP},
				},
			}}},
		{"host network", runOptions{name: "web", network: "host"}, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
			Metadata: metadata, LogDirectory: "/logs", Labels: labels, Linux: host,
		}}},
		{"host network with ports", runOptions{name: "web", network: "host", ports: []string{"1:2"}}, nil},
		{"host network with a name", runOptions{name: "web", network: "host", hostname: "h"}, nil},
		{"unknown network", runOptions{name: "web", network: "none"}, nil},
		{"bad port", runOptions{name: "web", network: "builtin", ports: []string{"1"}}, nil},
		{"name with capitals", runOptions{name: "Web", network: "builtin"}, nil},
		{"name with a path", runOptions{name: "../web", network: "builtin"}, nil},
		{"long name", runOptions{name: strings.Repeat("a", 64), network: "builtin"}, nil},
	} {
		got, err := test.o.podRequest("u", "/logs")
		if (err != nil) != (test.want == nil) || !proto.Equal(got, test.want) {
			t.Errorf("%s: got %v, %v; want %v", test.name, got, err, test.want)
		}
	}
}

func TestContainerConfig(t *testing.T) {
	t.Setenv("BERTH_TEST_SET", "from here")
	o := runOptions{
		name: "web", image: "busybox", args: []string{"sh", "-c", "true"}, network: "builtin",
		env:     []string{"A=1", "B=", "C=x=y", "BERTH_TEST_SET", "BERTH_TEST_UNSET"},
		volumes: []string{"/srv:/data:ro"},
	}
	got, err := o.containerConfig()
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: "busybox", UserSpecifiedImage: "busybox"},
		Args:     []string{"sh", "-c", "true"},
		LogPath:  logName,
		Envs: []*runtimeapi.KeyValue{
			{Key: "A", Value: []byte("1")}, {Key: "B", Value: []byte("")}, {Key: "C", Value: []byte("x=y")},
			{Key: "BERTH_TEST_SET", Value: []byte("from here")},
		},
		Mounts: []*runtimeapi.Mount{{HostPath: "/srv", ContainerPath: "/data", Readonly: true}},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			MaskedPaths:      maskedPaths, ReadonlyPaths: readonlyPaths,
			Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// Without these a container reads the kernel's memory and sets its sysctls.
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/sys/firmware"} {
		if !slices.Contains(got.Linux.SecurityContext.MaskedPaths, path) {
			t.Errorf("%s is not masked", path)
		}
	}
	if !slices.Contains(got.Linux.SecurityContext.ReadonlyPaths, "/proc/sys") {
		t.Error("/proc/sys is writable")
	}
}

func TestGenerateName(t *testing.T) {
	for ref, prefix := range map[string]string{
		"busybox":                       "busybox-",
		"docker.io/library/busybox:1.3": "busybox-",
		"localhost:5000/team/web@sha256:" + hexID("1a"): "web-",
		"localhost:5000/Under_Score":                    "run-",
		strings.Repeat("a", 80):                         "run-",
	} {
		name := generateName(ref)
		if !strings.HasPrefix(name, prefix) || !validName.MatchString(name) {
			t.Errorf("generateName(%q) = %q", ref, name)
		}
		if other := generateName(ref); other == name {
			t.Errorf("generateName(%q) = %q twice", ref, name)
		}
	}
}
