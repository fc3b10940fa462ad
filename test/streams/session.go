package streams

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// Options are the streams that a session opens; they are those of the request
// that the URL is for.
type Options struct {
	Stdin, Stdout, Stderr, TTY bool
}

// Session is a remote command or an attachment. Streams that were not asked for
// are nil.
type Session struct {
	Stdin          io.WriteCloser // closing it is the end of the command's input
	Stdout, Stderr io.Reader
	resize         io.Writer
	status         io.Reader
	conn           net.Conn
	begin          func(announced int) error // of a frame of stdin
	end            func()                    // of the transport, after conn was closed
}

// Open begins the session at url: protocol is "SPDY" or "WebSocket".
func Open(protocol, url string, o Options) (*Session, error) {
	if protocol == "SPDY" {
		return openSPDY(url, o)
	}
	return openWebSocket(url, o)
}

// Resize tells the size of the client's terminal.
func (s *Session) Resize(width, height int) error {
	_, err := fmt.Fprintf(s.resize, `{"Width":%d,"Height":%d}`, width, height)
	return err
}

// Begin sends the header of a frame of stdin that announces so many bytes, and then
// some of them.
func (s *Session) Begin(announced int, data []byte) error {
	if err := s.begin(announced); err != nil {
		return err
	}
	_, err := s.conn.Write(data)
	return err
}

// HangUp closes the connection, whatever is under way.
func (s *Session) HangUp() {
	s.conn.Close()
	s.end()
}

// A Result is what a session has brought.
type Result struct {
	Stdout, Stderr string
	Code           int   // of the command
	Err            error // why there is no code
}

// Finish reads everything to the end of the session and hangs up.
func (s *Session) Finish() Result {
	var r Result
	var all sync.WaitGroup
	for _, out := range []struct {
		from io.Reader
		to   *string
	}{{s.Stdout, &r.Stdout}, {s.Stderr, &r.Stderr}} {
		if out.from != nil {
			all.Go(func() {
				b, _ := io.ReadAll(out.from)
				*out.to = string(b)
			})
		}
	}
	r.Code, r.Err = s.Code()
	all.Wait()
	s.HangUp()
	return r
}

// Code waits for the end of the command; an error says why there is no code.
func (s *Session) Code() (int, error) {
	text, err := io.ReadAll(s.status)
	if err != nil {
		return 0, err
	}
	return parseStatus(text)
}

func parseStatus(text []byte) (int, error) {
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return 0, fmt.Errorf("status %q: %w", text, err)
	}
	switch {
	case status.Status == "Success":
		return 0, nil
	case status.Reason == "NonZeroExitCode" && len(status.Details.Causes) == 1 && status.Details.Causes[0].Reason == "ExitCode":
		return strconv.Atoi(status.Details.Causes[0].Message)
	}
	return 0, fmt.Errorf("%s: %s", status.Reason, status.Message)
}
