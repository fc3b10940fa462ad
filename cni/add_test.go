package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/test/leak"
)

func TestBuiltinAttachment(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	got := add(t, n, pod)

	wantFamilies(t, got)
	if got.Interface == "" || got.Interface == builtinBridge {
		t.Errorf("host interface %q", got.Interface)
	}
	if _, err := netlink.LinkByName(got.Interface); err != nil {
		t.Errorf("host interface %s: %v", got.Interface, err)
	}
	inPod(t, pod, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if lo.Attrs().Flags&net.FlagUp == 0 {
			t.Error("lo is down")
		}
		return nil
	})
	del(t, n, pod)
	del(t, n, pod)
}

// Guards against tables that iptables makes when the plugins ask it, whatever
// backend they are told to use: they find nft and nothing else.
func TestBuiltinPluginsFindNFTAlone(t *testing.T) {
	n := newNetwork(t)
	log := filepath.Join(t.TempDir(), "log")
	script := fmt.Sprintf("#!/bin/sh\necho \"$CNI_COMMAND $PATH\" >>%s\nexec %s\n", log, leak.NeedTool(t, "bridge"))
	noError(t, os.WriteFile(filepath.Join(n.BinDirs[0], "bridge"), []byte(script), 0o755))
	pod := newPod(t, "a")
	add(t, n, pod)
	del(t, n, pod)
	said, err := os.ReadFile(log)
	noError(t, err)
	for _, command := range []string{"ADD", "DEL"} {
		_, rest, found := strings.Cut(string(said), command+" ")
		path, _, _ := strings.Cut(rest, "\n")
		var programs []string
		for _, dir := range filepath.SplitList(path) {
			entries, err := os.ReadDir(dir)
			noError(t, err)
			for _, e := range entries {
				programs = append(programs, e.Name())
			}
		}
		if !found || !slices.Equal(programs, []string{"nft"}) {
			t.Errorf("%s: the plugin finds %d programs in %q, want nft alone", command, len(programs), path)
		}
	}
}

// The first pod is reached at once over each family, however new the bridge is.
func TestFirstPodIsReached(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	serve(t, pod)
	for range 6 {
		got := add(t, n, pod)
		if ready, err := bridgeReady(); hostHasIPv6() && (!ready || err != nil) {
			t.Errorf("%s is ready for IPv6: %v, %v", builtinBridge, ready, err)
		}
		for _, ip := range got.IPs {
			noError(t, ask("tcp", net.JoinHostPort(ip.String(), "80")))
		}
		del(t, n, pod)
	}
}

// bridgeReady tells whether the bridge has a link-local address and all its IPv6
// addresses are in use.
func bridgeReady() (bool, error) {
	bridge, err := netlink.LinkByName(builtinBridge)
	if err != nil {
		return false, fmt.Errorf("find bridge %s: %w", builtinBridge, err)
	}
	addresses, err := netlink.AddrList(bridge, netlink.FAMILY_V6)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", builtinBridge, err)
	}
	var local bool
	for _, a := range addresses {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, nil
		}
		local = local || a.IP.IsLinkLocalUnicast()
	}
	return local, nil
}

// A pod in a user namespace of its own, which its network namespace belongs to.
func TestPodInUserNamespace(t *testing.T) {
	n := newNetwork(t)
	init := exec.Command(filepath.Join(n.BinDirs[0], "play"), "hang")
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	if err := init.Start(); err != nil {
		t.Fatal(err)
	}
	pod := newPod(t, "a")
	pod.NetNS = pinned(t, fmt.Sprintf("/proc/%d/ns/net", init.Process.Pid))
	init.Process.Kill()
	init.Wait()

	got := add(t, n, pod)
	serve(t, pod)
	noError(t, ask("tcp", net.JoinHostPort(got.IPs[0].String(), "80")))
	del(t, n, pod)
}

func wantFamilies(t *testing.T, got Attachment) {
	t.Helper()
	want := 1
	if hostHasIPv6() {
		want = 2
	}
	if len(got.IPs) != want || !got.IPs[0].Is4() {
		t.Errorf("addresses %v, want %d, IPv4 first", got.IPs, want)
	}
}

func inPod(t *testing.T, pod Pod, f func() error) {
	t.Helper()
	inNS(t, pod.NetNS, f)
}

