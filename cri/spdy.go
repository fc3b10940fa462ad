package cri

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"
	"k8s.io/streaming/pkg/httpstream"
	httpspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

// Bounds of what a client makes the SPDY library hold. It queues at most 250 frames
// of a session, each of them whole.
const (
	maxDataFrame    = 16 << 10 // bytes; longer ones are cut
	maxControlFrame = 16 << 10 // bytes, compressed
	maxStreamHeader = 8 << 10  // bytes of a name or value
	maxHeaders      = 32       // of a stream
)

// spdyConn is the SPDY connection of a session. It knows all streams that are
// open: one that is not reset would hold goroutines of the library for ever.
type spdyConn struct {
	conn    *spdystream.Connection
	streams chan httpstream.Stream // accepted ones
	most    int                    // streams open at once

	mu    sync.Mutex
	open  map[httpstream.Stream]bool
	ended bool
}

// upgradeSPDY makes the connection a SPDY one, of at most so many streams at once.
// accept says whether a client may open a stream.
func (c *session) upgradeSPDY(most int, accept func(httpstream.Stream) error) (*spdyConn, error) {
	under, err := c.switchToSPDY()
	if err != nil {
		return nil, fmt.Errorf("upgrade to SPDY: %w", err)
	}
	conn := &spdyConn{streams: make(chan httpstream.Stream), most: most, open: map[httpstream.Stream]bool{}}
	conn.conn, err = spdystream.NewConnectionWithOptions(under, true,
		spdy.WithMaxControlFramePayloadSize(maxControlFrame), spdy.WithMaxHeaderFieldSize(maxStreamHeader), spdy.WithMaxHeaderCount(maxHeaders))
	if err != nil {
		under.Close()
		return nil, fmt.Errorf("upgrade to SPDY: %w", err)
	}
	c.transport = conn
	go conn.conn.Serve(func(s *spdystream.Stream) { // ends with the connection: see release
		err := accept(s)
		if err == nil {
			err = conn.add(c, s)
		}
		if err != nil {
			_ = s.Reset()
		}
	})
	return conn, nil
}

// switchToSPDY answers a client that wants SPDY and takes its connection over. The
// protocol that was agreed on stands in the header of the response.
func (c *session) switchToSPDY() (net.Conn, error) {
	wanted := c.r.Header.Get(httpstream.HeaderUpgrade)
	if !httpstream.IsUpgradeRequest(c.r) || !strings.EqualFold(wanted, httpspdy.HeaderSpdy31) {
		err := fmt.Errorf("the client wants %.40q, which is neither %s nor a WebSocket", wanted, httpspdy.HeaderSpdy31)
		http.Error(c.w, err.Error(), http.StatusBadRequest)
		return nil, err
	}
	conn, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, err
	}
	header := http.Header{
		httpstream.HeaderConnection: {httpstream.HeaderUpgrade},
		httpstream.HeaderUpgrade:    {httpspdy.HeaderSpdy31},
	}
	if protocol := c.w.Header().Get(httpstream.HeaderProtocolVersion); protocol != "" {
		header.Set(httpstream.HeaderProtocolVersion, protocol)
	}
	_, err = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n", http.StatusSwitchingProtocols, http.StatusText(http.StatusSwitchingProtocols))
	if err = errors.Join(err, header.Write(conn)); err == nil {
		_, err = io.WriteString(conn, "\r\n")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &shortFrames{Conn: conn, from: buffered.Reader}, nil
}

// shortFrames is a SPDY connection whose data frames are read in pieces, each a
// frame of its own: a client may announce 16 MiB in one.
type shortFrames struct {
	net.Conn
	from *bufio.Reader

	header  [8]byte // of the frame under way, or of its next piece
	unread  []byte  // part of header
	payload int     // bytes of the frame or piece that are still to be read
	rest    int     // bytes of the frame that come in further pieces
	flags   byte    // of the whole frame
}

func (f *shortFrames) Read(b []byte) (int, error) {
	if len(f.unread) == 0 && f.payload == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	if len(f.unread) > 0 {
		n := copy(b, f.unread)
		f.unread = f.unread[n:]
		return n, nil
	}
	n, err := f.from.Read(b[:min(len(b), f.payload)])
	f.payload -= n
	return n, err
}

// next begins the next frame, or the next piece of one. A header (SPDY/3.1, 2.2) is
// the id of a stream, or a first bit of 1 and a type; then flags and 24 bits of
// length.
func (f *shortFrames) next() error {
	if f.rest == 0 {
		if _, err := io.ReadFull(f.from, f.header[:]); err != nil {
			return err
		}
		length := int(binary.BigEndian.Uint32(f.header[4:]) & 0xffffff)
		if control := f.header[0]&0x80 != 0; control {
			f.unread, f.payload = f.header[:], length
			return nil
		}
		f.rest, f.flags = length, f.header[4]
	}
	f.payload = min(f.rest, maxDataFrame)
	f.rest -= f.payload
	binary.BigEndian.PutUint32(f.header[4:], uint32(f.payload))
	if f.rest == 0 { // the flag says that the stream ends here
		f.header[4] = f.flags
	}
	f.unread = f.header[:]
	return nil
}

// farewell: a client knows the end of the session by that of its streams.
func (conn *spdyConn) farewell() []byte { return nil }

func (conn *spdyConn) release() {
	conn.end()
	conn.conn.Close()
	<-conn.conn.CloseChan()
}

// replier is a stream that can be answered, as those of the library are.
type replier interface {
	SendReply(headers http.Header, fin bool) error
}

var (
	errSessionEnded   = errors.New("the session has ended")
	errTooManyStreams = errors.New("the session has too many streams open")
)

// add hands a new stream to the session.
func (conn *spdyConn) add(c *session, s httpstream.Stream) error {
	// Where it cannot be answered, because the client has hung up, whoever writes
	// to the stream would wait for ever: so only a stream that is answered is
	// handed on. Clients that do not wait for an answer stand still when they get a
	// reset instead: so what is too many is answered too.
	if err := s.(replier).SendReply(http.Header{}, false); err != nil {
		return err
	}
	if err := conn.keep(s); err != nil {
		return err
	}
	select {
	case conn.streams <- s:
		return nil
	case <-c.over:
		return errSessionEnded
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

func (conn *spdyConn) keep(s httpstream.Stream) error {
	conn.mu.Lock()
	defer conn.mu.Unlock()
	switch {
	case conn.ended:
		return errSessionEnded
	case len(conn.open) >= conn.most:
		return errTooManyStreams
	}
	conn.open[s] = true
	return nil
}

// reset lets go of a stream.
func (conn *spdyConn) reset(s httpstream.Stream) {
	conn.mu.Lock()
	delete(conn.open, s)
	conn.mu.Unlock()
	_ = s.Reset()
}

// end resets every stream, also those to come.
func (conn *spdyConn) end() {
	conn.mu.Lock()
	conn.ended = true
	open := conn.open
	conn.open = nil
	conn.mu.Unlock()
	for s := range open {
		_ = s.Reset()
	}
}
