package conformance

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/streams"
)

// forEachProtocol runs test over SPDY and over WebSocket.
func forEachProtocol(t *testing.T, test func(t *testing.T, protocol string)) {
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		t.Run(protocol, func(t *testing.T) { test(t, protocol) })
	}
}

// openExec begins the session of an exec.
func (n *node) openExec(t *testing.T, protocol, id string, o streams.Options, cmd ...string) *streams.Session {
	t.Helper()
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: cmd, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY,
	})
	if err != nil {
		t.Fatal(err)
	}
	return openStreams(t, protocol, resp.GetUrl(), o)
}

// openAttach begins the session of an attach.
func (n *node) openAttach(t *testing.T, protocol, id string, o streams.Options) *streams.Session {
	t.Helper()
	resp, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{
		ContainerId: id, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY,
	})
	if err != nil {
		t.Fatal(err)
	}
	return openStreams(t, protocol, resp.GetUrl(), o)
}

func openStreams(t *testing.T, protocol, url string, o streams.Options) *streams.Session {
	t.Helper()
	s, err := streams.Open(protocol, url, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	outputOnly = streams.Options{Stdout: true, Stderr: true}
	all        = streams.Options{Stdin: true, Stdout: true, Stderr: true}
	inTerminal = streams.Options{Stdin: true, Stdout: true, TTY: true}
)

func TestExec(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		forEachProtocol(t, func(t *testing.T, protocol string) {
			r := n.openExec(t, protocol, id, outputOnly, "sh", "-c", "echo out; echo err >&2; exit 42").Finish()
			if r.Stdout != "out\n" || r.Stderr != "err\n" || r.Code != 42 || r.Err != nil {
				t.Errorf("answered %+v", r)
			}
			if r := n.openExec(t, protocol, id, outputOnly, "true").Finish(); r.Code != 0 || r.Err != nil {
				t.Errorf("true ended with %+v", r)
			}
			if r := n.openExec(t, protocol, id, outputOnly, "/bin/frobnicate").Finish(); r.Err == nil || !strings.Contains(r.Err.Error(), "frobnicate") {
				t.Errorf("a program that is not there: %+v", r)
			}
			// The end of the command ends the session, whatever it leaves running,
			// and whatever the client still sends.
			s := n.openExec(t, protocol, id, all, "sh", "-c", "sleep 4715 & echo out; exit 3")
			var sending sync.WaitGroup
			sending.Go(func() {
				for chunk := make([]byte, 16<<10); ; {
					if _, err := s.Stdin.Write(chunk); err != nil {
						return
					}
				}
			})
			if r := s.Finish(); r.Stdout != "out\n" || r.Code != 3 || r.Err != nil {
				t.Errorf("answered %+v", r)
			}
			sending.Wait()
		})
	})
}

// echoThrough sends data through a session that echoes it and returns what came
// back. At most ahead bytes are sent that did not come back yet.
func echoThrough(t *testing.T, s *streams.Session, data []byte, ahead int) streams.Result {
	t.Helper()
	const chunk = 32 << 10
	room := make(chan struct{}, ahead/chunk)
	var sending sync.WaitGroup
	sending.Go(func() {
		defer s.Stdin.Close()
		for left := data; len(left) > 0; {
			room <- struct{}{}
			n := min(chunk, len(left))
			if _, err := s.Stdin.Write(left[:n]); err != nil {
				t.Error(err)
				return
			}
			left = left[n:]
		}
	})
	s.Stdout = &returned{from: s.Stdout, chunk: chunk, room: room}
	r := s.Finish()
	sending.Wait()
	return r
}

// returned makes room for one more chunk for each that it has read.
type returned struct {
	from  io.Reader
	chunk int
	read  int
	room  <-chan struct{}
}

func (r *returned) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	for r.read += n; r.read >= r.chunk; r.read -= r.chunk {
		<-r.room
	}
	return n, err
}

func noise(size int) []byte {
	data := make([]byte, size)
	rand.Read(data)
	return data
}

func wantSame(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%s: %d bytes came back of %d, or others", what, len(got), len(want))
	}
}

// Large data goes both ways intact, and the end of the input is one.
func TestExecBothWays(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		data := noise(30 << 20)
		forEachProtocol(t, func(t *testing.T, protocol string) {
			before := n.peakMemory(t)
			r := echoThrough(t, n.openExec(t, protocol, id, all, "sh", "-c", "cat; echo end >&2; exit 5"), data, len(data))
			wantSame(t, protocol, []byte(r.Stdout), data)
			if r.Stderr != "end\n" || r.Code != 5 || r.Err != nil {
				t.Errorf("stderr %q, code %d, %v", r.Stderr, r.Code, r.Err)
			}
			if grown := n.peakMemory(t) - before; grown > 64<<20 {
				t.Errorf("berthd took %d MiB for it", grown>>20)
			}
		})
	})
}

