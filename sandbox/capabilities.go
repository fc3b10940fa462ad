package sandbox

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// capabilityNames are Linux' capabilities by number (linux/capability.h).
var capabilityNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are the ones that images have come to expect.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const allCapabilities = "ALL"

// capabilityName is the kernel's name for one written with or without CAP_.
func capabilityName(text string) string {
	name := strings.ToUpper(text)
	if name == allCapabilities || strings.HasPrefix(name, "CAP_") {
		return name
	}
	return "CAP_" + name
}

// capabilities are the sets of the container's process, in the order of the
// available ones: ALL first, then what is added, then what is dropped. A
// privileged container has all of them. What is added by name must be available.
//
// Ambient capabilities are what a process that is not root keeps when it
// executes a program without file capabilities; they are held as if they were
// added too, and ALL means all that are held otherwise. The kernel takes none as
// ambient that is not inheritable, so that the inheritable set is the ambient
// one: empty without them, since an inheritable capability becomes permitted to
// anyone who executes a file that has it (CVE-2022-24769).
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext, available []string) (*specs.LinuxCapabilities, error) {
	want := sc.GetCapabilities()
	add, drop := capabilityList(want.GetAddCapabilities()), capabilityList(want.GetDropCapabilities())
	ambient := capabilityList(want.GetAddAmbientCapabilities())
	if sc.GetPrivileged() {
		add, drop = []string{allCapabilities}, nil
	}
	const at = capabilitiesField
	if err := checkAvailable(at+"add_capabilities", add, available); err != nil {
		return nil, err
	}
	if err := checkAvailable(at+"add_ambient_capabilities", ambient, available); err != nil {
		return nil, err
	}
	base := defaultCapabilities
	if slices.Contains(add, allCapabilities) {
		base = available
	}
	if slices.Contains(drop, allCapabilities) {
		base = nil
	}
	var held, kept []string
	for _, name := range available {
		wanted := slices.Contains(base, name) || slices.Contains(add, name) || slices.Contains(ambient, name)
		if !wanted || slices.Contains(drop, name) {
			continue
		}
		held = append(held, name)
		if slices.Contains(ambient, name) || slices.Contains(ambient, allCapabilities) {
			kept = append(kept, name)
		}
	}
	return &specs.LinuxCapabilities{Bounding: held, Effective: held, Permitted: held, Inheritable: kept, Ambient: kept}, nil
}

func checkAvailable(field string, names, available []string) error {
	for _, name := range names {
		if name != allCapabilities && !slices.Contains(available, name) {
			return invalid(field, "this node cannot give %s", name)
		}
	}
	return nil
}

func capabilityList(texts []string) []string {
	var names []string
	for _, text := range texts {
		names = append(names, capabilityName(text))
	}
	return names
}
