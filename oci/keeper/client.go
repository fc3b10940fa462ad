package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// Client is berthd's side. It keeps a connection, starts the keeper when nobody
// serves Run, and holds copies of what the keeper holds: if the keeper dies, the
// next one gets them. The exported fields are set before Open.
type Client struct {
	Run    string                           // run directory
	Binary string                           // path of berth-keeper
	Logf   func(format string, args ...any) // may be nil

	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine of Open has ended

	serving sync.WaitGroup // goroutines that serve connections

	mu        sync.Mutex
	up        chan struct{} // closed while peer is not nil
	peer      *wire.Peer    // nil: not connected
	runner    *wire.Peer    // the last connection to a runner
	instance  string        // of the last keeper that was told all
	processes map[string]*tracked
}

// Open connects, and keeps connected until Close.
func (c *Client) Open(ctx context.Context) error {
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	c.up = make(chan struct{})
	c.processes = make(map[string]*tracked)
	c.ended = make(chan struct{})
	peer, err := c.connect(ctx)
	for errors.Is(err, wire.ErrLost) { // to a keeper that is dying
		peer, err = c.connect(ctx)
	}
	if err != nil {
		return err
	}
	ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(c.ended)
		c.stayConnected(ctx, peer)
	}()
	return nil
}

// Close disconnects. The keeper and its processes go on.
func (c *Client) Close() {
	c.cancel()
	<-c.ended
	c.mu.Lock()
	if c.runner != nil {
		c.runner.Close()
	}
	c.mu.Unlock()
	c.serving.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.processes {
		t.closeFiles()
	}
}

// reconnectPause is between two tries that failed.
const reconnectPause = 100 * time.Millisecond

// stayConnected runs until ctx ends.
func (c *Client) stayConnected(ctx context.Context, peer *wire.Peer) {
	for {
		stop := context.AfterFunc(ctx, func() { peer.Close() })
		<-peer.Done()
		stop()
		c.lost(peer)
		for {
			if ctx.Err() != nil {
				return
			}
			var err error
			if peer, err = c.connect(ctx); err == nil {
				break
			}
			c.Logf("reach the keeper: %v", err)
			select {
			case <-ctx.Done():
			case <-time.After(reconnectPause):
			}
		}
	}
}

// connect dials the keeper, starts one if nobody serves the socket, and brings
// both sides to the same knowledge.
func (c *Client) connect(ctx context.Context) (*wire.Peer, error) {
	conn, err := wire.Dial(Socket(c.Run))
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		if err = c.startKeeper(ctx); err == nil {
			conn, err = wire.Dial(Socket(c.Run))
		}
		if err != nil {
			err = fmt.Errorf("%w: what it said is in %s", err, c.logFile())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reach the keeper: %w", err)
	}
	peer := wire.NewPeer(conn)
	c.serving.Go(func() { peer.Serve(c.notice) })
	if err := c.meet(ctx, peer); err != nil {
		peer.Close()
		return nil, err
	}
	return peer, nil
}

// meet watches, tells a new keeper what the last one knew, and takes copies of
// what it holds.
func (c *Client) meet(ctx context.Context, peer *wire.Peer) error {
	var h Hello
	if _, err := peer.Call(ctx, OpWatch, nil, &h); err != nil {
		return fmt.Errorf("watch the keeper: %w", err)
	}
	c.mu.Lock()
	another := c.instance != "" && c.instance != h.Instance
	known := make(map[string]*tracked, len(c.processes))
	for id, t := range c.processes {
		known[id] = t
	}
	c.mu.Unlock()
	if another {
		for _, t := range known {
			if err := c.addAgain(ctx, peer, t); err != nil {
				return err
			}
		}
	}
	c.mu.Lock()
	c.instance = h.Instance // only now it knows all: the connection may have been lost
	c.mu.Unlock()
	ids, err := AllIDs(ctx, peer, h)
	if err != nil {
		return fmt.Errorf("list the keeper's processes: %w", err)
	}
	for _, id := range ids {
		if another && known[id] == nil && !c.knows(id) {
			// Of a keeper that died before its runner heard that it was dropped.
			_, err = peer.Call(ctx, OpDrop, ID{ID: id}, nil)
		} else {
			err = c.refresh(ctx, peer, id)
		}
		if err != nil && !isRemote(err) {
			return err
		}
	}
	c.mu.Lock()
	c.peer = peer
	close(c.up)
	c.mu.Unlock()
	return nil
}

func (c *Client) knows(id string) bool {
	_, err := c.State(id)
	return err == nil
}

// AllIDs lists the processes that the keeper knows, h's first.
func AllIDs(ctx context.Context, peer *wire.Peer, h Hello) ([]string, error) {
	ids := h.IDs
	for len(h.IDs) == maxIDs {
		last := h.IDs[maxIDs-1]
		h = Hello{}
		if _, err := peer.Call(ctx, OpHello, ID{ID: last}, &h); err != nil {
			return nil, err
		}
		ids = append(ids, h.IDs...)
	}
	return ids, nil
}

