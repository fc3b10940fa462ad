package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// started is a command line that runs while the test goes on.
type started struct {
	out, errOut bytes.Buffer
	cancel      context.CancelCauseFunc
	done        chan error
}

// start runs a command line with in as its input; its output goes to out, if
// that is not nil.
func (d *daemon) start(t *testing.T, in io.Reader, out io.Writer, args ...string) *started {
	t.Helper()
	s := &started{done: make(chan error, 1)}
	ctx, cancel := context.WithCancelCause(t.Context())
	s.cancel = cancel
	cmd := command()
	cmd.SetIn(in)
	cmd.SetOut(&s.out)
	if out != nil {
		cmd.SetOut(out)
	}
	cmd.SetErr(&s.errOut)
	cmd.SetArgs(append([]string{"--socket", d.socket}, args...))
	go func() { s.done <- cmd.ExecuteContext(ctx) }()
	return s
}

// shell is a container that shows a prompt, and the size of its window, and ends
// with "exit".
func shell(p *played) int {
	size := <-p.sizes
	fmt.Fprintf(p, "%dx%d$ ", size.Width, size.Height)
	go func() {
		for size := range p.sizes {
			fmt.Fprintf(p, "[%dx%d]", size.Width, size.Height)
		}
	}()
	defer close(p.sizes)
	in := bufio.NewReader(p.in)
	for {
		line, err := in.ReadString('\r')
		if err != nil {
			return 99
		}
		if line == "exit\r" {
			fmt.Fprint(p, "bye\r\n")
			return 5
		}
		fmt.Fprintf(p, "you typed %q\r\n$ ", line)
	}
}

// A terminal session: the prompt comes without a newline, what is typed goes to
// the container byte for byte, the window's size follows, and in the end the
// terminal is what it was.
func TestRunWithATerminal(t *testing.T) {
	d := startDaemon(t, &daemon{main: shell})
	p := newPty(t)
	s := d.start(t, p.slave, p.slave, "run", "-it", "--name", "box", "busybox")
	p.see(t, "80x24$ ")
	if !p.isRaw(t) {
		t.Error("the terminal is not raw")
	}
	p.typeIn(t, "a\x03b\r")
	p.see(t, "you typed \"a\\x03b\\r\"\r\n$ ")
	p.resize(t, 100, 30)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	p.see(t, "[100x30]")
	p.typeIn(t, "exit\r")
	p.see(t, "bye\r\n")
	if err := <-s.done; !errors.Is(err, codeError(5)) {
		t.Errorf("it ended with %v", err)
	}
	if p.isRaw(t) {
		t.Error("the terminal was not restored")
	}
	if c := d.containers[0].config; !c.GetTty() || !c.GetStdin() || c.GetStdinOnce() {
		t.Errorf("config: %v", c)
	}
}

// A signal stops the container, and the terminal is restored.
func TestRunWithATerminalIsInterrupted(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(p *played) int {
		fmt.Fprint(p, "ready")
		<-p.stopped
		return 3
	}})
	p := newPty(t)
	s := d.start(t, p.slave, p.slave, "run", "-it", "--rm", "--name", "box", "busybox")
	p.see(t, "ready")
	s.cancel(interrupted{signal: syscall.SIGTERM})
	if err := <-s.done; !errors.Is(err, codeError(3)) {
		t.Errorf("it ended with %v", err)
	}
	if p.isRaw(t) {
		t.Error("the terminal was not restored")
	}
	if len(d.pods) != 0 {
		t.Error("--rm left the pod")
	}
}

// Ctrl-P Ctrl-Q leave the container running; attach comes back to it.
func TestDetachAndAttach(t *testing.T) {
	d := startDaemon(t, &daemon{main: shell})
	p := newPty(t)
	s := d.start(t, p.slave, p.slave, "run", "-it", "--name", "box", "busybox")
	p.see(t, "$ ")
	p.typeIn(t, "\x10")
	p.typeIn(t, "\x11")
	if err := <-s.done; err != nil {
		t.Fatalf("detached with %v", err)
	}
	if says := s.errOut.String(); !strings.Contains(says, "box goes on: `berth attach box`") {
		t.Errorf("it says %q", says)
	}
	if p.isRaw(t) {
		t.Error("the terminal was not restored")
	}

	a := d.start(t, p.slave, p.slave, "attach", "box")
	p.see(t, "[80x24]")
	p.typeIn(t, "x\x10p\r") // the first of the keys alone is the container's
	p.see(t, `you typed "x\x10p\r"`)
	p.typeIn(t, "exit\r")
	p.see(t, "bye")
	if err := <-a.done; !errors.Is(err, codeError(5)) {
		t.Errorf("attach ended with %v", err)
	}
}

