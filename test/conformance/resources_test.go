package conformance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/oci/cgroup"
	"berth/test/expect"
)

type resources = runtimeapi.LinuxContainerResources

const mib = 1 << 20

// limit reads a limit of a container's cgroup: the file of v1, or that of v2.
func limit(t *testing.T, path, controller, v1, v2 string) string {
	t.Helper()
	file := filepath.Join("/sys/fs/cgroup", controller, path, v1)
	if oci.FindControls().Unified {
		file = filepath.Join("/sys/fs/cgroup", path, v2)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// kernelLimits is what the kernel lets the container use, in v1's words but for
// the weight that v2 has instead of shares.
func kernelLimits(t *testing.T, path string) string {
	t.Helper()
	if oci.FindControls().Unified {
		quota, period, _ := strings.Cut(limit(t, path, "", "", "cpu.max"), " ")
		if quota == "max" {
			quota = "-1"
		}
		memory, swap := number(t, limit(t, path, "", "", "memory.max")), number(t, limit(t, path, "", "", "memory.swap.max"))
		return strings.Join([]string{
			"period " + period, "quota " + quota, "weight " + limit(t, path, "", "", "cpu.weight"),
			"cpus " + limit(t, path, "", "", "cpuset.cpus"), "memory " + fmt.Sprint(memory), "with swap " + fmt.Sprint(memory+swap),
		}, ", ")
	}
	return strings.Join([]string{
		"period " + limit(t, path, "cpu", "cpu.cfs_period_us", ""), "quota " + limit(t, path, "cpu", "cpu.cfs_quota_us", ""), "shares " + limit(t, path, "cpu", "cpu.shares", ""),
		"cpus " + limit(t, path, "cpuset", "cpuset.cpus", ""), "memory " + limit(t, path, "memory", "memory.limit_in_bytes", ""), "with swap " + limit(t, path, "memory", "memory.memsw.limit_in_bytes", ""),
	}, ", ")
}

// number reads a limit; -1 for none.
func number(t *testing.T, text string) int64 {
	t.Helper()
	if text == "max" {
		return -1
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kubepods is a pod's cgroup as the kubelet makes it; it ends with the test, after
// all pods.
func (n *node) kubepods(t *testing.T) string {
	t.Helper()
	path := fmt.Sprintf("/kubepods-%d/pod1", os.Getpid())
	for _, at := range cgroupMounts(t) {
		if err := os.MkdirAll(filepath.Join(at, path), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"/", filepath.Dir(path), path} {
			delegate(t, filepath.Join(at, dir))
		}
		for _, dir := range []string{filepath.Dir(path), path} {
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if have, err := os.ReadFile(filepath.Join(at, file)); err == nil {
					if err := os.WriteFile(filepath.Join(at, dir, file), have, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	t.Cleanup(func() {
		if n.berthd == nil {
			n.startDaemon(t)
		}
		if err := expect.NoPods(context.Background(), n); err != nil {
			t.Error(err)
		}
		if err := cgroup.Remove(filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	})
	return path
}

// delegate lets the cgroups below dir have every controller, where v2 has to be
// told.
func delegate(t *testing.T, dir string) {
	t.Helper()
	names, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(names)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// cgroupMounts are where the hierarchies are mounted.
func cgroupMounts(t *testing.T) (mounts []string) {
	t.Helper()
	if oci.FindControls().Unified {
		return []string{"/sys/fs/cgroup"}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup ") {
			mounts = append(mounts, f[4])
		}
	}
	return mounts
}

func (n *node) update(t *testing.T, id string, r *resources) error {
	t.Helper()
	_, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: r, Annotations: map[string]string{"cpu.shares": "77", "io.berth/memory": "1"},
	})
	return err
}

// hugePages limits those of 2 MiB, and allows none of 1 GiB if the CPU has them.
func hugePages(limit uint64) []*runtimeapi.HugepageLimit {
	limits := []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: limit}}
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil && strings.Contains(string(cpu), " pdpe1gb ") {
		limits = append(limits, &runtimeapi.HugepageLimit{PageSize: "1GB"})
	}
	return limits
}

// What a container may use is in the kernel as it was asked for, in the cgroup
// that the kubelet has made, and follows its updates.
func TestResources(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		podConfig := podConfig(t, "web")
		podConfig.Linux.CgroupParent = n.kubepods(t)
		pod := n.runPod(t, podConfig)
		config := n.shell("main", forever)
		config.Linux.Resources = &resources{
			CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 200, CpusetCpus: "0", MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib, OomScoreAdj: 300,
			HugepageLimits: hugePages(4 * mib),
		}
		id := n.create(t, pod, config)
		path := podConfig.Linux.CgroupParent + "/" + id
		if r := n.container(t, id).GetResources().GetLinux(); !proto.Equal(r, config.Linux.Resources) {
			t.Errorf("shows %v, want %v", r, config.Linux.Resources)
		}

		// Before it starts.
		if err := n.update(t, id, &resources{CpuShares: 400}); err != nil {
			t.Error(err)
		}
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		// The weight for 400 shares, with every runtime.
		words := strings.NewReplacer()
		if oci.FindControls().Unified {
			words = strings.NewReplacer("shares 400", "weight 49")
		}
		want := words.Replace("period 50000, quota 25000, shares 400, cpus 0, memory 67108864, with swap 67108864")
		if got := kernelLimits(t, path); got != want {
			t.Errorf("started: %s, want %s", got, want)
		}
		for file, want := range map[string]string{"hugetlb.2MB.limit_in_bytes": "4194304", "hugetlb.1GB.limit_in_bytes": "0"} {
			if strings.Contains(file, "1GB") && len(hugePages(0)) == 1 {
				continue
			}
			if got := limit(t, path, "hugetlb", file, strings.Replace(file, "limit_in_bytes", "max", 1)); got != want {
				t.Errorf("%s is %s, want %s", file, got, want)
			}
		}
		oomScoreAdj := func() string { return n.exec(t, id, "cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj") }
		if got := oomScoreAdj(); got != "300\n300" {
			t.Errorf("oom_score_adj of main and exec: %q", got)
		}

		// While it runs: each alone, and a call that is repeated.
		for _, step := range []struct {
			r    *resources
			want string
		}{
			{&resources{CpusetCpus: "0-1"}, "period 50000, quota 25000, shares 400, cpus 0-1, memory 67108864, with swap 67108864"},
			{&resources{CpuQuota: -1}, "period 50000, quota -1, shares 400, cpus 0-1, memory 67108864, with swap 67108864"},
			{&resources{CpuQuota: 30000, CpuPeriod: 60000}, "period 60000, quota 30000, shares 400, cpus 0-1, memory 67108864, with swap 67108864"},
			{&resources{MemoryLimitInBytes: 128 * mib, MemorySwapLimitInBytes: 128 * mib}, "period 60000, quota 30000, shares 400, cpus 0-1, memory 134217728, with swap 134217728"},
			{&resources{MemoryLimitInBytes: 128 * mib}, "period 60000, quota 30000, shares 400, cpus 0-1, memory 134217728, with swap 134217728"},
			{&resources{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 32 * mib}, "period 60000, quota 30000, shares 400, cpus 0-1, memory 33554432, with swap 33554432"},
			{nil, "period 60000, quota 30000, shares 400, cpus 0-1, memory 33554432, with swap 33554432"},
		} {
			if err := n.update(t, id, step.r); err != nil {
				t.Errorf("%v: %v", step.r, err)
			}
			if got, want := kernelLimits(t, path), words.Replace(step.want); got != want {
				t.Errorf("after %v: %s, want %s", step.r, got, want)
			}
		}
		if err := n.update(t, id, &resources{OomScoreAdj: 500, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}}}); err != nil {
			t.Error(err)
		}
		// runc's exec begins with the old one.
		n.exec(t, id, "sh", "-c", `for pid in 1 self; do while [ "$(cat /proc/$pid/oom_score_adj)" != 500 ]; do :; done; done`)
		shown := &resources{
			CpuPeriod: 60000, CpuQuota: 30000, CpuShares: 400, CpusetCpus: "0-1", MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 32 * mib, OomScoreAdj: 500,
			HugepageLimits: hugePages(2 * mib),
		}
		n.killDaemon(t)
		n.startDaemon(t)
		if r := n.container(t, id).GetResources().GetLinux(); !proto.Equal(r, shown) {
			t.Errorf("after a crash it shows %v, want %v", r, shown)
		}
	})
}

// Guards against an update that is half done, or shown and not done.
func TestRefusedUpdates(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		podConfig := podConfig(t, "web")
		podConfig.Linux.CgroupParent = n.kubepods(t)
		pod := n.runPod(t, podConfig)
		config := n.shell("main", `head -c 24000000 /dev/zero >/dev/shm/x; `+forever)
		config.Linux.Resources = &resources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib, CpuShares: 100}
		id := n.startContainer(t, pod, config)
		n.awaitReady(t, id)
		path := podConfig.Linux.CgroupParent + "/" + id
		before, shown := kernelLimits(t, path), n.container(t, id).GetResources()
		for field, r := range map[string]*resources{
			"memory_swap_limit_in_bytes": {MemoryLimitInBytes: 128 * mib, CpuShares: 200},
			"memory_limit_in_bytes":      {MemoryLimitInBytes: mib, CpuShares: 200},
			"cpu_period":                 {CpuPeriod: 1, CpuShares: 200},
			"cpu_quota":                  {CpuQuota: -5, CpuShares: 200},
			"cpu_shares":                 {CpuShares: 1},
			"cpuset_cpus":                {CpusetCpus: "0-8000", CpuShares: 200},
			"cpuset_mems":                {CpusetMems: "9", CpuShares: 200},
			"hugepage_limits[0].page":    {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB"}}, CpuShares: 200},
			"oom_score_adj":              {OomScoreAdj: 2000, CpuShares: 200},
			`unified`:                    {Unified: map[string]string{"memory/high": "1"}, CpuShares: 200},
		} {
			expect.Code(t, field, n.update(t, id, r), codes.InvalidArgument, "linux.resources."+field)
		}
		err := n.update(t, id, &resources{MemoryLimitInBytes: 8 * mib, MemorySwapLimitInBytes: 8 * mib, CpuShares: 200, CpusetCpus: "0", OomScoreAdj: 400})
		expect.Code(t, "less than is in use", err, codes.Unknown, "usage")
		if got := kernelLimits(t, path); got != before {
			t.Errorf("%s, before it was %s", got, before)
		}
		if got := n.container(t, id).GetResources(); !proto.Equal(got, shown) {
			t.Errorf("shows %v, before it was %v", got, shown)
		}
		if got := n.exec(t, id, "cat", "/proc/1/oom_score_adj"); got != fmt.Sprint(shown.GetLinux().GetOomScoreAdj()) {
			t.Errorf("oom_score_adj is %s", got)
		}
		n.stopContainer(t, id, 0)
		expect.Code(t, "an exited container", n.update(t, id, &resources{CpuShares: 200}), codes.FailedPrecondition, "exited")
		_, err = n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Windows: &runtimeapi.WindowsContainerResources{}})
		expect.Code(t, "windows", err, codes.InvalidArgument, "windows")
	})
}

