package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage bounds one encoded message, in bytes.
	MaxMessage = 64 << 10
	// MaxFiles bounds the files of one message; the kernel's own limit is 253.
	MaxFiles = 64
)

// ErrLost: the connection ended before the message was sent or its reply came.
// The other end may or may not have done what was asked; all requests of this
// protocol can be repeated.
var ErrLost = errors.New("connection lost")

// Message is what one packet holds.
type Message struct {
	Op    string          `json:"op,omitempty"`    // request or notice; empty in a reply
	Seq   uint64          `json:"seq,omitempty"`   // 0 in a notice
	Error string          `json:"error,omitempty"` // of a reply
	Body  json.RawMessage `json:"body,omitempty"`
}

// Conn sends and receives messages. Send may be called by several goroutines,
// Recv by one.
type Conn struct {
	mu  sync.Mutex // one packet at a time
	c   *net.UnixConn
	buf []byte // of Recv
	oob []byte
}

// Dial connects to the SOCK_SEQPACKET socket at path.
func Dial(path string) (*Conn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return NewConn(c), nil
}

// NewConn uses a connected SOCK_SEQPACKET socket.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// FileConn uses the socket that f is, and closes f.
func FileConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return NewConn(c.(*net.UnixConn)), nil
}

// Close ends both directions; a blocked Recv returns.
func (c *Conn) Close() error { return c.c.Close() }

// Send writes one message. The files are the caller's to close.
func (c *Conn) Send(m Message, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Op, err)
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("send %s: message of %d bytes exceeds %d", m.Op, len(b), MaxMessage)
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("send %s: %d files exceed %d", m.Op, len(files), MaxFiles)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Fd would switch the file to blocking mode for good; this only looks.
			raw, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("send %s: %w", f.Name(), err)
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("send %s: %w", f.Name(), err)
			}
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, err = c.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("%w: send %s: %w", ErrLost, m.Op, err)
	}
	return nil
}

// Recv reads one message; io.EOF when the other end is gone.
func (c *Conn) Recv() (Message, []*os.File, error) {
	if c.buf == nil {
		c.buf = make([]byte, MaxMessage)
		c.oob = make([]byte, unix.CmsgSpace(4*MaxFiles))
	}
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return Message{}, nil, err
	}
	files, err := parseFiles(c.oob[:oobn])
	if err != nil {
		return Message{}, nil, err
	}
	if n == 0 && len(files) == 0 {
		return Message{}, nil, io.EOF
	}
	var m Message
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("receive: message or its files were cut off")
	} else {
		err = json.Unmarshal(c.buf[:n], &m)
	}
	if err != nil {
		CloseAll(files)
		return Message{}, nil, err
	}
	return m, files, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive files: %w", err)
	}
	var files []*os.File
	for i := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			CloseAll(files)
			return nil, fmt.Errorf("receive files: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd) // net already asked for it; harmless where it did
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes every file that is not nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
