package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/sandbox"
	"berth/test/expect"
	"berth/test/streams"
)

func TestStreamingIsForLoopback(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "10.0.0.1:10010", "localhost:0", "127.0.0.1", ""} {
		if s, err := ListenStreams(t.Context(), address); err == nil {
			s.Close()
			t.Errorf("%q was accepted", address)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		if s, err := ListenStreams(t.Context(), address); err != nil {
			t.Errorf("%q: %v", address, err)
		} else if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// offers is a Streaming whose clock the test sets.
func offers(t *testing.T) (s *Streaming, now *time.Time) {
	t.Helper()
	s, err := ListenStreams(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	now = new(time.Time)
	*now = time.Unix(1000, 0)
	s.now = func() time.Time { return *now }
	return s, now
}

func offered(t *testing.T, s *Streaming, req *runtimeapi.ExecRequest) (token string) {
	t.Helper()
	url, err := s.url("exec", req, func(*session) {})
	if err != nil {
		t.Fatal(err)
	}
	return url[strings.LastIndexByte(url, '/')+1:]
}

func TestTokenIsGoodOnceAndForAMinute(t *testing.T) {
	s, now := offers(t)
	req := &runtimeapi.ExecRequest{}
	token := offered(t, s, req)
	if s.begin("attach", token) != nil {
		t.Error("it was good for another kind of session")
	}
	*now = now.Add(tokenLife - 1)
	if s.begin("exec", token) == nil {
		t.Fatal("it was not good")
	}
	s.sessions.Done()
	if s.begin("exec", token) != nil {
		t.Error("it was good twice")
	}
	token = offered(t, s, req)
	*now = now.Add(tokenLife)
	if s.begin("exec", token) != nil {
		t.Error("it was good after a minute")
	}
	if other := offered(t, s, req); other == token || len(other) < 26 {
		t.Errorf("tokens %q and %q", token, other)
	}
}

// What waits for clients that never come is bounded, and goes after a minute.
func TestOffersAreBounded(t *testing.T) {
	s, now := offers(t)
	for range maxOffers {
		offered(t, s, &runtimeapi.ExecRequest{})
	}
	_, err := s.url("exec", &runtimeapi.ExecRequest{}, func(*session) {})
	expect.Code(t, "one more", err, codes.ResourceExhausted, "1000")
	*now = now.Add(tokenLife)
	large := &runtimeapi.ExecRequest{Cmd: []string{strings.Repeat("x", maxOffered/4)}}
	for range 3 {
		offered(t, s, large)
	}
	if len(s.offers) != 3 || len(s.queue) != 3 {
		t.Errorf("%d offers and a queue of %d after a minute", len(s.offers), len(s.queue))
	}
	_, err = s.url("exec", large, func(*session) {})
	expect.Code(t, "too many bytes", err, codes.ResourceExhausted)
	*now = now.Add(tokenLife)
	offered(t, s, &runtimeapi.ExecRequest{})
	if s.offered != 0 {
		t.Errorf("%d bytes are counted for an empty request", s.offered)
	}
}

func TestStatusOf(t *testing.T) {
	if s := statusOf(0, nil); s.Status != "Success" || s.Reason != "" {
		t.Errorf("success is %+v", s)
	}
	s := statusOf(137, nil)
	if s.Status != "Failure" || s.Reason != "NonZeroExitCode" || len(s.Details.Causes) != 1 || s.Details.Causes[0] != (statusCause{"ExitCode", "137"}) {
		t.Errorf("code 137 is %+v", s)
	}
	if s := statusOf(0, fmt.Errorf("exec: %w: it said so", sandbox.ErrNoProgram)); s.Status != "Failure" || s.Reason != "NotFound" || s.Message != "exec: no such program: it said so" {
		t.Errorf("no such program: %+v", s)
	}
	if s := statusOf(0, errors.New("the reason")); s.Status != "Failure" || s.Reason != "InternalError" || s.Message != "the reason" || s.Details != nil {
		t.Errorf("an error is %+v", s)
	}
}

// streamingNode is a node with a container that runs, and streams.
func streamingNode(t *testing.T) (n *node, pod, id string) {
	t.Helper()
	n = newNode(t)
	pod, id = n.startContainer(t, "web")
	return n, pod, id
}

func (n *node) execURL(t *testing.T, id string, req *runtimeapi.ExecRequest) string {
	t.Helper()
	req.ContainerId, req.Cmd = id, []string{"cmd"}
	return must[*runtimeapi.ExecResponse](t)(n.Exec(t.Context(), req)).GetUrl()
}

func forEachProtocol(t *testing.T, test func(t *testing.T, protocol string)) {
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		t.Run(protocol, func(t *testing.T) { test(t, protocol) })
	}
}

// Guards against a client that is noticed only when its input is read: it has
// sent more than anybody takes, and hangs up.
func TestCommandEndsWithItsClient(t *testing.T) {
	n, _, id := streamingNode(t)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		begun, ended := make(chan struct{}), make(chan error, 1)
		n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
			close(begun)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			e.Stdin.Close()
			return 0, ctx.Err()
		}
		s, err := streams.Open(protocol, n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true}), streams.Options{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		<-begun
		var sending sync.WaitGroup
		full := make(chan struct{})
		sending.Go(func() {
			for i := 0; ; i++ {
				if _, err := s.Stdin.Write(make([]byte, 64<<10)); err != nil {
					return
				}
				if i == 3 {
					close(full)
				}
			}
		})
		<-full
		s.HangUp()
		if err := <-ended; !errors.Is(err, errHungUp) {
			t.Errorf("the command ended for %v", err)
		}
		sending.Wait()
	})
}