// The cgroup that a container sees is a new one below the pod's: labels and
// annotations, which a pod's author writes, change nothing of it.
func TestAnnotationsChangeNoCgroup(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		podConfig := podConfig(t, "web")
		podConfig.Linux.CgroupParent = n.kubepods(t)
		hostile := map[string]string{
			"org.systemd.property.MemoryMax": "1", "run.oci.systemd.subgroup": "../../x", "run.oci.systemd.force_cgroup_v1": "/sys/fs/cgroup", "run.oci.delegate-cgroup": "/../escape",
			"io.kubernetes.cri.cgroup": "/escape", "linux.resources.cpu.shares": "2", "run.oci.hooks.stdout": "/tmp/evil", "run.oci.handler": "wasm", "run.oci.mount_context_type": "rootcontext",
			"io.katacontainers.config.hypervisor.path": "/bin/evil",
		}
		podConfig.Annotations, podConfig.Labels = hostile, hostile
		pod := n.runPod(t, podConfig)
		plain := n.startContainer(t, pod, n.shell("plain", forever))
		config := n.shell("main", forever)
		config.Annotations, config.Labels = hostile, hostile
		id := n.startContainer(t, pod, config)
		parent := podConfig.Linux.CgroupParent
		if got, want := kernelLimits(t, parent+"/"+id), kernelLimits(t, parent+"/"+plain); got != want {
			t.Errorf("%s, without annotations %s", got, want)
		}
		if _, err := os.Stat("/tmp/evil"); err == nil {
			t.Error("an annotation made a file on the host")
		}
		pids, err := cgroup.Procs(parent + "/" + id)
		if err != nil || len(pids) == 0 {
			t.Fatalf("processes %v, %v", pids, err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); !strings.HasSuffix(f[2], parent+"/"+id) {
				t.Errorf("it is in %s", line)
			}
		}
	})
}

