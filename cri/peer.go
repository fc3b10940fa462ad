package cri

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// errNoSocket: no socket of this network namespace has these two ends.
var errNoSocket = errors.New("no such socket")

// From linux/sock_diag.h and linux/inet_diag.h.
const (
	netlinkSockDiag  = 4
	sockDiagByFamily = 20
	lengthOfRequest  = 8 + 48 // struct inet_diag_req_v2
	lengthOfAnswer   = 72     // struct inet_diag_msg
	offsetOfID       = 4      // struct inet_diag_sockid in struct inet_diag_msg
	offsetOfUID      = 64
)

// socketOwner asks the kernel for the TCP socket of this network namespace that is
// bound to local and connected to remote, and returns its owner's uid. Where an
// address was translated on the way, no socket has both ends of a connection
// swapped: that is how a redirect shows.
func socketOwner(local, remote netip.AddrPort) (uid uint32, err error) {
	local, remote = unmapped(local), unmapped(remote)
	answer, err := askSockDiag(socketRequest(local, remote))
	if err != nil {
		return 0, fmt.Errorf("find socket %s to %s: %w", local, remote, err)
	}
	// A listening socket is found where no connected one is: it has no remote port.
	port := binary.BigEndian.Uint16(answer[offsetOfID+2:])
	if port != remote.Port() {
		return 0, fmt.Errorf("find socket %s to %s: %w", local, remote, errNoSocket)
	}
	return binary.NativeEndian.Uint32(answer[offsetOfUID:]), nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// socketRequest is a netlink message with a struct inet_diag_req_v2 for one socket.
func socketRequest(local, remote netip.AddrPort) []byte {
	family := byte(syscall.AF_INET)
	if local.Addr().Is6() {
		family = syscall.AF_INET6
	}
	m := make([]byte, syscall.NLMSG_HDRLEN, syscall.NLMSG_HDRLEN+lengthOfRequest)
	binary.NativeEndian.PutUint32(m, syscall.NLMSG_HDRLEN+lengthOfRequest)
	binary.NativeEndian.PutUint16(m[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(m[6:], syscall.NLM_F_REQUEST)
	m = append(m, family, syscall.IPPROTO_TCP, 0, 0)
	m = binary.NativeEndian.AppendUint32(m, ^uint32(0)) // any state
	m = binary.BigEndian.AppendUint16(m, local.Port())
	m = binary.BigEndian.AppendUint16(m, remote.Port())
	for _, a := range []netip.Addr{local.Addr(), remote.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		m = append(m, field[:]...)
	}
	m = binary.NativeEndian.AppendUint32(m, 0)             // any interface
	return binary.NativeEndian.AppendUint64(m, ^uint64(0)) // no cookie
}

// askSockDiag returns the struct inet_diag_msg that answers request.
func askSockDiag(request []byte) ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, request, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, err
	}
	// The kernel answers while it takes the request: there is nothing to wait for.
	buf := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, buf, syscall.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	if n < syscall.NLMSG_HDRLEN+4 {
		return nil, fmt.Errorf("the kernel answers with %d bytes", n)
	}
	kind, answer := binary.NativeEndian.Uint16(buf[4:]), buf[syscall.NLMSG_HDRLEN:n]
	switch {
	case kind == syscall.NLMSG_ERROR:
		errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(answer)))
		if errno == syscall.ENOENT {
			return nil, errNoSocket
		}
		return nil, fmt.Errorf("ask sock_diag (CONFIG_INET_DIAG): %w", errno)
	case len(answer) < lengthOfAnswer:
		return nil, fmt.Errorf("the kernel answers with %d bytes of type %d", n, kind)
	}
	return answer, nil
}

// checkPeer refuses a connection whose client is not a process of this host's
// network that runs as root or as berthd does, or that was redirected to get here.
func checkPeer(c net.Conn) error {
	uid, err := socketOwner(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	if err == nil && uid != 0 && int(uid) != os.Geteuid() {
		err = fmt.Errorf("the client on %s has uid %d", c.RemoteAddr(), uid)
	}
	return err
}

// proveReach connects to address and looks whether that is where it came: a NAT
// rule, such as that of a pod's hostPort, would carry tokens elsewhere.
func proveReach(address net.Addr) error {
	c, err := net.DialTimeout(address.Network(), address.String(), reachTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = socketOwner(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	return err
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