func inNS(t *testing.T, netns string, f func() error) {
	t.Helper()
	noError(t, inNetNS(netns, f))
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestConcurrentPods(t *testing.T) {
	n := newNetwork(t)
	var pods []Pod
	for i := range 20 {
		pods = append(pods, newPod(t, fmt.Sprintf("pod%d", i), PortMapping{HostPort: uint16(9000 + i), ContainerPort: 80, Protocol: "tcp"}))
		serve(t, pods[i])
	}
	var mu sync.Mutex
	holders := map[netip.Addr]string{}
	all(pods, func(pod Pod) {
		got, err := n.Add(t.Context(), pod)
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, ip := range got.IPs {
			if other := holders[ip]; other != "" {
				t.Errorf("%v belongs to %s and %s", ip, other, pod.ID)
			}
			holders[ip] = pod.ID
		}
	})
	for _, pod := range pods {
		noError(t, ask("tcp", fmt.Sprintf("127.0.0.1:%d", pod.Ports[0].HostPort)))
	}
	all(pods, func(pod Pod) { noError(t, n.Del(t.Context(), pod)) })
}

// The bridge goes with its last pod while the next one comes.
func TestBridgeRace(t *testing.T) {
	n := newNetwork(t)
	var pods []Pod
	for i := range 3 {
		pods = append(pods, newPod(t, fmt.Sprintf("pod%d", i)))
		serve(t, pods[i])
	}
	all(pods, func(pod Pod) {
		for range 8 {
			got, err := n.Add(t.Context(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			noError(t, ask("tcp", net.JoinHostPort(got.IPs[0].String(), "80")))
			noError(t, n.Del(t.Context(), pod))
		}
	})
}

// What the built-in network's plugins keep is there for as long as a record is,
// whoever sweeps meanwhile.
func TestSweepRace(t *testing.T) {
	n := newNetwork(t)
	net, err := n.builtinNetwork()
	if err != nil {
		t.Fatal(err)
	}
	all([]Pod{{ID: "a"}, {ID: "b"}, {ID: "c"}}, func(pod Pod) {
		rec := newRecord(pod, net)
		for range 30 {
			noError(t, n.save(rec))
			if _, err := os.Stat(n.ipamDir()); err != nil {
				t.Error(err)
			}
			noError(t, n.forget(rec))
		}
	})
}

func all(pods []Pod, f func(Pod)) {
	var done sync.WaitGroup
	for _, pod := range pods {
		done.Go(func() { f(pod) })
	}
	done.Wait()
}

// An Add of an attached pod begins anew and leaves nothing of the first.
func TestAddAgain(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	add(t, n, pod)
	add(t, n, pod)
	serve(t, pod)
	noError(t, ask("tcp", "127.0.0.1:8080"))
	del(t, n, pod)
}

// The bridge's rules of a pod go even though its namespace is gone.
func TestDelWithoutNetNS(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	add(t, n, pod)
	unpin(t, pod.NetNS)
	del(t, n, Pod{ID: pod.ID})

	other := newPod(t, "b")
	add(t, n, other)
	unpin(t, other.NetNS)
	noError(t, os.Remove(other.NetNS))
	del(t, n, Pod{ID: other.ID})
}

func TestDelOfUnknown(t *testing.T) {
	n := newNetwork(t)
	del(t, n, Pod{ID: "nobody"})
	for _, id := range []string{"", "../results", "a/b"} {
		if err := n.Del(t.Context(), Pod{ID: id}); err == nil {
			t.Errorf("Del of %q: no error", id)
		}
	}
}

func TestInvalidPods(t *testing.T) {
	n := newNetwork(t)
	tests := map[string]struct {
		change func(*Pod)
		want   string
	}{
		"id is a path":    {func(p *Pod) { p.ID = "../a" }, "pod id"},
		"no namespace":    {func(p *Pod) { p.NetNS = "" }, "no network namespace"},
		"second argument": {func(p *Pod) { p.Name = "a;K8S_POD_NAMESPACE=kube-system" }, "pod name"},
		"protocol":        {func(p *Pod) { p.Ports = []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "TCP"}} }, "protocol"},
		"container port":  {func(p *Pod) { p.Ports = []PortMapping{{HostPort: 1, Protocol: "tcp"}} }, "no container port"},
		"no such netns":   {func(p *Pod) { p.NetNS = "/nonexistent" }, "/nonexistent"},
		"netns is a file": {func(p *Pod) { p.NetNS = "/etc/passwd" }, "/etc/passwd"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := Pod{ID: "a", NetNS: "/proc/self/ns/net", Name: "a", Builtin: true}
			test.change(&pod)
			if _, err := n.Add(t.Context(), pod); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

// While one call works on a pod, another waits no longer than its context.
func TestSecondCallWaits(t *testing.T) {
	n := newNetwork(t)
	unlock, err := n.pods.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Del(ctx, Pod{ID: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Del: %v", err)
	}
	unlock()
	del(t, n, Pod{ID: "a"})
	if len(n.pods.locks) != 0 {
		t.Errorf("locks left: %v", n.pods.locks)
	}
}

// A directory without configuration makes no pod's network the built-in one.
func TestBuiltinIsForThoseThatAskFor(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	pod.Builtin = false
	if _, err := n.Add(t.Context(), pod); !errors.Is(err, errNoFiles) {
		t.Errorf("Add: %v", err)
	}
	n.Builtin.Store(true)
	add(t, n, pod)
	del(t, n, pod)
}

// An operator's file wins at once, and pods leave by the network they came by.
func TestOperatorsFileWins(t *testing.T) {
	n := newNetwork(t)
	first, second := newPod(t, "first"), newPod(t, "second")
	add(t, n, first)

	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.0.0", log, nil))
	if got := add(t, n, second); got.IPs[0] != netip.MustParseAddr("192.0.2.77") {
		t.Errorf("second pod has %v", got.IPs)
	}
	del(t, n, first)
	wantLog(t, log, "ADD second")

	noError(t, os.RemoveAll(n.ConfDir))
	del(t, n, second)
	wantLog(t, log, "ADD second", "DEL second")
}

// playList is a network of the plugin play.
func playList(version, log string, on map[string]string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"site","plugins":[%s]}`, version, playPart(log, on))
}

func playPart(log string, on map[string]string) string {
	var actions []string
	for command, action := range on {
		actions = append(actions, fmt.Sprintf("%q:%q", command, action))
	}
	return fmt.Sprintf(`{"type":"play","log":%q,"on":{%s}}`, log, strings.Join(actions, ","))
}

func wantLog(t *testing.T, log string, want ...string) {
	t.Helper()
	data, _ := os.ReadFile(log)
	if got := strings.TrimSpace(string(data)); got != strings.Join(want, "\n") {
		t.Errorf("plugin calls:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}
