package streams

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Ports is a session of forwarded ports over SPDY.
type Ports struct {
	conn net.Conn
	c    httpstream.Connection

	mu   sync.Mutex
	next int
}

// OpenPorts begins the session at url.
func OpenPorts(url string) (*Ports, error) {
	conn, err := Upgrade(url, "portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	c, err := spdy.NewClientConnection(conn)
	if err != nil {
		return nil, err
	}
	return &Ports{conn: conn, c: c}, nil
}

// Dial opens a connection to a port. Closing data half-closes; what is read from
// errs is why it failed, nothing if it did not.
func (p *Ports) Dial(port int) (data io.ReadWriteCloser, errs io.Reader, err error) {
	p.mu.Lock()
	p.next++
	header := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(p.next)}}
	p.mu.Unlock()
	header.Set("Streamtype", "error")
	e, err := p.c.CreateStream(header)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream of errors: %w", err)
	}
	e.Close()
	header.Set("Streamtype", "data")
	d, err := p.c.CreateStream(header)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream of data: %w", err)
	}
	return d, e, nil
}

// HangUp closes the connection, whatever is under way.
func (p *Ports) HangUp() {
	p.conn.Close()
	endSPDY(p.conn, p.c)
}

// ExchangeByWebSocket sends to the one port of a WebSocket session and returns
// what came back until the session's end, of data and of errors, each after the
// two bytes of the port.
func ExchangeByWebSocket(url string, send []byte) (data, errs []byte, err error) {
	ws, conn, err := dialWebSocket(url, "v4.channel.k8s.io")
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	if err := websocket.Message.Send(ws, append([]byte{0}, send...)); err != nil {
		return nil, nil, err
	}
	for {
		var frame []byte
		if websocket.Message.Receive(ws, &frame) != nil {
			return data, errs, nil
		}
		switch {
		case len(frame) == 0:
		case frame[0] == 0:
			data = append(data, frame[1:]...)
		default:
			errs = append(errs, frame[1:]...)
		}
	}
}
