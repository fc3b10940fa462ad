package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// ErrUnknown: the keeper knows no such process.
var ErrUnknown = errors.New("process is not known to the keeper")

// tracked is a process as the client knows it. All but gone is guarded by
// Client.mu.
type tracked struct {
	state   State
	files   map[string]*os.File // copies; nil once state.Gone or dropped
	gone    chan struct{}       // closed when state.Gone, or when it is forgotten
	dropped bool                // no keeper is to have it any more
}

// Add makes the keeper expect a process. The files are the caller's to close;
// spec.Files names them. console is the socket for the runtime's
// --console-socket if spec.TTY.
func (c *Client) Add(ctx context.Context, spec Spec, files ...*os.File) (console string, err error) {
	// Known here first: a keeper that dies meanwhile is followed by one that is
	// told of it.
	t, fresh, err := c.track(spec, files)
	if err != nil {
		return "", err
	}
	var added Added
	sockets, err := c.call(ctx, OpAdd, spec, &added, files...)
	if err != nil {
		if fresh { // else it is another's, who may wait for its end
			c.forget(spec.ID, t)
		}
		return "", err
	}
	if len(sockets) == 1 {
		c.keepConsole(t, sockets[0])
	}
	return added.Console, nil
}

// track makes a process known to the client, with copies of its files, unless it
// is known already.
func (c *Client) track(spec Spec, files []*os.File) (t *tracked, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.processes[spec.ID]; t != nil {
		return t, false, nil
	}
	t = &tracked{state: State{Spec: spec}, files: make(map[string]*os.File), gone: make(chan struct{})}
	for i, f := range files {
		kept, err := dup(f)
		if err != nil {
			t.closeFiles()
			return nil, false, fmt.Errorf("add %s: %w", spec.ID, err)
		}
		t.files[spec.Files[i]] = kept
	}
	c.processes[spec.ID] = t
	return t, true, nil
}

// keepConsole keeps a copy of the socket that waits for a process's terminal, for
// the next keeper.
func (c *Client) keepConsole(t *tracked, console *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.files == nil || t.files[FileConsole] != nil {
		console.Close()
		return
	}
	t.files[FileConsole] = console
}

// forget undoes track. Who waits for the process waits no more.
func (c *Client) forget(id string, t *tracked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.processes[id] == t {
		t.closeFiles()
		delete(c.processes, id)
		if !t.state.Gone {
			close(t.gone)
		}
	}
}

// State returns what the client knows of a process; ErrUnknown.
func (c *Client) State(id string) (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.processes[id]; t != nil {
		return t.state, nil
	}
	return State{}, fmt.Errorf("%w: %s", ErrUnknown, id)
}

// IDs lists the processes that the client knows.
func (c *Client) IDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range c.processes {
		ids = append(ids, id)
	}
	return ids
}

