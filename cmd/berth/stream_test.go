package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// process is what runs at the other end of a session.
type process struct {
	container   string
	cmd         []string // nil: the session attaches to what runs already
	in          io.Reader
	out, errOut io.Writer
	tty         bool
	resize      <-chan remotecommand.TerminalSize
}

// processes plays the containers of a streaming server: one function is every
// command. The server is the real one.
type processes func(ctx context.Context, p process) error

func (run processes) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return run(ctx, process{id, cmd, in, out, err, tty, resize})
}

func (run processes) Attach(ctx context.Context, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return run(ctx, process{id, nil, in, out, err, tty, resize})
}

func (processes) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	return errors.New("no port is forwarded here")
}

// exit is how a command ends with a code: the error that tells cri-streaming.
type exit int

func (e exit) Error() string   { return fmt.Sprintf("code %d", int(e)) }
func (e exit) String() string  { return e.Error() }
func (e exit) Exited() bool    { return true }
func (e exit) ExitStatus() int { return int(e) }

// serveStreams serves the sessions of run until the test ends.
func serveStreams(t *testing.T, run processes) streaming.Server {
	t.Helper()
	var s streaming.Server
	web := httptest.NewUnstartedServer(nil)
	address := web.Listener.Addr().String()
	config := streaming.DefaultConfig
	config.Addr, config.BaseURL = address, &url.URL{Scheme: "http", Host: address}
	s, err := streaming.NewServer(config, run)
	if err != nil {
		t.Fatal(err)
	}
	web.Config.Handler = s
	web.Start()
	t.Cleanup(web.Close)
	return s
}

