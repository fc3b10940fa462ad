package runner

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

const (
	// killTimeout bounds the wait for processes that were sent SIGKILL.
	killTimeout = 5 * time.Second
	// strayTimeout bounds the wait for a runtime command that outlived the
	// runner which started it.
	strayTimeout = 30 * time.Second
	// stderrKept is how much of a failed runtime's own stderr is reported.
	stderrKept = 4 << 10
)

// command is a runtime command under way.
type command struct {
	done chan struct{} // closed when ran and err are set, and it is no more in the table
	ran  Ran
	err  error
	left bool // by a predecessor: ran is not known
}

// join runs c, or waits for the same command that runs already.
func (r *runner) join(c Run, files []*os.File) (Ran, error) {
	for {
		r.mu.Lock()
		cmd := r.commands[c.ID]
		if cmd == nil {
			break
		}
		r.mu.Unlock()
		<-cmd.done
		if !cmd.left {
			return cmd.ran, cmd.err
		}
	}
	cmd := &command{done: make(chan struct{})}
	r.commands[c.ID] = cmd
	r.mu.Unlock()
	defer r.end(c.ID, cmd)
	cmd.ran, cmd.err = r.start(c, files)
	return cmd.ran, cmd.err
}

// end takes cmd out of the table.
func (r *runner) end(id string, cmd *command) {
	r.mu.Lock()
	delete(r.commands, id)
	r.mu.Unlock()
	close(cmd.done)
}

// start runs the command unless its process is there already.
func (r *runner) start(c Run, files []*os.File) (Ran, error) {
	if c.Again {
		unclear, err := r.resume(c)
		if err == nil && unclear != "" {
			err = r.keepOutput(c.ID)
		}
		if err != nil || unclear != "" {
			return Ran{Unclear: unclear}, err
		}
	}
	s, held, err := r.get(c.ID)
	if err != nil {
		return Ran{}, err
	}
	defer closeFiles(held)
	if s.Pid != 0 {
		return Ran{Pid: s.Pid}, r.started(c.ID)
	}
	if c.Root != "" {
		if err := c.furnish(files); err != nil {
			return Ran{}, err
		}
	}
	stdio, err := c.stdio(files)
	if err != nil {
		return Ran{}, err
	}
	defer closeFiles(stdio)
	names := s.Files
	takeMessages(names, held) // of a try that failed when nobody was there to see
	stop := r.watch(c.ID)
	defer stop()
	r.deputy.Begin(c.ID)
	if err := r.call(keeper.OpBegin, keeper.ID{ID: c.ID}, nil); err != nil {
		return Ran{}, err
	}
	keeper.At("start begun")
	ran := r.runtime(c, s.Cgroup, stdio)
	keeper.At("start ran")
	if err := r.settle(c.ID, &s); err != nil {
		return Ran{}, err
	}
	keeper.At("start settled")
	if s.Pid == 0 {
		ran.Stderr = takeMessages(names, held)
		return ran, nil
	}
	ran.Pid = s.Pid
	return ran, r.started(c.ID)
}

// resume makes sure what has become of an earlier try of the command: unless that
// is unclear, the keeper knows the process, or nothing of it is left.
func (r *runner) resume(c Run) (unclear string, err error) {
	_, files, err := r.get(c.ID)
	if err != nil {
		return "", err
	}
	closeFiles(files)
	stop := r.watch(c.ID)
	defer stop()
	killed := r.waitForStrays(c.Dir, strayTimeout)
	var s keeper.State
	if err := r.settle(c.ID, &s); err != nil || s.Pid != 0 {
		return "", err
	}
	if unclear, err = r.find(c, s.Cgroup, killed); err != nil || unclear != "" {
		return unclear, err
	}
	return "", r.settle(c.ID, &s)
}

// keepOutput writes to its log what a process has left in its FIFOs that has ended,
// if it has begun: nobody will read them any more.
func (r *runner) keepOutput(id string) error {
	r.taking.Lock()
	defer r.taking.Unlock()
	s, files, err := r.get(id)
	if err != nil {
		return err
	}
	if !s.Output || s.Gone || r.out.has(id) {
		closeFiles(files)
		return nil
	}
	r.killRest(s)
	r.out.add(id, s.Files, files)
	r.out.close(r.out.drain(id))
	return nil
}

// furnish puts what a container starts with at its places. What is there already
// is left.
func (c Run) furnish(files []*os.File) error {
	at := append([]string{c.Root}, c.Views...)
	if len(files) < len(at) || c.PIDNS != "" && len(files) == len(at) {
		return fmt.Errorf("run %s: %d files are too few", c.ID, len(files))
	}
	for i, target := range at {
		if err := attach(files[i], target); err != nil {
			return err
		}
	}
	if c.PIDNS == "" || pinned(c.PIDNS) {
		return nil
	}
	return pin(c.PIDNS, fmt.Sprintf("/proc/self/fd/%d", files[len(at)].Fd()))
}

