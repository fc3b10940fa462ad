package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/oci/keeper"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Output and input: what went wrong for the obvious way, a test each.

// Guards against waiting for the end of a container's output: a daemon that it
// leaves in the host's pid namespace holds the FIFO open. The daemon is killed.
func TestExitLeavingADaemonWithItsStdout(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "setsid sleep 1000 & echo $!; exit 3")
		c.dropNamespace(specs.PIDNamespace)
		c.start()
		if code := c.wait(); code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
		stdout, _ := c.output()
		var daemon int
		if _, err := fmt.Sscan(stdout, &daemon); err != nil {
			t.Fatalf("output %q: %v", stdout, err)
		}
		if p := lookAt(daemon); p.pid != 0 && p.state != "Z" {
			t.Errorf("the daemon %v lives", p)
		}
		n.awaitIdle()
	})
}

// Guards against the same from elsewhere: a process that cannot be killed with
// the container holds its stdout open, and writes and writes.
func TestExitWhileStdoutIsFloodedFromElsewhere(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "read x; exit 3")
		c.stdin = true
		c.start()
		elsewhere, err := os.OpenFile(filepath.Join(c.Dir, keeper.StdoutFIFO), os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		var flood sync.WaitGroup
		flood.Go(func() {
			for line := bytes.Repeat([]byte("flood\n"), 100); ; {
				if _, err := elsewhere.Write(line); err != nil {
					return
				}
			}
		})
		c.write("end\n")
		if code := c.wait(); code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
		elsewhere.Close()
		flood.Wait()
	})
}

// Guards against a read-write stdin, whose end never comes, and against one that
// ends with each client that detaches: it ends when it is closed, once.
func TestStdinEndsWhenItIsClosed(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "while read x; do echo $x; done; echo end; exit 4")
		c.stdin = true
		c.start()
		for _, word := range []string{"one\n", "two\n"} {
			c.write(word)
			c.awaitOutput(word)
		}
		if err := n.keeper.CloseFile(n.ctx, c.ID, keeper.FileStdin); err != nil {
			t.Fatal(err)
		}
		if code := c.wait(); code != 4 {
			t.Errorf("exit code %d, want 4", code)
		}
		if out, _ := c.output(); out != "one\ntwo\nend\n" {
			t.Errorf("output %q", out)
		}
	})
}

// Guards against an open stdin where none was asked for.
func TestStdinIsEmptyByDefault(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "cat; exit 4")
		c.start()
		if code := c.wait(); code != 4 {
			t.Errorf("exit code %d, want 4", code)
		}
	})
}

// Guards against FIFOs owned by root: another user could not open /dev/stdout
// anew. runc leaves them alone in a user namespace.
func TestOtherUserOpensStdoutAnew(t *testing.T) {
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("user namespace %v", userNS), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, "echo out >/dev/stdout; echo err >/dev/stderr")
				c.spec.Process.User = specs.User{UID: 1000, GID: 1000}
				if userNS {
					c.spec.Linux.Namespaces = append(c.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
					c.Users = testUsers()
					c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings = c.Users.UIDs.Mappings(), c.Users.GIDs.Mappings()
					c.openToOthers()
				}
				c.start()
				if code := c.wait(); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if out, errs := c.output(); out != "out\n" || errs != "err\n" {
					t.Errorf("output %q, %q", out, errs)
				}
			})
		})
	}
}

