package streams

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
)

// Channels of the remote command protocols.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelStatus
	channelResize

	closeChannel = 255 // version 5: the next byte's channel has ended
)

func dialWebSocket(at, protocol string) (*websocket.Conn, net.Conn, error) {
	config, err := websocket.NewConfig(strings.Replace(at, "http:", "ws:", 1), "http://localhost")
	if err != nil {
		return nil, nil, err
	}
	config.Protocol = []string{protocol}
	conn, err := net.Dial("tcp", config.Location.Host)
	if err != nil {
		return nil, nil, err
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return ws, conn, nil
}

func openWebSocket(at string, o Options) (*Session, error) {
	ws, conn, err := dialWebSocket(at, "v5.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	s := &Session{conn: conn}
	s.begin = func(announced int) error {
		const binaryFrame, long = 0x82, 127
		header := []byte{binaryFrame, 0x80 | long}
		header = binary.BigEndian.AppendUint64(header, uint64(announced))
		_, err := conn.Write(append(header, 0, 0, 0, 0, channelStdin)) // a mask of zeros
		return err
	}
	if o.Stdin {
		s.Stdin = channelWriter{ws, channelStdin}
	}
	s.resize = channelWriter{ws, channelResize}
	readers := make([]*io.PipeWriter, channelStatus+1)
	add := func(channel int) io.Reader {
		r, w := io.Pipe()
		readers[channel] = w
		return r
	}
	s.status = add(channelStatus)
	if o.Stdout {
		s.Stdout = add(channelStdout)
	}
	if o.Stderr {
		s.Stderr = add(channelStderr)
	}
	var receiving sync.WaitGroup
	receiving.Go(func() { receive(ws, readers) })
	s.end = func() {
		for _, w := range readers {
			if w != nil {
				w.Close()
			}
		}
		receiving.Wait()
	}
	return s, nil
}

// receive hands out what comes by channel.
func receive(ws *websocket.Conn, readers []*io.PipeWriter) {
	for {
		var frame []byte
		if websocket.Message.Receive(ws, &frame) != nil {
			break
		}
		if len(frame) > 1 && int(frame[0]) < len(readers) && readers[frame[0]] != nil {
			_, _ = readers[frame[0]].Write(frame[1:])
		}
	}
	for _, w := range readers {
		if w != nil {
			w.Close()
		}
	}
}

type channelWriter struct {
	ws      *websocket.Conn
	channel byte
}

func (w channelWriter) Write(b []byte) (int, error) {
	if err := websocket.Message.Send(w.ws, append([]byte{w.channel}, b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close half-closes, as version 5 can.
func (w channelWriter) Close() error {
	return websocket.Message.Send(w.ws, []byte{closeChannel, w.channel})
}