// execURL is where a session begins that connects what io has.
func execURL(t *testing.T, s streaming.Server, io stdio) string {
	t.Helper()
	resp, err := s.GetExec(&runtimeapi.ExecRequest{
		ContainerId: "c1", Cmd: []string{"cmd"}, Tty: io.tty, Stdin: io.in != nil, Stdout: io.out != nil, Stderr: io.err != nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetUrl()
}

func TestSessionPassesStreamsAndCode(t *testing.T) {
	s := serveStreams(t, func(_ context.Context, p process) error {
		said, err := io.ReadAll(p.in) // until the client has closed its end
		if err != nil {
			return err
		}
		fmt.Fprintf(p.out, "out %s", said)
		fmt.Fprintf(p.errOut, "err %s", said)
		if len(said) == 0 {
			return nil
		}
		return exit(len(said))
	})
	for said, want := range map[string]error{"": nil, "abc": codeError(3), strings.Repeat("x", 255): codeError(255)} {
		var out, errOut bytes.Buffer
		io := stdio{in: strings.NewReader(said), out: &out, err: &errOut}
		if err := io.converse(t.Context(), execURL(t, s, io)); !errors.Is(err, want) {
			t.Errorf("%.5q: ended with %v, want %v", said, err, want)
		}
		if out.String() != "out "+said || errOut.String() != "err "+said {
			t.Errorf("%.5q: out %.20q, err %.20q", said, out.String(), errOut.String())
		}
	}
}

// Everything arrives, both ways at once, however slow the reader, before the
// session ends.
func TestSessionLosesNothing(t *testing.T) {
	s := serveStreams(t, func(_ context.Context, p process) error {
		_, err := io.Copy(p.out, p.in)
		return err
	})
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	var got bytes.Buffer
	io := stdio{in: bytes.NewReader(sent), out: &got}
	if err := io.converse(t.Context(), execURL(t, s, io)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("%d of %d bytes came back, or others", got.Len(), len(sent))
	}
}

func TestSessionWithATerminal(t *testing.T) {
	s := serveStreams(t, func(_ context.Context, p process) error {
		for range 2 {
			size := <-p.resize
			fmt.Fprintf(p.out, "%dx%d ", size.Width, size.Height)
		}
		if p.errOut != nil || !p.tty {
			return errors.New("it is no terminal")
		}
		return nil
	})
	sizes := make(chan windowSize)
	go func() {
		sizes <- windowSize{80, 24}
		sizes <- windowSize{120, 50}
	}()
	var out bytes.Buffer
	io := stdio{in: strings.NewReader(""), out: &out, tty: true, resize: sizes}
	if err := io.converse(t.Context(), execURL(t, s, io)); err != nil || out.String() != "80x24 120x50 " {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestSessionThatFails(t *testing.T) {
	s := serveStreams(t, func(context.Context, process) error { return errors.New("no such program: frobnicate") })
	io := stdio{out: io.Discard}
	used := execURL(t, s, io)
	if err := io.converse(t.Context(), used); err == nil || !strings.Contains(err.Error(), "no such program: frobnicate") {
		t.Errorf("a command that cannot be run: %v", err)
	}
	if err := io.converse(t.Context(), used); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a URL for the second time: %v", err)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	if err := io.converse(t.Context(), closed.URL); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a server that is not there: %v", err)
	}
}

// A server that dies in the middle ends the session with a clear error, after
// the output that came.
func TestSessionWhoseServerDies(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	died := make(chan struct{})
	s := serveStreams(t, func(_ context.Context, p process) error {
		fmt.Fprint(p.out, "the last words")
		<-died
		return nil
	})
	words := &cutAfter{want: "the last words"}
	u, err := url.Parse(execURL(t, s, stdio{out: words}))
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	// Between the two is a wire that can be cut.
	fronts := make(chan net.Conn, 1)
	var wires sync.WaitGroup
	type writer struct{ io.Writer } // no splice(2), which keeps its pipes
	wires.Go(func() {
		front, err := l.Accept()
		if err != nil {
			return
		}
		fronts <- front
		wires.Go(func() { _, _ = io.Copy(writer{front}, back) })
		_, _ = io.Copy(writer{back}, front)
	})
	words.cut = func() {
		(<-fronts).Close()
		back.Close()
		close(died)
	}
	u.Host = l.Addr().String()
	err = stdio{out: words}.converse(t.Context(), u.String())
	if !errors.Is(err, errLost) || words.got.String() != words.want {
		t.Errorf("%v after %q", err, words.got.String())
	}
	wires.Wait()
}

// cutAfter calls cut when it was written what it wants.
type cutAfter struct {
	want string
	got  bytes.Buffer
	cut  func()
}

func (c *cutAfter) Write(p []byte) (int, error) {
	c.got.Write(p)
	if c.got.String() == c.want {
		c.cut()
	}
	return len(p), nil
}

// A client that is interrupted takes its command with it.
func TestSessionIsCancelled(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	s := serveStreams(t, func(_ context.Context, p process) error {
		close(began)
		_, err := io.Copy(io.Discard, p.in)
		close(gone)
		return err
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	in, typing := io.Pipe()
	defer typing.Close()
	why := errors.New("interrupted")
	go func() {
		<-began
		cancel(why)
	}()
	session := stdio{in: in, out: io.Discard}
	if err := session.converse(ctx, execURL(t, s, session)); !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
	<-gone
}

// Output that nobody takes ends the session, also when there is more of it than
// fits between the two.
func TestSessionWhoseOutputFails(t *testing.T) {
	s := serveStreams(t, func(_ context.Context, p process) error {
		for {
			if _, err := p.out.Write(make([]byte, 1<<16)); err != nil {
				return err
			}
		}
	})
	full := errors.New("disk is full")
	session := stdio{out: writerFunc(func([]byte) (int, error) { return 0, full })}
	if err := session.converse(t.Context(), execURL(t, s, session)); !errors.Is(err, full) {
		t.Errorf("ended with %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		verdict string
		want    string // text of the error; "" for none
	}{
		{`{"status":"Success"}`, ""},
		{`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"126"}]}}`, codeError(126).Error()},
		{`{"status":"Failure","message":"it broke"}`, "it broke"},
		{`{"status":"Failure","reason":"NotFound","message":"it is not there"}`, "it is not there"},
		{`{"status":"Failure","message":"it broke","details":{"causes":[{"reason":"ExitCode","message":"x"}]}}`, "it broke"},
		{``, errLost.Error()},
		{`nonsense`, "read how the command ended"},
	} {
		err := outcome([]byte(test.verdict))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s is %v, want %q", test.verdict, err, test.want)
		}
	}
}