// isRemote tells a refusal from a lost connection.
func isRemote(err error) bool {
	var r *wire.Remote
	return errors.As(err, &r)
}

// startKeeper starts a keeper in a session of its own and waits until it serves.
func (c *Client) startKeeper(ctx context.Context) error {
	cmd := exec.Command(c.Binary, c.Run)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	logFile, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer ready.Close()
	cmd.Stdout = theirs
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	// It outlives us; while we live, we reap it.
	go func() { _ = cmd.Wait() }()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	if _, err := io.Copy(io.Discard, ready); err != nil {
		return fmt.Errorf("start the keeper: %w", errors.Join(err, ctx.Err()))
	}
	return nil
}

// logFile is where the keeper and the runner write what nobody can be told.
func (c *Client) logFile() string { return filepath.Join(c.Run, "keeper.log") }

// Hello tells which keeper and runner are there now.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	_, err := c.call(ctx, OpHello, nil, &h)
	return h, err
}

// Upgrade makes the keeper execute the binary at path in its own place: its pid
// and its children stay.
func (c *Client) Upgrade(ctx context.Context, path string) error {
	peer, err := c.connected(ctx)
	if err != nil {
		return err
	}
	_, err = peer.Call(ctx, OpUpgrade, Upgrade{Path: path}, nil)
	if errors.Is(err, wire.ErrLost) {
		return nil // it did
	}
	return err
}

// Renew upgrades a keeper that runs another program than Binary: a newer one has
// been installed since it began. A runtime command under way is in the way of it:
// then the keeper goes on as it is, with an error.
func (c *Client) Renew(ctx context.Context) (renewed bool, err error) {
	h, err := c.Hello(ctx)
	if err != nil {
		return false, err
	}
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", h.Pid))
	if err != nil {
		return false, err
	}
	wanted, err := os.Stat(c.Binary)
	if err != nil || os.SameFile(running, wanted) {
		return false, err
	}
	err = c.Upgrade(ctx, c.Binary)
	return err == nil, err
}

// call asks the keeper, again if the connection is lost meanwhile.
func (c *Client) call(ctx context.Context, op string, in, out any, files ...*os.File) ([]*os.File, error) {
	for {
		peer, err := c.connected(ctx)
		if err != nil {
			return nil, err
		}
		got, err := peer.Call(ctx, op, in, out, files...)
		if !errors.Is(err, wire.ErrLost) {
			return got, err
		}
		c.lost(peer)
	}
}

// CallRunner asks the runner, again if it dies meanwhile: again is then called
// first, so that the request can say that it is a repetition.
func (c *Client) CallRunner(ctx context.Context, op string, in any, again func(), out any, files ...*os.File) error {
	for {
		// With the keeper up, the runner's socket is there: a connection waits
		// in it while a runner starts.
		kept, err := c.connected(ctx)
		if err != nil {
			return err
		}
		peer, err := c.runnerPeer()
		if err == nil {
			var got []*os.File
			got, err = peer.Call(ctx, op, in, out, files...)
			wire.CloseAll(got)
			if err != nil && !errors.Is(err, wire.ErrLost) {
				// The runner of a keeper that has not met us yet knows nothing.
				if _, alive := kept.Call(ctx, OpHello, ID{}, nil); !errors.Is(alive, wire.ErrLost) {
					return err
				}
				c.lost(kept)
			}
			if err == nil {
				return nil
			}
		}
		if again != nil {
			again()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach the runner: %w", errors.Join(ctx.Err(), err))
		case <-time.After(time.Millisecond): // the keeper needs as long to start another
		}
	}
}

func (c *Client) runnerPeer() (*wire.Peer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runner != nil {
		select {
		case <-c.runner.Done():
		default:
			return c.runner, nil
		}
	}
	conn, err := wire.Dial(RunnerSocket(c.Run))
	if err != nil {
		return nil, err
	}
	peer := wire.NewPeer(conn)
	c.serving.Go(func() { peer.Serve(func(r *wire.Request) { wire.CloseAll(r.Files) }) })
	c.runner = peer
	return peer, nil
}

// connected waits for the connection to the keeper.
func (c *Client) connected(ctx context.Context) (*wire.Peer, error) {
	for {
		c.mu.Lock()
		up, peer := c.up, c.peer
		c.mu.Unlock()
		if peer != nil {
			return peer, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the keeper: %w", ctx.Err())
		case <-c.ended:
			return nil, errors.New("the keeper's client is closed")
		}
	}
}

// lost notes that a connection has ended: connected waits for the next one.
func (c *Client) lost(peer *wire.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peer == peer {
		c.up, c.peer = make(chan struct{}), nil
	}
}
