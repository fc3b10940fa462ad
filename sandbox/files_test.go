package sandbox

import (
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodFiles(t *testing.T) {
	host := &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
	}}
	for _, tt := range []struct {
		name   string
		config *runtimeapi.PodSandboxConfig
		host   map[string]string
		resolv string // or the error
		hosts  string // a part
	}{
		{"dns_config", &runtimeapi.PodSandboxConfig{DnsConfig: &runtimeapi.DNSConfig{
			Servers: []string{"10.0.0.10", "::1"}, Searches: []string{"a.local", "local"}, Options: []string{"ndots:5"},
		}}, nil, "search a.local local\nnameserver 10.0.0.10\nnameserver ::1\noptions ndots:5\n", "10.1.2.3\tpod\nfd00::1\tpod\n"},
		{"empty dns_config", &runtimeapi.PodSandboxConfig{DnsConfig: &runtimeapi.DNSConfig{}}, nil, "", "127.0.0.1\tlocalhost"},
		{"the host's", &runtimeapi.PodSandboxConfig{}, map[string]string{"/etc/resolv.conf": "nameserver 9.9.9.9\n"}, "nameserver 9.9.9.9\n", ""},
		{"the host has none", &runtimeapi.PodSandboxConfig{}, nil, "", ""},
		{"behind a stub", &runtimeapi.PodSandboxConfig{}, map[string]string{
			"/etc/resolv.conf": "# stub\nnameserver 127.0.0.53\noptions edns0\n", upstreamResolv: "nameserver 1.1.1.1\n",
		}, "nameserver 1.1.1.1\n", ""},
		{"a stub with nothing behind it", &runtimeapi.PodSandboxConfig{}, map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.53\n"}, "give the pod a dns_config", ""},
		{"host network", &runtimeapi.PodSandboxConfig{Linux: host}, map[string]string{"/etc/hosts": "10.9.9.9 node\n"}, "", "10.9.9.9 node\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			read := func(path string) ([]byte, error) {
				if text, ok := tt.host[path]; ok {
					return []byte(text), nil
				}
				return nil, fs.ErrNotExist
			}
			ips := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::1")}
			files, err := podFiles(tt.config, "pod", ips, read)
			if err != nil {
				if tt.resolv == "" || !strings.Contains(err.Error(), tt.resolv) {
					t.Error(err)
				}
				return
			}
			if got := string(files[resolvFile]); got != tt.resolv {
				t.Errorf("resolv.conf: %q, want %q", got, tt.resolv)
			}
			if got := string(files[hostsFile]); !strings.Contains(got, tt.hosts) {
				t.Errorf("hosts: %q, want %q in it", got, tt.hosts)
			}
			if got := string(files[hostnameFile]); got != "pod\n" {
				t.Errorf("hostname: %q", got)
			}
		})
	}
}
