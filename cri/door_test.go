package cri

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/test/leak"
	"berth/test/streams"
)

// connect connects to the streaming port and sends text.
func connect(t *testing.T, s *Streaming, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, text)
	return c
}

// wantEnd waits until the other side has ended c.
func wantEnd(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%s is still connected: %v", what, err)
	}
}

// serveStreams serves a Streaming, with this patience for requests, until the test
// ends.
func serveStreams(t *testing.T, patience time.Duration) *Streaming {
	t.Helper()
	s, err := ListenStreams(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.patience = patience
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// Connections that have shown no token do not stay, whatever they send or do not.
func TestClientsWithoutTokenAreNotWaitedFor(t *testing.T) {
	s := serveStreams(t, 50*time.Millisecond)
	for what, text := range map[string]string{
		"one that sends nothing":       "",
		"one that sends half a header": "POST /exec/x HTTP/1.1\r\nHost: lo",
		"one that owes its body":       "POST /exec/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
		"one that was answered":        "GET /exec/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		wantEnd(t, what, connect(t, s, text))
	}
}

// A session may be idle for much longer than a request: a shell that waits for its
// user, say.
func TestIdleSessionsStay(t *testing.T) {
	s := serveStreams(t, 50*time.Millisecond)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		url, err := s.url("exec", &runtimeapi.ExecRequest{}, func(c *session) {
			r, err := c.open(&runtimeapi.ExecRequest{Stdin: true, Stdout: true})
			if err != nil {
				t.Error(err)
				return
			}
			_, err = io.Copy(r.stdout, r.stdin)
			c.report(r, 0, err)
		})
		if err != nil {
			t.Fatal(err)
		}
		shell, err := streams.Open(protocol, url, streams.Options{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // each takes the patience that requests have
			wantEnd(t, "one that sends nothing", connect(t, s, ""))
		}
		fmt.Fprint(shell.Stdin, "exit")
		shell.Stdin.Close()
		if r := shell.Finish(); r.Stdout != "exit" || r.Err != nil {
			t.Errorf("after some idle time: %+v", r)
		}
	})
}

// Guards against a crowd of clients that hold the descriptors of the daemon, or
// keep others out: the oldest go.
func TestCrowdWithoutTokens(t *testing.T) {
	s := serveStreams(t, time.Minute)
	var crowd []net.Conn
	for range 3 * maxWaiting {
		crowd = append(crowd, connect(t, s, ""))
	}
	for _, c := range crowd[:2*maxWaiting] {
		wantEnd(t, "one of the oldest", c)
	}
	url, err := s.url("exec", &runtimeapi.ExecRequest{}, func(c *session) { io.WriteString(c.w, "served") })
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, s, "GET "+strings.TrimPrefix(url, "http://"+s.Address().String())+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if answer, _ := io.ReadAll(c); !bytes.HasSuffix(answer, []byte("served")) {
		t.Errorf("one with a token was answered %q", answer)
	}
}

// Other users of the machine have nothing to ask for: they get no answer.
func TestOtherUsersAreRefused(t *testing.T) {
	leak.NeedRoot(t)
	s := serveStreams(t, 50*time.Millisecond)
	port := s.Address().Port()
	ask := func(uid uint32) string {
		cmd := exec.Command("bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`, port))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, _ := cmd.Output()
		return string(out)
	}
	if answer := ask(65534); answer != "" {
		t.Errorf("nobody was answered %q", answer)
	}
	if answer := ask(0); !strings.Contains(answer, "404") {
		t.Errorf("root was answered %q", answer)
	}
}

// nft runs a script of nftables and undoes it at the end of the test, or earlier.
func nft(t *testing.T, rules string) (undo func()) {
	t.Helper()
	leak.NeedRoot(t)
	leak.NeedTool(t, "nft")
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("nft: %v: %s", err, out)
		}
	}
	run("table ip berthtest { chain out { type nat hook output priority -100;\n" + rules + "\n}\n}\n")
	undone := false
	undo = func() {
		if !undone {
			undone = true
			run("delete table ip berthtest")
		}
	}
	t.Cleanup(undo)
	return undo
}

// No URL is given that would lead the client, with its token, elsewhere; and a port
// that leads elsewhere is not chosen.
func TestRedirectedPortIsNotOffered(t *testing.T) {
	s := serveStreams(t, 50*time.Millisecond)
	thief, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	undo := nft(t, fmt.Sprintf("ip daddr 127.0.0.0/8 tcp dport %d redirect to :%d", s.Address().Port(), addrPort(thief.Addr()).Port()))
	_, err = s.url("exec", &runtimeapi.ExecRequest{}, nil)
	if err == nil || !strings.Contains(err.Error(), "redirects this port") {
		t.Errorf("an URL through a redirected port: %v", err)
	}
	undo()
	if _, err := s.url("exec", &runtimeapi.ExecRequest{}, nil); err != nil {
		t.Error(err)
	}
	undo = nft(t, fmt.Sprintf("tcp dport 1024-65535 redirect to :%d", addrPort(thief.Addr()).Port()))
	if other, err := ListenStreams(t.Context(), "127.0.0.1:0"); err == nil {
		other.Close()
		t.Error("a redirected port was chosen")
	}
	undo()
}