func TestExecInATerminal(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		forEachProtocol(t, func(t *testing.T, protocol string) {
			s := n.openExec(t, protocol, id, inTerminal, "sh", "-c",
				`tty; until [ "$(stty size 2>/dev/null)" = "50 140" ]; do sleep 0.01; done; stty size; read x; echo "got $x"; cat; exit 9`)
			if err := s.Resize(140, 50); err != nil {
				t.Error(err)
			}
			fmt.Fprint(s.Stdin, "hello\n")
			s.Stdin.Close()
			r := s.Finish()
			// The terminal echoes what is typed, before the command has begun or later.
			if !strings.Contains(r.Stdout, "/dev/pts/") || !strings.Contains(r.Stdout, "50 140\r\n") || !strings.Contains(r.Stdout, "got hello\r\n") || r.Code != 9 || r.Err != nil {
				t.Errorf("answered %+v", r)
			}
		})
	})
}

// interactive is a container with a stdin.
func (n *node) interactive(t *testing.T, name, script string, change func(*runtimeapi.ContainerConfig)) (pod, id string) {
	t.Helper()
	n.pull(t, n.busybox)
	pod = n.runPod(t, podConfig(t, name))
	config := n.shell("main", script)
	config.Stdin = true
	if change != nil {
		change(config)
	}
	return pod, n.startContainer(t, pod, config)
}

func TestAttachOnce(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		forEachProtocol(t, func(t *testing.T, protocol string) {
			_, id := n.interactive(t, strings.ToLower(protocol), "cat; echo end >&2; sleep 0.1; exit 4", func(c *runtimeapi.ContainerConfig) { c.StdinOnce = true })
			data := noise(8 << 20)
			r := echoThrough(t, n.openAttach(t, protocol, id, all), data, 512<<10)
			wantSame(t, protocol, []byte(r.Stdout), data)
			if r.Stderr != "end\n" || r.Err != nil {
				t.Errorf("stderr %q, %v", r.Stderr, r.Err)
			}
			if c := n.exited(t, id); c.GetExitCode() != 4 {
				t.Errorf("exit code %d", c.GetExitCode())
			}
		})
	})
}

// Clients come and go; the container's stdin stays.
func TestAttachAgain(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.interactive(t, "web", `while read x; do echo "got $x"; [ "$x" = last ] && exit 6; done; exit 1`, nil)
		forEachProtocol(t, func(t *testing.T, protocol string) {
			s := n.openAttach(t, protocol, id, all)
			fmt.Fprintln(s.Stdin, protocol)
			line := make([]byte, len("got \n")+len(protocol))
			if _, err := io.ReadFull(s.Stdout, line); err != nil || string(line) != "got "+protocol+"\n" {
				t.Errorf("was shown %q, %v", line, err)
			}
			s.HangUp()
		})
		s := n.openAttach(t, "SPDY", id, all)
		fmt.Fprintln(s.Stdin, "last")
		if r := s.Finish(); r.Stdout != "got last\n" || r.Err != nil {
			t.Errorf("answered %+v", r)
		}
		if c := n.exited(t, id); c.GetExitCode() != 6 {
			t.Errorf("exit code %d", c.GetExitCode())
		}
	})
}

// Guards against input that is thrown away with its connection: of a client
// that types and leaves, as with Ctrl-P Ctrl-Q.
func TestAttachTypesAndLeaves(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		for _, o := range []streams.Options{inTerminal, all} {
			pod, id := n.interactive(t, fmt.Sprint("tty-", o.TTY), `test -t 0 && stty -echo; echo ready; while read x; do echo "got $x"; done`,
				func(c *runtimeapi.ContainerConfig) { c.Tty = o.TTY })
			eventually(t, "the container is ready", func() bool { return strings.Contains(n.output(t, id, "stdout"), "ready") })
			forEachProtocol(t, func(t *testing.T, protocol string) {
				for i := range 20 {
					typed := fmt.Sprint(protocol, i)
					s := n.openAttach(t, protocol, id, o)
					fmt.Fprintln(s.Stdin, typed)
					s.HangUp()
					eventually(t, "the container was told "+typed, func() bool { return strings.Contains(n.output(t, id, "stdout"), "got "+typed) })
				}
			})
			n.stopPod(t, pod)
		}
	})
}

