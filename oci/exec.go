package oci

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"

	"golang.org/x/sys/unix"
)

// execTimeout bounds what follows the end of an exec: killing its descendants,
// forgetting it.
const execTimeout = 10 * time.Second

// Exec runs a process in the container and returns its exit code: 0–255, 128+n
// for a death by signal n. It returns when the process has ended and what it
// wrote until then is in Stdout and Stderr; a process that it has left behind
// with its streams is not waited for. When ctx ends first, the process and its
// descendants are killed and the error is ctx's. ErrNotRunning.
//
// The process is the keeper's, like a container's: berthd or the runner may die
// without its exit code being lost to the keeper.
func (r *Runtime) Exec(ctx context.Context, e Exec) (code int, err error) {
	if st, err := r.state(ctx, e.Container); err != nil || st.Exit != nil || st.Gone || st.Pid == 0 {
		return 0, ErrNotRunning
	}
	id := r.execID()
	defer r.forgetExec(id)
	dir := filepath.Join(r.execDir(), id)
	if err := makeExecDir(dir, e.Cgroup); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	return r.exec(ctx, e, id, dir)
}

// cgroupFile, in an exec's directory, holds the container's cgroup: by it an exec
// is known whose keeper has died.
const cgroupFile = "cgroup"

func (r *Runtime) execDir() string { return filepath.Join(r.Run, "exec") }

func makeExecDir(dir, cgroup string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, cgroupFile), []byte(cgroup), 0o600)
}

func (r *Runtime) exec(ctx context.Context, e Exec, id, dir string) (int, error) {
	b, err := json.Marshal(e.Process)
	if err != nil {
		return 0, err
	}
	process := filepath.Join(dir, "process.json")
	if err := os.WriteFile(process, b, 0o600); err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var copies sync.WaitGroup
	ended := make(chan struct{}) // closed when the process has ended
	stop := sync.OnceFunc(func() { close(ended) })
	defer copies.Wait()
	defer stop()
	stdio := []*os.File{null, nil, nil}
	uid, gid := e.hostUser(e.Process.User)
	for i, w := range []io.Writer{e.Stdout, e.Stderr} {
		read, write, err := pipe()
		if err != nil {
			return 0, err
		}
		defer write.Close()
		// As for FIFOs; in a user namespace a runtime cannot do it.
		if err := write.Chown(uid, gid); err != nil {
			read.Close()
			return 0, err
		}
		stdio[i+1] = write
		copies.Go(func() {
			defer read.Close()
			copyUntil(w, read, ended)
		})
	}
	// Not bound to ctx: it must be known to the keeper as long as it may run.
	detached := context.WithoutCancel(ctx)
	if _, err := r.Keeper.Add(detached, keeper.Spec{ID: id, Dir: dir, Cgroup: e.Cgroup}); err != nil {
		return 0, err
	}
	defer r.endExec(detached, id, dir, execBox(e.ID, id))
	run := runner.Run{
		ID: id, Dir: dir, Box: execBox(e.ID, id), Timeout: r.Timeout, Stdio: true, OOMScoreAdj: value(e.Process.OOMScoreAdj),
		Argv: r.argv(dir, "exec", "--detach", "--process", process, "--pid-file", filepath.Join(dir, keeper.PidFile), e.ID),
	}
	pid, err := r.command(ctx, &run, stdio...)
	if err != nil {
		return 0, err
	}
	keepOOMScoreAdj(pid, e.Process.OOMScoreAdj)
	for _, w := range stdio[1:] {
		w.Close()
	}
	exit, err := r.Keeper.Wait(ctx, id)
	if err != nil {
		return 0, err
	}
	if exit.Code < 0 {
		return 0, ErrExitUnknown
	}
	return exit.Code, nil
}

// pipe makes one whose write end is in blocking mode: it becomes a process's
// standard output.
func pipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	_ = unix.SetNonblock(fds[0], true) // ours waits in the poller
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// execID makes the keeper's name of an exec and notes that it is under way.
func (r *Runtime) execID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	id := r.execPrefix() + hex.EncodeToString(b[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.execs == nil {
		r.execs = make(map[string]bool)
	}
	r.execs[id] = true
	return id
}

func (r *Runtime) execPrefix() string { return "exec-" + r.Name + "-" }

func (r *Runtime) forgetExec(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.execs, id)
}

// execBox is below the container's: what an exec leaves running in the
// background stays until the container is cleared.
func execBox(container, id string) string { return filepath.Join(container, id) }

// endExec kills an exec that has not ended, with its descendants, and forgets
// it.
func (r *Runtime) endExec(ctx context.Context, id, dir, box string) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	if st, err := r.Keeper.State(id); err == nil && !st.Gone {
		// Its runtime may be under way still.
		_ = r.Keeper.CallRunner(ctx, runner.OpClear, runner.Clear{ID: id, Dir: dir, Box: box}, nil, nil)
		_ = r.Keeper.Refresh(ctx, id)
		if st, err = r.Keeper.State(id); err == nil && st.Pid != 0 && !st.Gone {
			killTree(st.Pid, func(sig syscall.Signal) error { return r.Keeper.Signal(id, sig) })
			_, _ = r.Keeper.Wait(ctx, id)
		}
	}
	_ = r.Keeper.Drop(ctx, id)
}

// killTree kills a process and its descendants: it stops each before it looks
// for children, so that none can run away meanwhile. signal reaches the root by
// its pidfd.
func killTree(root int, signal func(syscall.Signal) error) {
	if signal(syscall.SIGSTOP) != nil {
		return
	}
	var below []int // pidfds
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, pid := range keeper.Children(queue[0]) {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
			below = append(below, fd)
			queue = append(queue, pid)
		}
	}
	_ = signal(syscall.SIGKILL)
	for _, fd := range below {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	}
}

// copyUntil copies from a pipe until its end, or, after ended is closed, until
// it is empty: a process left behind may hold it open for ever. What w does not
// take is dropped, so that nobody blocks on it.
func copyUntil(w io.Writer, pipe *os.File, ended <-chan struct{}) {
	if w == nil {
		w = io.Discard
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ended:
			_ = pipe.SetReadDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()
	_, err := io.Copy(dropErrors{w}, pipe)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	raw, err := pipe.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	_ = raw.Control(func(fd uintptr) {
		for {
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