// hog takes memory until the kernel kills it.
const hog = `(x=aaaaaaaa; while :; do x=$x$x; done)`

func TestOOMKilled(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		for name, test := range map[string]struct {
			script, reason string
			code           int32
		}{
			"main":      {"exec sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'", "OOMKilled", 137},
			"child":     {hog + "; exit 3", "OOMKilled", 3},
			"good-end":  {hog + "; exit 0", "OOMKilled", 0},
			"own-kill":  {"sh -c 'kill -9 $$'; exit 137", "Error", 137},
			"good-life": {"exit 0", "Completed", 0},
		} {
			config := n.shell(name, test.script)
			config.Linux.Resources = &resources{MemoryLimitInBytes: 16 * mib, MemorySwapLimitInBytes: 16 * mib}
			c := n.exited(t, n.startContainer(t, pod, config))
			if c.GetReason() != test.reason || c.GetExitCode() != test.code {
				t.Errorf("%s: %q with code %d, want %q with %d", name, c.GetReason(), c.GetExitCode(), test.reason, test.code)
			}
		}
	})
}

// Nobody but the keeper saw it, and the pod was stopped before anybody asked.
func TestOOMKilledWithoutDaemon(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		config := n.shell("main", "while ! [ -e /go ]; do sleep 0.1; done; "+hog+"; exit 4")
		config.Linux.Resources = &resources{MemoryLimitInBytes: 16 * mib, MemorySwapLimitInBytes: 16 * mib}
		id := n.startContainer(t, pod, config)
		n.exec(t, id, "touch", "/go")
		n.killDaemon(t)
		eventually(t, "the exit is recorded", func() bool {
			_, err := os.Stat(filepath.Join(n.run, "pods", pod, "c", id, "exit"))
			return err == nil
		})
		n.startDaemon(t)
		n.stopPod(t, pod)
		if c := n.exited(t, id); c.GetReason() != "OOMKilled" || c.GetExitCode() != 4 {
			t.Errorf("%q with code %d", c.GetReason(), c.GetExitCode())
		}
	})
}

