package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/oci/keeper"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Streams of execs and of attached clients, with real runtimes.

// process is what an exec of a shell script runs.
func (c *container) process(script string, terminal bool) *specs.Process {
	p := *c.spec.Process
	p.Args, p.Terminal = []string{"sh", "-c", script}, terminal
	return &p
}

const sleeping = "trap 'exit 0' TERM; sleep 1000 & wait"

func TestExecReadsStdinToItsEnd(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		data := make([]byte, 20<<20)
		rand.Read(data)
		var out, errs bytes.Buffer
		code, err := r.Exec(n.ctx, Exec{
			Container: c.Container, Process: c.process("cat; echo end >&2; exit 7", false),
			Stdin: io.NopCloser(bytes.NewReader(data)), Stdout: &out, Stderr: &errs,
		})
		if code != 7 || err != nil || errs.String() != "end\n" {
			t.Errorf("code %d, %v, stderr %q", code, err, errs.String())
		}
		if sha256.Sum256(out.Bytes()) != sha256.Sum256(data) {
			t.Errorf("%d bytes came back of %d, or others", out.Len(), len(data))
		}
	})
}

// A process that does not read its input holds up neither its end nor whoever
// writes.
func TestExecLeavesStdinUnread(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		for _, terminal := range []bool{false, true} {
			in, w := io.Pipe()
			var writer sync.WaitGroup
			writer.Go(func() {
				for line := bytes.Repeat([]byte("unread\n"), 1000); ; {
					if _, err := w.Write(line); err != nil {
						return
					}
				}
			})
			code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: c.process("sleep 0.2; exit 3", terminal), Stdin: in})
			if code != 3 || err != nil {
				t.Errorf("terminal %v: code %d, %v", terminal, code, err)
			}
			writer.Wait()
		}
	})
}

func TestExecInATerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		var out bytes.Buffer
		code, err := r.Exec(n.ctx, Exec{
			Container: c.Container, Process: c.process("tty; test -t 0 && test -t 1 && test -t 2 && echo all; exit 5", true), Stdout: &out,
		})
		if want := "/dev/pts/0\r\nall\r\n"; code != 5 || err != nil || out.String() != want {
			t.Errorf("code %d, %v, output %q", code, err, out.String())
		}

		// Short ones lose nothing, and long ones nothing of their end.
		for range 5 {
			out.Reset()
			code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: c.process("seq 1 3000", true), Stdout: &out})
			if lines := strings.Fields(out.String()); code != 0 || err != nil || len(lines) != 3000 || lines[2999] != "3000" {
				t.Errorf("code %d, %v, %d lines that end in %q", code, err, len(lines), tail(out.String()))
			}
		}
		if left, _ := os.ReadDir(keeper.ConsoleDir(n.run)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// What a program on a terminal reads ends with its client's input.
func TestEndOfInputOnATerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		for _, typed := range []string{"", "a line\n", "no end of line"} {
			code, err := r.Exec(n.ctx, Exec{
				Container: c.Container, Process: c.process("cat >/dev/null; exit 6", true), Stdin: io.NopCloser(strings.NewReader(typed)),
			})
			if code != 6 || err != nil {
				t.Errorf("%q: code %d, %v", typed, code, err)
			}
		}
	})
}

func TestResize(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		sizes := make(chan TerminalSize, 1)
		sizes <- TerminalSize{Width: 132, Height: 43}
		var out bytes.Buffer
		code, err := r.Exec(n.ctx, Exec{
			Container: c.Container, Stdout: &out, Resize: sizes,
			Process: c.process(`until [ "$(stty size 2>/dev/null)" = "43 132" ]; do sleep 0.01; done; stty size`, true),
		})
		if code != 0 || err != nil || out.String() != "43 132\r\n" {
			t.Errorf("code %d, %v, output %q", code, err, out.String())
		}
	})
}

// attached is a client of a container.
type attached struct {
	stdin    *io.PipeWriter
	out, err lockedBuffer
	end      func()
	done     chan error // what Attach has returned
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// attach attaches a client, whose output begins when it returns.
func (c *container) attach(once bool) *attached {
	c.t.Helper()
	a := &attached{done: make(chan error, 1)}
	var in *io.PipeReader
	in, a.stdin = io.Pipe()
	ctx, cancel := context.WithCancel(c.ctx)
	a.end = cancel
	c.t.Cleanup(cancel)
	go func() {
		a.done <- c.Runtime.Attach(ctx, Attach{Container: c.Container, Stdin: in, StdinOnce: once, Stdout: &a.out, Stderr: &a.err})
	}()
	return a
}

func (a *attached) awaitOutput(t *testing.T, text string) {
	t.Helper()
	await(t, "the client is shown "+text, func() bool { return strings.Contains(a.out.String(), text) })
}

func (a *attached) wait(t *testing.T) error {
	t.Helper()
	var err error
	await(t, "the attachment ends", func() bool {
		select {
		case err = <-a.done:
			return true
		default:
			return false
		}
	})
	return err
}

// echoing answers each line, on stdout and on stderr, until its input ends.
const echoing = `while read x; do echo "out $x"; echo "err $x" >&2; done; echo end; exit 4`

func TestAttach(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, echoing)
		c.stdin = true
		c.start()
		first, second := c.attach(false), c.attach(false)
		for i, a := range []*attached{first, second} {
			fmt.Fprintln(a.stdin, "hello", i)
			a.awaitOutput(t, fmt.Sprintf("out hello %d\n", i))
		}
		fmt.Fprintln(first.stdin, "world")
		first.awaitOutput(t, "out world\n")
		second.awaitOutput(t, "out world\n")
		await(t, "the client is shown stderr", func() bool { return strings.Contains(first.err.String(), "err world\n") })

		// The end of one client's input, and of one client, is not the end of the
		// container's.
		first.stdin.Close()
		fmt.Fprintln(second.stdin, "again")
		first.awaitOutput(t, "out again\n")
		first.end()
		if err := first.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that went: %v", err)
		}
		fmt.Fprintln(second.stdin, "alone")
		second.awaitOutput(t, "out alone\n")

		if err := r.CloseStdin(n.ctx, c.Container); err != nil {
			t.Error(err)
		}
		second.stdin.Close()
		if err := second.wait(t); err != nil {
			t.Errorf("the container has ended: %v", err)
		}
		if !strings.HasSuffix(second.out.String(), "out alone\nend\n") {
			t.Errorf("the client was shown %q", second.out.String())
		}
		if code := c.wait(); code != 4 {
			t.Errorf("exit code %d", code)
		}
		if err := r.Attach(n.ctx, Attach{Container: c.Container, Stdout: io.Discard}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("attach to a container that has ended: %v", err)
		}
	})
}

