package oci

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/oci/keeper/runner"
)

// execTimeout bounds what follows the end of an exec: killing its descendants,
// forgetting it.
const execTimeout = 10 * time.Second

// Exec runs a process in the container and returns its exit code: 0–255, 128+n
// for a death by signal n. What the OCI runtime says when it cannot start it is the
// error and no output. Exec returns when the process has ended and what it
// wrote until then is in Stdout and Stderr; a process that it has left behind
// with its streams is not waited for. When ctx ends first, the process is killed
// with what belongs to it (Exec.Whole) and the error is ctx's. ErrNotRunning, ErrInterrupted.
//
// The end of Stdin is the end of the process's standard input. A terminal has no
// such end: its end-of-file character is typed where that has a meaning.
//
// The process is the keeper's, like a container's: berthd or the runner may die
// without its exit code being lost to the keeper.
func (r *Runtime) Exec(ctx context.Context, e Exec) (code int, err error) {
	if e.Stdin != nil {
		defer e.Stdin.Close()
	}
	if st, err := r.state(ctx, e.Container); err != nil || st.Exit != nil || st.Gone || st.Pid == 0 {
		return 0, ErrNotRunning
	}
	id := r.execID()
	if e.Whole {
		defer r.removeNests(e.Container)
	}
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

func (r *Runtime) exec(ctx context.Context, e Exec, id, dir string) (code int, err error) {
	streams, err := r.openStreams(e, id)
	if err != nil {
		return 0, err
	}
	defer streams.end()
	run, loose, err := r.execCommand(e, id, dir, streams.console)
	if err != nil {
		return 0, err
	}
	// Not bound to ctx: it must be known to the keeper as long as it may run.
	detached := context.WithoutCancel(ctx)
	if _, err := r.Keeper.Add(detached, keeper.Spec{ID: id, Dir: dir, Cgroup: e.Cgroup}); err != nil {
		return 0, err
	}
	defer r.endExec(detached, id, dir)
	defer func() {
		if e.Whole && loose != nil && ctx.Err() != nil {
			err = errors.Join(err, &LooseError{loose})
		}
	}()
	starting, cancel := ctx, context.CancelFunc(func() {})
	if !e.Whole || loose != nil {
		starting, cancel = afterwards(ctx, startGrace)
	}
	defer cancel()
	pid, err := r.command(starting, run, streams.messages, streams.theirs...)
	if errors.Is(err, ErrExitUnknown) {
		err = ErrInterrupted // whether it has begun
	}
	if err != nil {
		return 0, errors.Join(ctx.Err(), err)
	}
	if e.Whole && loose == nil {
		loose = checkNest(e.Container, id, pid)
	}
	keepOOMScoreAdj(e.Container, pid, e.Process.OOMScoreAdj)
	if err := streams.started(); err != nil {
		return 0, err
	}
	exit, err := r.Keeper.Wait(ctx, id)
	if err != nil {
		return 0, err
	}
	if exit.Code < 0 {
		return 0, ErrInterrupted
	}
	return exit.Code, nil
}

// execCommand is the runtime command that starts an exec, and why that is not in a
// nest: nil if it will be, and for one that is not to be.
func (r *Runtime) execCommand(e Exec, id, dir string, console *console) (run *runner.Run, loose, err error) {
	b, err := json.Marshal(e.Process)
	if err != nil {
		return nil, nil, err
	}
	process := filepath.Join(dir, "process.json")
	if err := os.WriteFile(process, b, 0o600); err != nil {
		return nil, nil, err
	}
	argv := []string{"exec", "--detach", "--process", process, "--pid-file", filepath.Join(dir, keeper.PidFile)}
	if console != nil {
		argv = append(argv, "--console-socket", console.path)
	}
	run = &runner.Run{ID: id, Dir: dir, Timeout: r.Timeout, Stdio: true, OOMScoreAdj: value(e.Process.OOMScoreAdj)}
	if e.Whole {
		if run.Nest, loose = r.nest(e.Container, id); loose == nil && run.Nest == "" {
			argv = append(argv, "--cgroup", id)
		}
	}
	run.Argv = r.argv(dir, append(argv, e.ID)...)
	return run, loose, nil
}

// startGrace is how long the start of an exec without a nest may go on when nobody
// wants it any more. A runtime that is killed may leave a process whose pid nobody
// knows; one that ends well leaves one that can be killed.
const startGrace = 10 * time.Second

// afterwards returns a context that ends d after ctx.
func afterwards(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return later, func() {
		stop()
		cancel()
	}
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

// endExec kills an exec that has not ended, with its descendants and all that is
// in its nest, and forgets it.
func (r *Runtime) endExec(ctx context.Context, id, dir string) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	if st, err := r.Keeper.State(id); err == nil && !st.Gone {
		// Its runtime may be under way still.
		_ = r.Keeper.CallRunner(ctx, runner.OpClear, runner.Clear{ID: id, Dir: dir}, nil, nil)
		_ = r.Keeper.Refresh(ctx, id)
		if st, err = r.Keeper.State(id); err == nil && st.Pid != 0 && !st.Gone {
			runner.KillTree(st.Pid, func(sig syscall.Signal) error { return r.Keeper.Signal(id, sig) })
		}
		_ = cgroup.Kill(ctx, nestPath(st.Cgroup, id))
		if st.Pid != 0 {
			_, _ = r.Keeper.Wait(ctx, id)
		}
	}
	_ = r.Keeper.Drop(ctx, id)
}