// Wait blocks until a process is gone: it has ended, and its output is in its
// log. ErrUnknown.
func (c *Client) Wait(ctx context.Context, id string) (Exit, error) {
	c.mu.Lock()
	t := c.processes[id]
	c.mu.Unlock()
	if t == nil {
		return Exit{}, fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	select {
	case <-t.gone:
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.state.Exit == nil {
			return Exit{}, fmt.Errorf("%w: %s", ErrUnknown, id)
		}
		return *t.state.Exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Signal sends a signal to a process by its pidfd; ErrUnknown if it has ended.
func (c *Client) Signal(id string, sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.processes[id]
	if t == nil || t.files[FilePidfd] == nil {
		return fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	err := unix.PidfdSendSignal(number(t.files[FilePidfd]), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	return err
}

// Put makes the keeper, and each one after it, hold f in place of what it holds
// under that name. f is the caller's to close. ErrUnknown.
func (c *Client) Put(ctx context.Context, id, name string, f *os.File) error {
	c.mu.Lock()
	t := c.processes[id]
	if t == nil || t.files == nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	kept, err := dup(f)
	if err == nil {
		if old := t.files[name]; old != nil {
			CloseApart(old)
		}
		t.files[name] = kept
	}
	c.mu.Unlock()
	if err == nil {
		_, err = c.call(ctx, OpPut, Put{ID: id, Name: name}, nil, f)
	}
	return err
}

// File duplicates a file that the keeper holds for a process; nil if it holds
// none of that name. ErrUnknown.
func (c *Client) File(id, name string) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.processes[id]
	if t == nil || t.files == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	f := t.files[name]
	if f == nil {
		return nil, nil
	}
	return dup(f)
}

// CloseFile makes the keeper close a held file: the end of a process's stdin.
func (c *Client) CloseFile(ctx context.Context, id, name string) error {
	c.mu.Lock()
	if t := c.processes[id]; t != nil && t.files[name] != nil {
		CloseApart(t.files[name])
		delete(t.files, name)
	}
	c.mu.Unlock()
	_, err := c.call(ctx, OpCloseFile, Put{ID: id, Name: name}, nil)
	return err
}

// Drop makes the keeper and the client forget a process.
func (c *Client) Drop(ctx context.Context, id string) error {
	c.mu.Lock()
	t := c.processes[id]
	if t != nil {
		t.dropped = true
		t.closeFiles()
	}
	c.mu.Unlock()
	if _, err := c.call(ctx, OpDrop, ID{ID: id}, nil); err != nil {
		return err
	}
	// Only now: what an earlier reply still tells must not come as news.
	if t != nil {
		c.forget(id, t)
	}
	return nil
}

// WatchBirth watches the start of a process until stop is called: should the
// keeper and the runner die under it, we know how the process ends.
func (c *Client) WatchBirth(id string) (stop func()) {
	st, err := c.State(id)
	if err == nil {
		stop, err = watchBirth(st.Spec, func(name string, pidfd *os.File) { c.newborn(id, name, pidfd) })
	}
	if err != nil {
		c.Logf("%v", err)
		return func() {}
	}
	return stop
}

// newborn holds a pidfd of what may be the process.
func (c *Client) newborn(id, name string, pidfd *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.processes[id]; t != nil && t.files != nil && t.state.Pid == 0 && t.files[name] == nil {
		t.files[name] = pidfd
		return
	}
	pidfd.Close()
}

// Refresh takes copies of what the keeper holds for a process, as it does by
// itself when it connects.
func (c *Client) Refresh(ctx context.Context, id string) error {
	for {
		peer, err := c.connected(ctx)
		if err != nil {
			return err
		}
		if s, err := c.State(id); err == nil && s.Gone {
			return nil // another keeper may not even know it
		}
		if err := c.refresh(ctx, peer, id); !errors.Is(err, wire.ErrLost) {
			return err
		}
		c.lost(peer)
	}
}

// refresh takes over the keeper's knowledge of a process, and copies of the
// files that it holds.
func (c *Client) refresh(ctx context.Context, peer *wire.Peer, id string) error {
	var s State
	files, err := peer.Call(ctx, OpGet, ID{ID: id}, &s)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.knownLocked(id)
	held := t.files
	t.files = make(map[string]*os.File, len(files))
	for i, f := range files {
		t.files[s.Files[i]] = f
	}
	for name, f := range held {
		if ofBirth(name) && s.Pid == 0 && t.files[name] == nil {
			t.files[name] = f // the keeper is not told of it
		} else {
			CloseApart(f)
		}
	}
	t.update(s)
	return nil
}

// addAgain hands a process to another keeper. One that has taken it over from
// the last keeper's runner is told what that runner may not have heard of.
func (c *Client) addAgain(ctx context.Context, peer *wire.Peer, t *tracked) error {
	c.mu.Lock()
	s := t.state
	if s.Gone || t.dropped {
		c.mu.Unlock()
		return nil
	}
	if s.Pid == 0 && t.files != nil && t.files[FilePidfd] == nil {
		// While it can be told how it ends: the next runner may be long in coming.
		if pidfd := openOwn(s.Spec); pidfd != nil {
			t.files[FilePidfd] = pidfd
		}
	}
	s.Files = nil
	var files []*os.File
	for name, f := range t.files {
		s.Files = append(s.Files, name)
		files = append(files, f)
	}
	log, stdin := t.files[FileLog], t.files[FileStdin]
	c.mu.Unlock()
	var added Added
	sockets, err := peer.Call(ctx, OpAdd, s.Spec, &added, files...)
	wire.CloseAll(sockets)
	for i, name := range s.Files {
		if err == nil && added.Known && strings.HasPrefix(name, newborn) {
			_, err = peer.Call(ctx, OpPut, Put{ID: s.ID, Name: name}, nil, files[i])
		}
	}
	if err == nil && added.Known && log != nil {
		_, err = peer.Call(ctx, OpPut, Put{ID: s.ID, Name: FileLog}, nil, log)
	}
	if err == nil && added.Known && stdin == nil {
		_, err = peer.Call(ctx, OpCloseFile, Put{ID: s.ID, Name: FileStdin}, nil)
	}
	if err != nil {
		return fmt.Errorf("hand process %s to the new keeper: %w", s.ID, err)
	}
	return nil
}

func (c *Client) notice(r *wire.Request) {
	wire.CloseAll(r.Files)
	var s State
	if r.Op != NoticeGone || r.Decode(&s) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// While the keeper is met, also of a process that it is about to be asked
	// for: the reply to that, sent before, may be looked at after this. Later, a
	// process that is not known was dropped.
	if c.processes[s.ID] != nil || c.peer == nil {
		c.knownLocked(s.ID).update(s)
	}
}

// knownLocked returns what is known of a process, with nothing in it if that is
// the first word of it.
func (c *Client) knownLocked(id string) *tracked {
	t := c.processes[id]
	if t == nil {
		t = &tracked{gone: make(chan struct{})}
		c.processes[id] = t
	}
	return t
}

// update is called with Client.mu held. Gone is final: the reply to a request
// may be looked at after a notice that was sent later.
func (t *tracked) update(s State) {
	if !t.state.Gone {
		t.state = s
		if s.Gone {
			close(t.gone)
		}
	}
	if t.state.Gone || t.dropped {
		t.closeFiles()
	}
}

func (t *tracked) closeFiles() {
	for _, f := range t.files {
		CloseApart(f)
	}
	t.files = nil
}
