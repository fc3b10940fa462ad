package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"

	"golang.org/x/sys/unix"
)

// Start runs the container's first process and returns its pid on the host. The
// process is in the record of the keeper before its runtime begins, so that no
// crash loses it. A container that was started returns the same pid.
//
// A start that a death of ours has cut is finished: a program that has begun is
// adopted, one that has not is begun. ErrExitUnknown where that cannot be told.
//
// The error of a start that failed holds the runtime's own message; what the
// start made is undone by Remove.
func (r *Runtime) Start(ctx context.Context, s Start) (pid int, err error) {
	if st, err := r.Keeper.State(s.ID); err == nil && st.Pid != 0 {
		return st.Pid, nil
	}
	if err := r.checkMapped(s.Spec); err != nil {
		return 0, err
	}
	// Here, nobody knows what came of an earlier start: its runtime may still be
	// at work, even if there is a pid file. crun writes that before the program
	// begins.
	again, err := r.writeSpec(s)
	if err != nil {
		return 0, err
	}
	console, err := r.expect(ctx, s)
	if err != nil {
		return 0, err
	}
	run, mounts := r.firstCommand(s, console)
	run.Again = again
	if s.Target == nil {
		return r.command(ctx, run, nil, mounts...)
	}
	pidns, err := r.openPIDNS(ctx, *s.Target)
	if err != nil {
		return 0, fmt.Errorf("join processes of container %s: %w", s.Target.ID, err)
	}
	defer pidns.Close()
	run.PIDNS = s.PIDNS()
	return r.command(ctx, run, nil, append(mounts, pidns)...)
}