// What is piped in reaches the container to its end, and nothing of the output
// is lost, also of a container that ends at once.
func TestRunPipes(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(p *played) int {
		in, err := io.ReadAll(p.in)
		fmt.Fprintf(p, "%d bytes, %v\n", len(in), err)
		for i := range 1000 {
			fmt.Fprintf(p, "line %d\n", i)
		}
		fmt.Fprint(p, "no newline")
		return 0
	}})
	// A log that somebody left who was killed is not this container's.
	stale := filepath.Join(podLogs, "box")
	if err := errors.Join(os.MkdirAll(stale, 0o750), os.WriteFile(filepath.Join(stale, logName), []byte(logLine("stdout", "F", "of another")), 0o600)); err != nil {
		t.Fatal(err)
	}
	in := strings.Repeat("x", 1<<20)
	s := d.start(t, strings.NewReader(in), nil, "run", "-i", "--rm", "--name", "box", "busybox", "wc")
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
	out := s.out.String()
	if !strings.HasPrefix(out, "1048576 bytes, <nil>\nline 0\n") || !strings.HasSuffix(out, "line 999\nno newline") || strings.Count(out, "\n") != 1001 {
		t.Errorf("output %.60q…", out)
	}
	if says := s.errOut.String(); !strings.Contains(says, "7e7e7e7e7e7e: pulled, 4.0 MiB\nPulled busybox: 1a1a1a1a1a1a, 9.0 MiB in ") {
		t.Errorf("it says %q", says)
	}
	if c := d.containers[0].config; c.GetTty() || !c.GetStdinOnce() {
		t.Errorf("config: %v", c)
	}
	if left, err := os.ReadDir(podLogs); len(left) != 0 || err != nil {
		t.Errorf("--rm left %v, %v", left, err)
	}
}

// The first signal asks the container to end, the second one kills it.
func TestSecondSignalKills(t *testing.T) {
	graces := make(chan int64, 2)
	d := startDaemon(t, &daemon{main: func(p *played) int {
		fmt.Fprint(p, "ready")
		for grace := range p.stopped {
			if graces <- grace; grace == 0 {
				return 137
			}
		}
		return 0
	}})
	again := make(chan os.Signal, 1)
	ready := make(chan struct{})
	s := d.start(t, nil, &cutAfter{want: "ready", cut: func() { close(ready) }}, "run", "busybox")
	<-ready
	s.cancel(interrupted{syscall.SIGINT, again})
	if grace := <-graces; grace != 10 {
		t.Errorf("the first signal gives it %d s", grace)
	}
	again <- syscall.SIGINT
	if err := <-s.done; !errors.Is(err, codeError(137)) {
		t.Errorf("it ended with %v", err)
	}
}

// Guards against a container that is left when nobody reads what it says, as in
// `berth run --rm IMAGE yes | head`.
func TestRunEndsWithItsReader(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(p *played) int {
		for {
			select {
			case <-p.stopped:
				return 143
			default:
				fmt.Fprintln(p, "y")
			}
		}
	}})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := d.start(t, nil, w, "run", "--rm", "busybox", "yes")
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := <-s.done; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("it ended with %v", err)
	}
	if len(d.pods) != 0 {
		t.Error("--rm left the pod")
	}
}

// When the input's connection is lost, the container goes on, and it says so.
func TestRunLosesItsInput(t *testing.T) {
	ready := make(chan struct{})
	d := startDaemon(t, &daemon{main: func(p *played) int {
		close(ready)
		<-p.stopped
		return 0
	}})
	before := d.streams
	in, typing := io.Pipe()
	defer typing.Close()
	d.streams = serveStreams(t, func(_ context.Context, p process) error { return errors.New("broken") })
	s := d.start(t, in, nil, "run", "-i", "--name", "box", "busybox")
	<-ready
	err := <-s.done
	if err == nil || !strings.Contains(err.Error(), "broken; the container goes on: `berth attach ") {
		t.Errorf("it ended with %v", err)
	}
	d.streams = before
}

