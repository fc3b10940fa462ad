package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/oci"
)

// usage is of something that has used a bit of everything.
func usage() oci.Usage {
	cores := uint64(250_000_000)
	u := oci.Usage{NanoCores: &cores}
	u.At = time.Unix(100, 7)
	u.CPU = &oci.CPU{Usage: 3 * time.Second}
	u.Memory = &oci.Memory{Usage: 100, WorkingSet: 60, RSS: 40, Limit: 200, MinorFaults: 9, MajorFaults: 2}
	u.Swap = &oci.Swap{Usage: 5, Limit: 50}
	u.Pressure.CPU = &oci.Pressure{Some: oci.Stall{Total: time.Millisecond, Avg10: 1, Avg60: 2, Avg300: 3}}
	u.Pressure.Memory = &oci.Pressure{Full: oci.Stall{Total: time.Microsecond}}
	u.Pressure.IO = &oci.Pressure{Some: oci.Stall{Avg10: 0.5}}
	return u
}

func TestContainerStats(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.world.usage = usage()
		m.world.layer = image.Usage{Mountpoint: "/var/lib/berth", Bytes: 4096, Inodes: 3, At: time.Unix(90, 0)}
		m.must("run")
		config := containerConfig("x")
		config.Annotations = map[string]string{"note": "kept"}
		c, err := m.pod("a").CreateContainer(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		attributes := &runtimeapi.ContainerAttributes{Id: c.ID(), Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations}
		layer := &runtimeapi.FilesystemUsage{
			Timestamp: 90e9, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/var/lib/berth"}, UsedBytes: number64(4096), InodesUsed: number64(3),
		}
		want := &runtimeapi.ContainerStats{Attributes: attributes, WritableLayer: layer}
		same := func(when string, want *runtimeapi.ContainerStats) {
			t.Helper()
			if got, err := c.Stats(t.Context()); err != nil || !proto.Equal(got, want) {
				t.Errorf("%s: %v, %v\nwant %v", when, got, err, want)
			}
		}
		same("created", want)
		m.must("start")
		none := &runtimeapi.PsiData{}
		full := &runtimeapi.ContainerStats{
			Attributes: attributes, WritableLayer: layer,
			Cpu: &runtimeapi.CpuUsage{
				Timestamp: 100e9 + 7, UsageCoreNanoSeconds: number64(3e9), UsageNanoCores: number64(250e6),
				Psi: &runtimeapi.PsiStats{Full: none, Some: &runtimeapi.PsiData{Total: 1e6, Avg10: 1, Avg60: 2, Avg300: 3}},
			},
			Memory: &runtimeapi.MemoryUsage{
				Timestamp: 100e9 + 7, WorkingSetBytes: number64(60), AvailableBytes: number64(140), UsageBytes: number64(100),
				RssBytes: number64(40), PageFaults: number64(9), MajorPageFaults: number64(2),
				Psi: &runtimeapi.PsiStats{Full: &runtimeapi.PsiData{Total: 1e3}, Some: none},
			},
			Swap: &runtimeapi.SwapUsage{Timestamp: 100e9 + 7, SwapAvailableBytes: number64(45), SwapUsageBytes: number64(5)},
			Io:   &runtimeapi.IoUsage{Timestamp: 100e9 + 7, Psi: &runtimeapi.PsiStats{Full: none, Some: &runtimeapi.PsiData{Avg10: 0.5}}},
		}
		same("running", full)

		// What has no limit, or is not counted, is not said.
		m.world.usage.Memory.Limit, m.world.usage.Swap.Limit, m.world.usage.NanoCores = oci.NoLimit, oci.NoLimit, nil
		m.world.usage.Pressure.CPU, m.world.usage.Pressure.Memory, m.world.usage.Pressure.IO = nil, nil, nil
		m.world.layer = image.Usage{Mountpoint: "/var/lib/berth"}
		got, err := c.Stats(t.Context())
		if err != nil || got.Memory.AvailableBytes != nil || got.Swap.SwapAvailableBytes != nil || got.Cpu.UsageNanoCores != nil || got.Io != nil || got.Cpu.Psi != nil ||
			got.WritableLayer.UsedBytes != nil || got.WritableLayer.InodesUsed != nil || got.WritableLayer.Timestamp == 0 || got.WritableLayer.FsId.GetMountpoint() == "" {
			t.Errorf("without limits, PSI and a measured layer: %v, %v", got, err)
		}
		// More in use than the limit, which was lowered.
		m.world.usage.Memory.Limit = 50
		if got, err := c.Stats(t.Context()); err != nil || got.Memory.AvailableBytes.GetValue() != 0 {
			t.Errorf("above its limit: %v, %v", got, err)
		}
		m.world.usage = oci.Usage{}
		m.world.usage.At = time.Unix(100, 7)
		m.world.layer = image.Usage{Mountpoint: "/var/lib/berth", Bytes: 4096, Inodes: 3, At: time.Unix(90, 0)}
		same("on a kernel that counts nothing", want)

		m.must("stop pod")
		same("ended", want)
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Stats(t.Context()); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed: %v", err)
		}
	})
}

