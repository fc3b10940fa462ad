package runner

import (
	"errors"
	"fmt"
	"os"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// Names of streams in a log.
const (
	stdoutName = "stdout"
	stderrName = "stderr"
)

// stream is one of a process's: a FIFO, or a terminal. The process may do anything
// with its own end: take back what it has written, change the flags of the open file
// that it was given, hang up, lock the FIFO (read.go). All but the first four are
// guarded by output.mu; while busy, its reader alone may read from fd.
type stream struct {
	sink *sink
	name string   // stdoutName or stderrName
	file *os.File // the pty master, or the FIFO as the keeper holds it: read-write, so that it has no end
	tty  bool

	// fd is what is read: the master, or a description of the FIFO that is nobody
	// else's, so that nobody else can make it wait. -1 until it is open.
	fd       int
	busy     bool // it is being opened or read: nobody else may
	alone    bool // it has held up its reader: it has a goroutine of its own from then on
	closing  bool
	edge     bool // epoll tells changes alone: it has hung up, which would be told for ever
	draining bool // the process has ended: only what it holds is read
}

func newStream(s *sink, name string, f *os.File, tty bool) *stream {
	st := &stream{sink: s, name: name, file: f, tty: tty, fd: -1}
	if tty {
		// Whoever else has the master open waits in its poller.
		st.fd = int(f.Fd())
		_ = unix.SetNonblock(st.fd, true)
	}
	return st
}

// open is called by st's reader, without output.mu: it may hang, since opening a FIFO
// takes its lock. What it returns is to be st.fd.
func (st *stream) open() (fd int, err error) {
	if st.fd >= 0 {
		return st.fd, nil
	}
	return openReading(st.file)
}

// openReading opens a FIFO anew, to be read without waiting.
func openReading(f *os.File) (fd int, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return -1, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return -1, fmt.Errorf("open %s: not a FIFO", f.Name())
	}
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// closeIdle closes st's files unless somebody reads from them.
func (st *stream) closeIdle() {
	if !st.closing || st.busy {
		return
	}
	keeper.CloseApart(st.file)
	if !st.tty && st.fd >= 0 {
		keeper.CloseApart(os.NewFile(uintptr(st.fd), st.name))
	}
	st.closing = false
}

// read reads what is there, and 0 bytes if nothing is.
func (st *stream) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(st.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), st.tty && errors.Is(err, unix.EIO): // of a terminal that has hung up
			return 0, nil
		}
		return max(n, 0), err
	}
}

// available is how many bytes st seems to hold: the container may take them back
// at any moment. It may hang, as a read may.
func (st *stream) available() int {
	if st.tty {
		// What was written moves to the master's end in the background, unless
		// somebody asks whether it is there.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(st.fd), Events: unix.POLLIN}}, 0)
	}
	n, err := unix.IoctlGetInt(st.fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// ttyHeld is more than a terminal takes in while nobody reads from it. It shows
// 4 KiB of that at a time.
const ttyHeld = 256 << 10

// held bounds how many bytes st holds now.
func (st *stream) held() int {
	if st.tty {
		return ttyHeld
	}
	return st.available()
}
