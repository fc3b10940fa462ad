package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"berth/sandbox"
)

// remote is what a client of Exec or Attach has opened: the remotecommand
// protocols of Kubernetes, versions 2 to 5.
type remote struct {
	stdin          io.ReadCloser // nil: none
	stdout, stderr io.Writer     // nil: none
	resize         <-chan sandbox.TerminalSize
	errors         io.WriteCloser // takes the status
	structured     bool           // version 4 and later: the status is JSON
	finish         func()         // ends the streams of output
}

// exec serves an Exec.
func (c *session) exec(ctr *sandbox.Container, req streamsAndCommand) {
	remote, err := c.open(req)
	if err != nil {
		klog.V(callLevel).InfoS("Streaming session did not begin", "kind", c.kind, "container", ctr.ID(), "reason", err)
		return
	}
	stop := c.beat(remote.errors)
	code, err := ctr.Exec(c.ctx, sandbox.Exec{
		Cmd: req.GetCmd(), TTY: req.GetTty(),
		Stdin: remote.stdin, Stdout: remote.stdout, Stderr: remote.stderr, Resize: remote.resize,
	})
	stop()
	c.report(remote, code, err)
}

type streamsAndCommand interface {
	streamsRequest
	GetCmd() []string
}

// attach serves an Attach.
func (c *session) attach(ctr *sandbox.Container, req streamsRequest) {
	remote, err := c.open(req)
	if err != nil {
		klog.V(callLevel).InfoS("Streaming session did not begin", "kind", c.kind, "container", ctr.ID(), "reason", err)
		return
	}
	if remote.stdin != nil {
		remote.stdin = typing{remote.stdin, c.delivered}
	} else {
		c.delivered()
	}
	stop := c.beat(remote.errors)
	err = ctr.Attach(c.ctx, sandbox.Attach{
		TTY: req.GetTty(), Stdin: remote.stdin, Stdout: remote.stdout, Stderr: remote.stderr, Resize: remote.resize,
	})
	stop()
	c.report(remote, 0, err)
}

// open takes over the connection and waits for the streams that the request has
// asked for.
func (c *session) open(req streamsRequest) (*remote, error) {
	if wsstream.IsWebSocketRequest(c.r) {
		return c.openWebSocket(req)
	}
	return c.openSPDY(req)
}

// streamsTimeout bounds how long a SPDY client takes to open its streams.
const streamsTimeout = remotecommand.DefaultStreamCreationTimeout

// spdyProtocols are served over SPDY, the best first.
var spdyProtocols = []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name}

func (c *session) openSPDY(req streamsRequest) (*remote, error) {
	protocol, err := httpstream.Handshake(c.r, c.w, spdyProtocols)
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{
		remotecommand.StreamTypeError:  true,
		remotecommand.StreamTypeStdin:  req.GetStdin(),
		remotecommand.StreamTypeStdout: req.GetStdout(),
		remotecommand.StreamTypeStderr: req.GetStderr(),
		remotecommand.StreamTypeResize: req.GetTty() && protocol != remotecommand.StreamProtocolV2Name,
	}
	maps.DeleteFunc(wanted, func(_ string, is bool) bool { return !is })
	conn, err := c.upgradeSPDY(len(wanted), func(httpstream.Stream) error { return nil })
	if err != nil {
		return nil, err
	}
	got, err := c.collect(conn, wanted)
	if err != nil {
		return nil, err
	}
	r := &remote{errors: got[remotecommand.StreamTypeError], structured: protocol == remotecommand.StreamProtocolV4Name}
	var outputs []io.Closer
	if s := got[remotecommand.StreamTypeStdin]; s != nil {
		r.stdin = c.input(s)
	}
	if s := got[remotecommand.StreamTypeStdout]; s != nil {
		r.stdout, outputs = s, append(outputs, s)
	}
	if s := got[remotecommand.StreamTypeStderr]; s != nil {
		r.stderr, outputs = s, append(outputs, s)
	}
	if s := got[remotecommand.StreamTypeResize]; s != nil {
		r.resize = c.sizes(s)
	}
	r.finish = func() {
		for _, s := range outputs {
			s.Close()
		}
	}
	return r, nil
}

// collect waits until each of the wanted streams has come, once.
func (c *session) collect(conn *spdyConn, wanted map[string]bool) (map[string]httpstream.Stream, error) {
	timeout := time.NewTimer(streamsTimeout)
	defer timeout.Stop()
	got := map[string]httpstream.Stream{}
	for len(got) < len(wanted) {
		select {
		case s := <-conn.streams:
			kind := s.Headers().Get(remotecommand.StreamType)
			if !wanted[kind] || got[kind] != nil {
				return nil, fmt.Errorf("the client opened a stream %q that is not wanted", kind)
			}
			got[kind] = s
		case <-c.ctx.Done():
			return nil, errHungUp
		case <-timeout.C:
			return nil, errors.New("the client did not open its streams")
		}
	}
	return got, nil
}

