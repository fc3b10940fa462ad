package cni

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A host port answers over each family, to the host, to another machine, to
// another pod and to the pod itself.
func TestHostPorts(t *testing.T) {
	n := newNetwork(t)
	server := newPod(t, "server",
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: "udp"},
		PortMapping{ContainerPort: 9, Protocol: "tcp"})
	other := newPod(t, "other")
	got := add(t, n, server)
	add(t, n, other)
	serve(t, server)
	outside := newMachine(t)

	hosts := []string{"198.51.100.1"}
	if hostHasIPv6() {
		hosts = append(hosts, "2001:db8:51::1")
	}
	places := map[string]func(func() error){
		"host":        func(f func() error) { noError(t, f()) },
		"machine":     func(f func() error) { inNS(t, outside, f) },
		"other pod":   func(f func() error) { inPod(t, other, f) },
		"the pod":     func(f func() error) { inPod(t, server, f) },
		"host itself": nil, // 127.0.0.1, below
	}
	for place, in := range places {
		addresses := hosts
		if in == nil {
			addresses, in = []string{"127.0.0.1"}, places["host"]
		}
		for _, host := range addresses {
			t.Run(place+" "+host, func(t *testing.T) {
				in(func() error { return ask("tcp", net.JoinHostPort(host, "8080")) })
				in(func() error { return ask("udp", net.JoinHostPort(host, "5353")) })
			})
		}
	}
	for _, ip := range got.IPs {
		inPod(t, other, func() error { return ask("tcp", net.JoinHostPort(ip.String(), "80")) })
	}

	del(t, n, server)
	if err := ask("tcp", "127.0.0.1:8080"); err == nil {
		t.Error("the host port answers after Del")
	}
	del(t, n, other)
}

func TestHostPortOnOneAddress(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a", PortMapping{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	add(t, n, pod)
	serve(t, pod)
	outside := newMachine(t)

	noError(t, ask("tcp", "127.0.0.1:8080"))
	inNS(t, outside, func() error {
		if ask("tcp", "198.51.100.1:8080") == nil {
			t.Error("answers on another address than its own")
		}
		return nil
	})
	del(t, n, pod)
}

// serve answers every request to tcp port 80 and udp port 53 in the pod.
func serve(t *testing.T, pod Pod) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	inPod(t, pod, func() (err error) {
		if tcp, err = net.Listen("tcp", ":80"); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", ":53")
		return err
	})
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "hello")
			conn.Close()
		}
	})
	served.Go(func() {
		buf := make([]byte, 64)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo([]byte("hello\n"), from)
		}
	})
	t.Cleanup(func() {
		tcp.Close()
		udp.Close()
		served.Wait()
	})
}

// ask sends something to a server and wants its hello.
func ask(network, address string) error {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if network == "udp" {
		if _, err := fmt.Fprintln(conn, "hi"); err != nil {
			return err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s %s: %w", network, address, err)
	}
	if line != "hello\n" {
		return fmt.Errorf("%s %s: answered %q", network, address, line)
	}
	return nil
}

// newMachine makes a machine on a link of the host, which is 198.51.100.1 and
// 2001:db8:51::1 there, and returns its network namespace.
func newMachine(t *testing.T) (netns string) {
	t.Helper()
	netns = pinNetNS(t)
	ns, err := os.Open(netns)
	noError(t, err)
	defer ns.Close()
	host := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "link0"}, PeerName: "link1", PeerNamespace: netlink.NsFd(ns.Fd())}
	noError(t, netlink.LinkAdd(host))
	t.Cleanup(func() { noError(t, netlink.LinkDel(host)) })
	noError(t, address("link0", "198.51.100.1/24", "2001:db8:51::1/64"))
	inNS(t, netns, func() error { return address("link1", "198.51.100.2/24", "2001:db8:51::2/64") })
	awaitLocal(t, "2001:db8:51::1")
	inNS(t, netns, func() error { awaitLocal(t, "2001:db8:51::2"); return nil })
	return netns
}

// awaitLocal waits until the kernel knows the address as its own, which it does
// once it has noticed that both ends of the link are up.
func awaitLocal(t *testing.T, addr string) {
	t.Helper()
	if !hostHasIPv6() {
		return
	}
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(10 * time.Second)
	for {
		routes, err := netlink.RouteGet(net.ParseIP(addr))
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Errorf("%s is not local: %v, %v", addr, routes, err)
			return
		}
	}
}

func address(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			if !hostHasIPv6() {
				continue
			}
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nil
}
