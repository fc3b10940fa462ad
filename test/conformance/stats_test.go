package conformance

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

func (n *node) containerStats(t *testing.T, id string) *runtimeapi.ContainerStats {
	t.Helper()
	resp, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetStats()
}

func (n *node) podStats(t *testing.T, id string) *runtimeapi.PodSandboxStats {
	t.Helper()
	resp, err := n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetStats()
}

// kernelCPU is what the kernel says that a container has used, in nanoseconds.
func (n *node) kernelCPU(t *testing.T, pod, ctr string) uint64 {
	t.Helper()
	for file, unit := range map[string]uint64{
		"/sys/fs/cgroup/cpuacct%s/cpuacct.usage": 1, "/sys/fs/cgroup/cpu,cpuacct%s/cpuacct.usage": 1, "/sys/fs/cgroup%s/cpu.stat": 1000,
	} {
		text, err := os.ReadFile(fmt.Sprintf(file, filepath.Join("/berth", pod, ctr)))
		if err != nil {
			continue
		}
		number, _, _ := strings.Cut(strings.TrimPrefix(string(text), "usage_usec "), "\n")
		used, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return used * unit
	}
	t.Fatal("the kernel does not count CPU time")
	return 0
}

// What a container has burnt, holds, has written and received.
func TestStats(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		pod := n.runPod(t, config)
		main := n.shell("main", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; x=$(head -c 8388608 /dev/zero | tr '\\0' x); "+
			"head -c 1048576 /dev/zero >/big; mkdir /d; echo ready; sleep 1000 & wait; echo $x")
		main.Annotations = map[string]string{"note": "of main"}
		ctr := n.startContainer(t, pod, main)
		side := n.startContainer(t, pod, n.shell("side", forever))
		n.awaitReady(t, ctr)
		n.awaitReady(t, side)

		before := n.kernelCPU(t, pod, ctr)
		c := n.containerStats(t, ctr)
		after := n.kernelCPU(t, pod, ctr)
		want := &runtimeapi.ContainerAttributes{Id: ctr, Metadata: main.Metadata, Labels: main.Labels, Annotations: main.Annotations}
		if !proto.Equal(c.GetAttributes(), want) {
			t.Errorf("attributes %v, want %v", c.GetAttributes(), want)
		}
		for what, timestamp := range map[string]int64{
			"cpu": c.GetCpu().GetTimestamp(), "memory": c.GetMemory().GetTimestamp(), "swap": c.GetSwap().GetTimestamp(),
			"writable layer": c.GetWritableLayer().GetTimestamp(), "io": c.GetIo().GetTimestamp(),
		} {
			if age := time.Since(time.Unix(0, timestamp)); age < 0 || age > time.Minute {
				t.Errorf("timestamp of %s: %d", what, timestamp)
			}
		}
		if used := c.GetCpu().GetUsageCoreNanoSeconds().GetValue(); used < before || used > after || used == 0 {
			t.Errorf("CPU %d, the kernel said %d and %d", used, before, after)
		}
		m := c.GetMemory()
		if m.GetRssBytes().GetValue() < 8<<20 || m.GetWorkingSetBytes().GetValue() < m.GetRssBytes().GetValue() ||
			m.GetUsageBytes().GetValue() < m.GetWorkingSetBytes().GetValue() || m.GetPageFaults().GetValue() == 0 || m.GetMajorPageFaults() == nil {
			t.Errorf("memory %v of a shell that holds 8 MiB", m)
		}
		if c.GetSwap().GetSwapUsageBytes() == nil || c.GetCpu().GetPsi() == nil || m.GetPsi() == nil || c.GetIo().GetPsi() == nil {
			t.Errorf("swap %v, PSI %v, %v, %v", c.GetSwap(), c.GetCpu().GetPsi(), m.GetPsi(), c.GetIo().GetPsi())
		}
		// Two readings, far enough apart for a rate.
		eventually(t, "there is a rate", func() bool { return n.containerStats(t, ctr).GetCpu().GetUsageNanoCores() != nil })
		n.checkWritableLayer(t, ctr)
		n.checkPodStats(t, pod, config, ctr, side)
	})
}