func TestAttachToATerminal(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.interactive(t, "web", `stty -echo; echo ready; read x; until [ "$(stty size 2>/dev/null)" = "50 140" ]; do sleep 0.01; done; echo "[$x]"; exit 7`,
			func(c *runtimeapi.ContainerConfig) { c.Tty = true })
		eventually(t, "the terminal is ready", func() bool { return strings.Contains(n.output(t, id, "stdout"), "ready") })
		s := n.openAttach(t, "WebSocket", id, inTerminal)
		fmt.Fprintln(s.Stdin, "hello")
		if err := s.Resize(140, 50); err != nil {
			t.Error(err)
		}
		if r := s.Finish(); r.Stdout != "[hello]\r\n" || r.Err != nil {
			t.Errorf("answered %+v", r)
		}
		if c := n.exited(t, id); c.GetExitCode() != 7 {
			t.Errorf("exit code %d", c.GetExitCode())
		}
	})
}

func TestStreamingRefusals(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, id := n.running(t, forever)
		exec := func(change func(*runtimeapi.ExecRequest)) error {
			req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}
			change(req)
			_, err := n.Exec(t.Context(), req)
			return err
		}
		expect.Code(t, "a terminal with stderr", exec(func(r *runtimeapi.ExecRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument, "stderr", "tty")
		expect.Code(t, "no stream", exec(func(r *runtimeapi.ExecRequest) { r.Stdout = false }), codes.InvalidArgument, "stdout")
		expect.Code(t, "no command", exec(func(r *runtimeapi.ExecRequest) { r.Cmd = nil }), codes.InvalidArgument, "cmd")
		expect.Code(t, "a command with a NUL", exec(func(r *runtimeapi.ExecRequest) { r.Cmd = []string{"a", "b\x00"} }), codes.InvalidArgument, "cmd[1]")
		expect.Code(t, "no container", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = "" }), codes.InvalidArgument, "container_id")
		expect.Code(t, "an unknown container", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = strings.Repeat("0", 64) }), codes.NotFound)

		attach := func(change func(*runtimeapi.AttachRequest)) error {
			req := &runtimeapi.AttachRequest{ContainerId: id, Stdout: true}
			change(req)
			_, err := n.Attach(t.Context(), req)
			return err
		}
		expect.Code(t, "attach with stderr to a terminal", attach(func(r *runtimeapi.AttachRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument, "stderr")
		expect.Code(t, "attach to no terminal", attach(func(r *runtimeapi.AttachRequest) { r.Tty = true }), codes.InvalidArgument, "tty")
		expect.Code(t, "attach to no stdin", attach(func(r *runtimeapi.AttachRequest) { r.Stdin = true }), codes.InvalidArgument, "stdin")
		expect.Code(t, "attach to no stream", attach(func(r *runtimeapi.AttachRequest) { r.Stdout = false }), codes.InvalidArgument, "stdout")
		expect.Code(t, "attach to an unknown container", attach(func(r *runtimeapi.AttachRequest) { r.ContainerId = strings.Repeat("0", 64) }), codes.NotFound)

		forward := func(pod string, ports ...int32) error {
			_, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})
			return err
		}
		for _, port := range []int32{0, -1, 65536, 1 << 30} {
			expect.Code(t, fmt.Sprint("port ", port), forward(pod, 80, port), codes.InvalidArgument, "port[1]")
		}
		expect.Code(t, "too many ports", forward(pod, make([]int32, 128)...), codes.InvalidArgument, "port")
		expect.Code(t, "an unknown pod", forward(strings.Repeat("0", 64), 80), codes.NotFound)
		n.stopPod(t, pod)
		expect.Code(t, "a pod that is not ready", forward(pod, 80), codes.FailedPrecondition)
		expect.Code(t, "exec in a container that has ended", exec(func(*runtimeapi.ExecRequest) {}), codes.FailedPrecondition)
		expect.Code(t, "attach to a container that has ended", attach(func(*runtimeapi.AttachRequest) {}), codes.FailedPrecondition)
	})
}

