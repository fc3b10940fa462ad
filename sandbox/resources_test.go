package sandbox

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

type huge = runtimeapi.HugepageLimit

// Two machines: what most are, and the least.
var (
	v1node = oci.Controls{Swap: true, HugePages: true, PageSizes: []string{"2MB", "1GB"}}
	v2node = oci.Controls{Unified: true, Swap: true, HugePages: true, PageSizes: []string{"2MB", "1GB"}}
	bare   = oci.Controls{PageSizes: []string{"2MB"}}
)

func TestCheckResources(t *testing.T) {
	unified := func(key, value string) *res { return &res{Unified: map[string]string{key: value}} }
	many := map[string]string{}
	for i := range maxUnified + 1 {
		many[fmt.Sprintf("memory.%d", i)] = "1"
	}
	const mem = 100 << 20
	for _, tt := range []struct {
		field string
		can   oci.Controls
		r     *res
	}{
		{"", v1node, nil},
		{"", bare, &res{}},
		{"", v1node, &res{
			CpuPeriod: 100000, CpuQuota: -1, CpuShares: 2, MemoryLimitInBytes: mem, MemorySwapLimitInBytes: mem, OomScoreAdj: -1000, CpusetCpus: "0", CpusetMems: "0",
			HugepageLimits: []*huge{{PageSize: "2MB", Limit: 1 << 21}, {PageSize: "1GB"}},
		}},

		{"cpu_period", v1node, &res{CpuPeriod: 999}},
		{"", v1node, &res{CpuPeriod: 1000}},
		{"", v1node, &res{CpuPeriod: 1000000}},
		{"cpu_period", v1node, &res{CpuPeriod: 1000001}},
		{"cpu_period", v1node, &res{CpuPeriod: -1}},
		{"cpu_period", v1node, &res{CpuPeriod: math.MinInt64}},
		{"", v1node, &res{CpuQuota: 1000}},
		{"cpu_quota", v1node, &res{CpuQuota: 999}},
		{"cpu_quota", v1node, &res{CpuQuota: -2}},
		{"", v1node, &res{CpuQuota: maxQuota}},
		{"cpu_quota", v1node, &res{CpuQuota: maxQuota + 1}},
		{"cpu_quota", v1node, &res{CpuQuota: math.MaxInt64}},
		{"cpu_shares", v1node, &res{CpuShares: 1}},
		{"cpu_shares", v1node, &res{CpuShares: -1}},
		{"", v1node, &res{CpuShares: 262144}},
		{"cpu_shares", v1node, &res{CpuShares: 262145}},

		{"", v1node, &res{MemoryLimitInBytes: minMemory}},
		{"memory_limit_in_bytes", v1node, &res{MemoryLimitInBytes: minMemory - 1}},
		{"memory_limit_in_bytes", v1node, &res{MemoryLimitInBytes: -1}},
		{"", v1node, &res{MemoryLimitInBytes: math.MaxInt64}},
		{"", v1node, &res{MemoryLimitInBytes: mem, MemorySwapLimitInBytes: -1}},
		{"memory_swap_limit_in_bytes", v1node, &res{MemoryLimitInBytes: mem, MemorySwapLimitInBytes: mem - 1}},
		{"memory_swap_limit_in_bytes", v1node, &res{MemoryLimitInBytes: mem, MemorySwapLimitInBytes: -2}},
		{"memory_swap_limit_in_bytes", v1node, &res{MemorySwapLimitInBytes: mem}},
		{"memory_swap_limit_in_bytes", bare, &res{MemoryLimitInBytes: mem, MemorySwapLimitInBytes: mem}},

		{"cpuset_cpus", v1node, &res{CpusetCpus: "8191"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: "0-70000"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: "1-0"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: "0,"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: " 0"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: "0\n1"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: "-1"}},
		{"cpuset_cpus", v1node, &res{CpusetCpus: strings.Repeat("0,", maxList) + "0"}},
		{"cpuset_mems", v1node, &res{CpusetMems: "1023"}},
		{"cpuset_mems", v1node, &res{CpusetMems: "all"}},

		{"hugepage_limits[0].page_size", v1node, &res{HugepageLimits: []*huge{{PageSize: "4MB"}}}},
		{"hugepage_limits[0].page_size", v1node, &res{HugepageLimits: []*huge{{}}}},
		{"hugepage_limits[0].page_size", v1node, &res{HugepageLimits: []*huge{{PageSize: "../2MB"}}}},
		{"hugepage_limits[1].page_size", v1node, &res{HugepageLimits: []*huge{{PageSize: "2MB"}, {PageSize: "2MB", Limit: 1}}}},
		{"hugepage_limits[0].limit", bare, &res{HugepageLimits: []*huge{{PageSize: "2MB", Limit: 1}}}},
		{"", bare, &res{HugepageLimits: []*huge{{PageSize: "2MB"}}}},

		{"", v1node, &res{Unified: map[string]string{}}},
		{"unified", v1node, unified("memory.high", "1")},
		{"", v2node, unified("memory.oom.group", "1")},
		{"", v2node, unified("hugetlb.2MB.max", "0")},
		{`unified["../memory.high"]`, v2node, unified("../memory.high", "1")},
		{`unified["memory/high"]`, v2node, unified("memory/high", "1")},
		{`unified["cgroup.kill"]`, v2node, unified("cgroup.kill", "1")},
		{`unified["cgroup.procs"]`, v2node, unified("cgroup.procs", "1")},
		{`unified["memory"]`, v2node, unified("memory", "1")},
		{`unified["memory.high"]`, v2node, unified("memory.high", "")},
		{`unified["memory.high"]`, v2node, unified("memory.high", "\x00")},
		{"unified", v2node, &res{Unified: many}},

		{"", v1node, &res{OomScoreAdj: 1000}},
		{"oom_score_adj", v1node, &res{OomScoreAdj: 1001}},
		{"oom_score_adj", v1node, &res{OomScoreAdj: -1001}},
	} {
		field := tt.field
		if field != "" {
			field = resourcesField + field
		}
		ps := testPods()
		ps.node.controls = tt.can
		p := ps.newPod(newID(), RunRequest{Config: podConfig("a")})
		c := containerConfig("x")
		c.Linux = &runtimeapi.LinuxContainerConfig{Resources: tt.r}
		t.Run(fmt.Sprint(tt.r), func(t *testing.T) { refused(t, p.validateContainer(c), field) })
	}
}

