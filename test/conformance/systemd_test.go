package conformance

import (
	"os/exec"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci/cgroup"
	"berth/test/expect"
	"berth/test/leak"
)

// Guards against a systemd that takes from Berth's cgroups the controllers that it
// sees no need for itself, as it does in its own when units come and go.
func TestBesideSystemd(t *testing.T) {
	leak.NeedSystemd(t)
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		for name, parent := range map[string]string{"kubelet": n.kubepods(t), "own": ""} {
			podConfig := podConfig(t, name)
			podConfig.Linux.CgroupParent = parent
			pod := n.runPod(t, podConfig)
			if parent == "" {
				parent = "/berth/" + pod
			}
			config := n.shell("main", forever)
			config.Linux.Resources = &resources{CpuQuota: 20000, CpuPeriod: 100000, CpuShares: 400, CpusetCpus: "0", MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib}
			path := parent + "/" + n.startContainer(t, pod, config)
			before := kernelLimits(t, path)
			for _, command := range [][]string{
				{"daemon-reload"},
				{"set-property", "--runtime", "system.slice", "CPUWeight=50", "AllowedCPUs=0-1", "IOWeight=50"},
				{"set-property", "--runtime", "system.slice", "CPUWeight=", "AllowedCPUs=", "IOWeight="},
				{"daemon-reexec"},
			} {
				if out, err := exec.Command("systemctl", command...).CombinedOutput(); err != nil {
					t.Fatalf("systemctl %q: %v: %s", command, err, out)
				}
			}
			if after := kernelLimits(t, path); after != before {
				t.Errorf("%s: %s, before %s", name, after, before)
			}
			if pids, err := cgroup.Procs(path); err != nil || len(pids) == 0 {
				t.Errorf("%s: processes %v, %v", name, pids, err)
			}
		}
	})
}

// A kubelet that was told to use systemd's driver names slices, which are systemd's
// alone. It hears of it at its first pod.
func TestCgroupParentOfSystemd(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		for _, parent := range []string{"kubepods-besteffort-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"} {
			config := podConfig(t, "web")
			config.Linux.CgroupParent = parent
			_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			expect.Code(t, parent, err, codes.InvalidArgument, "linux.cgroup_parent", "cgroupfs")
		}
		c, err := n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || c.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
			t.Errorf("the driver is %v, %v", c, err)
		}
	})
}
