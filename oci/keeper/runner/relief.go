package runner

import (
	"fmt"
	"os"
	"os/signal"
	"sync"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// mostHeld is what a pipe is made to hold at most while a runtime command is under
// way, in bytes: as much as the kernel allows by default (pipe(7)).
const mostHeld = 1 << 20

// relief makes room in the pipes that a runtime command has as its standard output
// and error, so that none waits for ever for a reader: nobody reads before it has
// ended and it is known whether they hold its own messages or a container's output.
// A full pipe is made larger, which loses nothing. One that cannot grow and that
// only the runtime writes to is emptied.
type relief struct {
	pipes   []relieved
	written chan os.Signal
	alone   func() bool // nobody but the runtime can have written
	done    chan struct{}
	looking sync.WaitGroup
}

// relieved is a pipe: the command's end, and a description of ours to read from.
type relieved struct {
	theirs *os.File
	ours   int
}

// relieve is called when the command has begun; the caller calls end when that has
// ended.
func relieve(files []*os.File, alone func() bool) *relief {
	r := &relief{written: make(chan os.Signal, 1), alone: alone, done: make(chan struct{})}
	signal.Notify(r.written, unix.SIGIO)
	for _, f := range files {
		if fd, err := tellOfWrites(f); err == nil { // else it is no pipe
			r.pipes = append(r.pipes, relieved{f, fd})
		}
	}
	r.looking.Go(func() {
		for {
			for _, p := range r.pipes {
				p.makeRoom(r.alone)
			}
			select {
			case <-r.written: // to any pipe of any command
			case <-r.done:
				return
			}
		}
	})
	return r
}

func (r *relief) end() {
	signal.Stop(r.written)
	close(r.done)
	r.looking.Wait()
	for _, p := range r.pipes {
		unix.Close(p.ours)
	}
}

// tellOfWrites opens the read end of a pipe anew, so that this process gets SIGIO
// when somebody writes to it, and when somebody must wait to. A poll would not tell
// of a writer who waits.
func tellOfWrites(f *os.File) (int, error) {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_GETPIPE_SZ, 0); err != nil {
		return -1, err
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETOWN, os.Getpid()); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_ASYNC)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (p relieved) makeRoom(alone func() bool) {
	for p.full() {
		size, err := unix.FcntlInt(p.theirs.Fd(), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			return
		}
		if size < mostHeld {
			if _, err := unix.FcntlInt(p.theirs.Fd(), unix.F_SETPIPE_SZ, 2*size); err == nil {
				continue
			}
		}
		if !alone() {
			return
		}
		// The end of what it says is kept: it has more to say, or nobody would wait.
		if n, err := unix.Read(p.ours, make([]byte, size/2)); n <= 0 || err != nil {
			return
		}
	}
}

func (p relieved) full() bool {
	fds := []unix.PollFd{{Fd: int32(p.theirs.Fd()), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

// alone says that a runtime command is the only one to have written to the pipes
// that it would hand to a process in the cgroup at path: there is no such process.
// Of a container, none is in its cgroup; of an exec, none has come from the runtime.
func (c Run) alone(path string, runtime int) bool {
	if keeper.ReadPid(c.Dir) != 0 {
		return false
	}
	if !c.Stdio {
		pids, err := cgroup.Procs(path)
		return err == nil && len(pids) == 0
	}
	return !anyBelow(runtime, func(pid int) bool {
		in, err := cgroup.Holds(path, pid)
		return err == nil && in
	})
}

// anyBelow says whether is holds for a descendant of the process.
func anyBelow(pid int, is func(int) bool) bool {
	for _, child := range keeper.Children(pid) {
		if is(child) || anyBelow(child, is) {
			return true
		}
	}
	return false
}
