package cni

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// A pod's router advertisements reach the others, and only one that was told to
// listen believes them (CVE-2020-10749).
func TestRogueRouter(t *testing.T) {
	n := newNetwork(t)
	if !hostHasIPv6() {
		t.Skip("the host has no IPv6, so pods have none")
	}
	rogue, guarded, gullible := newPod(t, "rogue"), newPod(t, "guarded"), newPod(t, "gullible")
	for _, pod := range []Pod{rogue, guarded, gullible} {
		add(t, n, pod)
	}
	inPod(t, gullible, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte("1"), 0)
	})
	believed := awaitAddress(t, gullible, netip.MustParsePrefix("2001:db8:bad::/64"))
	inPod(t, rogue, advertise)
	<-believed

	inPod(t, guarded, func() error { wantNoTrace(t, "2001:db8:bad"); return nil })
	wantNoTrace(t, "2001:db8:bad")
	for _, pod := range []Pod{rogue, guarded, gullible} {
		del(t, n, pod)
	}
}

// advertise tells everybody on the link of eth0 that this is a router for
// 2001:db8:bad::/64 (RFC 4861, 4.2 and 4.6.2).
func advertise() error {
	link, err := netlink.LinkByName(IfName)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	prefix := netip.MustParseAddr("2001:db8:bad::").As16()
	day := []byte{0, 1, 0x51, 0x80}
	message := bytes.Join([][]byte{
		{134, 0, 0, 0, 64, 0, 7, 8}, // router lifetime 1800 s
		make([]byte, 8),
		{3, 4, 64, 0xc0}, day, day, make([]byte, 4), prefix[:],
	}, nil)
	to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(link.Attrs().Index)}
	return unix.Sendto(fd, message, 0, to)
}

// awaitAddress returns a channel that is closed once an interface of the pod has
// an address of the subnet.
func awaitAddress(t *testing.T, pod Pod, subnet netip.Prefix) <-chan struct{} {
	t.Helper()
	ns, err := netns.GetFromPath(pod.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	updates, done, got := make(chan netlink.AddrUpdate, 16), make(chan struct{}), make(chan struct{})
	if err := netlink.AddrSubscribeAt(ns, updates, done); err != nil {
		t.Fatal(err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		seen := false
		for update := range updates {
			addr, _ := netip.AddrFromSlice(update.LinkAddress.IP)
			if !seen && subnet.Contains(addr.Unmap()) {
				seen = true
				close(got)
			}
		}
	}()
	t.Cleanup(func() { close(done); <-watched })
	return got
}

// wantNoTrace looks for the prefix in this namespace's addresses and routes.
func wantNoTrace(t *testing.T, prefix string) {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	noError(t, err)
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	noError(t, err)
	for _, a := range addresses {
		if strings.Contains(a.String(), prefix) {
			t.Errorf("address %v", a)
		}
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_RA || strings.Contains(r.String(), prefix) {
			t.Errorf("route %v", r)
		}
	}
}

// The host goes on to take its own routes from its routers though it forwards
// now; what was set on purpose stays.
func TestHostKeepsItsRouters(t *testing.T) {
	n := newNetwork(t)
	if !hostHasIPv6() {
		t.Skip("the host has no IPv6")
	}
	const conf = "/proc/sys/net/ipv6/conf/"
	noError(t, os.WriteFile(conf+"all/forwarding", []byte("0"), 0))
	newMachine(t)
	noError(t, os.WriteFile(conf+"link0/accept_ra", []byte("1"), 0))
	noError(t, os.WriteFile(conf+"lo/accept_ra", []byte("0"), 0))
	before, err := os.ReadFile(conf + "default/accept_ra")
	noError(t, err)

	pod := newPod(t, "a")
	add(t, n, pod)
	for name, want := range map[string]string{"link0/accept_ra": "2", "lo/accept_ra": "0", "default/accept_ra": string(before), "all/forwarding": "1"} {
		if got, err := os.ReadFile(conf + name); err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(want) {
			t.Errorf("%s is %q, %v, want %s", name, got, err, want)
		}
	}
	del(t, n, pod)
}

// No work in a pod's namespace changes that of the process or of its threads.
func TestThreadsReturn(t *testing.T) {
	leak.NeedRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	noError(t, err)
	pin := pinNetNS(t)
	for range 50 {
		noError(t, setLoopbackUp(pin))
	}
	deadline := time.Now().Add(5 * time.Second)
	for _, path := range threads(t) {
		strayed := func() bool { ns, err := os.Readlink(path); return err == nil && ns != before }
		for strayed() && time.Now().Before(deadline) {
			runtime.Gosched() // it is ending
		}
		if strayed() {
			t.Errorf("%s is not %s", path, before)
		}
	}
}

// threads are the paths of all threads' network namespaces.
func threads(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	noError(t, err)
	return paths
}

func TestPodIPs(t *testing.T) {
	at := func(i int) *int { return &i }
	ip := func(s string, i *int) *types100.IPConfig {
		addr, subnet, err := net.ParseCIDR(s)
		noError(t, err)
		return &types100.IPConfig{Address: net.IPNet{IP: addr, Mask: subnet.Mask}, Interface: i}
	}
	// Some plugins name the host's end of the pair for the pod's addresses.
	for _, test := range []struct {
		ips  []*types100.IPConfig
		want string
	}{
		{[]*types100.IPConfig{ip("10.0.0.1/24", at(0)), ip("10.0.0.2/24", at(1)), ip("fd00::2/64", at(1)), ip("10.0.0.3/24", nil), ip("10.0.0.4/24", at(7))}, "10.0.0.2 fd00::2 10.0.0.3 10.0.0.4"},
		{[]*types100.IPConfig{ip("10.0.0.1/24", at(0)), ip("fd00::2/64", at(0))}, "10.0.0.1 fd00::2"},
		{nil, ""},
	} {
		got := podIPs(&types100.Result{Interfaces: []*types100.Interface{{Name: "veth0"}, {Name: "eth0", Sandbox: "/ns"}}, IPs: test.ips})
		var names []string
		for _, ip := range got {
			names = append(names, ip.String())
		}
		if strings.Join(names, " ") != test.want {
			t.Errorf("addresses %v, want %s", names, test.want)
		}
	}
}
