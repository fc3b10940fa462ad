package streams

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

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

// DialHalf opens the first of the two streams of a connection alone.
func (p *Ports) DialHalf(port int) error {
	p.mu.Lock()
	p.next++
	header := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(p.next)}, "Streamtype": {"error"}}
	p.mu.Unlock()
	_, err := p.c.CreateStream(header)
	return err
}

// HangUp closes the connection, whatever is under way.
func (p *Ports) HangUp() {
	p.conn.Close()
	endSPDY(p.conn, p.c)
}

// WebSocketPorts is a session of forwarded ports over WebSocket: a connection to
// each port of its request.
type WebSocketPorts struct {
	ws   *websocket.Conn
	conn net.Conn
	got  map[byte][]byte // by channel
}

// Which channel of a port.
const (
	Data   = 0
	Errors = 1
)

// OpenPortsByWebSocket begins the session at url.
func OpenPortsByWebSocket(url string) (*WebSocketPorts, error) {
	ws, conn, err := dialWebSocket(url, "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	return &WebSocketPorts{ws, conn, map[byte][]byte{}}, nil
}

// Send sends to the port at index i of the request.
func (p *WebSocketPorts) Send(i int, text string) error {
	return websocket.Message.Send(p.ws, append([]byte{byte(2 * i)}, text...))
}

// Await returns what has come for the port at index i, after the two bytes that
// name it; it waits until that is something.
func (p *WebSocketPorts) Await(i int, channel byte) (string, error) {
	channel += byte(2 * i)
	for len(p.got[channel]) <= 2 {
		var frame []byte
		if err := websocket.Message.Receive(p.ws, &frame); err != nil {
			return "", fmt.Errorf("channel %d: %w", channel, err)
		}
		if len(frame) > 0 {
			p.got[frame[0]] = append(p.got[frame[0]], frame[1:]...)
		}
	}
	return string(p.got[channel][2:]), nil
}

// HangUp closes the connection.
func (p *WebSocketPorts) HangUp() { p.conn.Close() }

// fullTime is for how long nothing is taken where a connection is full.
const fullTime = 200 * time.Millisecond

// FillPort connects to a port, by SPDY or WebSocket, sends until no more is taken,
// and hangs up.
func FillPort(protocol, url string, port int) error {
	if protocol == "WebSocket" {
		ws, conn, err := dialWebSocket(url, "v4.channel.k8s.io")
		if err == nil {
			fill(conn, channelWriter{ws, 0})
			conn.Close()
		}
		return err
	}
	p, err := OpenPorts(url)
	if err != nil {
		return err
	}
	defer p.HangUp()
	data, _, err := p.Dial(port)
	if err == nil {
		fill(p.conn, data)
	}
	return err
}

// fill writes to w, over conn.
func fill(conn net.Conn, w io.Writer) {
	for err := error(nil); err == nil; {
		_ = conn.SetWriteDeadline(time.Now().Add(fullTime))
		_, err = w.Write(make([]byte, 64<<10))
	}
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
