package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// spdyConn is the SPDY connection of a session. It knows all streams that are
// open: one that is not reset would hold goroutines of the library for ever.
type spdyConn struct {
	httpstream.Connection
	streams chan httpstream.Stream // accepted ones

	mu    sync.Mutex
	open  map[httpstream.Stream]bool
	ended bool
}

// upgradeSPDY makes the connection a SPDY one. accept says whether a client may
// open a stream.
func (c *session) upgradeSPDY(accept func(httpstream.Stream) error) (*spdyConn, error) {
	conn := &spdyConn{streams: make(chan httpstream.Stream), open: map[httpstream.Stream]bool{}}
	conn.Connection = spdy.NewResponseUpgrader().UpgradeResponse(c.w, c.r, func(s httpstream.Stream, replied <-chan struct{}) error {
		err := accept(s)
		if err == nil {
			err = conn.add(c, s)
		}
		if err != nil {
			// Not returned: the library would write it to the log, as often as a
			// client likes.
			_ = s.Reset()
		}
		return nil
	})
	if conn.Connection == nil {
		return nil, errors.New("upgrade to SPDY")
	}
	c.transport = conn
	return conn, nil
}

// farewell: a client knows the end of the session by that of its streams.
func (conn *spdyConn) farewell() []byte { return nil }

func (conn *spdyConn) release() {
	conn.end()
	<-conn.CloseChan()
}

// replier is a stream that can be answered, as those of the library are.
type replier interface {
	SendReply(headers http.Header, fin bool) error
}

var errSessionEnded = errors.New("the session has ended")

// add hands a new stream to the session. It is called by the library, before it
// has answered the client.
func (conn *spdyConn) add(c *session, s httpstream.Stream) error {
	conn.mu.Lock()
	ended := conn.ended
	if !ended {
		conn.open[s] = true
	}
	conn.mu.Unlock()
	if ended {
		return errSessionEnded
	}
	// The library answers when this has returned. Where it cannot, because the
	// client has hung up, whoever writes to the stream would wait for ever: so
	// only a stream that is answered is handed on.
	if err := s.(replier).SendReply(http.Header{}, false); err != nil {
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

// reset lets go of a stream.
func (conn *spdyConn) reset(s httpstream.Stream) {
	conn.mu.Lock()
	delete(conn.open, s)
	conn.mu.Unlock()
	conn.RemoveStreams(s)
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

// webSocket is the WebSocket connection of a session.
type webSocket struct{ conn *wsstream.Conn }

// farewell is an empty WebSocket Close frame of code 1000, a normal closure (RFC
// 6455, 5.5.1). Without it clients take the end for a failure.
func (webSocket) farewell() []byte { return []byte{0x88, 2, 1000 >> 8, 1000 & 0xff} }

func (s webSocket) release() { s.conn.Close() }

// upgradeWebSocket makes the connection a WebSocket with the channels of the
// protocol that the client has chosen.
func (c *session) upgradeWebSocket(protocols map[string]wsstream.ChannelProtocolConfig) (string, []io.ReadWriteCloser, error) {
	conn := wsstream.NewConn(protocols)
	// It logs each client that hangs up as an error.
	r := c.r.WithContext(klog.NewContext(c.r.Context(), klog.Logger{}))
	protocol, channels, err := conn.Open(c.w, r)
	if err != nil {
		return "", nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	c.transport = webSocket{conn}
	return protocol, channels, nil
}
