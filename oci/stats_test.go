package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/oci/cgroup"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a container has burnt, allocated and faulted is what the kernel's own files
// say before and after.
func TestStats(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo ready; read y; echo $x")
		c.stdin = true
		if _, err := r.Stats(c.ctx, c.Container); !errors.Is(err, ErrNotRunning) {
			t.Errorf("before the start: %v", err)
		}
		c.start()
		c.awaitOutput("ready")
		before := c.kernelCPU()
		u, err := r.Stats(c.ctx, c.Container)
		if err != nil {
			t.Fatal(err)
		}
		if after := c.kernelCPU(); u.CPU.Usage < before || u.CPU.Usage > after || u.CPU.Usage == 0 {
			t.Errorf("CPU %v, the kernel said %v and %v", u.CPU.Usage, before, after)
		}
		if m := u.Memory; m.RSS < 8<<20 || m.WorkingSet < m.RSS || m.Usage < m.WorkingSet || m.MinorFaults == 0 || m.Limit != NoLimit {
			t.Errorf("memory %+v of a shell that holds 8 MiB", m)
		}
		if u.NanoCores != nil || time.Since(u.At) > time.Minute {
			t.Errorf("the first reading: %+v", u)
		}
		if u.Pressure.CPU == nil || u.Pressure.Memory == nil || u.Pressure.IO == nil {
			t.Errorf("pressure %+v", u.Pressure)
		}
		// As if it had been asked for a while ago, when it had used nothing.
		g := r.gauges.get(c.ID)
		g.mu.Lock()
		g.cpu.newer = reading{time.Now().Add(-window), 0}
		g.mu.Unlock()
		if u, err = r.Stats(c.ctx, c.Container); err != nil || u.NanoCores == nil || *u.NanoCores == 0 || *u.NanoCores > uint64(u.CPU.Usage) {
			t.Errorf("cores: %+v, %v", u.NanoCores, err)
		}
		c.write("\n")
		c.wait()
		r.empty(t)
	})
}

// kernelCPU is what the kernel says of the container's CPU time.
func (c *container) kernelCPU() time.Duration {
	c.t.Helper()
	for _, name := range []string{"/sys/fs/cgroup/cpuacct" + c.Cgroup + "/cpuacct.usage", "/sys/fs/cgroup/cpu,cpuacct" + c.Cgroup + "/cpuacct.usage"} {
		if b, err := os.ReadFile(name); err == nil {
			var n int64
			if _, err := fmt.Sscan(string(b), &n); err != nil {
				c.t.Fatal(err)
			}
			return time.Duration(n)
		}
	}
	b, err := os.ReadFile(filepath.Join(cgroup.Unified(), c.Cgroup, "cpu.stat"))
	if err != nil {
		c.t.Fatal(err)
	}
	var n int64
	if _, err := fmt.Sscanf(string(b), "usage_usec %d", &n); err != nil {
		c.t.Fatal(err)
	}
	return time.Duration(n) * time.Microsecond
}

// A container that is killed and removed while it is asked for is one that does
// not run, never another error, and leaves no open file.
func TestStatsOfAContainerThatGoes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for range 5 {
			c := n.container(r, "exec sleep 1000")
			c.start()
			ctx, cancel := context.WithCancel(c.ctx)
			var asking sync.WaitGroup
			for range 4 {
				asking.Go(func() {
					for ctx.Err() == nil {
						if _, err := r.Stats(c.ctx, c.Container); err != nil && !errors.Is(err, ErrNotRunning) {
							t.Errorf("stats: %v", err)
							return
						}
					}
				})
			}
			if err := r.Kill(c.ctx, c.Container); err != nil {
				t.Error(err)
			}
			c.wait()
			if err := r.Remove(c.ctx, c.Container); err != nil {
				t.Error(err)
			}
			if _, err := r.Stats(c.ctx, c.Container); !errors.Is(err, ErrNotRunning) {
				t.Errorf("after its removal: %v", err)
			}
			cancel()
			asking.Wait()
		}
		r.empty(t)
	})
}

// empty fails t if something is still open for stats.
func (r *Runtime) empty(t *testing.T) {
	t.Helper()
	r.gauges.mu.Lock()
	defer r.gauges.mu.Unlock()
	if len(r.gauges.byID) > 0 {
		t.Errorf("%d gauges are left", len(r.gauges.byID))
	}
}

