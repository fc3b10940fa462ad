package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// Add attaches the pod to its network as eth0 and returns what it got. The
// pod's loopback interface is up then, and none of its interfaces takes a route
// or an address from a router advertisement unless a plugin said so.
//
// An Add of a pod that is attached already, wholly or in part by a process that
// was killed, begins anew: what is left of the first is detached, and the pod
// may get another address. (A pod is added only while it is being made: nobody
// relies on the first address yet.)
//
// When Add fails, what it did is undone within another Timeout, and the error
// holds the plugin's name, message and stderr. Where undoing fails too, the
// attachment stays recorded: Del and GC try again.
func (n *Network) Add(ctx context.Context, pod Pod) (Attachment, error) {
	if err := pod.validate(); err != nil {
		return Attachment{}, fmt.Errorf("attach pod: %w", err)
	}
	unlock, err := n.pods.lock(ctx, pod.ID)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()

	if err := n.delLocked(ctx, pod.ID); err != nil {
		return Attachment{}, fmt.Errorf("attach pod %s anew: %w", pod.ID, err)
	}
	net, err := n.choose(pod.Builtin)
	if err == nil {
		err = n.findPlugins(net)
	}
	if err != nil {
		return Attachment{}, fmt.Errorf("attach pod %s: %w", pod.ID, err)
	}
	attachment, err := n.attach(ctx, pod, net)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach pod %s to network %q (%s): %w", pod.ID, net.list.Name, net.source, err)
	}
	return attachment, nil
}

func (n *Network) attach(ctx context.Context, pod Pod, net *network) (Attachment, error) {
	if err := setLoopbackUp(pod.NetNS); err != nil {
		return Attachment{}, err
	}
	n.adding.RLock()
	defer n.adding.RUnlock()
	rec := newRecord(pod, net)
	if err := n.save(rec); err != nil {
		return Attachment{}, err
	}
	attachment, err := n.runAdd(ctx, rec, net.list)
	if err != nil {
		if undo := n.undoAdd(ctx, rec, net.list); undo != nil {
			err = fmt.Errorf("%w; undo: %w", err, undo)
		}
		return Attachment{}, err
	}
	return attachment, nil
}

func (n *Network) runAdd(ctx context.Context, rec *record, list *libcni.NetworkConfigList) (Attachment, error) {
	ctx, cancel := n.withTimeout(ctx, n.Timeout)
	defer cancel()
	if rec.Builtin {
		if err := prepareHost(); err != nil {
			return Attachment{}, err
		}
	}
	cni, err := n.libcniFor(rec)
	if err != nil {
		return Attachment{}, err
	}
	result, err := cni.AddNetworkList(ctx, list, rec.runtimeConf())
	if err != nil {
		return Attachment{}, plain(err)
	}
	return newAttachment(result, rec.NetNS)
}

// undoAdd runs the DEL of each plugin whether or not the others' succeed: the
// one that broke the ADD is likely to break the DEL too, and must not keep the
// others from giving back what they hold. Each has its share of Timeout.
func (n *Network) undoAdd(ctx context.Context, rec *record, list *libcni.NetworkConfigList) error {
	ctx = context.WithoutCancel(ctx)
	share := n.Timeout / time.Duration(len(list.Plugins))
	var errs []error
	for i := len(list.Plugins) - 1; i >= 0; i-- {
		one := *list
		one.Plugins = list.Plugins[i : i+1]
		errs = append(errs, n.runDel(ctx, share, rec, &one))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.forget(rec)
}
