package keeper

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// keeper is the process's state. All fields belong to the loop, but for what is
// set once before it starts.
type keeper struct {
	run      string      // run directory; set once
	logger   *log.Logger // set once
	events   chan func() // what the loop runs next; set once
	instance string      // set once

	lock           int               // descriptor of the flock that the keeper holds for its life
	listener       *net.UnixListener // of Socket(run)
	runnerListener *net.UnixListener // of RunnerSocket(run): made here so that a connection waits while a runner starts

	processes map[string]*process
	byPid     map[int]*process // not yet reaped
	begun     uint64           // counts runtime commands
	zombies   map[int]uint64   // unknown zombies, and begun when they were first seen
	watchers  map[*wire.Peer]*queue

	runner      *exec.Cmd
	runnerPeer  *wire.Peer
	runnerQueue *queue
	quickDeaths int // of runners, in a row
}

// process is one that the keeper waits for.
type process struct {
	State
	recorded bool     // its exit record is written
	begun    uint64   // value of keeper.begun at its OpBegin, while in flight
	files    []held   // by name, in no order
	console  *console // TTY, until its runtime has ended
}

// held is a file that the keeper keeps open.
type held struct {
	name string
	file *os.File
}

// Main is the keeper process: it serves run until it is killed. It returns only
// when it could not start, when another keeper serves run, or on SIGTERM while it
// knows no process.
func Main(run string, logger *log.Logger) error {
	// A closed stderr must not end the keeper.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT)
	unix.Umask(0o077)
	// What whoever started berthd has left open reaches no runner, no container.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark inherited files: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	k := &keeper{
		run:       run,
		logger:    logger,
		events:    make(chan func(), 64),
		instance:  rand.Text(),
		processes: make(map[string]*process),
		byPid:     make(map[int]*process),
		zombies:   make(map[int]uint64),
		watchers:  make(map[*wire.Peer]*queue),
	}
	// Before any process can end.
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	sigterm := make(chan os.Signal, 1)
	signal.Notify(sigterm, unix.SIGTERM)

	upgraded, err := k.resume()
	if err != nil {
		return err
	}
	if !upgraded {
		if err := k.listen(); err != nil {
			return err
		}
	}
	k.startRunner()
	k.reapUnknown() // SIGCHLD is lost while an upgrade has no handler for it
	go k.accept()
	if err := sayReady(); err != nil {
		logger.Printf("say that the keeper is ready: %v", err)
	}
	for {
		select {
		case f := <-k.events:
			f()
		case <-sigchld:
			k.lookAtProcesses()
			k.reapUnknown()
		case <-sigterm:
			if len(k.processes) == 0 {
				return k.leave()
			}
			logger.Printf("SIGTERM: %d processes need this keeper; it stays", len(k.processes))
		}
	}
}

// sayReady closes standard output, where whoever started the keeper waits for
// its end.
func sayReady() error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(number(null), 1, 0)
}

// leave ends the runner and removes what listen made, but for the lock: whoever
// waits for that must not find another file.
func (k *keeper) leave() error {
	err := errors.Join(os.Remove(Socket(k.run)), os.Remove(RunnerSocket(k.run)), os.Remove(ConsoleDir(k.run)))
	if k.runner != nil {
		err = errors.Join(err, k.runner.Process.Kill())
	}
	return err
}

