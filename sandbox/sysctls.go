package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

var (
	// sysctlName is the canonical form: dots between the parts, and slashes for the
	// dots in them, as in net.ipv4.conf.eth0/100.forwarding.
	sysctlName = regexp.MustCompile(`^[a-z0-9_-]+(\.[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)+$`)
	// sysctlValue leaves out newlines, + and =, with which values have been made
	// into further sysctls.
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9 \t.,:;/@_-]+$`)
)

// maxSysctls bounds the names and values of a pod's sysctls together, in bytes:
// they go to the runner in one message.
const maxSysctls = 32 << 10

const (
	netSysctls     = "net."
	domainName     = "kernel.domainname"
	portStart      = "net.ipv4.ip_unprivileged_port_start"
	pingGroupRange = "net.ipv4.ping_group_range"
)

// canonicalSysctl is name with dots between its parts. Kubernetes also lets people
// separate them with slashes; whichever separator comes first is meant, and the
// other one is part of a name.
func canonicalSysctl(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// checkSysctls accepts what belongs to namespaces that the pod has to itself.
// Which of them there are, and what they may be, only the kernel knows: see
// refusedSysctl.
func checkSysctls(sysctls map[string]string, ns *runtimeapi.NamespaceOption) error {
	size := 0
	for _, asked := range slices.Sorted(maps.Keys(sysctls)) {
		field, name, value := sysctlField(asked), canonicalSysctl(asked), sysctls[asked]
		size += len(name) + len(value)
		network := strings.HasPrefix(name, netSysctls)
		ipc := name == "kernel.sem" || strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || strings.HasPrefix(name, "fs.mqueue.")
		switch {
		case len(name) > 253 || !sysctlName.MatchString(name):
			return invalid(field, "must be the name of a sysctl, with dots or slashes between its parts")
		case len(value) > 1024 || !sysctlValue.MatchString(value):
			return invalid(field, "%.100q cannot be its value", value)
		case !network && !ipc && name != domainName:
			return invalid(field, "does not belong to a namespace of the pod")
		case network && ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
			return invalid(field, "the pod uses the host's network")
		case name == domainName && ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
			return invalid(field, "a pod on the host's network has the host's domain name")
		case ipc && ns.GetIpc() == runtimeapi.NamespaceMode_NODE:
			return invalid(field, "the pod uses the host's ipc namespace")
		case size > maxSysctls:
			return invalid("linux.sysctls", "have more than %d bytes together", maxSysctls)
		}
	}
	return nil
}

func sysctlField(name string) string { return fmt.Sprintf("linux.sysctls[%.100q]", name) }

// refusedSysctl turns the kernel's refusal of a sysctl into the config's mistake
// that it is.
func refusedSysctl(err error) error {
	var refused *oci.SysctlError
	if errors.As(err, &refused) {
		return invalid(sysctlField(refused.Name), "the kernel refuses it: %s", refused.Reason)
	}
	return err
}

// sysctls are those of the pod's namespaces by canonical name: what the config asks
// for and, in a network of the pod's own, what lets processes without privilege
// listen on any port and ping.
func (p *Pod) sysctls() map[string]string {
	all := map[string]string{}
	for name, value := range p.config.GetLinux().GetSysctls() {
		all[canonicalSysctl(name)] = value
	}
	if p.hostNetwork() {
		return all
	}
	if _, asked := all[portStart]; !asked && p.pods.UnprivilegedPorts {
		all[portStart] = "0"
	}
	if _, asked := all[pingGroupRange]; !asked && p.pods.UnprivilegedPing {
		last := uint32(maxID)
		if users := p.users(); users != nil {
			last = min(last, users.GIDs.Size-1)
		}
		all[pingGroupRange] = fmt.Sprintf("0 %d", last)
	}
	return all
}

// networkSysctls are the config's own of the network: they are written again when
// the plugins have made interfaces and may have changed others. The range of groups
// that may ping is left out where it means ids of a user namespace, which only a
// process in that one can write.
func (p *Pod) networkSysctls() map[string]string {
	all := map[string]string{}
	for asked, value := range p.config.GetLinux().GetSysctls() {
		name := canonicalSysctl(asked)
		if strings.HasPrefix(name, netSysctls) && !(name == pingGroupRange && p.users() != nil) {
			all[name] = value
		}
	}
	return all
}