// started reads the output of a process from its beginning on.
func (r *runner) started(id string) error {
	s, err := r.takeUp(id)
	if err == nil && s.TTY && !s.Gone && !slices.Contains(s.Files, keeper.FileTTY) {
		// It has begun, and gets the signal of a terminal that hangs up.
		r.logger.Printf("process %s has lost its terminal: the keeper died with it", id)
	}
	return err
}

// takeMessages empties the FIFOs of a process that was never started: what is in
// them is its runtime's. It returns the end of stderr.
func takeMessages(names []string, files []*os.File) string {
	var said []byte
	for i, name := range names {
		if name != keeper.FileStdout && name != keeper.FileStderr {
			continue
		}
		b := readHeld(files[i])
		if name == keeper.FileStderr {
			said = b
		}
	}
	return string(bytes.TrimSpace(said))
}

// readHeld empties a FIFO and returns the end of what it held.
func readHeld(f *os.File) []byte {
	st := newStream(nil, stderrName, f, false)
	fd, err := st.open()
	if err != nil {
		return nil // the next start tries again
	}
	defer unix.Close(fd)
	st.fd = fd
	var said []byte
	b := make([]byte, chunkSize)
	for left := st.available(); left > 0; {
		n, err := st.read(b)
		if n == 0 || err != nil {
			break
		}
		left -= n
		said = append(said, b[:n]...)
		said = said[max(0, len(said)-stderrKept):]
	}
	return said
}

// stdio opens what the process starts with: FIFOs anew, since an open file
// shared with the keeper would share its flags.
func (c Run) stdio(files []*os.File) ([]*os.File, error) {
	if c.Stdio {
		if len(files) < 3 {
			return nil, fmt.Errorf("run %s: %d files instead of stdin, stdout and stderr", c.ID, len(files))
		}
		var dups []*os.File
		for _, f := range files[len(files)-3:] {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				closeFiles(dups)
				return nil, err
			}
			dups = append(dups, os.NewFile(uintptr(fd), f.Name()))
		}
		return dups, nil
	}
	type want struct {
		name string
		flag int
	}
	wants := []want{{"/dev/null", unix.O_RDWR}, {"/dev/null", unix.O_RDWR}, {"/dev/null", unix.O_RDWR}}
	if !c.TTY {
		wants[1] = want{filepath.Join(c.Dir, keeper.StdoutFIFO), unix.O_RDWR}
		wants[2] = want{filepath.Join(c.Dir, keeper.StderrFIFO), unix.O_RDWR}
		if c.Stdin {
			// Read-only: the write end is the keeper's, and closing that is a
			// real end of file.
			wants[0] = want{filepath.Join(c.Dir, keeper.StdinFIFO), unix.O_RDONLY}
		}
	}
	var opened []*os.File
	for _, w := range wants {
		fd, err := unix.Open(w.name, w.flag|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			closeFiles(opened)
			return nil, fmt.Errorf("open %s: %w", w.name, err)
		}
		opened = append(opened, os.NewFile(uintptr(fd), w.name))
	}
	return opened, nil
}

// runtime runs the command and waits for it. When it takes too long, it and
// whatever it started are killed, also what a killed `run` still completes. cgroup is
// that of the process which it is to start.
func (r *runner) runtime(c Run, cgroup string, stdio []*os.File) Ran {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	scratch := scratchDir(c.Dir)
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return Ran{Status: err.Error()}
	}
	defer r.dropScratch(c.Dir)
	// Nothing of ours reaches a runtime: NOTIFY_SOCKET would make one wait for
	// a readiness message for the container's whole life.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "_LIBCONTAINER_STATEDIR=" + scratch}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio[0], stdio[1], stdio[2]
	// Not in a cgroup of its own: to be born in another than its parent's takes a
	// process an RCU grace period, 10 to 15 ms.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	release, err := c.spawn(cmd)
	defer release()
	if err != nil {
		return Ran{Status: fmt.Sprintf("start %s: %v", c.Argv[0], err)}
	}
	pipes := relieve(stdio[1:], func() bool { return c.alone(cgroup, cmd.Process.Pid) })
	defer pipes.end()

	killed := make(chan struct{})
	timer := time.AfterFunc(c.Timeout, func() {
		KillTree(cmd.Process.Pid, func(sig syscall.Signal) error { return cmd.Process.Signal(sig) })
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whose parent has ended before
		close(killed)
	})
	err = cmd.Wait()
	if !timer.Stop() {
		<-killed
		r.killStrays(c.Dir)
		return Ran{Status: fmt.Sprintf("%s did not end within %v and was killed", filepath.Base(c.Argv[0]), c.Timeout)}
	}
	if err != nil {
		return Ran{Status: err.Error()}
	}
	return Ran{}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