// An URL is for one session.
func TestTokenIsUsedOnce(t *testing.T) {
	n := start(t, "crun")
	_, id := n.running(t, forever)
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"echo", "once"}, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	wrong := strings.Replace(resp.GetUrl(), "/exec/", "/attach/", 1)
	if _, err := streams.Open("SPDY", wrong, outputOnly); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("another kind of session: %v", err)
	}
	if r := openStreams(t, "SPDY", resp.GetUrl(), outputOnly).Finish(); r.Stdout != "once\n" {
		t.Errorf("answered %+v", r)
	}
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		if _, err := streams.Open(protocol, resp.GetUrl(), outputOnly); err == nil {
			t.Errorf("%s: the token was good twice", protocol)
		}
	}
	if !strings.HasPrefix(resp.GetUrl(), "http://127.0.0.1:") {
		t.Errorf("URL %s is not on loopback", resp.GetUrl())
	}
	if answer, err := http.Get(strings.Replace(resp.GetUrl(), "/exec/", "/", 1)); err != nil || answer.StatusCode != http.StatusNotFound {
		t.Errorf("another path: %v, %v", answer, err)
	} else {
		answer.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

func (n *node) openPorts(t *testing.T, pod string) *streams.Ports {
	t.Helper()
	resp, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	p, err := streams.OpenPorts(resp.GetUrl())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// throughPort sends data to a port that echoes it.
func throughPort(t *testing.T, p *streams.Ports, port int, data []byte) []byte {
	t.Helper()
	conn, errs, err := p.Dial(port)
	if err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{bytes.NewReader(data)}) // in frames of 32 KiB
		conn.Close()
	})
	got, _ := io.ReadAll(conn)
	if text, _ := io.ReadAll(errs); len(text) > 0 {
		t.Errorf("port %d: %s", port, text)
	}
	sending.Wait()
	return got
}

func TestPortForward(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, id := n.running(t, `nc -ll -p 8080 -e cat & echo ready; wait`)
		n.awaitReady(t, id)
		eventually(t, "the server listens", func() bool {
			return strings.Contains(n.exec(t, id, "cat", "/proc/net/tcp", "/proc/net/tcp6"), ":1F90 ")
		})
		p := n.openPorts(t, pod)
		defer p.HangUp()
		data := noise(8 << 20)
		wantSame(t, "pod", throughPort(t, p, 8080, data), data)
		var many sync.WaitGroup
		for i := range 8 {
			many.Go(func() {
				mine := data[i<<20 : (i+1)<<20]
				wantSame(t, fmt.Sprint("connection ", i), throughPort(t, p, 8080, mine), mine)
			})
		}
		many.Wait()

		conn, errs, err := p.Dial(8081)
		if err != nil {
			t.Fatal(err)
		}
		// An error would end the session of kubectl: see cri.failSPDY.
		if text, _ := io.ReadAll(errs); len(text) > 0 {
			t.Errorf("a port that nobody listens on: error %q", text)
		}
		if got, _ := io.ReadAll(conn); len(got) > 0 {
			t.Errorf("it sent %q", got)
		}
		wantSame(t, "pod after a refused connection", throughPort(t, p, 8080, data[:1<<20]), data[:1<<20])
		if _, _, err := p.Dial(0); err == nil {
			t.Error("port 0 was accepted")
		}
	})
}

// A pod on the host's network: the host's loopback is its own.
func TestPortForwardOnTheHostsNetwork(t *testing.T) {
	n := start(t, "crun")
	var accepting sync.WaitGroup
	defer accepting.Wait()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			got, _ := io.ReadAll(io.LimitReader(conn, 5))
			fmt.Fprintf(conn, "got %s", got)
			conn.Close()
		}
	})
	config := podConfig(t, "host")
	config.Hostname = ""
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	pod := n.runPod(t, config)
	port := l.Addr().(*net.TCPAddr).Port
	p := n.openPorts(t, pod)
	defer p.HangUp()
	if got := throughPort(t, p, port, []byte("hello")); string(got) != "got hello" {
		t.Errorf("the port answers %q", got)
	}
	resp, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	got, errs, err := streams.ExchangeByWebSocket(resp.GetUrl(), []byte("hello"))
	if err != nil || len(got) < 2 || string(got[2:]) != "got hello" || len(errs) != 2 {
		t.Errorf("by WebSocket: %q, %q, %v", got, errs, err)
	}
	if own := n.openPorts(t, n.runPod(t, podConfig(t, "own"))); own != nil {
		defer own.HangUp()
		conn, _, err := own.Dial(port)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "hello")
		if text, _ := io.ReadAll(conn); len(text) > 0 {
			t.Errorf("a pod with a network of its own reaches the host's loopback: %q", text)
		}
	}
}