// openToOthers lets the root of a user namespace reach the container's root.
func (c *container) openToOthers() {
	c.t.Helper()
	for dir := c.Dir; len(dir) >= len(c.run); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Guards against a host's pty passed as stdio ("not a tty", no /dev/tty), and
// against a console socket in the container's directory, whose path is too long
// for a socket's address.
func TestTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "tty; echo hello >/dev/tty; echo error >&2; exit 5")
		c.spec.Process.Terminal = true
		c.Dir = filepath.Join(n.run, strings.Repeat("long", 40), c.ID)
		c.spec.Root.Path = c.RootFS()
		if err := os.MkdirAll(c.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c.start()
		if code := c.wait(); code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
		out, errs := c.output()
		lines := strings.Split(out, "\r\n")
		if len(lines) != 4 || !strings.HasPrefix(lines[0], "/dev/") || lines[1] != "hello" || lines[2] != "error" || errs != "" {
			t.Errorf("output %q, %q", out, errs)
		}
		if left, _ := os.ReadDir(keeper.ConsoleDir(n.run)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// Guards against what is still on its way when the process has ended: a terminal
// shows 4 KiB at a time of what was written, and a FIFO may hold a whole chunk of
// each stream. The runner is stopped meanwhile.
func TestOutputIsCompleteAtTheExit(t *testing.T) {
	const last = 2000 // about 11 KiB
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, fmt.Sprintf("trap 'seq 1 %d; exit 4' USR1; echo 0; while :; do sleep 1000 & wait; done", last))
				c.spec.Process.Terminal = terminal
				pid := c.start()
				c.awaitOutput("0")
				goOn := pause(t, n.hello().Runner)
				if err := r.Signal(n.ctx, c.Container, syscall.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				await(t, "the container has ended", func() bool { return lookAt(pid).state == "Z" })
				goOn()
				if code := c.wait(); code != 4 {
					t.Errorf("exit code %d, want 4", code)
				}
				out, _ := c.output()
				lines := strings.Fields(out)
				for i, line := range lines {
					if line != fmt.Sprint(i) {
						t.Fatalf("line %d is %q", i, line)
					}
				}
				if len(lines) != last+1 {
					t.Errorf("%d lines that end in %q, want %d", len(lines), tail(out), last+1)
				}
			})
		})
	}
}

// Guards against a terminal that hangs up when its last process has closed it:
// one that opens /dev/console anew would write to nobody.
func TestTerminalReopened(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, `trap 'exec >/dev/console; echo again; exit 6' USR1
			echo before; exec <&- >&- 2>&-; sleep 1000 & wait`)
		c.spec.Process.Terminal = true
		pid := c.start()
		await(t, "the container has closed its terminal", func() bool {
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/[0-2]", pid))
			return len(below(pid)) == 1 && len(fds) == 0
		})
		if tty := n.held(c.ID, keeper.FileTTY); polled(t, tty)&unix.POLLHUP != 0 {
			t.Error("the terminal has hung up")
		}
		if err := r.Signal(n.ctx, c.Container, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if code := c.wait(); code != 6 {
			t.Errorf("exit code %d, want 6", code)
		}
		if out, _ := c.output(); out != "before\r\nagain\r\n" {
			t.Errorf("output %q", out)
		}
	})
}

func polled(t *testing.T, f *os.File) int16 {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: 0}}
	if _, err := unix.Poll(p, 0); err != nil {
		t.Fatal(err)
	}
	return p[0].Revents
}

// Guards against the runtime's own messages in the container's log.
func TestFailedStartWritesNoLog(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "")
		c.spec.Process.Args = []string{"/no/such/program"}
		_, err := c.tryStart()
		if err == nil || !strings.Contains(err.Error(), "no/such/program") {
			t.Errorf("start: %v, want the runtime's own message", err)
		}
		b, err := os.ReadFile(c.log)
		if err != nil || len(b) > 0 {
			t.Errorf("log %q, %v", b, err)
		}
		c.remove()
		n.awaitIdle()
	})
}

// Guards against a message that a runtime writes to its stderr alone, and
// against that in the log.
func TestFailedStartReportsTheRuntimesStderr(t *testing.T) {
	n := newNode(t)
	r, _ := n.script("echo the disk is on fire >&2; exit 1")
	c := n.container(r, "")
	if _, err := c.tryStart(); err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("start: %v, want the runtime's own message", err)
	}
	if b, err := os.ReadFile(c.log); err != nil || len(b) > 0 {
		t.Errorf("log %q, %v", b, err)
	}
}

