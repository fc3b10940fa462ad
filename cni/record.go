package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// A record says that plugins may hold something for a pod, and with what they
// are to be called to give it back. See the package's comment.
type record struct {
	ID, NetNS    string          // of the pod
	Args         [][2]string     // CNI_ARGS
	Capabilities map[string]any  `json:",omitempty"`
	Config       json.RawMessage // a network configuration list, all plugins inline
	Builtin      bool            // it is the built-in network's
}

func newRecord(pod Pod, net *network) *record {
	return &record{
		ID:           pod.ID,
		NetNS:        pod.NetNS,
		Args:         pod.args(),
		Capabilities: pod.capabilities(),
		Config:       net.list.Bytes,
		Builtin:      net.builtin,
	}
}

// runtimeConf is how libcni wants it.
func (rec *record) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID:    rec.ID,
		NetNS:          rec.NetNS,
		IfName:         IfName,
		Args:           rec.Args,
		CapabilityArgs: rec.Capabilities,
	}
}

// network is the name of the network, empty if the configuration has none.
func (rec *record) network() string {
	var config struct{ Name string }
	if err := json.Unmarshal(rec.Config, &config); err != nil {
		return ""
	}
	return config.Name
}

// partial ends the names of records that are being written.
const partial = ".partial"

func (n *Network) recordDir() string           { return filepath.Join(n.CacheDir, "attachments") }
func (n *Network) recordPath(id string) string { return filepath.Join(n.recordDir(), id) }

// save writes the record, whole or not at all.
func (n *Network) save(rec *record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	if rec.Builtin {
		n.builtinMu.Lock()
		defer n.builtinMu.Unlock()
		if err := os.MkdirAll(n.ipamDir(), 0o700); err != nil {
			return fmt.Errorf("record attachment: %w", err)
		}
	}
	if err := os.MkdirAll(n.recordDir(), 0o700); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	path := n.recordPath(rec.ID)
	err = os.WriteFile(path+partial, data, 0o600)
	if err == nil {
		err = os.Rename(path+partial, path)
	}
	if err != nil {
		os.Remove(path + partial)
		return fmt.Errorf("record attachment: %w", err)
	}
	n.setOwn(rec.ID)
	return nil
}

// forget removes the record, and the built-in network with its last one.
func (n *Network) forget(rec *record) error {
	if err := n.removeRecord(rec.ID); err != nil {
		return err
	}
	if rec.Builtin {
		return n.sweepBuiltin()
	}
	return nil
}

// load returns the pod's record, or nil if it is not attached. A record that a
// power cut left unreadable is made again from libcni's cache, as far as there
// is one.
func (n *Network) load(id string) (*record, error) {
	data, err := os.ReadFile(n.recordPath(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read attachment: %w", err)
	}
	rec := &record{}
	if err == nil && json.Unmarshal(data, rec) == nil && rec.ID == id {
		return rec, nil
	}
	if data != nil {
		klog.Warningf("The record of pod %s's network is unreadable, looking into libcni's cache", id)
	}
	cached, err := n.libcni().GetCachedAttachments(id)
	if err != nil {
		return nil, fmt.Errorf("read libcni's cache: %w", err)
	}
	if len(cached) == 0 {
		return nil, nil
	}
	return fromCache(cached[0]), nil
}

func fromCache(a *libcni.NetworkAttachment) *record {
	return &record{
		ID:           a.ContainerID,
		NetNS:        a.NetNS,
		Args:         a.CniArgs,
		Capabilities: a.CapabilityArgs,
		Config:       a.Config,
		Builtin:      a.Network == builtinName,
	}
}

// removeRecord removes what there is of a record, nil if there is nothing.
func (n *Network) removeRecord(id string) error {
	path := n.recordPath(id)
	for _, name := range []string{path + partial, path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget attachment: %w", err)
		}
	}
	n.ownMu.Lock()
	defer n.ownMu.Unlock()
	delete(n.own, id)
	return nil
}

// attached lists the ids of all pods that are attached or may be in part.
func (n *Network) attached() ([]string, error) {
	entries, err := os.ReadDir(n.recordDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	cached, err := n.libcni().GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("list libcni's cache: %w", err)
	}
	seen := map[string]bool{}
	var ids []string
	add := func(id string) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, e := range entries {
		add(strings.TrimSuffix(e.Name(), partial))
	}
	for _, a := range cached {
		add(a.ContainerID)
	}
	return ids, nil
}

func (n *Network) setOwn(id string) {
	n.ownMu.Lock()
	defer n.ownMu.Unlock()
	if n.own == nil {
		n.own = map[string]bool{}
	}
	n.own[id] = true
}

// isOwn tells whether this process wrote the pod's record, and whether it did so
// since the last GC began.
func (n *Network) isOwn(id string) (own, recent bool) {
	n.ownMu.Lock()
	defer n.ownMu.Unlock()
	recent, own = n.own[id]
	return own, recent
}

// endRecent makes no record recent any more, and returns which were.
func (n *Network) endRecent() map[string]bool {
	n.ownMu.Lock()
	defer n.ownMu.Unlock()
	were := map[string]bool{}
	for id, recent := range n.own {
		if recent {
			were[id] = true
			n.own[id] = false
		}
	}
	return were
}