// Channels of the WebSocket protocols.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
)

func (c *session) openWebSocket(req streamsRequest) (*remote, error) {
	channels := make([]wsstream.ChannelType, channelResize+1)
	set := func(channel int, wanted bool, is wsstream.ChannelType) {
		if channels[channel] = wsstream.IgnoreChannel; wanted {
			channels[channel] = is
		}
	}
	set(channelStdin, req.GetStdin(), wsstream.ReadChannel)
	set(channelStdout, req.GetStdout(), wsstream.WriteChannel)
	set(channelStderr, req.GetStderr(), wsstream.WriteChannel)
	set(channelError, true, wsstream.WriteChannel)
	set(channelResize, req.GetTty(), wsstream.ReadChannel)
	const (
		plain  = wsstream.ChannelWebSocketProtocol
		base64 = wsstream.Base64ChannelWebSocketProtocol
	)
	protocol, got, err := c.upgradeWebSocket(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
		remotecommand.StreamProtocolV4Name: {Binary: true, Channels: channels},
		"v4." + base64:                     {Binary: false, Channels: channels},
		plain:                              {Binary: true, Channels: channels},
		base64:                             {Binary: false, Channels: channels},
		"":                                 {Binary: true, Channels: channels},
	})
	if err != nil {
		return nil, err
	}
	r := &remote{errors: got[channelError], finish: func() {}}
	switch protocol {
	case plain, base64, "":
	default:
		r.structured = true
	}
	if req.GetStdin() {
		r.stdin = c.input(got[channelStdin])
	}
	if req.GetStdout() {
		r.stdout = got[channelStdout]
	}
	if req.GetStderr() {
		r.stderr = got[channelStderr]
	}
	if req.GetTty() {
		r.resize = c.sizes(got[channelResize])
	}
	// An empty message tells old clients that the session has begun.
	for channel := channelStdout; channel <= channelError; channel++ {
		if channels[channel] == wsstream.WriteChannel {
			_, _ = got[channel].Write(nil)
			break
		}
	}
	return r, nil
}

// input passes on what the client sends until it is closed; then, and when the
// session is over, what comes is dropped, so that the connection is read on. Of a
// client that has hung up there is an error rather than an end: what it has sent
// so far must not pass for all.
func (c *session) input(from io.Reader) io.ReadCloser {
	r, w := io.Pipe()
	c.work.Go(func() {
		_, err := io.Copy(w, from)
		if err == nil && c.hungUp() {
			err = errHungUp
		}
		w.CloseWithError(err) // nil is the end
		_, _ = io.Copy(io.Discard, from)
	})
	return r
}

// maxSize bounds the text of one terminal size, in bytes.
const maxSize = 4 << 10

// sizes passes on the sizes of the client's terminal.
func (c *session) sizes(from io.Reader) <-chan sandbox.TerminalSize {
	sizes := make(chan sandbox.TerminalSize)
	c.work.Go(func() {
		defer func() { _, _ = io.Copy(io.Discard, from) }()
		defer close(sizes)
		limited := &io.LimitedReader{R: from}
		for text := json.NewDecoder(limited); ; {
			limited.N = maxSize
			var size sandbox.TerminalSize
			if text.Decode(&size) != nil {
				return
			}
			select {
			case sizes <- size:
			case <-c.over:
				return
			}
		}
	})
	return sizes
}

// streamStatus is the part of a metav1.Status that tells how a session ended.
type streamStatus struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

// statusCause: its type is called reason on the wire.
type statusCause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

// statusOf says how a command ended: with a code, or for the reason err. The
// codes of commands and failures of Berth are told apart by Reason.
func statusOf(code int, err error) streamStatus {
	switch {
	case errors.Is(err, sandbox.ErrNoProgram):
		return streamStatus{Status: "Failure", Reason: "NotFound", Code: http.StatusNotFound, Message: err.Error()}
	case err != nil:
		return streamStatus{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: err.Error(),
		}
	case code != 0:
		return streamStatus{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %d", code),
			Details: &statusDetails{[]statusCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(code)}}},
		}
	}
	return streamStatus{Status: "Success"}
}

// report tells the client how its session has ended.
func (c *session) report(r *remote, code int, err error) {
	if err != nil && c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	r.finish()
	s := statusOf(code, err)
	switch {
	case r.structured:
		text, _ := json.Marshal(s) // strings and numbers: it cannot fail
		_, _ = r.errors.Write(text)
	case s.Message != "":
		_, _ = io.WriteString(r.errors, s.Message)
	}
	r.errors.Close()
	c.told = true
}
