package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"

	"golang.org/x/sys/unix"
)

// closeTimeout bounds the wait for a keeper that is just being replaced.
const closeTimeout = 10 * time.Second

// Attach copies between a running container's streams and the client's until the
// container has ended and all its output was copied, or, where the client wants
// no output, until the end of its input. Output begins with the first chunk
// after the call. When ctx ends first, the error is ctx's; the container does not
// notice.
//
// Output comes from the runner, which has written it to the log before. When
// that is killed, nobody knows what its last chunk's clients have seen, so the
// attachment ends with ErrDetached. ErrNotRunning, ErrNoStdin, ErrTooSlow.
func (r *Runtime) Attach(ctx context.Context, a Attach) error {
	if a.Stdin != nil {
		defer a.Stdin.Close()
	}
	st, err := r.state(ctx, a.Container)
	if err != nil || st.Exit != nil || st.Gone || st.Pid == 0 {
		return ErrNotRunning
	}
	out, err := r.openOutput(ctx, a)
	if err != nil {
		return err
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(past) })
	defer stop()
	in, err := r.openInput(a, st) // after the output: that has the answers to it
	if err != nil {
		return err
	}
	defer in.end()
	if a.Stdout == nil && a.Stderr == nil {
		select {
		case <-in.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := copyPackets(a, out); ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// openOutput asks the runner for the container's output. It comes in packets.
func (r *Runtime) openOutput(ctx context.Context, a Attach) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "attached")
	defer theirs.Close()
	ours, err := pollable(pair[0])
	if err != nil {
		return nil, err
	}
	// What a runner has sent that died before it could say so.
	forget := func() {
		control(ours, func(fd int) {
			b := make([]byte, 1)
			for n, err := 1, error(nil); n > 0 && err == nil; {
				n, _, err = unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			}
		})
	}
	what := runner.Attach{ID: a.ID, Stdout: a.Stdout != nil, Stderr: a.Stderr != nil}
	if err := r.Keeper.CallRunner(ctx, runner.OpAttach, what, forget, nil, theirs); err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// copyPackets copies what the runner sends until it says that it was all.
func copyPackets(a Attach, from *os.File) error {
	buf := make([]byte, runner.MaxPacket)
	for {
		n, err := from.Read(buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return ErrDetached
			}
			return err
		}
		to := a.Stdout
		switch buf[0] {
		case runner.PacketEnd:
			return nil
		case runner.PacketSlow:
			return ErrTooSlow
		case runner.PacketStderr:
			to = a.Stderr
		}
		if _, err := to.Write(buf[1:n]); err != nil {
			return err
		}
	}
}

// input is what an attached client types, on its way to the container.
type input struct {
	attach Attach
	file   *os.File      // the terminal or the write end of stdin; nil: neither
	ended  chan struct{} // closed when the attachment ends
	done   chan struct{} // closed when the client's input has ended
	copies sync.WaitGroup
	finish func() // for StdinOnce
}

// openInput begins to copy the client's input and the sizes of its terminal. The
// caller ends it.
func (r *Runtime) openInput(a Attach, st keeper.State) (*input, error) {
	in := &input{attach: a, ended: make(chan struct{}), done: make(chan struct{}), finish: func() {}}
	var err error
	switch {
	case st.TTY:
		in.file, err = r.openMaster(a.ID)
	case a.Stdin != nil:
		in.file, err = r.openStdin(a.ID)
	}
	if err != nil {
		return nil, err
	}
	if a.StdinOnce && a.Stdin != nil {
		in.finish = sync.OnceFunc(func() {
			if st.TTY {
				typeEOF(in.file)
				return
			}
			// Of a container that has ended there is nothing to close.
			_ = r.CloseStdin(context.Background(), a.Container)
		})
	}
	if st.TTY {
		in.copies.Go(func() { resize(in.file, a.Resize, in.ended) })
	}
	if a.Stdin == nil {
		return in, nil
	}
	in.copies.Go(func() {
		defer close(in.done)
		defer a.Stdin.Close() // whoever writes to it is not held up by a container that does not read
		_, _ = io.Copy(in.file, a.Stdin)
		if !st.TTY {
			in.file.Close() // before the last writer's close, or that would not be the end
		}
		in.finish()
	})
	return in, nil
}

// end ends the input, also while the container does not read it.
func (in *input) end() {
	close(in.ended)
	if in.attach.Stdin != nil {
		in.attach.Stdin.Close()
	}
	if in.file != nil {
		_ = in.file.SetWriteDeadline(past)
	}
	in.copies.Wait()
	if in.file != nil {
		in.file.Close()
	}
}

// CloseStdin ends the container's standard input for good. ErrNotRunning.
func (r *Runtime) CloseStdin(ctx context.Context, c Container) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if st, err := r.state(ctx, c); err != nil || st.Exit != nil || st.Gone {
		return ErrNotRunning
	}
	return r.Keeper.CloseFile(ctx, c.ID, keeper.FileStdin)
}

// openStdin opens the container's standard input anew: the keeper's open file is
// in blocking mode, and a container that does not read would hold us up.
func (r *Runtime) openStdin(id string) (*os.File, error) {
	held, err := r.Keeper.File(id, keeper.FileStdin)
	if errors.Is(err, keeper.ErrUnknown) {
		return nil, ErrNotRunning
	}
	if err == nil && held == nil {
		err = ErrNoStdin
	}
	if err != nil {
		return nil, err
	}
	defer held.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", held.Fd())
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, ErrNoStdin // the container has closed it
	}
	if err != nil {
		return nil, fmt.Errorf("open stdin of the container: %w", err)
	}
	return pollable(fd)
}

// openMaster duplicates the container's terminal. That is then in non-blocking
// mode for its other holders as well: the keeper only holds it, and the runner
// asks for no more than is there.
func (r *Runtime) openMaster(id string) (*os.File, error) {
	held, err := r.Keeper.File(id, keeper.FileTTY)
	if errors.Is(err, keeper.ErrUnknown) {
		return nil, ErrNotRunning
	}
	if err == nil && held == nil {
		err = errors.New("container has lost its terminal")
	}
	if err != nil {
		return nil, err
	}
	defer held.Close()
	fd := -1
	var dupErr error
	control(held, func(n int) { fd, dupErr = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0) })
	if dupErr != nil {
		return nil, dupErr
	}
	return pollable(fd)
}