// What berthd or the runner does to the sessions when it dies: they end, and so
// do their commands; containers do not notice.
func TestSessionsWhenProcessesOfBerthDie(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.interactive(t, "web", echoing, nil)
		begin := func() (exec, tty, attach *streams.Session) {
			exec = n.openExec(t, "SPDY", id, all, "sh", "-c", "echo begun; sleep 4716")
			tty = n.openExec(t, "WebSocket", id, inTerminal, "sh", "-c", "trap '' HUP; echo begun; sleep 4716")
			attach = n.openAttach(t, "WebSocket", id, all)
			for _, s := range []*streams.Session{exec, tty} {
				if _, err := io.ReadFull(s.Stdout, make([]byte, len("begun"))); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Fprintln(attach.Stdin, "hello")
			if _, err := io.ReadFull(attach.Stdout, make([]byte, len("got hello\n"))); err != nil {
				t.Fatal(err)
			}
			return exec, tty, attach
		}
		exec, tty, attach := begin()
		n.killRunner(t)
		if r := attach.Finish(); r.Err == nil || !strings.Contains(r.Err.Error(), "attach again") {
			t.Errorf("attached when the runner died: %+v", r)
		}
		if len(processesNamed("sleep 4716")) != 2 {
			t.Error("an exec ended with the runner")
		}
		n.killDaemon(t)
		exec.Finish()
		tty.Finish()
		n.startDaemon(t)
		eventually(t, "the next daemon has ended the execs", func() bool { return len(processesNamed("sleep 4716")) == 0 })

		exec, tty, attach = begin()
		n.stopDaemon(t)
		for name, s := range map[string]*streams.Session{"exec": exec, "exec in a terminal": tty, "attach": attach} {
			if r := s.Finish(); r.Err == nil || !strings.Contains(r.Err.Error(), "berthd is stopping") {
				t.Errorf("%s when berthd stopped: %+v", name, r)
			}
		}
		if left := processesNamed("sleep 4716"); len(left) > 0 {
			t.Errorf("execs of a daemon that has stopped: %v", left)
		}
		n.startDaemon(t)
		s := n.openAttach(t, "SPDY", id, all)
		fmt.Fprintln(s.Stdin, "last")
		if r := s.Finish(); r.Stdout != "got last\n" || r.Err != nil {
			t.Errorf("after all that: %+v", r)
		}
	})
}

const echoing = `while read x; do echo "got $x"; [ "$x" = last ] && exit 6; done; exit 1`

// The one session of a stdin_once container ends with its daemon, and with it the
// container's input.
func TestStdinOnceWhenBerthdDies(t *testing.T) {
	n := start(t, "crun")
	_, id := n.interactive(t, "web", "cat; echo end; exit 3", func(c *runtimeapi.ContainerConfig) { c.StdinOnce = true })
	s := n.openAttach(t, "SPDY", id, all)
	fmt.Fprintln(s.Stdin, "hello")
	if _, err := io.ReadFull(s.Stdout, make([]byte, len("hello\n"))); err != nil {
		t.Fatal(err)
	}
	_, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true})
	expect.Code(t, "a second session", err, codes.FailedPrecondition, "stdin_once")
	n.killDaemon(t)
	s.Finish()
	n.startDaemon(t)
	if c := n.exited(t, id); c.GetExitCode() != 3 {
		t.Errorf("exit code %d", c.GetExitCode())
	}
	if out := n.output(t, id, "stdout"); out != "hello\nend\n" {
		t.Errorf("the container wrote %q", out)
	}
}

// vanish is a client that goes in the middle of something. It may fail: what
// counts is what it leaves.
type vanish struct {
	name string
	do   func(t *testing.T, n *node, pod, id string, i int)
}

