package oci

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"berth/oci/cgroup"

	"github.com/opencontainers/cgroups"
)

// Controls says what the cgroups of this node can limit.
type Controls struct {
	Unified   bool     // cgroup v2 alone, so that its files can be named
	Swap      bool     // swap is accounted for
	HugePages bool     // huge pages are accounted for
	PageSizes []string // of huge pages, as the cgroups' files and CRI write them: 2MB, 1GB
}

// FindControls looks at this node's cgroups. They do not change while it is up.
func FindControls() Controls {
	c := Controls{Unified: cgroups.IsCgroup2UnifiedMode(), PageSizes: cgroups.HugePageSizes()}
	if c.Unified {
		all, err := cgroups.GetAllSubsystems()
		c.Swap = exists("/proc/swaps")
		c.HugePages = err == nil && slices.Contains(all, "hugetlb")
		return c
	}
	if at, err := cgroups.FindCgroupMountpoint("", "memory"); err == nil {
		c.Swap = exists(filepath.Join(at, "memory.memsw.limit_in_bytes"))
	}
	_, err := cgroups.FindCgroupMountpoint("", "hugetlb")
	c.HugePages = err == nil
	return c
}

// CPUWeight is the weight of cgroup v2 that stands for v1's shares, 0 for none.
func CPUWeight(shares uint64) uint64 { return cgroups.ConvertCPUSharesToCgroupV2Value(shares) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Cpuset returns the CPUs and the memory nodes that a cgroup may have which is
// made at path: lists as in cpuset(7), those of the nearest cgroup above it.
func Cpuset(path string) (cpus, mems string, err error) {
	var root string
	var names [2]string
	if cgroups.IsCgroup2UnifiedMode() {
		root, names = cgroup.Unified(), [2]string{"cpuset.cpus.effective", "cpuset.mems.effective"}
	} else if at, err := cgroups.FindCgroupMountpoint("", "cpuset"); err == nil {
		root, names = at, [2]string{"cpuset.cpus", "cpuset.mems"}
	} else {
		root, names = "/sys/devices/system", [2]string{"cpu/online", "node/online"}
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		lists := [2]string{}
		for i, name := range names {
			text, _ := os.ReadFile(filepath.Join(root, dir, name))
			lists[i] = string(bytes.TrimSpace(text))
		}
		if lists[0] != "" && lists[1] != "" {
			return lists[0], lists[1], nil
		}
		if dir == "/" || dir == "." {
			return "", "", fmt.Errorf("%s says neither %s nor %s", root, names[0], names[1])
		}
	}
}
