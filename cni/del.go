package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
)

// Del detaches the pod, with the configuration that it was added with. Only the
// pod's ID counts; its network namespace may be gone. Nil for a pod that is not
// attached. After an error the attachment stays recorded and Del may be called
// again.
func (n *Network) Del(ctx context.Context, pod Pod) error {
	if err := utils.ValidateContainerID(pod.ID); err != nil {
		return fmt.Errorf("detach pod %q: %w", pod.ID, err)
	}
	unlock, err := n.pods.lock(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer unlock()
	return n.delLocked(ctx, pod.ID)
}

// delLocked is Del for who holds the pod's lock.
func (n *Network) delLocked(ctx context.Context, id string) error {
	rec, err := n.load(id)
	if err != nil {
		return fmt.Errorf("detach pod %s: %w", id, err)
	}
	if rec == nil {
		return n.removeRecord(id)
	}
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return fmt.Errorf("detach pod %s: %w", id, err)
	}
	if own, _ := n.isOwn(id); !own {
		if err := n.killOrphans(ctx, id); err != nil {
			return fmt.Errorf("detach pod %s: %w", id, err)
		}
	}
	if err := n.runDel(ctx, n.Timeout, rec, list); err != nil {
		return fmt.Errorf("detach pod %s from network %q: %w", id, list.Name, err)
	}
	return n.forget(rec)
}

func (n *Network) runDel(ctx context.Context, timeout time.Duration, rec *record, list *libcni.NetworkConfigList) error {
	ctx, cancel := n.withTimeout(ctx, timeout)
	defer cancel()
	rt := rec.runtimeConf()
	if !isNetNS(rt.NetNS) {
		rt.NetNS = "" // spec 1.1, "CNI_NETNS": left out where the namespace is gone
		if rec.Builtin {
			// The bridge plugin would skip its masquerading rules then.
			empty, err := newNetNS()
			if err != nil {
				return err
			}
			defer empty.Close()
			rt.NetNS = procPath(empty)
		}
	}
	cni, err := n.libcniFor(rec)
	if err != nil {
		return err
	}
	return plain(cni.DelNetworkList(ctx, list, rt))
}
