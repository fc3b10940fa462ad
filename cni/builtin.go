package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The built-in network: a bridge with addresses that no other machine knows,
// masqueraded on the way out. It is made of the reference plugins bridge,
// host-local and portmap, told to use nftables: a plain Debian has no iptables.
//
// It exists from its first attachment to its last. What stays after that is
// forwarding (net.ipv4.ip_forward and its like for IPv6), which the bridge plugin
// turns on: others may have come to rely on it.
//
// The pod CIDR that the kubelet announces does not change it. A node that has
// one is in a cluster, and no other node has a route to this bridge.
const (
	builtinName   = "berth-builtin"
	builtinBridge = "berth0"
)

var defaultSubnets = []netip.Prefix{
	netip.MustParsePrefix("10.231.0.0/16"),
	netip.MustParsePrefix("fdbe:7268:b0::/64"),
}

func (n *Network) ipamDir() string { return filepath.Join(n.CacheDir, "ipam") }

func (n *Network) programsDir() string { return filepath.Join(n.CacheDir, "programs") }

// builtinPrograms makes the search path of the built-in network's plugins: a
// directory with nft alone. The plugins also ask iptables where they find it,
// whatever backend they are told to use, and iptables answers by making tables that
// nobody removes.
func (n *Network) builtinPrograms() (searchPath string, err error) {
	nft, err := findNFT()
	if err != nil {
		return "", err
	}
	link := filepath.Join(n.programsDir(), "nft")
	if to, err := os.Readlink(link); err == nil && to == nft {
		return n.programsDir(), nil
	}
	if err := os.MkdirAll(n.programsDir(), 0o700); err != nil {
		return "", err
	}
	// By rename: another pod's plugins may be looking.
	made, err := os.MkdirTemp(n.programsDir(), "")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made)
	if err := os.Symlink(nft, filepath.Join(made, "nft")); err != nil {
		return "", err
	}
	return n.programsDir(), os.Rename(filepath.Join(made, "nft"), link)
}

// builtinNetwork generates the configuration. Its spec version is 1.0.0 because
// Debian's own plugins know no later one.
func (n *Network) builtinNetwork() (*network, error) {
	subnets := n.Subnets
	if len(subnets) == 0 {
		subnets = defaultSubnets
	}
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, subnet := range subnets {
		everywhere := "0.0.0.0/0"
		if subnet.Addr().Is6() {
			if !hostHasIPv6() {
				continue
			}
			everywhere = "::/0"
		}
		ranges = append(ranges, []object{{"subnet": subnet.String()}})
		routes = append(routes, object{"dst": everywhere})
	}
	data, err := json.Marshal(object{
		"cniVersion": "1.0.0",
		"name":       builtinName,
		"plugins": []object{
			{
				"type":          "bridge",
				"bridge":        builtinBridge,
				"isGateway":     true,
				"ipMasq":        true,
				"ipMasqBackend": "nftables",
				"hairpinMode":   true,
				"ipam":          object{"type": "host-local", "dataDir": n.ipamDir(), "ranges": ranges, "routes": routes},
			},
			{
				"type":         "portmap",
				"backend":      "nftables",
				"capabilities": object{"portMappings": true},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return &network{list: list, source: "built-in", builtin: true}, nil
}

// hostHasIPv6 tells whether interfaces that are made now get IPv6.
func hostHasIPv6() bool {
	disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6")
	return err == nil && string(bytes.TrimSpace(disabled)) == "0"
}

// prepareHost does what the plugins leave out where there is IPv6.
func prepareHost() error {
	if !hostHasIPv6() {
		return nil
	}
	if err := makeBridge(); err != nil {
		return err
	}
	return keepRouters()
}

// makeBridge makes the bridge for the bridge plugin to find, without duplicate
// address detection: for up to two seconds of it nobody could reach the first
// pod, nor that pod its gateway, and the addresses are host-local's to give.
func makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = builtinBridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge %s: %w", builtinBridge, err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+builtinBridge+"/accept_dad", []byte("0"), 0); err != nil {
		return fmt.Errorf("make bridge %s: %w", builtinBridge, err)
	}
	return nil
}

// keepRouters lets the host keep its own IPv6 routes. The bridge plugin turns on
// forwarding, and an interface of a router ignores router advertisements with
// accept_ra=1, from which most hosts have their default route; with 2 it goes on
// to accept them.
func keepRouters() error {
	forwarding, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	if err != nil || string(bytes.TrimSpace(forwarding)) != "0" {
		return err
	}
	const interfaces = "/proc/sys/net/ipv6/conf"
	entries, err := os.ReadDir(interfaces)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "all", "default", builtinBridge:
			continue // of interfaces to come, pods' among them
		}
		path := filepath.Join(interfaces, e.Name(), "accept_ra")
		accepts, err := os.ReadFile(path)
		if err != nil || string(bytes.TrimSpace(accepts)) != "1" {
			continue // gone, without IPv6, or set on purpose
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil {
			return fmt.Errorf("keep router advertisements of %s: %w", e.Name(), err)
		}
	}
	return nil
}

// sweepBuiltin removes what the built-in network's plugins leave when its last
// attachment is gone: empty nftables tables, the bridge, host-local's files. A
// new attachment has its record before the plugins run, so either it is seen
// here or its plugins make these things anew afterwards.
func (n *Network) sweepBuiltin() error {
	n.builtinMu.Lock()
	defer n.builtinMu.Unlock()
	if _, err := os.Stat(n.ipamDir()); errors.Is(err, fs.ErrNotExist) {
		return nil // never used, or swept
	}
	used, err := n.builtinUsed()
	if used || err != nil {
		return err
	}
	for _, table := range pluginTables {
		if err := table.removeIfUnused(); err != nil {
			return err
		}
	}
	if err := removeBridge(); err != nil {
		return err
	}
	if err := os.RemoveAll(n.ipamDir()); err != nil {
		return fmt.Errorf("remove addresses of the built-in network: %w", err)
	}
	return nil
}

func removeBridge() error {
	bridge, err := netlink.LinkByName(builtinBridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", builtinBridge, err)
	}
	if err := netlink.LinkDel(bridge); err != nil {
		return fmt.Errorf("remove bridge %s: %w", builtinBridge, err)
	}
	return nil
}

func (n *Network) builtinUsed() (bool, error) {
	ids, err := n.attached()
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		rec, err := n.load(id)
		if err != nil {
			return false, err
		}
		if rec != nil && rec.Builtin {
			return true, nil
		}
	}
	return false, nil
}

// findNFT finds nft, which the built-in network's plugins run.
func findNFT() (string, error) {
	nft, err := findPlugin("nft", filepath.SplitList(searchPath))
	if err != nil {
		return "", fmt.Errorf("the built-in network needs nft (Debian package nftables): %w", err)
	}
	return nft, nil
}