// A pod that forks without end is held by the limit that the kubelet gives its
// cgroup: other pods and the API go on, and it can be ended.
func TestForkBomb(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		bombs := podConfig(t, "bombs")
		bombs.Linux.CgroupParent = n.kubepods(t)
		pids := filepath.Join("/sys/fs/cgroup/pids", bombs.Linux.CgroupParent, "pids.max")
		if oci.FindControls().Unified {
			pids = filepath.Join("/sys/fs/cgroup", bombs.Linux.CgroupParent, "pids.max")
		}
		if err := os.WriteFile(pids, []byte("150"), 0o644); err != nil {
			t.Fatal(err)
		}
		bomb := n.startContainer(t, n.runPod(t, bombs), n.shell("bomb", `trap '' TERM; echo ready; on() { on & on & exit; }; on 2>/dev/null & while :; do wait; done`))
		n.awaitReady(t, bomb)
		pod := n.runPod(t, podConfig(t, "web"))
		other := n.startContainer(t, pod, n.shell("other", forever))
		for range 5 {
			if got := n.exec(t, other, "echo", "well"); got != "well" {
				t.Errorf("another pod says %q", got)
			}
			if c := n.container(t, bomb); c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the bomb is %v", c.GetState())
			}
		}
		n.stopContainer(t, bomb, 0)
		if c := n.container(t, bomb); c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("the bomb is %v", c.GetState())
		}
		if left, err := cgroup.Procs(bombs.Linux.CgroupParent); err != nil || len(left) > 0 {
			t.Errorf("processes are left: %v, %v", left, err)
		}
	})
}