// Directories that stay open between two readings go with their containers, and so
// does everything of a pod that never had a cgroup.
func TestStatsOfManyLeaveNothingOpen(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	dir := t.TempDir()
	var all []Container
	for i := range 100 {
		c := Container{ID: fmt.Sprintf("many-%d", i), Dir: dir, Cgroup: fmt.Sprintf("%s/many/%d", CgroupRoot, i)}
		if err := makeCgroup(c.Cgroup); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := r.Remove(n.ctx, all[0]); err != nil { // opens what the client keeps
		t.Fatal(err)
	}
	all = all[1:]
	before := openFiles(t)
	for range 3 {
		for _, c := range all {
			if _, err := r.Stats(n.ctx, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if now := openFiles(t); now < before+len(all) || now > before+4*len(all) {
		t.Errorf("%d open files for %d containers", now-before, len(all))
	}
	for _, c := range all {
		if err := r.Remove(n.ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if now := openFiles(t); now != before {
		t.Errorf("%d open files, %d before", now, before)
	}
	r.empty(t)
	for i, c := range all { // asked for when they are gone
		if _, err := r.Stats(n.ctx, c); !errors.Is(err, ErrNotRunning) {
			t.Fatalf("after its removal: %v", err)
		}
		if _, err := r.PodStats(n.ctx, Pod{ID: fmt.Sprint(i), Cgroup: CgroupRoot + "/none", HostNet: true}, all[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	r.empty(t)
}

// makeCgroup makes a cgroup without processes in every hierarchy that is read.
func makeCgroup(path string) error {
	for _, hierarchy := range []string{"memory", "cpuacct", "cpu,cpuacct", "pids", "unified", "."} {
		h := filepath.Join("/sys/fs/cgroup", hierarchy)
		if _, err := os.Stat(filepath.Join(h, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(h, path), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A pod's cgroup with all its containers, its processes, and its interfaces as it
// sees them itself.
func TestPodStats(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		u, err := r.PodStats(n.ctx, p, nil)
		if err != nil || u.Processes != 1 || u.At.IsZero() {
			t.Errorf("a pod with its init alone: %+v, %v", u, err)
		}
		if len(u.Interfaces) != 0 {
			t.Errorf("interfaces of a pod with loopback alone: %+v", u.Interfaces)
		}
		peer := giveInterfaces(t, p.NetNS(), "eth0", "net1")
		var all []Container
		for range 2 {
			c := n.container(r, "sleep 1000 & echo ready; exec sleep 1000")
			c.Container.Cgroup = p.Cgroup + "/" + c.ID
			c.spec.Linux.CgroupsPath = c.Container.Cgroup
			c.start()
			c.awaitOutput("ready")
			all = append(all, c.Container)
		}
		send(t, peer, 1000)
		if u, err = r.PodStats(n.ctx, p, all); err != nil {
			t.Fatal(err)
		}
		if u.Processes != 5 {
			t.Errorf("%d processes, want the init and two of each container", u.Processes)
		}
		var sum time.Duration
		for _, c := range all {
			cu, err := r.Stats(n.ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			sum += cu.CPU.Usage
		}
		if again, err := r.PodStats(n.ctx, p, all); err != nil || again.CPU.Usage < sum || again.Memory.Usage == 0 {
			t.Errorf("the pod %+v %+v, its containers together %v: %v", again.CPU, again.Memory, sum, err)
		}
		if len(u.Interfaces) != 2 || u.Interfaces[0].Name != "eth0" || u.Interfaces[1].Name != "net1" {
			t.Fatalf("interfaces %+v", u.Interfaces)
		}
		host, err := netlink.LinkByName(peer)
		if err != nil {
			t.Fatal(err)
		}
		if eth0, sent := u.Interfaces[0], host.Attrs().Statistics.TxBytes; eth0.RxBytes < 1000 || eth0.RxBytes > sent {
			t.Errorf("eth0 %+v, its peer has sent %d", eth0, sent)
		}
	})
}

// giveInterfaces gives the namespace at path interfaces of these names, which are up, and
// returns the first one's peer outside.
func giveInterfaces(t *testing.T, path string, names ...string) (peer string) {
	t.Helper()
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inside, err := dialNetNS(path)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for i, name := range names {
		outside := fmt.Sprintf("bstat%d-%d", os.Getpid()%100000, i)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: outside}, PeerName: name, PeerNamespace: netlink.NsFd(ns.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(veth) }) // it goes with the namespace
		link, err := inside.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(inside.LinkSetUp(link), netlink.LinkSetUp(veth)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			peer = outside
		}
	}
	return peer
}

// send sends a frame of so many bytes out of an interface.
func send(t *testing.T, name string, size int) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	frame := append([]byte(strings.Repeat("\xff", 12)+"\x88\xb5"), make([]byte, size-14)...)
	if err := unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
}

// A pod that is removed while it is asked for leaves no socket, and no namespace
// that a socket keeps alive: its interface's peer goes at once.
func TestStatsOfAPodThatGoes(t *testing.T) {
	n := newNode(t)
	r := n.runtime("crun")
	for range 5 {
		p := n.pod(r)
		peer := giveInterfaces(t, p.NetNS(), "eth0")
		ctx, cancel := context.WithCancel(n.ctx)
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				for ctx.Err() == nil {
					if _, err := r.PodStats(n.ctx, p, nil); err != nil {
						t.Errorf("stats: %v", err)
						return
					}
				}
			})
		}
		if err := r.RemovePod(n.ctx, p); err != nil {
			t.Error(err)
		}
		cancel()
		asking.Wait()
		r.empty(t)
		await(t, "the namespace is gone with its interface", func() bool {
			_, err := netlink.LinkByName(peer)
			return errors.As(err, &netlink.LinkNotFoundError{})
		})
	}
}