func TestRunThatCannotStart(t *testing.T) {
	d := startDaemon(t, &daemon{})
	_, _, err := d.berth(t, "run", "busybox", "frobnicate")
	if !errors.As(err, &notBegunError{}) || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(podLogs); len(left) != 0 || len(d.pods) != 0 {
		t.Errorf("left %v, %v", left, d.pods)
	}
	if _, _, err := d.berth(t, "run", "none:1"); err == nil || message(err) != "pull none:1: image not found" {
		t.Errorf("an image that is not there: %v", err)
	}
	s := d.start(t, strings.NewReader(""), nil, "run", "-it", "busybox")
	if err := <-s.done; !errors.Is(err, errNoTerminal) {
		t.Errorf("-t without a terminal: %v", err)
	}
}

func TestExec(t *testing.T) {
	ready := make(chan struct{})
	d := startDaemon(t, &daemon{
		main: func(p *played) int {
			close(ready)
			<-p.stopped
			return 0
		},
		exec: func(_ context.Context, p process) error {
			switch p.cmd[0] {
			case "frobnicate":
				return errors.New("no such program")
			case "sleep":
				io.Copy(io.Discard, p.in)
				return nil
			case "sh":
				size := <-p.resize
				fmt.Fprintf(p.out, "%dx%d", size.Width, size.Height)
				line := make([]byte, 4)
				io.ReadFull(p.in, line)
				fmt.Fprintf(p.out, "%q", line)
				return exit(3)
			}
			fmt.Fprintf(p.errOut, "err\n")
			n := int64(0)
			if p.in != nil {
				n, _ = io.Copy(p.out, p.in)
			}
			fmt.Fprintf(p.out, "%v %d\n", p.cmd, n)
			return exit(7)
		},
	})
	if _, _, err := d.berth(t, "exec", "box", "true"); err == nil || !strings.Contains(err.Error(), `no container "box"`) {
		t.Errorf("no container: %v", err)
	}
	if _, _, err := d.berth(t, "run", "-d", "--name", "box", "busybox"); err != nil {
		t.Fatal(err)
	}
	<-ready
	out, errOut, err := d.berth(t, "exec", "box", "cmd", "-x", "y")
	if out != "[cmd -x y] 0\n" || errOut != "err\n" || !errors.Is(err, codeError(7)) {
		t.Errorf("exec: %q, %q, %v", out, errOut, err)
	}
	s := d.start(t, strings.NewReader("said "), nil, "exec", "-i", "box", "cat")
	if err := <-s.done; s.out.String() != "said [cat] 5\n" || !errors.Is(err, codeError(7)) {
		t.Errorf("exec -i: %q, %v", s.out.String(), err)
	}
	if _, _, err := d.berth(t, "exec", "box", "frobnicate"); !errors.As(err, &notBegunError{}) || err.Error() != "no such program" {
		t.Errorf("a program that is not there: %v", err)
	}
	in, typing := io.Pipe()
	defer typing.Close()
	s = d.start(t, in, nil, "exec", "-i", "--timeout", "1", "box", "sleep")
	if err := <-s.done; err == nil || !strings.Contains(err.Error(), "killed: it had not ended after 1 s") {
		t.Errorf("a command that takes too long: %v", err)
	}
	p := newPty(t)
	s = d.start(t, p.slave, p.slave, "exec", "-it", "box", "sh")
	p.see(t, "80x24")
	p.typeIn(t, "\x03\x10\x11\r") // no detach keys: Ctrl-P is the shell's history
	p.see(t, `"\x03\x10\x11\r"`)
	if err := <-s.done; !errors.Is(err, codeError(3)) || p.isRaw(t) {
		t.Errorf("exec -it: %v, raw %v", err, p.isRaw(t))
	}
	d.containers[0].stopped <- 0
	<-d.containers[0].ended
	if _, _, err := d.berth(t, "exec", "box", "true"); err == nil || !strings.Contains(err.Error(), "container box is not running") {
		t.Errorf("a container that has ended: %v", err)
	}
}

