package sandbox

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

// Bounds of the kernel, and what the start of a process takes.
const (
	minMemory  = 4 << 20 // bytes; runc itself needs 3.3 MiB of it
	minShares  = 2
	maxShares  = 1 << 18
	minPeriod  = 1000 // microseconds
	maxPeriod  = 1000000
	minQuota   = 1000 // microseconds
	maxQuota   = 1<<44 - 1
	unlimited  = -1
	maxCPUs    = 8192    // of a list; the kernel's NR_CPUS is at most that
	maxList    = 1 << 15 // bytes
	maxUnified = 64
)

const resourcesField = "linux.resources."

// resources is a message in a record. It is replaced, never changed. Its JSON is
// that of proto: fields that this version does not know have no effect either.
type resources struct {
	*runtimeapi.LinuxContainerResources
}

func (r resources) MarshalJSON() ([]byte, error) {
	return protojson.Marshal(r.LinuxContainerResources)
}

func (r *resources) UnmarshalJSON(data []byte) error {
	r.LinuxContainerResources = new(runtimeapi.LinuxContainerResources)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, r.LinuxContainerResources)
}

// checkResources accepts what a container of the pod can be limited to. The
// kernel may still refuse what others have taken meanwhile.
func (p *Pod) checkResources(r *runtimeapi.LinuxContainerResources) error {
	can := p.pods.node.controls
	return firstError(
		func() error { return checkCPU(r) },
		func() error { return checkMemory(r, can.Swap) },
		func() error { return p.checkCpuset(r) },
		func() error { return checkHugePages(r.GetHugepageLimits(), can) },
		func() error { return checkUnified(r.GetUnified(), can.Unified) },
		func() error {
			if adj := r.GetOomScoreAdj(); adj < -1000 || adj > 1000 {
				return invalid(resourcesField+"oom_score_adj", "%d is not between -1000 and 1000", adj)
			}
			return nil
		},
	)
}

func checkCPU(r *runtimeapi.LinuxContainerResources) error {
	period, quota, shares := r.GetCpuPeriod(), r.GetCpuQuota(), r.GetCpuShares()
	switch {
	case period != 0 && (period < minPeriod || period > maxPeriod):
		return invalid(resourcesField+"cpu_period", "%d is not between %d and %d microseconds", period, minPeriod, maxPeriod)
	case quota != 0 && quota != unlimited && quota < minQuota:
		return invalid(resourcesField+"cpu_quota", "%d is neither -1 nor at least %d microseconds", quota, minQuota)
	case quota > maxQuota:
		return invalid(resourcesField+"cpu_quota", "%d microseconds are more than the kernel can count; -1 is unlimited", quota)
	case shares != 0 && (shares < minShares || shares > maxShares):
		return invalid(resourcesField+"cpu_shares", "%d is not between %d and %d", shares, minShares, maxShares)
	}
	return nil
}

// checkMemory: the swap limit is that of memory and swap together.
func checkMemory(r *runtimeapi.LinuxContainerResources, canSwap bool) error {
	memory, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case memory != 0 && memory < minMemory:
		return invalid(resourcesField+"memory_limit_in_bytes", "%d is less than the %d that a start takes", memory, minMemory)
	case swap == 0:
	case !canSwap:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", "this node's cgroups do not account for swap")
	case swap < unlimited:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", "%d is negative", swap)
	case memory == 0:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", "needs a memory_limit_in_bytes")
	case swap != unlimited && swap < memory:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", "%d, which is memory and swap together, is less than the memory limit %d", swap, memory)
	}
	return nil
}

// checkCpuset: the lists must be of what the pod's cgroup may have.
func (p *Pod) checkCpuset(r *runtimeapi.LinuxContainerResources) error {
	if r.GetCpusetCpus() == "" && r.GetCpusetMems() == "" {
		return nil
	}
	parent, _ := p.cgroup()
	cpus, mems, err := oci.Cpuset(parent + "/container")
	if err != nil {
		return fmt.Errorf("read the pod's cpuset: %w", err)
	}
	if err := checkList("cpuset_cpus", r.GetCpusetCpus(), cpus); err != nil {
		return err
	}
	return checkList("cpuset_mems", r.GetCpusetMems(), mems)
}

func checkList(name, list, parent string) error {
	if list == "" {
		return nil
	}
	if len(list) > maxList {
		return invalid(resourcesField+name, "has %d bytes, at most %d are allowed", len(list), maxList)
	}
	want, err := parseList(list)
	if err != nil {
		return invalid(resourcesField+name, "%.100q is no list as in 0-3,7: %v", list, err)
	}
	have, err := parseList(parent)
	if err != nil {
		return fmt.Errorf("read the pod's %s: %w", name, err)
	}
	for _, n := range slices.Sorted(maps.Keys(want)) {
		if !have[n] {
			return invalid(resourcesField+name, "%d of %.100q is not among those of the pod, %s", n, list, parent)
		}
	}
	return nil
}