func TestStdinOnce(t *testing.T) {
	for name, end := range map[string]func(*attached){
		"half-close": func(a *attached) { a.stdin.Close() },
		"hang-up":    func(a *attached) { a.end() },
	} {
		t.Run(name, func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, echoing)
				c.stdin = true
				c.start()
				a := c.attach(true)
				fmt.Fprintln(a.stdin, "hello")
				c.awaitOutput("out hello\n")
				end(a)
				if code := c.wait(); code != 4 {
					t.Errorf("exit code %d", code)
				}
				a.wait(t)
				if out, _ := c.output(); out != "out hello\nend\n" {
					t.Errorf("the container wrote %q", out)
				}
			})
		})
	}
}

func TestAttachToATerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, `stty -echo; echo ready; while read x; do echo "[$x $(stty size)]"; done; exit 4`)
		c.spec.Process.Terminal = true
		c.start()
		c.awaitOutput("ready")
		in, w := io.Pipe()
		var out lockedBuffer
		sizes := make(chan TerminalSize)
		done := make(chan error, 1)
		go func() {
			done <- r.Attach(n.ctx, Attach{Container: c.Container, Stdin: in, StdinOnce: true, Stdout: &out, Resize: sizes})
		}()
		sizes <- TerminalSize{Width: 100, Height: 30}
		await(t, "the terminal has its size", func() bool {
			fmt.Fprintln(w, "hello")
			return strings.Contains(out.String(), "[hello 30 100]\r\n")
		})
		w.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if code := c.wait(); code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
}

// Every byte of a flood is seen, once and in order, by a client that keeps up,
// and is in the log.
func TestAttachedClientSeesAll(t *testing.T) {
	const lines = 20000
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, fmt.Sprintf("read x; i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); done", lines))
		c.stdin = true
		c.start()
		in, w := io.Pipe()
		var out lockedBuffer
		done := make(chan error, 1)
		go func() { done <- r.Attach(n.ctx, Attach{Container: c.Container, Stdin: in, Stdout: &out}) }()
		fmt.Fprintln(w, "go")
		if err := <-done; err != nil {
			t.Error(err)
		}
		c.wait()
		got := strings.Fields(out.String())
		for i, line := range got {
			if line != fmt.Sprint(i) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
		log, _ := c.output()
		if len(got) != lines || log != out.String() {
			t.Errorf("%d lines were seen, %d bytes, and %d are in the log", len(got), len(out.String()), len(log))
		}
	})
}

// A client that does not read is told and left; the container is not held up.
func TestSlowClientIsDropped(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "read x; yes $(seq 1 300) | head -n 7000; exit 3")
		c.stdin = true
		c.start()
		in, w := io.Pipe()
		shown, reading := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- r.Attach(n.ctx, Attach{Container: c.Container, Stdin: in, Stdout: reading}) }()
		fmt.Fprintln(w, "go")
		if code := c.wait(); code != 3 {
			t.Errorf("exit code %d", code)
		}
		var saw sync.WaitGroup
		saw.Go(func() { io.Copy(io.Discard, shown) })
		if err := <-done; !errors.Is(err, ErrTooSlow) {
			t.Errorf("attach: %v, want ErrTooSlow", err)
		}
		reading.Close()
		saw.Wait()
	})
}

func TestRunnerDiesUnderAnAttachment(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, echoing)
		c.stdin = true
		c.start()
		a := c.attach(false)
		fmt.Fprintln(a.stdin, "hello")
		a.awaitOutput(t, "out hello\n")
		kill(t, n.hello().Runner)
		if err := a.wait(t); !errors.Is(err, ErrDetached) {
			t.Errorf("attach: %v, want ErrDetached", err)
		}
		again := c.attach(true)
		fmt.Fprintln(again.stdin, "again")
		again.awaitOutput(t, "out again\n")
		again.stdin.Close()
		if err := again.wait(t); err != nil {
			t.Error(err)
		}
		if code := c.wait(); code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
}

// Guards against a client that writes to a container which does not read, for
// ever.
func TestContainerDoesNotReadItsStdin(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.stdin = true
		pid := c.start()
		a := c.attach(false)
		var writer sync.WaitGroup
		written := make(chan struct{}, 1000)
		writer.Go(func() {
			for line := make([]byte, 32<<10); ; {
				if _, err := a.stdin.Write(line); err != nil {
					return
				}
				written <- struct{}{}
			}
		})
		<-written
		<-written // the FIFO is full
		a.end()
		if err := a.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("attach: %v", err)
		}
		writer.Wait()
		if lookAt(pid).pid == 0 {
			t.Error("the container has ended")
		}
		if err := r.Signal(n.ctx, c.Container, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
}