// listen makes the sockets, and removes those of terminals that a dead keeper
// waited for. The lock is held for the keeper's life: a second keeper on the
// same directory would fight over them.
func (k *keeper) listen() error {
	if err := os.MkdirAll(ConsoleDir(k.run), 0o700); err != nil {
		return err
	}
	var err error
	if k.lock, err = unix.Open(filepath.Join(k.run, "keeper.lock"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open keeper.lock: %w", err)
	}
	if err := unix.Flock(k.lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another keeper serves %s: %w", k.run, err)
	}
	stale, err := filepath.Glob(filepath.Join(ConsoleDir(k.run), "[^"+ExecConsole+"]*"))
	if err != nil {
		return err
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if k.runnerListener, err = listenUnix(RunnerSocket(k.run)); err != nil {
		return err
	}
	k.listener, err = listenUnix(Socket(k.run))
	return err
}

func listenUnix(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

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

// do runs f on the loop and waits for it.
func (k *keeper) do(f func()) {
	done := make(chan struct{})
	k.events <- func() { f(); close(done) }
	<-done
}

// handle runs a request on the loop and replies from the connection's own
// goroutine: a peer that does not read cannot stop the loop.
func (k *keeper) handle(r *wire.Request) {
	var (
		body  any
		files []*os.File
		err   error
	)
	k.do(func() { body, files, err = k.answer(r) })
	r.Reply(body, err, files...)
	wire.CloseAll(files)
}

// answer runs on the loop. The returned files are duplicates for the reply.
func (k *keeper) answer(r *wire.Request) (any, []*os.File, error) {
	switch r.Op {
	case OpHello:
		wire.CloseAll(r.Files)
		var after ID
		err := r.Decode(&after)
		return k.hello(after.ID), nil, err
	case OpWatch:
		wire.CloseAll(r.Files)
		return k.watch(r.Peer()), nil, nil
	case OpAdd:
		var s Spec
		if err := r.Decode(&s); err != nil {
			wire.CloseAll(r.Files)
			return nil, nil, err
		}
		added, err := k.add(s, r.Files)
		return added, nil, err
	case OpUpgrade:
		wire.CloseAll(r.Files)
		var u Upgrade
		if err := r.Decode(&u); err != nil {
			return nil, nil, err
		}
		return nil, nil, k.upgrade(u.Path)
	}
	var req Put // an ID, or more
	if err := r.Decode(&req); err != nil {
		wire.CloseAll(r.Files)
		return nil, nil, err
	}
	p := k.processes[req.ID]
	if p == nil {
		wire.CloseAll(r.Files)
		if r.Op == OpDrop {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("%s: no process %q", r.Op, req.ID)
	}
	if r.Op == OpPut && len(r.Files) == 1 {
		At("put asked")
		p.hold(req.Name, r.Files[0])
		At("put done")
		return nil, nil, nil
	}
	wire.CloseAll(r.Files)
	switch r.Op {
	case OpGet:
		At("get asked")
		return p.get()
	case OpCloseFile:
		p.hold(req.Name, nil)
	case OpDrop:
		k.drop(p)
	case OpBegin:
		k.begun++
		p.begun, p.InFlight = k.begun, true
	case OpSettle:
		k.settle(p)
		return p.State, nil, nil
	case OpDrained:
		k.drained(p)
	default:
		return nil, nil, fmt.Errorf("unknown request %q with %d files", r.Op, len(r.Files))
	}
	return nil, nil, nil
}

func (k *keeper) hello(after string) Hello {
	h := Hello{Instance: k.instance, Pid: os.Getpid()}
	if k.runner != nil {
		h.Runner = k.runner.Process.Pid
	}
	for id := range k.processes {
		if id > after {
			h.IDs = append(h.IDs, id)
		}
	}
	slices.Sort(h.IDs)
	h.IDs = h.IDs[:min(len(h.IDs), maxIDs)]
	return h
}

// watch makes p a watcher. Whatever is gone after this reply is told to it.
func (k *keeper) watch(p *wire.Peer) Hello {
	if k.watchers[p] == nil {
		k.watchers[p] = newQueue(p)
	}
	return k.hello("")
}

func (k *keeper) add(s Spec, files []*os.File) (Added, error) {
	if len(files) != len(s.Files) {
		wire.CloseAll(files)
		return Added{}, fmt.Errorf("add %s: %d files for %d names", s.ID, len(files), len(s.Files))
	}
	if p := k.processes[s.ID]; p != nil {
		wire.CloseAll(files)
		return p.added(), nil
	}
	p := &process{State: State{Spec: s}}
	p.Files = nil
	for i, f := range files {
		p.hold(s.Files[i], f)
	}
	if s.TTY && p.file(FileTTY) == nil {
		var err error
		if p.console, err = k.openConsole(p.ID); err != nil {
			p.close()
			return Added{}, fmt.Errorf("add %s: %w", s.ID, err)
		}
	}
	k.processes[s.ID] = p
	if s.Pid != 0 {
		k.follow(p)
		k.tellRunner(NoticeAdopted, p)
	}
	At("add done")
	return p.added(), nil
}

// drop forgets p. A process of its that still runs is waited for as an unknown
// one.
func (k *keeper) drop(p *process) {
	delete(k.processes, p.ID)
	if k.byPid[p.Pid] == p {
		delete(k.byPid, p.Pid)
	}
	p.close()
	k.reapUnknown()
}

func (p *process) added() Added {
	if p.console == nil {
		return Added{}
	}
	return Added{Console: p.console.path}
}

func (p *process) file(name string) *os.File {
	for _, h := range p.files {
		if h.name == name {
			return h.file
		}
	}
	return nil
}

// hold keeps f under name and closes what was there; nil keeps nothing.
func (p *process) hold(name string, f *os.File) {
	for i, h := range p.files {
		if h.name == name {
			h.file.Close()
			p.files = append(p.files[:i], p.files[i+1:]...)
			break
		}
	}
	if f != nil {
		p.files = append(p.files, held{name, f})
	}
}

// get returns the state, and duplicates of the held files in the order that
// State.Files names them.
func (p *process) get() (State, []*os.File, error) {
	s := p.State
	s.Files = nil
	var files []*os.File
	for _, h := range p.files {
		f, err := dup(h.file)
		if err != nil {
			wire.CloseAll(files)
			return State{}, nil, fmt.Errorf("get %s of %s: %w", h.name, p.ID, err)
		}
		s.Files = append(s.Files, h.name)
		files = append(files, f)
	}
	return s, files, nil
}

// close lets go of all files, and of the console if it still waits.
func (p *process) close() {
	if p.console != nil {
		p.console.close()
		p.console = nil
	}
	for _, h := range p.files {
		h.file.Close()
	}
	p.files = nil
}

// dup duplicates the descriptor without changing the file's blocking mode.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(number(f)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// number is f's descriptor, which is valid until f is closed; -1 if it is.
// os.File.Fd would switch the open file to blocking mode, for everybody.
func number(f *os.File) int {
	n := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}
