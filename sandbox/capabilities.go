package sandbox

import (
	"slices"
	"strings"

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

// capabilities returns what a container gets of the available ones, in their
// order: ALL first, then what is added, then what is dropped. What is added by
// name must be available.
func capabilities(want *runtimeapi.Capability, available []string) ([]string, error) {
	add, drop := capabilityList(want.GetAddCapabilities()), capabilityList(want.GetDropCapabilities())
	base := defaultCapabilities
	if slices.Contains(add, allCapabilities) {
		base = available
	}
	if slices.Contains(drop, allCapabilities) {
		base = nil
	}
	for _, name := range add {
		if name != allCapabilities && !slices.Contains(available, name) {
			return nil, invalid("linux.security_context.capabilities.add_capabilities", "this node cannot give %s", name)
		}
	}
	var got []string
	for _, name := range available {
		if (slices.Contains(base, name) || slices.Contains(add, name)) && !slices.Contains(drop, name) {
			got = append(got, name)
		}
	}
	return got, nil
}

func capabilityList(texts []string) []string {
	var names []string
	for _, text := range texts {
		names = append(names, capabilityName(text))
	}
	return names
}