// checkWritableLayer waits until it is measured, as its files take.
func (n *node) checkWritableLayer(t *testing.T, ctr string) {
	t.Helper()
	if _, err := os.Stat(n.containerStats(t, ctr).GetWritableLayer().GetFsId().GetMountpoint()); err != nil {
		t.Errorf("cAdvisor could not look at it: %v", err)
	}
	eventually(t, "the written file shows", func() bool {
		l := n.containerStats(t, ctr).GetWritableLayer()
		return l.GetUsedBytes().GetValue() >= 1<<20 && l.GetUsedBytes().GetValue() < 2<<20 && l.GetInodesUsed().GetValue() >= 3
	})
	resp, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if fs := resp.GetContainerFilesystems(); err != nil || len(fs) != 1 || fs[0].GetUsedBytes().GetValue() < 1<<20 || fs[0].GetTimestamp() == 0 {
		t.Errorf("filesystem of containers %v, %v", fs, err)
	}
}

func (n *node) checkPodStats(t *testing.T, pod string, config *runtimeapi.PodSandboxConfig, ctrs ...string) {
	t.Helper()
	const datagram = 1000
	before := n.podStats(t, pod).GetLinux().GetNetwork().GetDefaultInterface()
	n.sendTo(t, pod, datagram)
	p := n.podStats(t, pod)
	want := &runtimeapi.PodSandboxAttributes{Id: pod, Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations}
	if !proto.Equal(p.GetAttributes(), want) {
		t.Errorf("attributes %v, want %v", p.GetAttributes(), want)
	}
	linux := p.GetLinux()
	eth0 := linux.GetNetwork().GetDefaultInterface()
	if eth0.GetName() != "eth0" || linux.GetNetwork().GetTimestamp() == 0 || eth0.GetTxErrors() == nil || eth0.GetRxErrors() == nil || eth0.GetTxBytes() == nil ||
		eth0.GetRxBytes().GetValue() < before.GetRxBytes().GetValue()+datagram {
		t.Errorf("network %v, before a datagram of %d bytes %v", linux.GetNetwork(), datagram, before)
	}
	if all := linux.GetNetwork().GetInterfaces(); len(all) != 1 || !proto.Equal(all[0], eth0) { // the kubelet's summary lists these
		t.Errorf("interfaces %v, want eth0 alone", all)
	}
	var sum, memory uint64
	for _, c := range linux.GetContainers() {
		sum += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory += c.GetMemory().GetRssBytes().GetValue()
	}
	again := n.podStats(t, pod).GetLinux()
	if len(linux.GetContainers()) != len(ctrs) || sum == 0 || again.GetCpu().GetUsageCoreNanoSeconds().GetValue() < sum || linux.GetMemory().GetRssBytes().GetValue() < 8<<20 {
		t.Errorf("pod: CPU %v, memory %v; its containers: %d, %d", again.GetCpu(), linux.GetMemory(), sum, memory)
	}
	if c := linux.GetProcess().GetProcessCount().GetValue(); c < 3 || c > 4 || linux.GetProcess().GetTimestamp() == 0 { // a shell sleeps in short naps
		t.Errorf("processes %v", linux.GetProcess())
	}
}

// sendTo sends a datagram to a port of the pod where nobody listens.
func (n *node) sendTo(t *testing.T, pod string, size int) {
	t.Helper()
	conn, err := net.Dial("udp", net.JoinHostPort(n.pod(t, pod).GetNetwork().GetIp(), "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	// The answer says that it has arrived.
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Fatalf("nobody refused the datagram: %v", err)
	}
}

// A pod on the host's network has none of its own, and its containers have all
// other numbers.
func TestStatsOnTheHostNetwork(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "host")
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		pod := n.runPod(t, config)
		ctr := n.startContainer(t, pod, n.shell("main", forever))
		linux := n.podStats(t, pod).GetLinux()
		if linux.GetNetwork() != nil || linux.GetCpu() == nil || len(linux.GetContainers()) != 1 || linux.GetContainers()[0].GetAttributes().GetId() != ctr {
			t.Errorf("stats %v", linux)
		}
	})
}

