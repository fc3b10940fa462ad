package oci

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// listenIn listens in a network namespace and answers each connection with who it
// is.
func listenIn(t *testing.T, netns, address, who string) int {
	t.Helper()
	var l net.Listener
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		var ns *os.File
		if ns, err = os.Open(netns); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err != nil {
			return
		}
		if err = netlink.LinkSetUp(lo); err == nil {
			l, err = net.Listen("tcp", address)
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, who)
			c.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		accepting.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// A port is one of the pod's own network, whichever loopback address it is on,
// and never the host's.
func TestDial(t *testing.T) {
	n := newNode(t)
	r := n.runtime("crun")
	p := n.pod(r)
	host := listenIn(t, "/proc/self/ns/net", "127.0.0.1:0", "host")
	v4 := listenIn(t, p.NetNS(), "127.0.0.1:0", "pod 4")
	v6 := listenIn(t, p.NetNS(), "[::1]:0", "pod 6")
	onHost := p
	onHost.HostNet = true
	for _, test := range []struct {
		pod  Pod
		port int
		want string
	}{{p, v4, "pod 4"}, {p, v6, "pod 6"}, {onHost, host, "host"}} {
		for range 20 { // whatever thread it comes upon
			c, err := r.Dial(n.ctx, test.pod, uint16(test.port))
			if err != nil {
				t.Fatalf("%s: %v", test.want, err)
			}
			if b, err := io.ReadAll(c); err != nil || string(b) != test.want {
				t.Errorf("got %q, %v, want %q", b, err, test.want)
			}
			c.Close()
		}
	}
	if _, err := r.Dial(n.ctx, p, uint16(host)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the host's port in the pod: %v", err)
	}
	if err := r.RemovePod(n.ctx, p); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Dial(n.ctx, p, uint16(v4)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a pod that is gone: %v", err)
	}
	if left, _ := filepath.Glob(NetNSDir + "/berth-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
