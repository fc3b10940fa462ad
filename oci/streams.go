package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// streams are the standard streams of one exec, and the goroutines that serve
// them: pipes, or a terminal.
type streams struct {
	exec    Exec
	theirs  []*os.File // stdin, stdout and stderr as the runtime command gets them
	console *console   // of the terminal; nil: pipes
	outputs []output   // stdout and stderr of pipes

	stdin *os.File // what Exec.Stdin is copied to; nil: nothing is
	// closed when the process has ended: what its streams hold then is all that
	// is waited for
	ended  chan struct{}
	copies sync.WaitGroup
}

// output is a pipe from the process. Until that is started, what is in it is the
// runtime's.
type output struct {
	from *os.File
	to   io.Writer
}

// openStreams makes what the process of an exec starts with. The caller calls
// end.
func (r *Runtime) openStreams(e Exec, id string) (_ *streams, err error) {
	s := &streams{exec: e, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return s, err
	}
	s.theirs = []*os.File{null}
	if e.Process.Terminal {
		s.theirs = append(s.theirs, null, null)
		s.console, err = r.openConsole(id)
		return s, err
	}
	uid, gid := e.hostUser(e.Process.User)
	for _, w := range []io.Writer{e.Stdout, e.Stderr} {
		ours, theirs, err := pipe(readEnd)
		if err != nil {
			return s, err
		}
		s.theirs = append(s.theirs, theirs)
		s.outputs = append(s.outputs, output{ours, w})
		// As for FIFOs; in a user namespace a runtime cannot do it.
		if err := theirs.Chown(uid, gid); err != nil {
			return s, err
		}
	}
	if e.Stdin != nil {
		theirs, ours, err := pipe(writeEnd)
		if err != nil {
			return s, err
		}
		null.Close()
		s.theirs[0], s.stdin = theirs, ours
		s.copies.Go(func() {
			defer ours.Close()
			defer e.Stdin.Close() // whoever writes to it is not held up by a process that does not read
			_, _ = io.Copy(ours, e.Stdin)
		})
		if err := theirs.Chown(uid, gid); err != nil {
			return s, err
		}
	}
	return s, nil
}

// started is called when the runtime command has ended well: what it was given
// is the process's now, and what it has made is ours.
func (s *streams) started() error {
	s.closeTheirs()
	for _, o := range s.outputs {
		s.copies.Go(func() {
			defer o.from.Close()
			copyUntil(o.to, o.from, s.ended)
		})
	}
	s.outputs = nil
	if s.console == nil {
		return nil
	}
	t, err := s.console.receive()
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	s.copies.Go(func() {
		defer t.Close()
		copyUntil(s.exec.Stdout, t.master, s.ended)
	})
	s.copies.Go(func() { resize(t.master, s.exec.Resize, s.ended) })
	if s.exec.Stdin != nil {
		s.stdin = t.master
		s.copies.Go(func() {
			defer s.exec.Stdin.Close()
			if _, err := io.Copy(t.master, s.exec.Stdin); err == nil {
				typeEOF(t.master)
			}
		})
	}
	return nil
}

// maxMessages is how much of a failed runtime's stderr is reported, in bytes.
const maxMessages = 4 << 10

// messages returns what a runtime that failed has written to stderr. A terminal's
// has nowhere to write to.
func (s *streams) messages() string {
	if len(s.outputs) == 0 {
		return ""
	}
	stderr := s.outputs[len(s.outputs)-1].from
	said := make([]byte, maxMessages)
	n := 0
	control(stderr, func(fd int) { n, _ = unix.Read(fd, said) })
	return string(bytes.TrimSpace(said[:max(n, 0)]))
}

// end is called when the process has ended. It returns when all that it has
// written is where it belongs.
func (s *streams) end() {
	close(s.ended)
	s.closeTheirs()
	for _, o := range s.outputs { // of one that was not started
		o.from.Close()
	}
	if s.console != nil {
		s.console.close()
	}
	if s.exec.Stdin != nil {
		s.exec.Stdin.Close()
	}
	if s.stdin != nil {
		_ = s.stdin.SetWriteDeadline(past)
	}
	s.copies.Wait()
}

func (s *streams) closeTheirs() {
	for _, f := range s.theirs {
		f.Close()
	}
	s.theirs = nil
}

// past is a deadline that ends reads and writes under way.
var past = time.Unix(1, 0)

// Ends of a pipe.
const (
	readEnd  = 0
	writeEnd = 1
)

// pipe makes one whose end ours waits in the poller. The other is in blocking
// mode: it becomes a standard stream of a process.
func pipe(ours int) (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	_ = unix.SetNonblock(fds[ours], true)
	return os.NewFile(uintptr(fds[readEnd]), "pipe"), os.NewFile(uintptr(fds[writeEnd]), "pipe"), nil
}

// copyUntil copies from a pipe or a terminal until its end, or, after ended is
// closed, until it is empty: a process left behind may hold it open for ever.
// What w does not take is dropped, so that nobody blocks on it.
func copyUntil(w io.Writer, from *os.File, ended <-chan struct{}) {
	if w == nil {
		w = io.Discard
	}
	done := make(chan struct{})
	var interrupt sync.WaitGroup
	interrupt.Go(func() {
		select {
		case <-ended:
			_ = from.SetReadDeadline(past)
		case <-done:
		}
	})
	_, err := io.Copy(dropErrors{w}, from)
	close(done)
	interrupt.Wait()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	_ = raw.Control(func(fd uintptr) {
		for {
			// A terminal shows all that was written only to who asks for it.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			_, _ = w.Write(buf[:n])
		}
	})
}

// dropErrors goes on after its writer has failed.
type dropErrors struct{ w io.Writer }

func (d dropErrors) Write(b []byte) (int, error) {
	_, _ = d.w.Write(b)
	return len(b), nil
}