// A cgroup parent is the pod's cgroup: its numbers are the pod's.
func TestStatsOfACgroupParent(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		config.Linux.CgroupParent = "/berth/parent"
		pod := n.runPod(t, config)
		if linux := n.podStats(t, pod).GetLinux(); linux.GetNetwork().GetDefaultInterface() == nil || linux.GetProcess().GetProcessCount() == nil {
			t.Errorf("before its first container: %v", linux)
		}
		ctr := n.startContainer(t, pod, n.shell("main", "x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo ready; sleep 1000 & wait; echo $x"))
		n.awaitReady(t, ctr)
		if linux := n.podStats(t, pod).GetLinux(); linux.GetMemory().GetRssBytes().GetValue() < 8<<20 || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
			t.Errorf("stats %v", linux)
		}
	})
}

// Lists are of what runs, also while containers are killed and pods removed, and
// after berthd was killed.
func TestListStats(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		keep := n.runPod(t, podConfig(t, "keep"))
		ctr := n.startContainer(t, keep, n.shell("main", forever))
		n.create(t, keep, n.shell("idle", forever)) // never started
		var goes []string
		for i := range 4 {
			pod := n.runPod(t, podConfig(t, fmt.Sprint("goes", i)))
			n.startContainer(t, pod, n.shell("main", "exec sleep 1000"))
			goes = append(goes, pod)
		}
		if c, p := n.listStats(t); len(c) != 5 || len(p) != 5 {
			t.Errorf("listed %v, %v", c, p)
		}
		ended := make(chan error, 1)
		go func() {
			for _, pod := range goes {
				ctx := context.WithoutCancel(t.Context())
				if _, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
					ended <- err
					return
				}
				if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
		for ending := true; ending; {
			n.listStats(t)
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
				ending = false
			default:
			}
		}
		onlyOne := func(when string) {
			t.Helper()
			if c, p := n.listStats(t); len(c) != 1 || c[0] != ctr || len(p) != 1 || p[0] != keep {
				t.Errorf("%s: listed %v, %v, want %s, %s", when, c, p, ctr, keep)
			}
		}
		onlyOne("when the others are gone")
		n.killDaemon(t)
		n.startDaemon(t)
		onlyOne("by the next berthd")
		n.stopContainer(t, ctr, 10)
		if c, p := n.listStats(t); len(c) != 0 || len(p) != 1 {
			t.Errorf("when the last has ended: %v, %v", c, p)
		}
		if s := n.containerStats(t, ctr); s.GetAttributes().GetId() != ctr || s.GetWritableLayer().GetTimestamp() == 0 || s.GetCpu() != nil {
			t.Errorf("of one that has ended: %v", s)
		}
		n.stopPod(t, keep)
		n.removePod(t, keep)
		_, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: ctr})
		expect.Code(t, "a removed container", err, codes.NotFound)
		_, err = n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: keep})
		expect.Code(t, "a removed pod", err, codes.NotFound)
		_, err = n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{})
		expect.Code(t, "the kubelet's question at its start", err, codes.InvalidArgument)
	})
}

// listStats lists everything. No list may fail, whatever ends meanwhile.
func (n *node) listStats(t *testing.T) (containers, pods []string) {
	t.Helper()
	c, err := n.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.GetStats() {
		containers = append(containers, s.GetAttributes().GetId())
		if s.GetAttributes().GetMetadata().GetName() == "" || s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 {
			t.Errorf("incomplete: %v", s)
		}
	}
	p, err := n.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.GetStats() {
		pods = append(pods, s.GetAttributes().GetId())
		if s.GetAttributes().GetMetadata().GetName() == "" || s.GetLinux() == nil || s.GetLinux().GetNetwork() != nil && s.GetLinux().GetNetwork().GetDefaultInterface() == nil {
			t.Errorf("the kubelet would panic: %v", s)
		}
	}
	return containers, pods
}
