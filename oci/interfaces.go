package oci

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is what one network interface has carried since it was made. Received
// and transmitted are as the pod sees them.
type Interface struct {
	Name              string
	RxBytes, RxErrors uint64
	TxBytes, TxErrors uint64
}

// linkTimeout bounds one answer of the kernel, which may wait for a lock that is
// held over changes of any network namespace.
const linkTimeout = 2 * time.Second

// interfaces reads those of the network namespace at path, in the order in which
// they were made, from one dump. None if the namespace is gone.
func (g *gauge) interfaces(path string) ([]Interface, error) {
	if g.links == nil {
		links, err := dialNetNS(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		g.links = links
	}
	list, err := g.links.LinkList()
	for tries := 1; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 3; tries++ { // one came or went meanwhile
		list, err = g.links.LinkList()
	}
	if err != nil {
		g.links.Close() // the next answer might be to this question
		g.links = nil
		return nil, fmt.Errorf("list interfaces of %s: %w", path, err)
	}
	var all []Interface
	for _, link := range list {
		a := link.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		all = append(all, Interface{
			Name:    a.Name,
			RxBytes: a.Statistics.RxBytes, RxErrors: a.Statistics.RxErrors,
			TxBytes: a.Statistics.TxBytes, TxErrors: a.Statistics.TxErrors,
		})
	}
	return all, nil
}

// dialNetNS opens a netlink socket in the network namespace at path. A socket
// stays in the namespace that it was made in, whoever uses it.
func dialNetNS(path string) (links *netlink.Handle, err error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	dialled := make(chan struct{})
	go onThread(func() {
		defer close(dialled)
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
	})
	<-dialled
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	if err := links.SetSocketTimeout(linkTimeout); err != nil {
		links.Close()
		return nil, err
	}
	return links, nil
}

// onThread calls f on a thread that ends with the calling goroutine, so that f
// may leave it in another namespace. The process's first thread does not end:
// while it is locked, f gets another.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}
