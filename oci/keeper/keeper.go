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

	orphan *wire.Peer // runner of the last keeper, until ours holds what it had

	runner      *exec.Cmd
	runnerPeer  *wire.Peer
	runnerQueue *queue
	quickDeaths int // of runners, in a row
}

// Main is the keeper process: it serves run until it is killed. It returns only
// when it could not start, when another keeper serves run, or on SIGTERM while it
// knows no process.
func Main(run string, logger *log.Logger) error {
	CatchSignals() // a closed stderr, or terminal, must not end the keeper
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
		if err := k.begin(); err != nil {
			return err
		}
	}
	go k.accept()
	if err := sayReady(); err != nil {
		logger.Printf("say that the keeper is ready: %v", err)
	}
	k.startRunner()
	k.reapUnknown() // SIGCHLD is lost while an upgrade has no handler for it
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

// begin takes over what the last keeper's runner holds, and then makes the
// sockets: whoever connects meets a keeper that knows everything. The lock is
// held for the keeper's life: a second keeper on the same directory would fight
// over them.
func (k *keeper) begin() error {
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
	if err := k.takeOver(); err != nil {
		k.logger.Printf("take over from the last keeper's runner: %v", err)
	}
	if k.runnerListener == nil {
		if k.runnerListener, err = listenUnix(RunnerSocket(k.run)); err != nil {
			return err
		}
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

// do runs f on the loop and waits for it.
func (k *keeper) do(f func()) {
	done := make(chan struct{})
	k.events <- func() { f(); close(done) }
	<-done
}