// Guards against lines lost, doubled or torn while a log is rotated, and against
// writes to the old one after the new one was accepted.
func TestReopenLogInAFlood(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		const flood = `i=0; while :; do echo $i; i=$((i+1)); done`
		c := n.container(r, fmt.Sprintf("(%s) & (%s) >&2 & trap 'kill %%1 %%2' USR1; wait; wait", flood, flood))
		c.start()
		old := make(map[string]int64)
		for i := range 5 {
			c.awaitLog()
			name := fmt.Sprintf("%s.%d", c.log, i)
			if err := os.Rename(c.log, name); err != nil {
				t.Fatal(err)
			}
			c.reopenLog()
			old[name] = size(t, name)
		}
		c.awaitLog()
		if err := r.Signal(n.ctx, c.Container, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		c.wait()
		var stdout, stderr strings.Builder
		for i := range 6 {
			name := fmt.Sprintf("%s.%d", c.log, i)
			if i == 5 {
				name = c.log
			} else if now := size(t, name); now != old[name] {
				t.Errorf("%s grew from %d to %d bytes", name, old[name], now)
			}
			out, errs := parseLog(t, name)
			stdout.WriteString(out)
			stderr.WriteString(errs)
		}
		for name, got := range map[string]string{"stdout": stdout.String(), "stderr": stderr.String()} {
			var want strings.Builder
			for i := range strings.Count(got, "\n") {
				fmt.Fprintln(&want, i)
			}
			if got != want.String() || got == "" {
				t.Errorf("%s of %d bytes does not count its %d lines", name, len(got), strings.Count(got, "\n"))
			}
		}
		log := c.openLog()
		defer log.Close()
		if err := r.ReopenLog(n.ctx, c.Container, log); !errors.Is(err, ErrNotRunning) {
			t.Errorf("reopen after the end: %v, want ErrNotRunning", err)
		}
	})
}

// Guards against torn lines on a full disk, and against a container that waits
// for it: it goes on, and so does its log when there is room.
func TestFullDiskOfTheLog(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		disk := t.TempDir()
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(disk, 0); err != nil {
				t.Error(err)
			}
		})
		ballast := filepath.Join(disk, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 150<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		const line = "a line of some length, to fill the disk with"
		c := n.container(r, fmt.Sprintf(`i=0; while [ $i -lt 2000 ]; do echo %s; i=$((i+1)); done
			read x; echo resumed; exit 7`, line))
		c.log = filepath.Join(disk, "log")
		c.stdin = true
		c.start()
		await(t, "the disk is full", func() bool {
			b, _ := os.ReadFile(filepath.Join(n.run, "keeper.log"))
			return bytes.Contains(b, []byte("no space left on device"))
		})
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		c.write("go on\n")
		if code := c.wait(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
		// A chunk that was lost may begin and end within lines.
		b, err := os.ReadFile(c.log)
		if err != nil {
			t.Fatal(err)
		}
		for logged := range strings.Lines(string(b)) {
			_, text, _ := strings.Cut(strings.TrimSuffix(logged, "\n"), " stdout ")
			if !strings.Contains(line+" resumed", strings.TrimPrefix(strings.TrimPrefix(text, "F "), "P ")) {
				t.Errorf("torn line %q", logged)
			}
		}
		out, _ := c.output()
		if !strings.HasSuffix(out, "resumed\n") {
			t.Errorf("the log ends in %q", tail(out))
		}
	})
}

// Guards against symbolic links that choose which file becomes a log, and
// against what is no file.
func TestOpenLogRefusesSymlinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	for link, target := range map[string]string{
		"file": filepath.Join(elsewhere, "file"), "dir": elsewhere, "up": "..",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"file", "dir/file", "up/file", "../file", "/etc/file", "fifo", ".", "/dev/null"} {
		if f, err := OpenLog(dir, path); err == nil {
			f.Close()
			t.Errorf("OpenLog(%q) opened %s", path, f.Name())
		}
	}
	if left, _ := os.ReadDir(elsewhere); len(left) > 0 {
		t.Errorf("made %v", left)
	}
	f, err := OpenLog(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode %v, %v, want 0640", st.Mode(), err)
	}
}

// Guards against memory or time that grows with a line that never ends, and
// against what is lost or joined where a chunk ends.
func TestLinesLongerThanAChunk(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		const chunk = 64 << 10
		for _, test := range []struct {
			name, script string
			length       int
			end          string
		}{
			{"endless", "x %d", 10 << 20, ""},
			{"a chunk without its newline", "x %d; echo", chunk, "\n"},
			{"a chunk with its newline", "x %d; echo", chunk - 1, "\n"},
			{"a byte more than a chunk", "x %d; echo", chunk + 1, "\n"},
			{"two chunks", "x %d; echo", 2 * chunk, "\n"},
		} {
			c := n.container(r, "x() { head -c $1 /dev/zero | tr '\\0' x; }; "+fmt.Sprintf(test.script, test.length))
			c.start()
			c.wait()
			if out, _ := c.output(); out != strings.Repeat("x", test.length)+test.end {
				t.Errorf("%s: %d bytes that end in %q, want %d", test.name, len(out), tail(out), test.length)
			}
			c.remove()
		}
	})
}

