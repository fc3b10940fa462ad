package cri

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// maxPiece bounds what is held of a WebSocket message, in bytes: a client may
// announce one of any length, and its channel gets it in pieces.
const maxPiece = 32 << 10

// closeChannel is the channel of version 5's messages that end a channel: the next
// byte says which.
const closeChannel = 255

// webSocket is the WebSocket connection of a session. Each message begins with the
// number of the channel that it is for.
type webSocket struct {
	ws       *websocket.Conn
	protocol string
	base64   bool // messages are text: a digit, then base64
	channels []*channel
	opened   chan struct{} // closed when the fields above are set
	ended    chan struct{} // closed when nothing is read any more
}

// channel is one stream of a webSocket. What the client sends is piped to it from
// the goroutine that reads the connection.
type channel struct {
	of     *webSocket
	number byte
	kind   wsstream.ChannelType
	from   *io.PipeReader
	input  *io.PipeWriter
}

func (ch *channel) reads() bool {
	return ch.kind == wsstream.ReadChannel || ch.kind == wsstream.ReadWriteChannel
}

func (ch *channel) Read(b []byte) (int, error) {
	if !ch.reads() {
		return 0, io.EOF
	}
	return ch.from.Read(b)
}

func (ch *channel) Write(b []byte) (int, error) {
	if ch.kind != wsstream.WriteChannel && ch.kind != wsstream.ReadWriteChannel {
		return len(b), nil
	}
	var err error
	if ch.of.base64 {
		err = websocket.Message.Send(ch.of.ws, string('0'+rune(ch.number))+base64.StdEncoding.EncodeToString(b))
	} else {
		err = websocket.Message.Send(ch.of.ws, append([]byte{ch.number}, b...))
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends the client's input.
func (ch *channel) Close() error { return ch.input.Close() }

// upgradeWebSocket makes the connection a WebSocket with the channels of the
// protocol that the client has chosen.
func (c *session) upgradeWebSocket(protocols map[string]wsstream.ChannelProtocolConfig) (string, []*channel, error) {
	conn, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return "", nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	s := &webSocket{opened: make(chan struct{}), ended: make(chan struct{})}
	server := websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error { return chooseProtocol(config, protocols) },
		Handler: func(ws *websocket.Conn) {
			s.open(ws, protocols[ws.Config().Protocol[0]])
			s.serve()
		},
	}
	go func() {
		defer close(s.ended)
		server.ServeHTTP(taken{c.w, conn, buffered}, c.r)
	}()
	select {
	case <-s.opened:
		c.transport = s
		return s.protocol, s.channels, nil
	case <-s.ended:
		return "", nil, errors.New("upgrade to WebSocket: the client's request is not one that Berth serves")
	}
}

// taken is a response whose connection has been taken over already.
type taken struct {
	http.ResponseWriter
	conn     net.Conn
	buffered *bufio.ReadWriter
}

func (t taken) Hijack() (net.Conn, *bufio.ReadWriter, error) { return t.conn, t.buffered, nil }

// chooseProtocol leaves in config the first of the client's protocols that is
// served; a client that names none has chosen "".
func chooseProtocol(config *websocket.Config, protocols map[string]wsstream.ChannelProtocolConfig) error {
	if len(config.Protocol) == 0 {
		config.Protocol = []string{""}
	}
	served := slices.IndexFunc(config.Protocol, func(p string) bool { return protocols[p].Channels != nil })
	if served < 0 {
		return fmt.Errorf("none of the protocols %.200q is served", config.Protocol)
	}
	config.Protocol = config.Protocol[served : served+1]
	return nil
}

func (s *webSocket) open(ws *websocket.Conn, config wsstream.ChannelProtocolConfig) {
	s.ws, s.protocol, s.base64 = ws, ws.Config().Protocol[0], !config.Binary
	for number, kind := range config.Channels {
		from, input := io.Pipe()
		s.channels = append(s.channels, &channel{of: s, number: byte(number), kind: kind, from: from, input: input})
	}
	close(s.opened)
}

// serve reads messages until the client ends the connection or breaks the protocol.
func (s *webSocket) serve() {
	defer func() {
		for _, ch := range s.channels {
			ch.Close()
		}
	}()
	buf := make([]byte, maxPiece)
	for {
		m := &message{ws: s.ws}
		if m.advance() != nil || s.pass(m, buf) != nil {
			return
		}
	}
}

// message is one of a client's, which may come in several frames, read from its
// first to its last byte.
type message struct {
	ws    *websocket.Conn
	frame io.Reader // the one under way
	last  bool      // it is the message's last
}

func (m *message) Read(b []byte) (int, error) {
	for {
		n, err := m.frame.Read(b)
		if n > 0 || err != io.EOF || m.last {
			return n, err
		}
		if err := m.advance(); err != nil {
			return 0, err
		}
	}
}

var errCut = errors.New("the connection ended within a message")

// advance goes on to the next frame that has data; those in between that have none,
// pings and pongs, are dealt with.
func (m *message) advance() error {
	for {
		frame, err := m.ws.NewFrameReader()
		if err != nil {
			return errCut
		}
		// RFC 6455, 5.2: the first bit says that this is the last frame.
		header, err := io.ReadAll(frame.HeaderReader())
		if err != nil {
			return err
		}
		frame, err = m.ws.HandleFrame(frame)
		if err != nil {
			return errCut // or the client has said that this is the end
		}
		if frame != nil {
			m.frame, m.last = frame, header[0]&0x80 != 0
			return nil
		}
	}
}

var errProtocol = errors.New("the client breaks the protocol of channels")

// pass hands m to its channel, in pieces that buf holds. What the channel does not
// take is dropped. An error ends the connection.
func (s *webSocket) pass(m *message, buf []byte) error {
	var head [1]byte
	if _, err := io.ReadFull(m, head[:]); err == io.EOF {
		return nil // an empty message is a sign of life
	} else if err != nil {
		return err
	}
	number, from := head[0], io.Reader(m)
	if number == closeChannel && closesChannels(s.protocol) {
		return s.closeInput(m)
	}
	if s.base64 {
		number, from = number-'0', base64.NewDecoder(base64.StdEncoding, m)
	}
	if int(number) < len(s.channels) && s.channels[number].reads() {
		_, _ = io.CopyBuffer(s.channels[number].input, from, buf)
	}
	_, err := io.CopyBuffer(io.Discard, m, buf)
	return err
}

// closeInput ends the channel that m names.
func (s *webSocket) closeInput(m io.Reader) error {
	numbers, err := io.ReadAll(io.LimitReader(m, 2))
	if err != nil {
		return err
	}
	if len(numbers) != 1 || int(numbers[0]) >= len(s.channels) {
		return errProtocol
	}
	return s.channels[numbers[0]].Close()
}

// closesChannels: of the protocols of remote commands, version 5 can.
func closesChannels(protocol string) bool { return protocol == "v5.channel.k8s.io" }

// farewell is an empty WebSocket Close frame of code 1000, a normal closure (RFC
// 6455, 5.5.1). Without it clients take the end for a failure.
func (*webSocket) farewell() []byte { return []byte{0x88, 2, 1000 >> 8, 1000 & 0xff} }

func (s *webSocket) release() {
	for _, ch := range s.channels {
		ch.Close() // whoever passes on what the client has sent
	}
	<-s.ended
}