func TestLogsFollowsToTheEnd(t *testing.T) {
	more := make(chan string)
	d := startDaemon(t, &daemon{main: func(p *played) int {
		for text := range more {
			if text == "rotate" {
				os.Rename(p.logPath, p.logPath+".1")
				continue
			}
			fmt.Fprint(p, text)
		}
		return 0
	}})
	if _, _, err := d.berth(t, "run", "-d", "--name", "box", "busybox"); err != nil {
		t.Fatal(err)
	}
	more <- "one\n"
	shown := &cutAfter{want: "one\n"}
	seen := make(chan struct{})
	shown.cut = func() { close(seen) }
	s := d.start(t, nil, shown, "logs", "-f", "box")
	<-seen
	for _, text := range []string{"two\n", "rotate", "three\n", "no newline"} {
		more <- text
	}
	close(more)
	if err := <-s.done; err != nil || shown.got.String() != "one\ntwo\nthree\nno newline" {
		t.Errorf("%q, %v", shown.got.String(), err)
	}
}

func TestInspect(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(*played) int { return 7 }})
	if _, _, err := d.berth(t, "run", "--name", "box", "busybox"); !errors.Is(err, codeError(7)) {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"container": {"box"}, "pod": {"--type", "pod", "box"}, "image": {"-o", "json", "busybox"}, "by-id": {"0000000000a"},
	} {
		if name == "by-id" {
			args = []string{d.pods[0].GetId()[:63]}
		}
		out, _, err := d.berth(t, append([]string{"inspect"}, args...)...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// What differs from one run to the next.
		out = strings.ReplaceAll(out, filepath.Dir(podLogs), "DIR")
		out = strings.ReplaceAll(out, d.pods[0].GetMetadata().GetUid(), "UID")
		golden(t, "inspect-"+name+".json", out)
	}
	if _, _, err := d.berth(t, "inspect", "nothing"); err == nil || !strings.Contains(err.Error(), `no container, pod or image "nothing"`) {
		t.Errorf("got %v", err)
	}
	if _, _, err := d.berth(t, "inspect", "--type", "image", "box"); err == nil || !strings.Contains(err.Error(), `no image "box"`) {
		t.Errorf("got %v", err)
	}
}

func TestRmi(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(*played) int { return 0 }})
	if _, _, err := d.berth(t, "run", "--name", "box", "busybox"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.berth(t, "rmi", "busybox"); err == nil || !strings.Contains(err.Error(), "busybox is used by box") || len(d.images) != 1 {
		t.Errorf("an image in use: %v", err)
	}
	out, _, err := d.berth(t, "rmi", "-f", "busybox", "nothing")
	if out != "Untagged busybox\nRemoved "+imageID+"\n" || err == nil || !strings.Contains(err.Error(), `no image "nothing"`) || len(d.images) != 0 {
		t.Errorf("%q, %v", out, err)
	}
}

// What a shell gets for a Tab.
func TestCompletion(t *testing.T) {
	d := startDaemon(t, &daemon{main: func(*played) int { return 0 }})
	if _, _, err := d.berth(t, "run", "--name", "box", "busybox"); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"logs ":           "box",
		"logs box ":       "",
		"rm ":             "box",
		"rm box ":         "", // not twice
		"stop ":           "", // it does not run
		"exec ":           "",
		"rmi ":            "busybox",
		"run ":            "busybox",
		"inspect ":        "box busybox",
		"ps -o ":          "json table",
		"completion ":     "bash fish zsh",
		"inspect --type ": "container image pod",
	} {
		args := strings.Split(line, " ")
		out, _, err := d.berth(t, append([]string{cobra.ShellCompNoDescRequestCmd}, args...)...)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		words, _, _ := strings.Cut(out, ":")
		got := strings.Fields(words)
		if strings.Join(got, " ") != want && !sameWords(got, strings.Fields(want)) {
			t.Errorf("%q is completed by %q, want %q", line, got, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, _, err := d.berth(t, "completion", shell); err != nil || !strings.Contains(out, "berth") {
			t.Errorf("completion %s: %.40q, %v", shell, out, err)
		}
	}
}

func sameWords(a, b []string) bool {
	count := map[string]int{}
	for _, w := range a {
		count[w]++
	}
	for _, w := range b {
		count[w]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}