func TestParseList(t *testing.T) {
	for text, want := range map[string][]int{"0": {0}, "0-3": {0, 1, 2, 3}, "7,0-1": {0, 1, 7}, "1-1,1": {1}} {
		set, err := parseList(text)
		if got := slices.Sorted(maps.Keys(set)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-", "1-", "-1", "a", "0;1", "0--1", "0-1-2", "65536", "8192", "0x1"} {
		if set, err := parseList(text); err == nil {
			t.Errorf("%q: %v", text, set)
		}
	}
}

// What is not set is not named: the runtime leaves it as the kernel has it.
func TestLimits(t *testing.T) {
	all := &res{
		CpuPeriod: 1, CpuQuota: -1, CpuShares: 3, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 5,
		HugepageLimits: []*huge{{PageSize: "2MB", Limit: 6}, {PageSize: "1GB"}}, Unified: map[string]string{"memory.low": "7"},
	}
	for _, tt := range []struct {
		r    *res
		can  oci.Controls
		want string
	}{
		{nil, v1node, `{}`},
		{&res{OomScoreAdj: 1}, v1node, `{}`},
		{&res{CpuQuota: -1}, v1node, `{"cpu":{"quota":-1}}`},
		{&res{MemoryLimitInBytes: 9}, v1node, `{"memory":{"limit":9}}`},
		{&res{HugepageLimits: []*huge{{PageSize: "2MB"}}}, bare, `{}`},
		{&res{CpuShares: 400}, v1node, `{"cpu":{"shares":400}}`},
		{&res{CpuShares: 400}, v2node, `{"unified":{"cpu.weight":"49"}}`},
		{&res{CpuShares: 400, Unified: map[string]string{"cpu.weight": "5", "memory.low": "7"}}, v2node, `{"unified":{"cpu.weight":"5","memory.low":"7"}}`},
		{all, v2node, `{"memory":{"limit":4,"swap":5},"cpu":{"quota":-1,"period":1,"cpus":"0","mems":"1"},` +
			`"hugepageLimits":[{"pageSize":"2MB","limit":6},{"pageSize":"1GB","limit":0}],"unified":{"cpu.weight":"2","memory.low":"7"}}`},
	} {
		if got, err := json.Marshal(limits(tt.r, tt.can)); err != nil || string(got) != tt.want {
			t.Errorf("%v: %s, %v, want %s", tt.r, got, err, tt.want)
		}
	}
}

// An update leaves what it does not name, in the record and in the kernel; of the
// kernel's pairs it writes both.
func TestMergeResources(t *testing.T) {
	now := &res{
		CpuQuota: 50000, CpuShares: 100, MemoryLimitInBytes: 8 << 20, MemorySwapLimitInBytes: 16 << 20, OomScoreAdj: 5,
		HugepageLimits: []*huge{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}}, Unified: map[string]string{"memory.low": "1", "memory.high": "2"},
	}
	kept := proto.CloneOf(now)
	for _, tt := range []struct {
		name, next, write, adj string
		want                   *res
	}{
		{"nothing", "", `{}`, "", nil},
		{"cpuset alone", "cpusetCpus:0", `{"cpu":{"cpus":"0"}}`, "", &res{CpusetCpus: "0"}},
		{"period with its quota", "cpuPeriod:200000", `{"cpu":{"quota":50000,"period":200000}}`, "", &res{CpuPeriod: 200000}},
		{"no quota", "cpuQuota:-1", `{"cpu":{"quota":-1}}`, "", &res{CpuQuota: -1}},
		{"memory with its swap", "memory:12", `{"memory":{"limit":12582912,"swap":16777216}}`, "", &res{MemoryLimitInBytes: 12 << 20}},
		{"one page size", "2MB:0", `{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}`, "", &res{HugepageLimits: []*huge{{PageSize: "2MB"}}}},
		{"one key", "memory.high:3", `{"unified":{"memory.high":"3"}}`, "", &res{Unified: map[string]string{"memory.high": "3"}}},
		{"oom_score_adj", "adj:6", `{}`, "6", &res{OomScoreAdj: 6}},
		{"the same oom_score_adj", "", `{}`, "", &res{OomScoreAdj: 5}},
	} {
		next := merge(now, tt.want)
		u := kernelUpdate(now, tt.want, next, v2node)
		write, err := json.Marshal(u.Resources)
		adj := ""
		if u.OOMScoreAdj != nil {
			adj = fmt.Sprint(*u.OOMScoreAdj)
		}
		if err != nil || string(write) != tt.write || adj != tt.adj {
			t.Errorf("%s: writes %s and %q, %v, want %s and %q", tt.name, write, adj, err, tt.write, tt.adj)
		}
		if got := difference(now, next); got != tt.next {
			t.Errorf("%s: changes %s, want %s", tt.name, got, tt.next)
		}
		if again := merge(next, tt.want); difference(next, again) != "" {
			t.Errorf("%s: a second time it changes %s", tt.name, difference(next, again))
		}
	}
	if !proto.Equal(now, kept) {
		t.Error("the record was changed in place")
	}
}

