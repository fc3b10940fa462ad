package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"berth/oci"
)

// node is what this machine, and what it lets this process have, can give to
// containers.
type node struct {
	hostname     string
	capabilities []string            // that a container may get, in the order of their numbers
	rlimits      []specs.POSIXRlimit // of every container
	leastOOM     int                 // least oom_score_adj that may be set
	controls     oci.Controls
	seccomp      bool // the kernel filters system calls
	appArmor     bool // AppArmor is enabled
	selinux      bool // SELinux is enabled
}

// defaultNoFile is what servers of files and connections have come to expect.
const defaultNoFile = 1 << 20

// lookAround reads what this machine can give. noFile is the wanted
// RLIMIT_NOFILE, 0 the default.
func lookAround(noFile uint64) (node, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return node{}, fmt.Errorf("read hostname: %w", err)
	}
	mask, err := boundingSet()
	if err != nil {
		return node{}, err
	}
	n := node{
		hostname: hostname, leastOOM: -1000, controls: oci.FindControls(),
		seccomp: hasSeccomp(), appArmor: hasAppArmor(), selinux: hasSELinux(),
	}
	for bit, name := range capabilityNames {
		if mask&(1<<bit) != 0 {
			n.capabilities = append(n.capabilities, name)
		}
	}
	if noFile == 0 {
		noFile = defaultNoFile
	}
	n.rlimits = oci.Rlimits(noFile)
	if got := n.openFiles(); got < noFile {
		klog.Warningf("Containers may have %d open files, not the %d of container.nofile: raise LimitNOFILE= of berthd's unit, which berthd may not exceed, or the sysctl fs.nr_open", got, noFile)
	}
	if !slices.Contains(n.capabilities, "CAP_SYS_RESOURCE") {
		if n.leastOOM, err = ownOOMScoreAdj(); err != nil {
			return node{}, err
		}
		klog.InfoS("This process lacks CAP_SYS_RESOURCE: containers get no lower oom_score_adj than its own", "own", n.leastOOM)
	}
	return n, nil
}

// boundingSet is the mask of the capabilities that this process could hand on.
func boundingSet() (uint64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("CapBnd:")); ok {
			mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("parse CapBnd: %w", err)
			}
			return mask, nil
		}
	}
	return 0, fmt.Errorf("/proc/self/status names no CapBnd")
}

// openFiles is the RLIMIT_NOFILE of containers.
func (n *node) openFiles() uint64 {
	for _, l := range n.rlimits {
		if l.Type == "RLIMIT_NOFILE" {
			return l.Hard
		}
	}
	return 0
}

func ownOOMScoreAdj() (int, error) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// bootID identifies this boot of the kernel.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}
