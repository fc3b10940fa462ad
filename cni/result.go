package cni

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// newAttachment reads what Berth needs from a result of any spec version.
func newAttachment(r types.Result, netns string) (Attachment, error) {
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return Attachment{}, fmt.Errorf("read the plugins' result: %w", err)
	}
	ips := podIPs(result)
	if len(ips) == 0 {
		return Attachment{}, errors.New("the plugins' result has no address for the pod")
	}
	host, err := hostInterface(result, netns)
	if err != nil {
		return Attachment{}, err
	}
	return Attachment{IPs: ips, Interface: host}, nil
}

// podIPs are the addresses that are not said to be on an interface of the host. A
// result with no others means the pod all the same: some plugins name the host's end
// of the pair.
func podIPs(result *types100.Result) []netip.Addr {
	var pod, host []netip.Addr
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		of := &pod
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) && result.Interfaces[*i].Sandbox == "" {
			of = &host
		}
		*of = append(*of, addr.Unmap())
	}
	if len(pod) == 0 {
		return host
	}
	return pod
}

// hostInterface is that host interface of the result which is the other end of
// the pod's: others are bridges and the like, whose traffic is not the pod's.
func hostInterface(result *types100.Result, netns string) (string, error) {
	var peer int
	err := inNetNS(netns, func() error {
		link, err := netlink.LinkByName(IfName)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil // a network without one, such as the host's own by proxy
		}
		if err != nil {
			return fmt.Errorf("find the pod's %s: %w", IfName, err)
		}
		peer = link.Attrs().ParentIndex
		return nil
	})
	if err != nil || peer == 0 {
		return "", err
	}
	for _, i := range result.Interfaces {
		if i.Sandbox != "" {
			continue
		}
		if link, err := netlink.LinkByName(i.Name); err == nil && link.Attrs().Index == peer {
			return i.Name, nil
		}
	}
	return "", nil
}