// A container may end between the call and the session. What the client has sent
// by then is nobody's, and holds up neither the session nor the daemon.
func TestSessionOfAContainerThatHasEnded(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, protocol string) {
		n, _, id := streamingNode(t)
		url := n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true})
		must[*runtimeapi.StopContainerResponse](t)(n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}))
		s, err := streams.Open(protocol, url, streams.Options{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(s.Stdin, "input")
		if r := s.Finish(); r.Err == nil || !strings.Contains(r.Err.Error(), "not running") {
			t.Errorf("the session ended with %v", r.Err)
		}
	})
}

// What a client has sent before it hung up must not pass for all that it wanted
// to send.
func TestInputOfAClientThatHangsUpHasNoEnd(t *testing.T) {
	n, _, id := streamingNode(t)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		read := make(chan error, 1)
		begun := make(chan struct{})
		n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
			close(begun)
			_, err := io.ReadAll(e.Stdin)
			read <- err
			return 0, nil
		}
		s, err := streams.Open(protocol, n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true}), streams.Options{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		<-begun
		fmt.Fprint(s.Stdin, "rm -rf /tmp/")
		s.HangUp()
		if err := <-read; !errors.Is(err, errHungUp) {
			t.Errorf("reading ended with %v", err)
		}
	})
}

func TestSizesOfATerminal(t *testing.T) {
	n, _, id := streamingNode(t)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
			for size := range e.Resize {
				if fmt.Fprint(e.Stdout, size); size.Width == 3 {
					break
				}
			}
			return 0, nil
		}
		s, err := streams.Open(protocol, n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true, Tty: true}), streams.Options{Stdin: true, Stdout: true, TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if err := s.Resize(i+1, 2); err != nil {
				t.Error(err)
			}
		}
		if r := s.Finish(); r.Stdout != "{1 2}{2 2}{3 2}" || r.Err != nil {
			t.Errorf("answered %+v", r)
		}
	})
}

// A stream of sizes that never makes one is bounded.
func TestSizesAreBounded(t *testing.T) {
	c := &session{over: make(chan struct{})}
	endless := io.MultiReader(strings.NewReader(`{"Width":1,"Height":2}`), strings.NewReader(`"`), io.LimitReader(zeros{}, 64<<20))
	sizes := c.sizes(endless)
	if size := <-sizes; size != (sandbox.TerminalSize{Width: 1, Height: 2}) {
		t.Errorf("size %v", size)
	}
	if size, ok := <-sizes; ok {
		t.Errorf("size %v of noise", size)
	}
	c.work.Wait()
}

// pipeConn is a pod's end of a forwarded port.
type pipeConn struct{ net.Conn }