// Left waits until no runtime command of the container is under way, and returns its
// root as an earlier start left it attached; nil if none did.
//
// Such a root must not be made anew: overlayfs empties the work directory of a
// writable layer that it mounts, and who uses the first mount could then write
// nothing that a lower layer has.
func (r *Runtime) Left(ctx context.Context, c Container) (root *os.File, err error) {
	if err := r.Keeper.CallRunner(ctx, runner.OpAwait, runner.Await{ID: c.ID, Dir: c.Dir}, nil, nil); err != nil {
		return nil, fmt.Errorf("wait for an earlier start: %w", err)
	}
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, c.RootFS(), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, nil
	}
	fd := -1
	if err == nil {
		fd, err = unix.OpenTree(unix.AT_FDCWD, c.RootFS(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", c.RootFS(), err)
	}
	return os.NewFile(uintptr(fd), c.RootFS()), nil
}

// expect makes the keeper expect the container's process and hold its files.
// console is where its terminal is to be sent, if it has one.
func (r *Runtime) expect(ctx context.Context, s Start) (console string, err error) {
	process := keeper.Spec{ID: s.ID, Dir: s.Dir, Cgroup: s.Cgroup, Output: true, State: filepath.Join(r.Root(), s.ID), TTY: s.Spec.Process.Terminal}
	var files []*os.File
	if s.Log != nil {
		if err := linkLog(s.Dir, s.Log); err != nil {
			return "", err
		}
		process.Files, files = append(process.Files, keeper.FileLog), append(files, s.Log)
	}
	if !process.TTY {
		opened, err := makeFIFOs(s)
		if err != nil {
			return "", err
		}
		for name, f := range opened {
			defer f.Close()
			process.Files, files = append(process.Files, name), append(files, f)
		}
	}
	return r.Keeper.Add(ctx, process, files...)
}

// firstCommand is the runtime command that starts the container, and the mounts
// that the runner attaches before it.
func (r *Runtime) firstCommand(s Start, console string) (run *runner.Run, mounts []*os.File) {
	args := []string{"run", "--detach", "--bundle", s.Dir, "--pid-file", filepath.Join(s.Dir, keeper.PidFile)}
	tty := s.Spec.Process.Terminal
	if tty {
		args = append(args, "--console-socket", console)
	}
	run = &runner.Run{
		ID: s.ID, Dir: s.Dir, Argv: r.argv(s.Dir, append(args, s.ID)...), Timeout: r.Timeout,
		State: filepath.Join(r.Root(), s.ID),
		Root:  s.RootFS(), Stdin: s.Stdin, TTY: tty,
	}
	mounts = []*os.File{s.Root}
	for name, view := range s.Views {
		run.Views, mounts = append(run.Views, s.View(name)), append(mounts, view)
	}
	return run, mounts
}

// openPIDNS opens the pid namespace of a running container. Its process is
// looked at by its pid, which is its own as long as the pidfd still reaches it:
// asked afterwards. ErrNotRunning.
func (r *Runtime) openPIDNS(ctx context.Context, c Container) (*os.File, error) {
	st, err := r.state(ctx, c)
	if err != nil || st.Pid == 0 || st.Exit != nil || st.Gone {
		return nil, ErrNotRunning
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", st.Pid))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err := r.Signal(ctx, c, 0); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// argv is the runtime's command line. Its messages go to a file in dir: on
// stderr they would be the container's output.
func (r *Runtime) argv(dir string, args ...string) []string {
	return append([]string{r.Path, "--root", r.Root(), "--log", filepath.Join(dir, runner.LogFile), "--log-format", "json"}, args...)
}

// command lets the runner execute a runtime command that starts a process, and
// takes over what the keeper then holds of it. stderr returns what a runtime that
// failed has written there, unless the runner knows that (nil).
func (r *Runtime) command(ctx context.Context, run *runner.Run, stderr func() string, files ...*os.File) (pid int, err error) {
	if err := os.MkdirAll(r.Root(), 0o700); err != nil {
		return 0, err
	}
	stop := r.Keeper.WatchBirth(run.ID)
	defer stop()
	for {
		var ran runner.Ran
		err := r.Keeper.CallRunner(ctx, runner.OpRun, run, func() { run.Again = true }, &ran, files...)
		if err != nil {
			if st, stateErr := r.Keeper.State(run.ID); stateErr == nil && st.Gone {
				return st.Pid, nil // started, and ended since: a next keeper is not told of it
			}
			return 0, err
		}
		if ran.Unclear != "" {
			return 0, fmt.Errorf("%s: %w", ran.Unclear, ErrExitUnknown)
		}
		if ran.Status != "" || ran.Pid == 0 {
			if stderr != nil {
				ran.Stderr = stderr()
			}
			return 0, r.failure(run.Dir, ran)
		}
		if err := r.Keeper.Refresh(ctx, run.ID); err != nil {
			return 0, err
		}
		st, err := r.Keeper.State(run.ID)
		if err != nil || st.Pid != 0 {
			return st.Pid, err
		}
		// The keeper that knew the pid has died before we did.
		run.Again = true
	}
}

// failure makes the error of a runtime command from its log and its stderr.
func (r *Runtime) failure(dir string, ran runner.Ran) error {
	said := loggedErrors(filepath.Join(dir, runner.LogFile))
	if len(said) == 0 && ran.Stderr != "" {
		said = append(said, ran.Stderr)
	}
	if ran.Status == "" {
		ran.Status = "it started no process"
	}
	if len(said) == 0 {
		return &RuntimeError{fmt.Sprintf("%s: %s", r.Name, ran.Status)}
	}
	return &RuntimeError{fmt.Sprintf("%s: %s (%s)", r.Name, strings.Join(said, "; "), ran.Status)}
}

// Of a failed runtime's log: how much is read, and how much of each message is
// reported, in bytes. One quotes what it was given, which may be long.
const (
	logRead = 4 << 20
	msgKept = 1 << 10
)

// loggedErrors are the errors in a runtime's log, the middle of long ones left out.
func loggedErrors(path string) (said []string) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for d := json.NewDecoder(io.LimitReader(f, logRead)); ; {
		var line struct{ Level, Msg string }
		if d.Decode(&line) != nil {
			return said
		}
		if line.Level == "error" || line.Level == "fatal" {
			said = append(said, shorten(line.Msg, msgKept))
		}
	}
}

// shorten leaves out the middle of what is longer than most bytes.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most/2], "") + "…" + strings.ToValidUTF8(s[len(s)-most/2:], "")
}

const (
	specFile = "config.json" // of a bundle
	partial  = ".new"        // ends the name of a file that is being written
)

// writeSpec writes the bundle's spec. It tells whether there was one.
func (r *Runtime) writeSpec(s Start) (again bool, err error) {
	spec := *s.Spec
	spec.Version = r.OCIVersion
	b, err := json.Marshal(&spec)
	if err != nil {
		return false, fmt.Errorf("encode runtime spec: %w", err)
	}
	path := filepath.Join(s.Dir, specFile)
	_, err = os.Lstat(path)
	again = err == nil
	// Whole: the runtime of an earlier start may be reading the old one.
	if err := os.WriteFile(path+partial, b, 0o600); err != nil {
		return again, err
	}
	return again, os.Rename(path+partial, path)
}

// makeFIFOs makes the container's standard streams and opens our ends.
func makeFIFOs(s Start) (map[string]*os.File, error) {
	names := []string{keeper.StdoutFIFO, keeper.StderrFIFO}
	if s.Stdin {
		names = append(names, keeper.StdinFIFO)
	}
	uid, gid := s.hostUser(s.Spec.Process.User)
	for _, name := range names {
		path := filepath.Join(s.Dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		// A process that opens /dev/stdout anew needs it to be its own.
		if err := os.Lchown(path, uid, gid); err != nil {
			return nil, err
		}
	}
	return openFIFOs(s.Dir)
}

// openFIFOs opens our ends of the streams in dir. They are in blocking mode,
// since the keeper, the runner and we share the open files.
func openFIFOs(dir string) (map[string]*os.File, error) {
	files := make(map[string]*os.File)
	for _, name := range []string{keeper.StdoutFIFO, keeper.StderrFIFO, keeper.StdinFIFO} {
		// Read-write never waits for the other end.
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil && name == keeper.StdinFIFO {
			// Write-only, so that the container sees the end when all writers
			// have closed; opened while the read-write end is there.
			both := fd
			fd, err = unix.Open(filepath.Join(dir, name), unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
			unix.Close(both)
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("open %s of the container: %w", name, err)
		}
		files[name] = os.NewFile(uintptr(fd), name)
	}
	return files, nil
}
