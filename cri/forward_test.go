package cri

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/test/streams"
)

// Ports of a pod: what is behind them in these tests.
const (
	echoes    = 80 // sends back what comes
	resets    = 81 // greets, then resets the connection
	nobody    = 82 // refuses
	greeting  = "what came before the reset"
	farewells = "bye"
)

// forwardingNode is a node with a pod that has these ports. at is told of each
// connection that the pod's programs have.
func forwardingNode(t *testing.T, at func(open int)) (n *node, pod string) {
	t.Helper()
	n, pod, _ = streamingNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	var programs sync.WaitGroup
	var mu sync.Mutex
	open := 0
	count := func(by int) {
		mu.Lock()
		defer mu.Unlock()
		open += by
		at(open)
	}
	programs.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			count(1)
			programs.Go(func() {
				defer count(-1)
				defer conn.Close()
				kind := make([]byte, 1)
				if _, err := io.ReadFull(conn, kind); err != nil {
					return
				}
				if kind[0] == resets {
					io.WriteString(conn, greeting)
					conn.(*net.TCPConn).SetLinger(0)
					return
				}
				io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		programs.Wait()
	})
	n.runtime.dial = func(_ context.Context, port uint16) (oci.Conn, error) {
		address := l.Addr().String()
		if port == nobody {
			address = closed.Addr().String()
		}
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		conn.Write([]byte{byte(port)})
		return pipeConn{conn}, nil
	}
	return n, pod
}

func (n *node) portsURL(t *testing.T, pod string, ports ...int32) string {
	t.Helper()
	return must[*runtimeapi.PortForwardResponse](t)(n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})).GetUrl()
}

// exchange sends text to a port and returns what comes back, of data and of errors.
func exchange(t *testing.T, p *streams.Ports, port int, text string) (data, errs string) {
	t.Helper()
	conn, failures, err := p.Dial(port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, text)
	conn.Close()
	got, _ := io.ReadAll(conn)
	why, _ := io.ReadAll(failures)
	return string(got), string(why)
}

// Guards against a connection whose end takes all others of the session with it:
// kubectl ends its session when any connection has an error.
func TestAFailedConnectionEndsAlone(t *testing.T) {
	n, pod := forwardingNode(t, func(int) {})
	p, err := streams.OpenPorts(n.portsURL(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	other, _, err := p.Dial(echoes)
	if err != nil {
		t.Fatal(err)
	}
	if data, errs := exchange(t, p, nobody, ""); data != "" || errs != "" {
		t.Errorf("a port where nobody listens: %q, errors %q", data, errs)
	}
	for range 20 {
		if data, errs := exchange(t, p, resets, ""); data != greeting || errs != "" {
			t.Errorf("a connection that is reset: %q, errors %q", data, errs)
		}
	}
	io.WriteString(other, farewells)
	other.Close()
	if got, _ := io.ReadAll(other); string(got) != farewells {
		t.Errorf("the connection beside them got %q", got)
	}
	// When the pod has gone, there is nothing left to forward: that is told.
	must[*runtimeapi.StopPodSandboxResponse](t)(n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}))
	if _, errs := exchange(t, p, echoes, ""); !strings.Contains(errs, "not ready") {
		t.Errorf("a pod that has stopped: errors %q", errs)
	}
}

// By WebSocket each port has one connection, and those that fail have their reason
// in channels of their own.
func TestAFailedConnectionEndsAloneByWebSocket(t *testing.T) {
	n, pod := forwardingNode(t, func(int) {})
	p, err := streams.OpenPortsByWebSocket(n.portsURL(t, pod, nobody, resets, echoes))
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	if text, err := p.Await(0, streams.Errors); err != nil || !strings.Contains(text, "refused") {
		t.Errorf("a port where nobody listens: errors %q", text)
	}
	if text, err := p.Await(1, streams.Data); err != nil || text != greeting {
		t.Errorf("a connection that is reset: %q", text)
	}
	if text, err := p.Await(1, streams.Errors); err != nil || !strings.Contains(text, "reset") {
		t.Errorf("a connection that is reset: errors %q", text)
	}
	if err := p.Send(2, farewells); err != nil {
		t.Fatal(err)
	}
	if text, err := p.Await(2, streams.Data); err != nil || text != farewells {
		t.Errorf("the connection beside them got %q", text)
	}
}

// A session has at most maxForwarded connections; one more ends, and only that.
func TestForwardedConnectionsAreBounded(t *testing.T) {
	var most atomic.Int64
	n, pod := forwardingNode(t, func(open int) { most.Store(max(most.Load(), int64(open))) })
	p, err := streams.OpenPorts(n.portsURL(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	var first io.ReadWriteCloser
	for i := range maxForwarded {
		conn, _, err := p.Dial(echoes)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = conn
		}
	}
	for range 50 {
		if data, _ := exchange(t, p, echoes, farewells); data != "" {
			t.Fatalf("a connection too many got %q", data)
		}
	}
	io.WriteString(first, farewells)
	first.Close()
	if got, _ := io.ReadAll(first); string(got) != farewells {
		t.Errorf("the first connection got %q", got)
	}
	if most.Load() > maxForwarded {
		t.Errorf("%d connections were open at once", most.Load())
	}
	if data, _ := exchange(t, p, echoes, farewells); data != farewells {
		t.Errorf("a connection in the place of the first got %q", data)
	}
}

// Guards against a long session in which the halves of connections add up until
// none can be made any more.
func TestHalfConnectionsMakeRoom(t *testing.T) {
	n, pod := forwardingNode(t, func(int) {})
	p, err := streams.OpenPorts(n.portsURL(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	for range 3 * maxPairs {
		if err := p.DialHalf(echoes); err != nil {
			t.Fatal(err)
		}
	}
	if data, errs := exchange(t, p, echoes, farewells); data != farewells || errs != "" {
		t.Errorf("after many halves: %q, errors %q", data, errs)
	}
}

// What sessions and connections may open leaves the rest of berthd its own.
func TestStreamsLeaveDescriptors(t *testing.T) {
	n, pod := forwardingNode(t, func(int) {})
	files := n.server.Streams.files
	files.mu.Lock()
	files.free = 2*sessionFiles + forwardFiles
	files.mu.Unlock()
	p, err := streams.OpenPorts(n.portsURL(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer p.HangUp()
	second, err := streams.OpenPorts(n.portsURL(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	held, _, err := p.Dial(echoes)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(held, "x")
	if _, err := io.ReadFull(held, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if data, _ := exchange(t, p, echoes, farewells); data != "" {
		t.Errorf("a connection too many got %q", data)
	}
	third := n.portsURL(t, pod)
	if _, err := streams.OpenPorts(third); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a session too many: %v", err)
	}
	second.HangUp()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for last, err := streams.OpenPorts(third); ; last, err = streams.OpenPorts(third) {
		if err == nil {
			last.HangUp()
			return
		}
		select {
		case <-again.C:
		case <-t.Context().Done():
			t.Fatal(err)
		}
	}
}