func TestPodStats(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.world.usage = usage()
		m.world.interfaces = []oci.Interface{{Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 2, RxErrors: 3, TxBytes: 4, TxErrors: 5}, {Name: "net2"}}
		m.must("run", "create", "start")
		p := m.pod("a")
		got, err := p.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a, linux := got.Attributes, got.Linux
		if a.Id != p.ID() || a.Metadata.GetName() != "a" || a.Labels[UIDLabel] != "uid-a" {
			t.Errorf("attributes %v", a)
		}
		want := &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: number64(2), RxErrors: number64(3), TxBytes: number64(4), TxErrors: number64(5)}
		if n := linux.Network; n.Timestamp == 0 || !proto.Equal(n.DefaultInterface, want) || len(n.Interfaces) != 3 || n.Interfaces[0].Name != "net1" || !proto.Equal(n.Interfaces[1], want) || n.Interfaces[2].Name != "net2" {
			t.Errorf("network %v", n)
		}
		if linux.Cpu.UsageCoreNanoSeconds.GetValue() != 3e9 || linux.Memory.WorkingSetBytes.GetValue() != 60 || linux.Io.GetPsi() == nil ||
			linux.Process.ProcessCount.GetValue() != 1 || linux.Process.Timestamp == 0 {
			t.Errorf("pod: %v", linux)
		}
		if len(linux.Containers) != 1 || linux.Containers[0].Attributes.Id != m.container("x").ID() || linux.Containers[0].Cpu == nil {
			t.Errorf("containers %v", linux.Containers)
		}
		// One container that cannot be read does not take the pod with it.
		m.world.broken = map[string]error{m.container("x").ID(): errInjected}
		if got, err := p.Stats(t.Context()); err != nil || got.Linux.Cpu == nil || len(got.Linux.Containers) != 0 {
			t.Errorf("with a broken container: %v, %v", got, err)
		}
		if _, err := m.container("x").Stats(t.Context()); !errors.Is(err, errInjected) {
			t.Errorf("the broken container itself: %v", err)
		}
		m.world.broken = map[string]error{p.ID(): errInjected}
		if _, err := p.Stats(t.Context()); !errors.Is(err, errInjected) {
			t.Errorf("broken: %v", err)
		}
		// The kubelet looks into the default interface of any network it is given.
		m.world.broken, m.world.interfaces = nil, nil
		if got, err := p.Stats(t.Context()); err != nil || got.Linux.Network != nil {
			t.Errorf("without interfaces: %v, %v", got, err)
		}
		m.world.interfaces = []oci.Interface{{Name: "tap0"}}
		if got, err := p.Stats(t.Context()); err != nil || got.Linux.Network.GetDefaultInterface().GetName() != "tap0" {
			t.Errorf("another interface: %v, %v", got, err)
		}
		m.must("stop pod")
		if got, err := p.Stats(t.Context()); err != nil || got.Attributes.GetId() != p.ID() || !proto.Equal(got.Linux, &runtimeapi.LinuxPodSandboxStats{}) {
			t.Errorf("stopped: %v, %v", got, err)
		}
		if err := p.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Stats(t.Context()); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed: %v", err)
		}
	})
}

// A list is of what runs, whatever happens to one of them meanwhile.
func TestStatsOfLists(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.world.usage = usage()
		m.world.broken = map[string]error{}
		var pods []*Pod
		var all []*Container
		for i := range 6 {
			p, err := m.Run(t.Context(), RunRequest{Config: podConfig(fmt.Sprint("p", i))})
			if err != nil {
				t.Fatal(err)
			}
			c, err := p.CreateContainer(t.Context(), containerConfig("x"))
			if err != nil {
				t.Fatal(err)
			}
			if i != 1 { // one is never started
				if err := c.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			pods, all = append(pods, p), append(all, c)
		}
		m.world.broken[all[2].ID()] = errInjected       // whose files cannot be read
		m.world.broken[all[3].ID()] = oci.ErrNotRunning // whose cgroup is gone already
		m.world.broken[pods[3].ID()] = errInjected
		if err := pods[4].Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := ContainerStats(t.Context(), all)
		if err != nil || len(got) != 2 || got[0].Attributes.Id != all[0].ID() || got[1].Attributes.Id != all[5].ID() {
			t.Errorf("containers: %v, %v", got, err)
		}
		podStats, err := PodStats(t.Context(), pods)
		if err != nil || len(podStats) != 4 {
			t.Fatalf("pods: %v, %v", podStats, err)
		}
		for i, want := range []*Pod{pods[0], pods[1], pods[2], pods[5]} {
			if podStats[i].Attributes.Id != want.ID() || podStats[i].Linux == nil {
				t.Errorf("pod %d: %v", i, podStats[i])
			}
		}
	})
}

// What is asked for again and again, of many, leaves no goroutine.
func TestStatsLeaveNoGoroutine(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.world.usage = usage()
		m.must("run")
		var all []*Container
		for i := range 100 {
			c, err := m.pod("a").CreateContainer(t.Context(), containerConfig(fmt.Sprint("c", i)))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		before := runtime.NumGoroutine()
		for range 10 {
			if got, err := ContainerStats(t.Context(), all); err != nil || len(got) != len(all) {
				t.Fatalf("%d, %v", len(got), err)
			}
		}
		if now := runtime.NumGoroutine(); now > before {
			t.Errorf("%d goroutines, %d before", now, before)
		}
	})
}
