//go:build node

package node

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// socket is a WebSocket (RFC 6455) to the kubelet on which each message's first
// byte is the number of a channel. It has one reader and one writer.
type socket struct {
	conn   net.Conn
	reader *bufio.Reader
}

// Types of frames.
const (
	opBinary = 2
	opClose  = 8
	opPing   = 9
)

// dial opens a WebSocket that ends with the test, and fails t unless the kubelet
// takes it with this protocol. An answer that is not a WebSocket is an error.
func dial(t *testing.T, path, protocol string) (*socket, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", kubeletAPI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	req, err := http.NewRequest(http.MethodGet, "https://"+kubeletAPI+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, 16)
	rand.Read(key)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Sec-WebSocket-Version", "13")
	req.Header.Set("Sec-WebSocket-Key", base64.StdEncoding.EncodeToString(key))
	req.Header.Set("Sec-WebSocket-Protocol", protocol)
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != protocol {
		return nil, fmt.Errorf("it speaks %q", got)
	}
	return &socket{conn, reader}, nil
}

// send writes one message to a channel. A client's frames are masked; a mask of
// zeros is one too.
func (s *socket) send(channel byte, data []byte) error {
	frame := []byte{0x80 | opBinary, 0x80 | 127}
	frame = binary.BigEndian.AppendUint64(frame, uint64(len(data)+1))
	frame = append(frame, 0, 0, 0, 0, channel)
	_, err := s.conn.Write(append(frame, data...))
	return err
}

// receive reads the next message with content. Its error is io.EOF when the
// other side has closed.
func (s *socket) receive() (channel byte, data []byte, err error) {
	var message []byte
	for {
		final, op, payload, err := s.frame()
		switch {
		case err != nil:
			return 0, nil, err
		case op == opClose:
			return 0, nil, io.EOF
		case op == opPing:
			continue
		}
		message = append(message, payload...)
		if !final {
			continue
		}
		if len(message) > 1 {
			return message[0], message[1:], nil
		}
		message = nil
	}
}

func (s *socket) frame() (final bool, op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(s.reader, head[:]); err != nil {
		return false, 0, nil, err
	}
	length := uint64(head[1] & 0x7f)
	switch length {
	case 126:
		var short [2]byte
		_, err = io.ReadFull(s.reader, short[:])
		length = uint64(binary.BigEndian.Uint16(short[:]))
	case 127:
		var long [8]byte
		_, err = io.ReadFull(s.reader, long[:])
		length = binary.BigEndian.Uint64(long[:])
	}
	if err != nil {
		return false, 0, nil, err
	}
	if head[1]&0x80 != 0 || length > 16<<20 {
		return false, 0, nil, errors.New("a frame that no server sends")
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(s.reader, payload)
	return head[0]&0x80 != 0, head[0] & 0x0f, payload, err
}
