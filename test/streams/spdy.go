package streams

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"github.com/moby/spdystream"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Upgrade asks for SPDY at an URL. The connection and what is made of it are the
// caller's to close.
func Upgrade(at, protocol string) (net.Conn, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", u.Path, u.Host, protocol)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		conn.Close()
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	return conn, nil
}

func openSPDY(at string, o Options) (*Session, error) {
	conn, err := Upgrade(at, "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	c, err := spdy.NewClientConnection(conn)
	if err != nil {
		return nil, err
	}
	s := &Session{conn: conn, end: func() { endSPDY(conn, c) }}
	s.begin = func(announced int) error {
		header := binary.BigEndian.AppendUint32(nil, s.Stdin.(httpstream.Stream).Identifier())
		_, err := conn.Write(binary.BigEndian.AppendUint32(header, uint32(announced)))
		return err
	}
	for _, st := range []struct {
		kind   string
		wanted bool
		set    func(httpstream.Stream)
	}{
		{"error", true, func(st httpstream.Stream) { s.status = st }},
		{"stdin", o.Stdin, func(st httpstream.Stream) { s.Stdin = st }},
		{"stdout", o.Stdout, func(st httpstream.Stream) { s.Stdout = st }},
		{"stderr", o.Stderr, func(st httpstream.Stream) { s.Stderr = st }},
		{"resize", o.TTY, func(st httpstream.Stream) { s.resize = st }},
	} {
		if !st.wanted {
			continue
		}
		stream, err := c.CreateStream(http.Header{"Streamtype": {st.kind}})
		if err != nil {
			s.HangUp()
			return nil, fmt.Errorf("open stream %s: %w", st.kind, err)
		}
		st.set(stream)
	}
	return s, nil
}

// Flood begins a session at url, opens streams of these types, whoever wants
// them, without waiting for an answer, and hangs up.
func Flood(url string, kinds ...string) error {
	conn, err := Upgrade(url, "v4.channel.k8s.io")
	if err != nil {
		return err
	}
	c, err := spdystream.NewConnection(conn, false)
	if err != nil {
		conn.Close()
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() { c.Serve(spdystream.NoOpStreamHandler) })
	for _, kind := range kinds {
		if _, err = c.CreateStream(http.Header{"Streamtype": {kind}}, nil, false); err != nil {
			break
		}
	}
	conn.Close()
	serving.Wait()
	return err
}

// endSPDY waits for the connection's goroutines.
func endSPDY(conn net.Conn, c httpstream.Connection) {
	c.Close()
	conn.Close()
	<-c.CloseChan()
}