// Guards against waiting for an exec's daemon, against killing it, and against
// dropping what is still in the pipe when the exec has ended.
func TestExecLeavingADaemonWithItsStdout(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		var out bytes.Buffer
		late := writerFunc(func(b []byte) {
			if out.Len() == 0 {
				await(t, "all but the daemon have ended", func() bool { return len(c.procs()) == 2 })
			}
			out.Write(b)
		})
		p := *c.spec.Process
		p.Args = []string{"sh", "-c", "setsid sleep 1000 & echo $!; head -c 50000 /dev/zero; exit 6"}
		code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: &p, Stdout: late})
		if err != nil || code != 6 {
			t.Fatalf("exec: code %d, %v, want 6", code, err)
		}
		daemon, rest, _ := strings.Cut(out.String(), "\n")
		if len(rest) != 50000 {
			t.Errorf("%d bytes of output, want 50000", len(rest))
		}
		if code, _, errs, err := c.exec("kill -0 " + daemon); err != nil || code != 0 {
			t.Errorf("the daemon is dead: %d, %q, %v", code, errs, err)
		}
	})
}

// Guards against killing an exec's first process alone when its time is over.
func TestExecTimeoutKillsTheTree(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		ctx, cancel := context.WithCancel(n.ctx)
		defer cancel()
		ready := writerFunc(func(b []byte) { cancel() })
		p := *c.spec.Process
		p.Args = []string{"sh", "-c", `
			sleep 1001 & (sleep 1002 & sleep 1003) & setsid sh -c "sleep 1004 & sleep 1005" &
			while [ $(ps | grep -c "slee[p] 100[1-5]") -lt 6 ]; do :; done; echo ready; wait`}
		_, err := r.Exec(ctx, Exec{Container: c.Container, Process: &p, Stdout: ready})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("exec: %v, want context.Canceled", err)
		}
		if _, left, _, err := c.exec(`ps -o args | grep "slee[p] 100[1-5]"`); err != nil || left != "" {
			t.Errorf("left: %q, %v", left, err)
		}
		if pids := c.procs(); len(pids) != 1 {
			t.Errorf("processes %v, want the container's first alone", pids)
		}
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// Guards against output lost at the end of an exec, or refused when its pipe is
// full (a pipe in non-blocking mode).
func TestExecOutputIsComplete(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		const size = 50 << 20
		var counted counter
		p := *c.spec.Process
		p.Args = []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; exit 8", size)}
		code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: &p, Stdout: &counted})
		if err != nil || code != 8 || counted.x != size || counted.other != 0 {
			t.Errorf("exec: code %d, %v, %d bytes and %d wrong ones, want %d", code, err, counted.x, counted.other, size)
		}
	})
}

// counter counts bytes.
type counter struct{ x, other int }

func (c *counter) Write(b []byte) (int, error) {
	x := bytes.Count(b, []byte("x"))
	c.x += x
	c.other += len(b) - x
	return len(b), nil
}

// Guards against an exec that fails because nobody takes its output.
func TestExecWhoseWriterFails(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		read, write := io.Pipe()
		read.Close()
		p := *c.spec.Process
		p.Args = []string{"sh", "-c", "head -c 1000000 /dev/zero && exit 9"}
		code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: &p, Stdout: write})
		if err != nil || code != 9 {
			t.Errorf("exec: code %d, %v, want 9", code, err)
		}
	})
}

// Guards against an exec in what has ended: ErrNotRunning, with nothing left.
func TestExecInStoppedContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "exit 0")
		if _, _, _, err := c.exec("true"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("exec before the start: %v, want ErrNotRunning", err)
		}
		c.start()
		c.wait()
		if _, _, _, err := c.exec("true"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("exec after the end: %v, want ErrNotRunning", err)
		}
		if left, _ := os.ReadDir(filepath.Join(n.run, "exec")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func tail(s string) string { return s[max(0, len(s)-60):] }

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}
