package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"
)

// gcTimeout bounds the plugins' own GC: no ADD runs meanwhile.
const gcTimeout = 10 * time.Second

// GC detaches every pod that is attached, or may be in part, and that keep does
// not have, and then lets plugins of spec version 1.1 and later clean up by
// themselves. It goes on after an error and returns all of them.
//
// An attachment made since the last GC began is left for the next one: keep may
// be older than it. So the first GC of a process detaches all that earlier
// processes left behind, and nothing else.
func (n *Network) GC(ctx context.Context, keep map[string]bool) error {
	since := n.endRecent()
	ids, err := n.attached()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if !keep[id] && !since[id] {
			errs = append(errs, n.collect(ctx, id))
		}
	}
	errs = append(errs, n.sweepBuiltin(), n.pluginGC(ctx))
	return errors.Join(errs...)
}

func (n *Network) collect(ctx context.Context, id string) error {
	unlock, err := n.pods.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, recent := n.isOwn(id); recent {
		return nil
	}
	klog.V(1).Infof("Detaching pod %s, which has no record", id)
	return n.delLocked(ctx, id)
}

// pluginGC tells the plugins of the operator's network which attachments are
// valid (spec 1.1, "GC"). It is left for the next time while pods are added, and
// where the network could not serve pods either: Status says why.
func (n *Network) pluginGC(ctx context.Context) error {
	net, err := n.operatorNetwork()
	if err != nil || net.list.DisableGC || !atLeast11(net.list) || n.findPlugins(net) != nil {
		return nil
	}
	if !n.adding.TryLock() {
		return nil
	}
	defer n.adding.Unlock()
	args, err := n.validAttachments(net.list.Name)
	if err != nil {
		return err
	}
	ctx, cancel := n.withTimeout(ctx, min(n.Timeout, gcTimeout))
	defer cancel()
	if err := plain(n.libcni().GCNetworkList(ctx, net.list, args)); err != nil {
		return fmt.Errorf("collect garbage of network %q (%s): %w", net.list.Name, net.source, err)
	}
	return nil
}

// validAttachments are all recorded ones of the network, those included that
// could not be detached.
func (n *Network) validAttachments(name string) (*libcni.GCArgs, error) {
	ids, err := n.attached()
	if err != nil {
		return nil, err
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range ids {
		rec, err := n.load(id)
		if err != nil {
			return nil, err
		}
		if rec != nil && rec.network() == name {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: IfName})
		}
	}
	return args, nil
}

// atLeast11 tells whether the list's plugins know STATUS and GC.
func atLeast11(list *libcni.NetworkConfigList) bool {
	is, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return err == nil && is
}
