package cni

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// statusAge is how long the plugins' answer to STATUS holds. The kubelet
	// asks every 5 s: plugins are run at every other time.
	statusAge = 10 * time.Second
	// statusTimeout bounds all STATUS calls of one network.
	statusTimeout = 5 * time.Second
)

// statusCache is the last answer of the plugins to STATUS.
type statusCache struct {
	mu     sync.Mutex // held while the plugins are asked: who comes meanwhile waits for their answer
	config []byte     // which they were asked about
	at     time.Time
	err    error
}

// Status is nil when the next pod can be attached, and otherwise the reason, a
// sentence for a node operator. Configuration and plugin files are looked at
// each time; plugins of spec version 1.1 and later are asked by STATUS at most
// every 10 s for the same configuration, and have 5 s to answer.
func (n *Network) Status(ctx context.Context) error {
	net, err := n.choose(false)
	if err != nil {
		return err
	}
	if err := n.findPlugins(net); err != nil {
		return err
	}
	if !atLeast11(net.list) {
		return nil
	}
	return n.pluginStatus(ctx, net)
}

func (n *Network) pluginStatus(ctx context.Context, net *network) error {
	s := &n.status
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.config, net.list.Bytes) && time.Since(s.at) < statusAge {
		return s.err
	}
	asking, cancel := n.withTimeout(ctx, min(n.Timeout, statusTimeout))
	defer cancel()
	err := plain(n.libcni().GetStatusNetworkList(asking, net.list))
	if err != nil {
		err = fmt.Errorf("network %q (%s) is not ready: %w", net.list.Name, net.source, err)
	}
	if ctx.Err() == nil { // else it is the caller's end, not the plugins' answer
		s.config, s.at, s.err = net.list.Bytes, time.Now(), err
	}
	return err
}
