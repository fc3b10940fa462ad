package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream"
)

// stdio is what a session connects to a process in a container. A nil stream is
// not connected: it must agree with the request that the session's URL is for.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
	resize   <-chan windowSize // of a tty; the session takes what is sent until it ends
	terminal *terminal         // restored when the session panics; may be nil
}

// windowSize is a message of the session's resize stream.
type windowSize struct {
	Width, Height uint16
}

// errLost ends a session whose connection ended before the server said how the
// command did.
var errLost = errors.New("the connection to the container was lost: berthd has ended or was restarted")

// streamTimeout bounds the beginning of a session: a daemon on the same machine
// that takes longer has stopped.
const streamTimeout = 30 * time.Second

// converse holds the session that berthd offers at rawURL, which works once, and
// returns when the command has ended and all its output is written: nil, a
// codeError, a notBegunError, a noProgramError, errLost, or why there was no
// session. The protocol is v4.channel.k8s.io over SPDY/3.1: of those that k8s.io/cri-streaming serves it is the one that can end
// stdin and go on with the output.
//
// When ctx ends, so does the session, and with it the command of an exec. A read
// of s.in under way then cannot be ended: it is left to the end of the process.
func (s stdio) converse(ctx context.Context, rawURL string) error {
	starting, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	raw, err := upgrade(starting, rawURL)
	if err != nil {
		return err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	conn, err := spdystream.NewConnection(raw, false)
	if err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { conn.Serve(spdystream.NoOpStreamHandler) })
	defer serving.Wait()
	defer raw.Close()
	err = s.talk(conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// upgrade asks the server for a session and returns its connection.
func upgrade(ctx context.Context, rawURL string) (net.Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, rawURL, nil)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	req.Header.Set("X-Stream-Protocol-Version", "v4.channel.k8s.io")
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	session, err := handshake(conn, req)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("begin session: %w", cmp.Or(context.Cause(ctx), err))
	}
	return session, nil
}

// handshake sends req on conn and returns conn from the first byte after the
// answer on.
func handshake(conn net.Conn, req *http.Request) (net.Conn, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	buffered := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buffered, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("the server answered %s: %s", resp.Status, shown(string(bytes.TrimSpace(said))))
	}
	return &bufferedConn{conn, buffered}, nil
}

// bufferedConn reads first what came with the answer to a request.
type bufferedConn struct {
	net.Conn
	buffered *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.buffered.Read(p) }

// talk moves the bytes of a session that has begun.
func (s stdio) talk(conn *spdystream.Connection) error {
	streams, err := s.open(conn)
	defer streams.reset()
	if err != nil {
		return err
	}
	var output sync.WaitGroup
	var failed [2]error
	for i, w := range []io.Writer{s.out, s.err} {
		stream := streams[[]string{"stdout", "stderr"}[i]]
		if stream == nil {
			continue
		}
		output.Go(func() {
			defer s.terminal.onPanic()
			if _, failed[i] = io.Copy(w, stream); failed[i] != nil {
				streams.reset() // a command may write for ever: this is the end
			}
		})
	}
	if resize := streams["resize"]; resize != nil {
		var sizes sync.WaitGroup
		ended := make(chan struct{})
		defer sizes.Wait()
		defer close(ended)
		sizes.Go(func() { s.sendSizes(resize, ended) })
	}
	if stdin := streams["stdin"]; stdin != nil {
		go s.sendInput(stdin) // ends with its reader: see converse
	}
	verdict, err := io.ReadAll(streams["error"])
	output.Wait()
	if err = errors.Join(err, failed[0], failed[1]); err != nil {
		return err
	}
	return outcome(verdict)
}

// streams are those of one session, by the names that its server knows.
type streams map[string]*spdystream.Stream

// open makes the streams of the session; after an error, some of them.
func (s stdio) open(conn *spdystream.Connection) (streams, error) {
	made := streams{}
	for _, wanted := range []struct {
		name string
		is   bool
	}{
		{"error", true}, {"stdin", s.in != nil}, {"stdout", s.out != nil}, {"stderr", s.err != nil}, {"resize", s.tty},
	} {
		if !wanted.is {
			continue
		}
		stream, err := conn.CreateStream(http.Header{"Streamtype": {wanted.name}}, nil, false)
		if err == nil {
			made[wanted.name] = stream
			err = stream.WaitTimeout(streamTimeout)
		}
		if err != nil {
			return made, fmt.Errorf("begin session: open %s: %w", wanted.name, err)
		}
	}
	return made, nil
}

// reset lets go of all streams: the connection cannot end while it has
// something for one that nobody reads.
func (all streams) reset() {
	for _, stream := range all {
		_ = stream.Reset()
	}
}

func (s stdio) sendInput(stdin *spdystream.Stream) {
	defer s.terminal.onPanic()
	// Neither error matters: input that cannot be read has ended, and a
	// session that takes none has ended or tells why. In small pieces, whatever
	// the reader is: a frame holds less than 16 MiB.
	_, _ = io.Copy(stdin, struct{ io.Reader }{s.in})
	_ = stdin.Close()
}

func (s stdio) sendSizes(resize io.Writer, ended <-chan struct{}) {
	defer s.terminal.onPanic()
	sizes := json.NewEncoder(resize)
	for {
		select {
		case size := <-s.resize:
			if sizes.Encode(size) != nil {
				return // so has the session ended
			}
		case <-ended:
			return
		}
	}
}

// outcome reads the status that ends a session: the JSON of Kubernetes'
// meta/v1.Status.
func outcome(verdict []byte) error {
	if len(verdict) == 0 {
		return errLost
	}
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(verdict, &status); err != nil {
		return fmt.Errorf("read how the command ended: %w", err)
	}
	if status.Status == "Success" {
		return nil
	}
	for _, cause := range status.Details.Causes {
		if code, err := strconv.Atoi(cause.Message); err == nil && cause.Reason == "ExitCode" {
			return codeError(code)
		}
	}
	said := shown(status.Message)
	for _, prefix := range []string{"Internal error occurred: ", "error executing command in container: ", "error attaching to container: "} {
		said = strings.TrimPrefix(said, prefix) // people know what they did
	}
	if status.Reason == "NotFound" {
		return noProgramError{errors.New(said)}
	}
	return notBegunError{errors.New(said)}
}
