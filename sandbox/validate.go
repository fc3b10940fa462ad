package sandbox

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cni"
)

// maxConfig bounds a config in bytes: it is kept in memory and on tmpfs.
const maxConfig = 2 << 20

// namePattern is what the names of pods and containers are made of. They appear
// in arguments of CNI plugins, where ; and = would begin another argument. The
// bounds of lengths stand beside the patterns: within them, they would make the
// start of berthd longer and its memory more.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]*$`)

const longestName = 253

// hostnamePattern: letters, digits, hyphens and dots, as in RFC 1123. A dot may be
// the last one: setHostnameAsFQDN gives that on a cluster without a domain.
var hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\.?$`)

// maxHostname is the kernel's limit, in bytes.
const maxHostname = 64

// firstError runs checks in order and returns the error of the first that fails.
func firstError(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// validatePod accepts what is honoured and refuses everything else by name.
//
// Accepted without an effect: what concerns only the process of a pause
// container, which there is none of (run_as_user, run_as_group, readonly_rootfs,
// seccomp, apparmor and selinux_options of linux.security_context); port mappings of a pod on the host's network, whose
// ports are the host's already; linux.overhead and linux.resources, which are
// the kubelet's to enforce on the pod's cgroup.
func (ps *Pods) validatePod(req RunRequest) error {
	c := req.Config
	if c == nil {
		return invalid("config", "is required")
	}
	return firstError(
		func() error { return checkSize(c) },
		func() error { return checkName("metadata.name", c.GetMetadata().GetName()) },
		func() error { return checkName("metadata.namespace", c.GetMetadata().GetNamespace()) },
		func() error { return checkName("metadata.uid", c.GetMetadata().GetUid()) },
		func() error {
			if _, ok := ps.handler(req.Handler); !ok {
				known := slices.Sorted(maps.Keys(ps.Runtimes))
				return invalid("runtime_handler", "%q is not configured; there are %s", req.Handler, strings.Join(known, ", "))
			}
			return nil
		},
		func() error { return ps.checkHostname(c) },
		func() error {
			if dir := c.GetLogDirectory(); dir != "" {
				return checkPath("log_directory", dir)
			}
			return nil
		},
		func() error { return checkDNS(c.GetDnsConfig()) },
		func() error { return checkPorts(c.GetPortMappings()) },
		func() error { return ps.checkListening(c) },
		func() error { return checkPodLinux(c.GetLinux()) },
		func() error { return ps.node.checkPodSecurity(c.GetLinux().GetSecurityContext()) },
		func() error { return ps.checkUserNamespaces(req) },
		func() error {
			if c.GetWindows() != nil {
				return invalid("windows", "this is Linux")
			}
			return nil
		},
	)
}

func checkSize(config proto.Message) error {
	if n := proto.Size(config); n > maxConfig {
		return invalid("config", "has %d bytes, at most %d are allowed", n, maxConfig)
	}
	return nil
}

func checkName(field, name string) error {
	if len(name) > longestName || !namePattern.MatchString(name) {
		return invalid(field, "%.300q is not 1 to %d letters, digits, dots, colons, hyphens and underscores", name, longestName)
	}
	return nil
}

// The kernel's bounds of a path and of a name in it, in bytes. What lies before
// a container's path on the host, or below a cgroup, has room in the former.
const (
	maxPath = 4095 - 256
	maxName = 255
)

// checkPath accepts an absolute path with nothing to resolve in it.
func checkPath(field, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p {
		return invalid(field, "%.100q is not an absolute path without . and ..", p)
	}
	return checkNames(field, p)
}

// checkNames accepts what the kernel takes as a path, if it is there.
func checkNames(field, p string) error {
	if strings.ContainsRune(p, 0) {
		return invalid(field, "%.100q holds a NUL", p)
	}
	if len(p) > maxPath {
		return invalid(field, "has %d bytes, at most %d are possible", len(p), maxPath)
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			return invalid(field, "holds a name of %d bytes, at most %d are possible", len(name), maxName)
		}
	}
	return nil
}

func (ps *Pods) checkHostname(c *runtimeapi.PodSandboxConfig) error {
	name := c.GetHostname()
	switch {
	case name == "":
		return nil
	case len(name) > maxHostname || !hostnamePattern.MatchString(name):
		return invalid("hostname", "%.100q is not a name of at most %d letters, digits, hyphens and dots", name, maxHostname)
	case hostNetwork(c) && name != ps.node.hostname:
		return invalid("hostname", "a pod on the host's network has the host's name; leave it empty")
	}
	return nil
}

func checkDNS(dns *runtimeapi.DNSConfig) error {
	if err := checkWords("dns_config.servers", dns.GetServers()); err != nil {
		return err
	}
	for i, server := range dns.GetServers() {
		if _, err := netip.ParseAddr(server); err != nil {
			return invalid(fmt.Sprintf("dns_config.servers[%d]", i), "%q is not an IP address", server)
		}
	}
	if err := checkWords("dns_config.searches", dns.GetSearches()); err != nil {
		return err
	}
	return checkWords("dns_config.options", dns.GetOptions())
}

// maxWord is the length of the longest domain name, in bytes.
const maxWord = 255

// checkWords keeps a line of resolv.conf a line.
func checkWords(field string, words []string) error {
	for i, word := range words {
		if f := strings.Fields(word); len(f) != 1 || f[0] != word || len(word) > maxWord || strings.ContainsFunc(word, unicode.IsControl) {
			return invalid(fmt.Sprintf("%s[%d]", field, i), "%.100q is not one word of at most %d bytes", word, maxWord)
		}
	}
	return nil
}

func checkPorts(mappings []*runtimeapi.PortMapping) error {
	for i, m := range mappings {
		field := fmt.Sprintf("port_mappings[%d]", i)
		switch {
		case m.GetContainerPort() < 1 || m.GetContainerPort() > 65535:
			return invalid(field+".container_port", "%d is not between 1 and 65535", m.GetContainerPort())
		case m.GetHostPort() < 0 || m.GetHostPort() > 65535:
			return invalid(field+".host_port", "%d is not between 0 and 65535", m.GetHostPort())
		case protocols[m.GetProtocol()] == "":
			return invalid(field+".protocol", "%d is not TCP, UDP or SCTP", m.GetProtocol())
		}
		if ip := m.GetHostIp(); ip != "" {
			if addr, err := netip.ParseAddr(ip); err != nil || addr.Zone() != "" {
				return invalid(field+".host_ip", "%.100q is not an IP address", ip)
			}
		}
	}
	return checkHostPorts(mappings)
}

// checkHostPorts: a port of the host leads to one place.
func checkHostPorts(mappings []*runtimeapi.PortMapping) error {
	taken := map[cni.PortMapping]bool{}
	for i, m := range mappings {
		for _, p := range ports([]*runtimeapi.PortMapping{m}) {
			if p.ContainerPort = 0; taken[p] {
				return invalid(fmt.Sprintf("port_mappings[%d].host_port", i), "%s port %d is mapped twice", p.Protocol, p.HostPort)
			}
			taken[p] = true
		}
	}
	return nil
}

// checkListening: the rule of a host port would redirect the connections of
// berthd's own clients to the pod.
func (ps *Pods) checkListening(c *runtimeapi.PodSandboxConfig) error {
	if c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return nil // without such a rule
	}
	for i, m := range c.GetPortMappings() {
		for _, p := range ports([]*runtimeapi.PortMapping{m}) {
			for _, own := range ps.Listening {
				everywhere := !p.HostIP.IsValid() || p.HostIP.IsUnspecified()
				if p.Protocol == "tcp" && p.HostPort == own.Port() && (everywhere || p.HostIP.Unmap() == own.Addr().Unmap()) {
					return invalid(fmt.Sprintf("port_mappings[%d].host_port", i), "%d is the port on which berthd serves streams (%s): use another, or set streaming.address", p.HostPort, own)
				}
			}
		}
	}
	return nil
}

var protocols = map[runtimeapi.Protocol]string{
	runtimeapi.Protocol_TCP:  "tcp",
	runtimeapi.Protocol_UDP:  "udp",
	runtimeapi.Protocol_SCTP: "sctp",
}

// ports are the validated mappings that publish something.
func ports(mappings []*runtimeapi.PortMapping) []cni.PortMapping {
	var list []cni.PortMapping
	for _, m := range mappings {
		if m.GetHostPort() == 0 {
			continue
		}
		ip, _ := netip.ParseAddr(m.GetHostIp()) // empty: zero, all addresses
		list = append(list, cni.PortMapping{
			HostIP:        ip,
			HostPort:      uint16(m.GetHostPort()),
			ContainerPort: uint16(m.GetContainerPort()),
			Protocol:      protocols[m.GetProtocol()],
		})
	}
	return list
}

func checkPodLinux(l *runtimeapi.LinuxPodSandboxConfig) error {
	sc := l.GetSecurityContext()
	ns := sc.GetNamespaceOptions()
	if parent := l.GetCgroupParent(); parent != "" {
		if strings.HasSuffix(parent, ".slice") {
			return invalid("linux.cgroup_parent", "%.200q is a slice of systemd, which takes from it the controllers that systemd does not know a need for; Berth's cgroup driver is cgroupfs, and so must be the kubelet's (cgroupDriver)", parent)
		}
		if err := checkPath("linux.cgroup_parent", parent); err != nil {
			return err
		}
		switch {
		case parent == "/":
			return invalid("linux.cgroup_parent", "is the root cgroup; name one below it")
		case strings.ContainsRune(parent, '\n'):
			return invalid("linux.cgroup_parent", "%.100q holds a newline, which no cgroup's name may", parent)
		}
	}
	const at = namespacesField
	switch {
	case ns.GetNetwork() != runtimeapi.NamespaceMode_POD && ns.GetNetwork() != runtimeapi.NamespaceMode_NODE:
		return invalid(at+"network", "is not POD or NODE")
	case ns.GetIpc() != runtimeapi.NamespaceMode_POD && ns.GetIpc() != runtimeapi.NamespaceMode_NODE:
		return invalid(at+"ipc", "is not POD or NODE")
	case ns.GetPid() != runtimeapi.NamespaceMode_POD && ns.GetPid() != runtimeapi.NamespaceMode_CONTAINER && ns.GetPid() != runtimeapi.NamespaceMode_NODE:
		return invalid(at+"pid", "is not POD, CONTAINER or NODE")
	case ns.GetTargetId() != "":
		return invalid(at+"target_id", "is not for pods")
	}
	if err := checkUserNamespace(ns); err != nil {
		return err
	}
	return checkSysctls(l.GetSysctls(), ns)
}
