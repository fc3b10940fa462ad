package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"berth/oci/keeper/wire"
)

// takeOverTimeout bounds how long the last keeper's runner may take to hand over
// everything, and to leave. A runner that hangs longer has lost what it held: the
// next one waits for its end.
const takeOverTimeout = 5 * time.Second

// takeOver takes what the runner of a dead keeper holds. That runner stays until
// dismissOrphan: should this keeper die before its own runner holds the same, the
// next one finds the orphan as it was.
func (k *keeper) takeOver() error {
	conn, err := wire.Dial(RunnerSocket(k.run))
	if err != nil {
		return nil // no runner is left
	}
	peer := wire.NewPeer(conn)
	go peer.Serve(func(r *wire.Request) { wire.CloseAll(r.Files) })
	ctx, cancel := context.WithTimeout(context.Background(), takeOverTimeout)
	defer cancel()
	if err := k.takeOverFrom(ctx, peer); err != nil {
		peer.Close()
		if errors.Is(err, wire.ErrLost) {
			return nil // it has ended, or held nothing
		}
		return err
	}
	k.orphan = peer
	return nil
}

func (k *keeper) takeOverFrom(ctx context.Context, peer *wire.Peer) error {
	files, err := peer.Call(ctx, OpTakeOver, nil, nil)
	if err != nil {
		return err
	}
	defer wire.CloseAll(files)
	if len(files) != 1 {
		return fmt.Errorf("%d files instead of a listening socket", len(files))
	}
	var h Hello
	if _, err := peer.Call(ctx, OpHello, ID{}, &h); err != nil {
		return err
	}
	ids, err := AllIDs(ctx, peer, h)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := k.takeProcess(ctx, peer, id); err != nil {
			return err
		}
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return err
	}
	k.runnerListener = l.(*net.UnixListener)
	k.runnerListener.SetUnlinkOnClose(false)
	return nil
}

func (k *keeper) takeProcess(ctx context.Context, peer *wire.Peer, id string) error {
	var s State
	files, err := peer.Call(ctx, OpGet, ID{ID: id}, &s)
	var refused *wire.Remote
	if errors.As(err, &refused) {
		return nil // it has ended meanwhile, with its record written and its output in the log
	}
	if err != nil {
		return err
	}
	p := &process{State: s, foreign: true}
	p.holdAll(s.Files, files)
	p.begun = k.begun
	k.takeIn(p)
	return nil
}

// dismissOrphan ends the last keeper's runner, if it is still there.
func (k *keeper) dismissOrphan() {
	var orphan *wire.Peer
	k.do(func() { orphan, k.orphan = k.orphan, nil })
	if orphan == nil {
		return
	}
	defer orphan.Close()
	ctx, cancel := context.WithTimeout(context.Background(), takeOverTimeout)
	defer cancel()
	if _, err := orphan.Call(ctx, OpLeave, nil, nil); err != nil {
		k.logger.Printf("dismiss the last keeper's runner: %v", err)
	}
}

// holdAll keeps files under their names in place of all that was held.
func (p *process) holdAll(names []string, files []*os.File) {
	p.close()
	for i, f := range files {
		p.hold(names[i], f)
	}
	p.Files = nil
}