// vanishing are what a client may do to berthd, in a mixture that kubectl and
// bad networks make. The costly ones, which start a process, come seldom.
var vanishing = []vanish{
	{"never came", func(t *testing.T, n *node, pod, id string, i int) {
		if i < 400 { // as many as may wait, with those that only connect
			n.execURL(t, id, "true")
		}
	}},
	{"only connected", func(t *testing.T, n *node, pod, id string, i int) {
		if i >= 400 {
			return
		}
		if u, err := url.Parse(n.execURL(t, id, "true")); err == nil {
			if conn, err := net.Dial("tcp", u.Host); err == nil {
				conn.Close()
			}
		}
	}},
	{"opened no stream", func(t *testing.T, n *node, pod, id string, i int) {
		if conn, err := streams.Upgrade(n.execURL(t, id, "true"), "v4.channel.k8s.io"); err == nil {
			conn.Close()
		}
	}},
	{"opened some streams", func(t *testing.T, n *node, pod, id string, i int) {
		if s, err := streams.Open("SPDY", n.execURL(t, id, "true"), streams.Options{}); err == nil {
			s.HangUp()
		}
	}},
	{"opened too many streams", func(t *testing.T, n *node, pod, id string, i int) {
		_ = streams.Flood(n.attachURL(t, id), "error", "stdout", "stdin", "stdin", "resize", "error", "frob", "stderr")
	}},
	{"attached by SPDY", func(t *testing.T, n *node, pod, id string, i int) {
		if s, err := streams.Open("SPDY", n.attachURL(t, id), outputOnly); err == nil {
			s.HangUp()
		}
	}},
	{"attached by WebSocket", func(t *testing.T, n *node, pod, id string, i int) {
		if s, err := streams.Open("WebSocket", n.attachURL(t, id), outputOnly); err == nil {
			s.HangUp()
		}
	}},
	{"forwarded a port", func(t *testing.T, n *node, pod, id string, i int) {
		resp, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})
		if err != nil {
			t.Error(err)
			return
		}
		p, err := streams.OpenPorts(resp.GetUrl())
		if err != nil {
			t.Error(err)
			return
		}
		if data, _, err := p.Dial(8081 + i%2); err == nil {
			fmt.Fprint(data, "hello")
		}
		p.HangUp()
	}},
}

// seldom start a process each.
var seldom = []vanish{
	{"cut an exec", func(t *testing.T, n *node, pod, id string, i int) {
		if s, err := streams.Open([]string{"SPDY", "WebSocket"}[i%2], n.execURL(t, id, "sh", "-c", "sleep 4717 & echo begun; sleep 4717"), outputOnly); err == nil {
			_, _ = io.ReadFull(s.Stdout, make([]byte, i%2))
			s.HangUp()
		}
	}},
	{"failed to exec", func(t *testing.T, n *node, pod, id string, i int) {
		if s, err := streams.Open("SPDY", n.execURL(t, id, "/bin/frobnicate"), outputOnly); err == nil {
			s.Finish()
		}
	}},
}

func (n *node) execURL(t *testing.T, id string, cmd ...string) string {
	t.Helper()
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: cmd, Stdout: true, Stderr: true})
	if err != nil {
		t.Error(err)
	}
	return resp.GetUrl()
}

func (n *node) attachURL(t *testing.T, id string) string {
	t.Helper()
	resp, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdout: true, Stderr: true})
	if err != nil {
		t.Error(err)
	}
	return resp.GetUrl()
}

// Clients that vanish leave no process, no file and no thread behind, ten
// thousand times.
func TestTenThousandVanishedClients(t *testing.T) {
	const sessions, workers, each = 10000, 16, 80 // one in each is a costly one
	n := start(t, "crun")
	pod, id := n.running(t, `nc -ll -p 8081 -e cat & echo ready; wait`)
	n.awaitReady(t, id)
	// What stays open after the first of each kind, stays.
	for _, v := range append(seldom, vanishing...) {
		v.do(t, n, pod, id, 0)
	}
	settled := func() bool { return n.settled(t, id) }
	eventually(t, "the first are gone", settled)
	files, runnerFiles := n.files(t, n.berthd.Process.Pid), n.files(t, n.runner(t))

	next := make(chan int)
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for i := range next {
				v := vanishing[i%len(vanishing)]
				if i%each == 0 {
					v = seldom[i/each%len(seldom)]
				}
				v.do(t, n, pod, id, i/len(vanishing))
			}
		})
	}
	for i := range sessions {
		if t.Failed() {
			break
		}
		next <- i
	}
	close(next)
	working.Wait()

	eventually(t, "all processes are gone", settled)
	eventually(t, "all files of berthd are closed", func() bool { return n.files(t, n.berthd.Process.Pid) <= files })
	eventually(t, "all files of the runner are closed", func() bool { return n.files(t, n.runner(t)) <= runnerFiles })
	if r := n.openExec(t, "SPDY", id, outputOnly, "echo", "here").Finish(); r.Stdout != "here\n" {
		t.Errorf("afterwards: %+v", r)
	}
}

// settled tells whether the container runs nothing but its own.
func (n *node) settled(t *testing.T, id string) bool {
	entries, err := os.ReadDir(n.run + "/exec")
	return len(processesNamed("sleep 4717")) == 0 && (err != nil || len(entries) == 0)
}

// files is how many files a process has open.
func (n *node) files(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
