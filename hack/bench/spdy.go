package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// session is one connection that was upgraded to SPDY.
type session struct {
	conn net.Conn
	spdy httpstream.Connection
}

func dialSPDY(ctx context.Context, at, protocol string) (*session, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	upgraded, err := upgrade(conn, u, protocol)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &session{conn, upgraded}, nil
}

func upgrade(conn net.Conn, u *url.URL, protocol string) (httpstream.Connection, error) {
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n",
		u.RequestURI(), u.Host, protocol); err != nil {
		return nil, err
	}
	// The server says nothing before it is spoken to, so nothing stays in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	return spdy.NewClientConnection(conn)
}

// stream opens a stream of a type.
func (s *session) stream(kind string, header http.Header) (httpstream.Stream, error) {
	h := header.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Streamtype", kind)
	stream, err := s.spdy.CreateStream(h)
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", kind, err)
	}
	return stream, nil
}

func (s *session) close() {
	s.spdy.Close()
	s.conn.Close()
	<-s.spdy.CloseChan()
}