func (c pipeConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// A client may send on when the pod's side is done, for a while, and what the pod
// sends is there whole.
func TestForwardedPortHalfCloses(t *testing.T) {
	n, pod, _ := streamingNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.runtime.dial = func(_ context.Context, port uint16) (oci.Conn, error) {
		if port != 80 {
			return nil, errors.New("connection refused")
		}
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return pipeConn{conn}, nil
	}
	answer := bytes.Repeat([]byte("answer "), 1<<18)
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Write(answer)
		conn.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(conn)
		conn.Close()
		got <- string(b)
	}()
	p, err := streams.OpenPorts(must[*runtimeapi.PortForwardResponse](t)(n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})).GetUrl())
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	data, errs, err := p.Dial(80)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(data); err != nil || !bytes.Equal(b, answer) {
		t.Errorf("%d bytes of %d came, %v", len(b), len(answer), err)
	}
	fmt.Fprint(data, "thanks")
	data.Close()
	if text := <-got; text != "thanks" {
		t.Errorf("the pod got %q", text)
	}
	if text, _ := io.ReadAll(errs); len(text) > 0 {
		t.Errorf("errors: %s", text)
	}
}

// deafConn is a pod's end of a forwarded port where nothing is read or written.
type deafConn struct {
	closed chan struct{}
	close  func()
}

func newDeafConn() deafConn {
	closed := make(chan struct{})
	return deafConn{closed, sync.OnceFunc(func() { close(closed) })}
}

func (c deafConn) Read([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}

func (c deafConn) Write([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}

func (c deafConn) CloseWrite() error { return nil }

func (c deafConn) Close() error {
	c.close()
	return nil
}

// Guards against a forwarded port that stays when its client has vanished: it has
// sent more than the pod takes, and its hanging up waits behind that.
func TestForwardedPortEndsWithItsClient(t *testing.T) {
	n, pod, _ := streamingNode(t)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		conn := newDeafConn()
		n.runtime.dial = func(context.Context, uint16) (oci.Conn, error) { return conn, nil }
		resp := must[*runtimeapi.PortForwardResponse](t)(n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}}))
		if err := streams.FillPort(protocol, resp.GetUrl(), 80); err != nil {
			t.Fatal(err)
		}
		select {
		case <-conn.closed:
		case <-time.After(10 * time.Second):
			t.Error("the pod's end is still open")
			conn.Close()
		}
	})
}

// Whatever clients do, no goroutine and no file stays: TestMain counts them.
func TestHostileClients(t *testing.T) {
	n, pod, id := streamingNode(t)
	n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
		_, _ = io.Copy(e.Stdout, e.Stdin)
		e.Stdin.Close()
		return 0, errors.New("no such file")
	}
	n.runtime.dial = func(context.Context, uint16) (oci.Conn, error) { return nil, errors.New("connection refused") }
	wants := runtimeapi.ExecRequest{Stdin: true, Stdout: true, Tty: true}
	all := streams.Options{Stdin: true, Stdout: true, TTY: true}
	var working sync.WaitGroup
	for range 8 {
		working.Go(func() {
			for i := range 60 {
				req := &runtimeapi.ExecRequest{Stdin: wants.Stdin, Stdout: wants.Stdout, Tty: wants.Tty}
				url := n.execURL(t, id, req)
				switch i % 4 {
				case 0:
					_ = streams.Flood(url, "error", "stdin", "stdout", "resize", "stdin", "stdin", "error", "resize", "frob")
				case 1:
					_ = streams.Flood(url, strings.Split(strings.Repeat("stdin ", 1+i), " ")...)
				case 2:
					if s, err := streams.Open("WebSocket", url, all); err == nil {
						fmt.Fprint(s.Stdin, "hello")
						s.Resize(-1, 1<<30)
						s.HangUp()
					}
				case 3:
					p, err := streams.OpenPorts(must[*runtimeapi.PortForwardResponse](t)(n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})).GetUrl())
					if err != nil {
						t.Error(err)
						return
					}
					if data, _, err := p.Dial(80); err == nil {
						fmt.Fprint(data, "hello")
					}
					p.HangUp()
				}
			}
		})
	}
	working.Wait()
}

// Guards against clients that take the end of a WebSocket session for a failure:
// after the status there is a Close frame.
func TestWebSocketSessionsAreClosed(t *testing.T) {
	n, _, id := streamingNode(t)
	n.runtime.exec = func(context.Context, oci.Exec) (int, error) { return 0, nil }
	at, err := url.Parse(n.execURL(t, id, &runtimeapi.ExecRequest{Stdout: true}))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", at.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://localhost\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n", at.Path)
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"status":"Success"}` + "\x88\x02\x03\xe8"; !bytes.HasSuffix(got, []byte(want)) {
		t.Errorf("the session ends with %q, want %q", got[max(0, len(got)-40):], want)
	}
}