// parseList parses the lists of cpuset(7): "0-3,7".
func parseList(text string) (map[int]bool, error) {
	set := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, err
		}
		if from > to || to >= maxCPUs {
			return nil, fmt.Errorf("%s is no range below %d", part, maxCPUs)
		}
		for n := from; n <= to; n++ {
			set[int(n)] = true
		}
	}
	return set, nil
}

// checkHugePages: the kubelet lists every page size, most with a limit of 0,
// which every container has on a node that accounts for none.
func checkHugePages(limits []*runtimeapi.HugepageLimit, can oci.Controls) error {
	seen := map[string]bool{}
	for i, l := range limits {
		field := fmt.Sprintf("%shugepage_limits[%d].", resourcesField, i)
		size := l.GetPageSize()
		switch {
		case !slices.Contains(can.PageSizes, size):
			return invalid(field+"page_size", "this kernel has no huge pages of %.20q, but %s", size, cmp.Or(strings.Join(can.PageSizes, ", "), "none"))
		case seen[size]:
			return invalid(field+"page_size", "%s is limited twice", size)
		case !can.HugePages && l.GetLimit() > 0:
			return invalid(field+"limit", "this node's cgroups do not account for huge pages")
		}
		seen[size] = true
	}
	return nil
}

// unifiedKey is a file of one of cgroup v2's controllers: not one of cgroup.*,
// which move and kill processes.
var unifiedKey = regexp.MustCompile(`^(cpu|cpuset|dmem|hugetlb|io|memory|misc|pids|rdma)\.[A-Za-z0-9_.]+$`)

const maxUnifiedKey = 64

func checkUnified(unified map[string]string, v2 bool) error {
	if len(unified) > 0 && !v2 {
		return invalid(resourcesField+"unified", "needs cgroup v2, and this node has v1")
	}
	if len(unified) > maxUnified {
		return invalid(resourcesField+"unified", "has %d entries, at most %d are allowed", len(unified), maxUnified)
	}
	for _, key := range slices.Sorted(maps.Keys(unified)) {
		field := fmt.Sprintf("%sunified[%.100q]", resourcesField, key)
		switch value := unified[key]; {
		case len(key) > maxUnifiedKey || !unifiedKey.MatchString(key):
			return invalid(field, "is not a file of a controller, as in memory.high")
		case value == "" || len(value) > 4096 || strings.ContainsRune(value, 0):
			return invalid(field, "%.100q cannot be its value", value)
		}
	}
	return nil
}

// effective is r as this node can give it: with no lower oom_score_adj than it may
// set. r is not changed.
func (n node) effective(r *runtimeapi.LinuxContainerResources) *resources {
	r = proto.CloneOf(r)
	if r == nil {
		r = &runtimeapi.LinuxContainerResources{}
	}
	r.OomScoreAdj = max(r.GetOomScoreAdj(), int64(n.leastOOM))
	return &resources{r}
}

// cpuWeight is the file in which cgroup v2 has a weight instead of shares.
const cpuWeight = "cpu.weight"

// limits are validated resources for an OCI runtime. Only what is set is named.
func limits(r *runtimeapi.LinuxContainerResources, can oci.Controls) *specs.LinuxResources {
	l := &specs.LinuxResources{Unified: r.GetUnified()}
	shares := r.GetCpuShares()
	if shares != 0 && can.Unified {
		// Runtimes make different weights of the same shares. A weight that is
		// asked for counts.
		l.Unified = map[string]string{cpuWeight: strconv.FormatUint(oci.CPUWeight(uint64(shares)), 10)}
		maps.Copy(l.Unified, r.GetUnified())
		shares = 0
	}
	if r.GetCpuPeriod() != 0 || r.GetCpuQuota() != 0 || shares != 0 || r.GetCpusetCpus() != "" || r.GetCpusetMems() != "" {
		l.CPU = &specs.LinuxCPU{
			Shares: unsigned(shares), Quota: unlessZero(r.GetCpuQuota()), Period: unsigned(r.GetCpuPeriod()),
			Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		}
	}
	if r.GetMemoryLimitInBytes() != 0 || r.GetMemorySwapLimitInBytes() != 0 {
		l.Memory = &specs.LinuxMemory{Limit: unlessZero(r.GetMemoryLimitInBytes()), Swap: unlessZero(r.GetMemorySwapLimitInBytes())}
	}
	if !can.HugePages {
		return l
	}
	for _, h := range r.GetHugepageLimits() {
		l.HugepageLimits = append(l.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return l
}

func unlessZero(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

func unsigned(n int64) *uint64 {
	if n == 0 {
		return nil
	}
	u := uint64(n)
	return &u
}

// apply puts r into a spec that may have been made with other resources.
func (r *resources) apply(spec *specs.Spec, can oci.Controls) {
	l := limits(r.LinuxContainerResources, can)
	l.Devices = spec.Linux.Resources.Devices
	spec.Linux.Resources = l
	adj := int(r.GetOomScoreAdj())
	spec.Process.OOMScoreAdj = &adj
}