// difference is what b has that a has not.
func difference(a, b *res) string {
	var parts []string
	add := func(different bool, format string, args ...any) {
		if different {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(a.CpusetCpus != b.CpusetCpus, "cpusetCpus:%s", b.CpusetCpus)
	add(a.CpuPeriod != b.CpuPeriod, "cpuPeriod:%d", b.CpuPeriod)
	add(a.CpuQuota != b.CpuQuota, "cpuQuota:%d", b.CpuQuota)
	add(a.CpuShares != b.CpuShares, "cpuShares:%d", b.CpuShares)
	add(a.MemoryLimitInBytes != b.MemoryLimitInBytes, "memory:%d", b.MemoryLimitInBytes>>20)
	add(a.MemorySwapLimitInBytes != b.MemorySwapLimitInBytes, "swap:%d", b.MemorySwapLimitInBytes>>20)
	add(a.OomScoreAdj != b.OomScoreAdj, "adj:%d", b.OomScoreAdj)
	sizes := func(r *res) map[string]uint64 {
		m := map[string]uint64{}
		for _, l := range r.HugepageLimits {
			m[l.PageSize] = l.Limit
		}
		return m
	}
	for size, limit := range sizes(b) {
		was, known := sizes(a)[size]
		add(!known || was != limit, "%s:%d", size, limit)
	}
	add(len(sizes(a)) != len(b.HugepageLimits), "sizes")
	for key, value := range b.Unified {
		add(a.Unified[key] != value, "%s:%s", key, value)
	}
	add(len(a.Unified) != len(b.Unified), "keys")
	return strings.Join(parts, " ")
}

// A record holds what it may use as people read it, and one of a newer version
// is read.
func TestResourcesInARecord(t *testing.T) {
	rec := containerRecord{Resources: &resources{&res{CpuShares: 7, Unified: map[string]string{"memory.low": "1"}}}}
	data, err := json.Marshal(rec)
	if err != nil || !strings.Contains(string(data), `"Resources":{"cpuShares":"7","unified":{"memory.low":"1"}}`) {
		t.Errorf("%s, %v", data, err)
	}
	var back containerRecord
	if err := json.Unmarshal(data, &back); err != nil || !proto.Equal(back.Resources, rec.Resources) {
		t.Errorf("%v, %v", back.Resources, err)
	}
	for text, want := range map[string]*resources{
		`{}`: nil,
		`{"Resources":{"cpuShares":"7","tomorrow":[1]}}`: {&res{CpuShares: 7}},
	} {
		var rec containerRecord
		if err := json.Unmarshal([]byte(text), &rec); err != nil || (want == nil) != (rec.Resources == nil) || want != nil && !proto.Equal(rec.Resources, want) {
			t.Errorf("%s: %v, %v", text, rec.Resources, err)
		}
	}
}
