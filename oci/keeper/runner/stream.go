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
// that it was given, hang up. No read here waits, whatever it does.
type stream struct {
	sink *sink
	name string // stdoutName or stderrName
	fd   int    // non-blocking
	tty  bool   // fd is a pty master

	// held is the file as the keeper has it. Of a FIFO it is not read: the process has
	// the same open file and so its flags. It is a writer, without which a reader sees
	// the end. Of a terminal it is fd.
	held *os.File

	edge bool // epoll tells changes alone: it has hung up, which would be told for ever
}

// openStream takes over a process's output as the keeper holds it, keeper.FileStdout,
// FileStderr or FileTTY. With an error, f is still the caller's.
func openStream(file string, f *os.File) (*stream, error) {
	st := &stream{name: stdoutName, held: f, fd: int(f.Fd()), tty: file == keeper.FileTTY}
	if file == keeper.FileStderr {
		st.name = stderrName
	}
	if st.tty { // opened anew, it would be another terminal; the process has no share in its flags
		if err := unix.SetNonblock(st.fd, true); err != nil {
			return nil, fmt.Errorf("open the terminal: %w", err)
		}
		return st, nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", st.fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", st.name, err)
	}
	st.fd = fd
	return st, nil
}

func (st *stream) close() {
	if !st.tty {
		unix.Close(st.fd)
	}
	st.held.Close()
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

// available is how many bytes can be read from st now. The process may have taken
// some of them back by the time that they are read.
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

// holds bounds how many bytes st holds now.
func (st *stream) holds() int {
	if st.tty {
		return ttyHeld
	}
	return st.available()
}
