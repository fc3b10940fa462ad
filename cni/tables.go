package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A pluginTable is a table of nftables that the reference plugins make and never
// remove. Every runtime on the node that uses these plugins shares it.
type pluginTable struct {
	family uint8
	name   string
	shared []string // chains whose rules are there for all pods
	perPod []string // chains with rules of pods
}

var pluginTables = []pluginTable{
	{
		family: unix.NFPROTO_INET,
		name:   "cni_plugins_masquerade",
		shared: []string{"postrouting"},
		perPod: []string{"masq_checks"},
	},
	hostPortTable(unix.NFPROTO_IPV4),
	hostPortTable(unix.NFPROTO_IPV6),
}

func hostPortTable(family uint8) pluginTable {
	return pluginTable{
		family: family,
		name:   "cni_hostport",
		shared: []string{"prerouting", "output", "hostports_all"},
		perPod: []string{"hostports", "hostip_hostports", "masquerading"},
	}
}

// Attributes of linux/netfilter/nf_tables.h.
const (
	ruleTable, ruleChain  = 1, 2
	chainTable, chainName = 1, 3
	tableName             = 1
)

// removeIfUnused removes the table unless any pod of anybody has a rule in it or
// it has a chain that is not known here. One transaction looks and removes:
// a chain is deleted with NLM_F_NONREC, without which (and nft cannot set it) its
// rules would go with it.
func (t pluginTable) removeIfUnused() error {
	var b batch
	for _, chain := range t.shared {
		b.add(unix.NFT_MSG_DELRULE, 0, t.family, attr(ruleTable, t.name), attr(ruleChain, chain))
	}
	for _, chain := range slices.Concat(t.perPod, t.shared) {
		b.add(unix.NFT_MSG_DELCHAIN, unix.NLM_F_NONREC, t.family, attr(chainTable, t.name), attr(chainName, chain))
	}
	b.add(unix.NFT_MSG_DELTABLE, unix.NLM_F_NONREC, t.family, attr(tableName, t.name))
	err := b.commit()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove table %s: %w", t.name, err)
	}
	return nil
}

func attr(kind int, value string) *nl.RtAttr {
	return nl.NewRtAttr(kind, nl.ZeroTerminated(value))
}

// A batch is a transaction of nf_tables.
type batch struct {
	messages []byte
	seq      uint32
}

func (b *batch) add(kind, flags uint16, family uint8, attrs ...*nl.RtAttr) {
	b.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: family}, attrs...)
}

func (b *batch) message(kind, flags uint16, header *nl.Nfgenmsg, attrs ...*nl.RtAttr) {
	m := nl.NetlinkRequest{NlMsghdr: unix.NlMsghdr{
		Len:   unix.SizeofNlMsghdr,
		Type:  kind,
		Flags: unix.NLM_F_REQUEST | flags,
		Seq:   b.seq,
	}}
	m.AddData(header)
	for _, a := range attrs {
		m.AddData(a)
	}
	b.messages = append(b.messages, m.Serialize()...)
	b.seq++
}

// commit sends the batch and returns the first error that the kernel answers
// with; then nothing has been done.
func (b *batch) commit() error {
	// The number of the subsystem is in network byte order.
	subsystem := &nl.Nfgenmsg{ResId: binary.NativeEndian.Uint16([]byte{0, unix.NFNL_SUBSYS_NFTABLES})}
	var whole batch
	whole.message(unix.NFNL_MSG_BATCH_BEGIN, 0, subsystem)
	whole.messages = append(whole.messages, b.messages...)
	whole.message(unix.NFNL_MSG_BATCH_END, 0, subsystem)

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	if err := unix.Sendto(fd, whole.messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return readAnswers(fd, int(b.seq))
}

// readAnswers reads one answer for each message of a batch.
func readAnswers(fd, n int) error {
	buf := make([]byte, 1<<16)
	for n > 0 {
		size, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for rest := buf[:size]; len(rest) >= unix.SizeofNlMsghdr; n-- {
			length := binary.NativeEndian.Uint32(rest)
			kind := binary.NativeEndian.Uint16(rest[4:])
			if kind != unix.NLMSG_ERROR || length < unix.SizeofNlMsghdr+4 || int(length) > len(rest) {
				return fmt.Errorf("answer of type %d and %d bytes", kind, length)
			}
			if code := int32(binary.NativeEndian.Uint32(rest[unix.SizeofNlMsghdr:])); code != 0 {
				return unix.Errno(-code)
			}
			rest = rest[min(len(rest), int(length+3)&^3):]
		}
	}
	return nil
}