// A client that was redirected to get here has not proved where it comes from.
func TestRedirectedClientIsRefused(t *testing.T) {
	s := serveStreams(t, 50*time.Millisecond)
	url, err := s.url("exec", &runtimeapi.ExecRequest{}, func(c *session) { io.WriteString(c.w, "served") })
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	nft(t, fmt.Sprintf("ip daddr 127.0.0.0/8 tcp dport %d redirect to :%d", addrPort(other.Addr()).Port(), s.Address().Port()))
	request := "GET " + strings.TrimPrefix(url, "http://"+s.Address().String()) + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
	c, err := net.Dial("tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if answer, _ := io.ReadAll(c); len(answer) > 0 {
		t.Errorf("through a redirected port: %q", answer)
	}
	if answer, _ := io.ReadAll(connect(t, s, request)); !bytes.HasSuffix(answer, []byte("served")) {
		t.Errorf("the token was spent: %q", answer)
	}
}

// Guards against a frame that is held whole: what has come of it is passed on.
func TestLongFramesAreNotHeld(t *testing.T) {
	const announced, sent, passed = 15 << 20, 100 << 10, 64 << 10
	n, _, id := streamingNode(t)
	forEachProtocol(t, func(t *testing.T, protocol string) {
		got := make(chan error, 1)
		n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
			_, err := io.ReadFull(e.Stdin, make([]byte, passed))
			got <- err
			e.Stdin.Close()
			return 0, nil
		}
		s, err := streams.Open(protocol, n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true}), streams.Options{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.HangUp()
		if err := s.Begin(announced, make([]byte, sent)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("nothing of a long frame is passed on before its end")
		}
	})
}

// A WebSocket message may come in any number of frames, with pings between them.
func TestMessagesInFrames(t *testing.T) {
	n, _, id := streamingNode(t)
	n.runtime.exec = func(ctx context.Context, e oci.Exec) (int, error) {
		text, _ := io.ReadAll(e.Stdin)
		fmt.Fprintf(e.Stdout, "%s", text)
		return 0, nil
	}
	url := n.execURL(t, id, &runtimeapi.ExecRequest{Stdin: true, Stdout: true})
	config, err := websocket.NewConfig(strings.Replace(url, "http:", "ws:", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	conn, err := net.Dial("tcp", config.Location.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(first byte, payload string) {
		b := append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	const text, binary, more, ping, last = 1, 2, 0, 9, 0x80
	frame(binary, "\x00one ")
	frame(ping|last, "")
	frame(more, "two ")
	frame(more|last, "three")
	frame(binary|last, "")             // a sign of life
	frame(binary|last, "\x09nobody's") // a channel that is not there
	frame(binary|last, "\x00 four")    //
	frame(binary|last, "\xff\x00")     // the end of stdin
	var out []byte
	for {
		var message []byte
		if websocket.Message.Receive(ws, &message) != nil {
			break
		}
		if len(message) > 1 && message[0] == 1 {
			out = append(out, message[1:]...)
		}
	}
	if string(out) != "one two three four" {
		t.Errorf("it read %q", out)
	}
}

// Long data frames come in pieces, of which the last alone may end the stream; other
// frames are as they were.
func TestShortFrames(t *testing.T) {
	var in bytes.Buffer
	put := func(id uint32, flags byte, payload int) {
		in.Write(binary.BigEndian.AppendUint32(nil, id))
		in.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)<<24|uint32(payload)))
		in.Write(bytes.Repeat([]byte{byte(id)}, payload))
	}
	const control, fin = 0x80030001, 1
	put(control, fin, 3*maxDataFrame)
	put(7, fin, 2*maxDataFrame+5)
	put(9, 0, maxDataFrame)
	put(7, fin, 0)
	type frame struct {
		id    uint32
		flags byte
		size  int
	}
	var got []frame
	out := bufio.NewReader(&shortFrames{from: bufio.NewReader(&in)})
	for {
		var head [8]byte
		if _, err := io.ReadFull(out, head[:]); err != nil {
			break
		}
		f := frame{binary.BigEndian.Uint32(head[:]), head[4], int(binary.BigEndian.Uint32(head[4:]) & 0xffffff)}
		payload := make([]byte, f.size)
		if _, err := io.ReadFull(out, payload); err != nil || bytes.Count(payload, []byte{byte(f.id)}) != f.size {
			t.Errorf("frame %+v has another payload: %v", f, err)
		}
		got = append(got, f)
	}
	want := []frame{{control, fin, 3 * maxDataFrame}, {7, 0, maxDataFrame}, {7, 0, maxDataFrame}, {7, fin, 5}, {9, 0, maxDataFrame}, {7, fin, 0}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("frames %v, want %v", got, want)
	}
}
