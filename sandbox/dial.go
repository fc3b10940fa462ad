package sandbox

import (
	"context"
	"fmt"

	"berth/oci"
)

// Conn is a connection to a port of a pod.
type Conn = oci.Conn

// Dial connects to a TCP port of the pod's loopback (CRI PortForward).
//
// Errors: ErrNotReady, ErrNotFound.
func (p *Pod) Dial(ctx context.Context, port uint16) (Conn, error) {
	if err := p.MayDial(); err != nil {
		return nil, err
	}
	conn, err := p.runtime().Dial(ctx, p.oci(), port)
	if err != nil {
		return nil, fmt.Errorf("dial into pod %s: %w", p.id, err)
	}
	return conn, nil
}

// MayDial says whether Dial could begin now. Its errors are Dial's.
func (p *Pod) MayDial() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.readyLocked(); err != nil {
		return fmt.Errorf("dial into pod %s: %w", p.id, err)
	}
	return nil
}
