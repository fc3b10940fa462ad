package keeper

import (
	"fmt"
	"maps"
	"os"

	"berth/oci/keeper/wire"
)

// accept serves connections for the keeper's life.
func (k *keeper) accept() {
	for {
		c, err := k.listener.AcceptUnix()
		if err != nil {
			return
		}
		go k.serve(wire.NewPeer(wire.NewConn(c)))
	}
}

// serve handles one connection's requests in order.
func (k *keeper) serve(p *wire.Peer) {
	p.Serve(k.handle)
	k.do(func() {
		k.watchers[p].close()
		delete(k.watchers, p)
	})
}

// handle runs a request on the loop and replies from the connection's own
// goroutine: a peer that does not read cannot stop the loop.
func (k *keeper) handle(r *wire.Request) {
	var (
		body  any
		files []*os.File
		err   error
	)
	if r.Op == OpReady {
		k.dismissOrphan()
	} else {
		k.do(func() { body, files, err = k.answer(r) })
	}
	wire.CloseAll(r.Files)
	r.Reply(body, err, files...)
	wire.CloseAll(files)
}

// answer runs on the loop. The returned files are duplicates for the reply; files
// of the request that are held from now on are taken out of it.
func (k *keeper) answer(r *wire.Request) (any, []*os.File, error) {
	switch r.Op {
	case OpHello:
		var after ID
		err := r.Decode(&after)
		return k.hello(after.ID), nil, err
	case OpWatch:
		return k.watch(r.Peer()), nil, nil
	case OpAdd:
		return k.add(r)
	case OpUpgrade:
		var u Upgrade
		err := r.Decode(&u)
		if err == nil {
			err = k.upgrade(u.Path)
		}
		return nil, nil, err
	}
	var req Put // an ID, or more
	if err := r.Decode(&req); err != nil {
		return nil, nil, err
	}
	p := k.processes[req.ID]
	switch {
	case p != nil:
		return k.answerOf(p, req.Name, r)
	case r.Op == OpDrop:
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("%s: no process %q", r.Op, req.ID)
}

// answerOf is answer to a request about p, or about the file name that is held for
// it.
func (k *keeper) answerOf(p *process, name string, r *wire.Request) (any, []*os.File, error) {
	switch r.Op {
	case OpGet:
		At("get asked")
		return p.get()
	case OpPut:
		if len(r.Files) != 1 {
			return nil, nil, fmt.Errorf("put %s of %s: %d files", name, p.ID, len(r.Files))
		}
		At("put asked")
		if p.Pid != 0 && ofBirth(name) {
			break // it is born
		}
		p.hold(name, r.Files[0])
		r.Files = nil
		At("put done")
	case OpCloseFile:
		p.hold(name, nil)
		k.runnerQueue.put(NoticeClosed, Put{ID: p.ID, Name: name})
	case OpDrop:
		k.drop(p)
	case OpBegin:
		k.begun++
		p.begun, p.InFlight, p.foreign = k.begun, true, false
	case OpSettle:
		if len(r.Files) == 1 && p.file(FilePidfd) == nil {
			p.hold(FilePidfd, r.Files[0])
			r.Files = nil
		}
		k.settle(p)
		return p.get()
	case OpDrained:
		k.drained(p)
	default:
		return nil, nil, fmt.Errorf("unknown request %q", r.Op)
	}
	return nil, nil, nil
}

func (k *keeper) hello(after string) Hello {
	h := Hello{Instance: k.instance, Pid: os.Getpid(), IDs: page(maps.Keys(k.processes), after)}
	if k.runner != nil {
		h.Runner = k.runner.Process.Pid
	}
	return h
}

// watch makes p a watcher. Whatever is gone after this reply is told to it.
func (k *keeper) watch(p *wire.Peer) Hello {
	if k.watchers[p] == nil {
		k.watchers[p] = newQueue(p)
	}
	return k.hello("")
}

// add makes the process known that a request describes, and holds the files that
// come with it.
func (k *keeper) add(r *wire.Request) (any, []*os.File, error) {
	var s Spec
	if err := r.Decode(&s); err != nil {
		return nil, nil, err
	}
	if len(r.Files) != len(s.Files) {
		return nil, nil, fmt.Errorf("add %s: %d files for %d names", s.ID, len(r.Files), len(s.Files))
	}
	if p := k.processes[s.ID]; p != nil {
		return k.added(p, true)
	}
	p := &process{State: State{Spec: s}}
	p.Files = nil
	for i, f := range r.Files {
		p.hold(s.Files[i], f)
	}
	r.Files = nil
	if s.TTY && s.Pid == 0 && p.file(FileConsole) == nil {
		console, err := k.openConsole(p.ID)
		if err != nil {
			p.close()
			return nil, nil, fmt.Errorf("add %s: %w", s.ID, err)
		}
		p.hold(FileConsole, console)
	}
	k.processes[s.ID] = p
	if s.Pid != 0 {
		k.follow(p)
		k.tellRunner(NoticeAdopted, p)
	}
	At("add done")
	return k.added(p, false)
}

// added is the reply to OpAdd, with the console that waits for p's terminal.
func (k *keeper) added(p *process, known bool) (any, []*os.File, error) {
	console := p.file(FileConsole)
	if console == nil {
		return Added{Known: known}, nil, nil
	}
	f, err := dup(console)
	if err != nil {
		return nil, nil, fmt.Errorf("add %s: %w", p.ID, err)
	}
	return Added{Known: known, Console: consolePath(k.run, p.ID)}, []*os.File{f}, nil
}

// drop forgets p. A process of its that still runs is waited for as an unknown
// one.
func (k *keeper) drop(p *process) {
	delete(k.processes, p.ID)
	if k.byPid[p.Pid] == p {
		delete(k.byPid, p.Pid)
	}
	p.close()
	k.tellRunner(NoticeGone, p)
	k.reapUnknown()
}
