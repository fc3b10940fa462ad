package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names of the pod's files in its directory; containers see them in /etc.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
)

var podFileNames = []string{hostsFile, hostnameFile, resolvFile}

// upstreamResolv names the real servers where /etc/resolv.conf names a stub of
// systemd-resolved, which listens on the host's loopback alone.
const upstreamResolv = "/run/systemd/resolve/resolv.conf"

// filesSpare is what the containers of a pod may write to its files beyond what they
// hold at first, in bytes. The files are on a filesystem of the pod's own: whoever
// fills it hurts only the pod.
const filesSpare = 1 << 20

// filesSize is that of the filesystem of the pod's files, in bytes.
func (p *Pod) filesSize() (int64, error) {
	files, err := podFiles(p.config, p.hostname(), nil, os.ReadFile)
	size := int64(filesSpare)
	for _, content := range files {
		size += int64(len(content))
	}
	return size, err
}

// hostname is what the pod calls itself: its own name, or the host's.
func (p *Pod) hostname() string {
	if name := p.config.GetHostname(); name != "" {
		return name
	}
	return p.pods.node.hostname
}

// podFiles are the pod's files by name. read reads a file of the host.
func podFiles(config *runtimeapi.PodSandboxConfig, hostname string, ips []netip.Addr, read func(string) ([]byte, error)) (map[string][]byte, error) {
	hosts := hostsContent(hostname, ips)
	if hostNetwork(config) {
		var err error
		if hosts, err = readOptional("/etc/hosts", read); err != nil {
			return nil, err
		}
	}
	resolv, err := resolvContent(config.GetDnsConfig(), read)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		hostnameFile: []byte(hostname + "\n"),
		hostsFile:    hosts,
		resolvFile:   resolv,
	}, nil
}

// hostsContent is the fallback for containers to which the kubelet gives no
// /etc/hosts of its own.
func hostsContent(hostname string, ips []netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.Bytes()
}

// resolvContent is resolv.conf(5) for dns; nil means the host's.
func resolvContent(dns *runtimeapi.DNSConfig, read func(string) ([]byte, error)) ([]byte, error) {
	if dns == nil {
		return hostResolv(read)
	}
	var b bytes.Buffer
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return b.Bytes(), nil
}

func hostResolv(read func(string) ([]byte, error)) ([]byte, error) {
	content, err := readOptional("/etc/resolv.conf", read)
	if err != nil || !namesStub(content) {
		return content, err
	}
	upstream, err := read(upstreamResolv)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("/etc/resolv.conf names only a stub on the host's loopback, and %s does not exist: give the pod a dns_config", upstreamResolv)
	}
	return upstream, err
}

func namesStub(content []byte) bool {
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" && (f[1] == "127.0.0.53" || f[1] == "127.0.0.54") {
			return true
		}
	}
	return false
}

// readOptional reads a host's file that need not exist.
func readOptional(path string, read func(string) ([]byte, error)) ([]byte, error) {
	content, err := read(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return content, err
}
