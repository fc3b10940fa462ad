package cri

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

const (
	// lingerTime is how long a client may take to read the end of its session
	// and hang up. Closing before would throw away what is on its way.
	lingerTime = 5 * time.Second
	// typedTime is how long what a client has sent before it hung up may take to
	// reach a container, which may not read it.
	typedTime = time.Second
	// stopTime is how long sessions may take to end when berthd does.
	stopTime = 2 * time.Second
)

var (
	errHungUp   = errors.New("the client has hung up")
	errStopping = errors.New("berthd is stopping")
)

// session is one connection of a client that has shown a token.
type session struct {
	w    http.ResponseWriter
	r    *http.Request
	conn *net.TCPConn // below w

	kind  string
	of    *Streaming
	began time.Time

	// ctx ends when the client has hung up or the server stops; its cause says
	// which. Nothing else tells of a client that sends more than is taken from
	// it: what it sent last waits in front of its end.
	ctx     context.Context
	cancel  context.CancelCauseFunc
	gone    chan struct{}  // closed when the client has hung up
	probe   *os.File       // duplicate of conn
	watcher sync.WaitGroup // of probe

	transport transport      // nil: the connection is still the HTTP server's
	work      sync.WaitGroup // goroutines that read from the client
	over      chan struct{}  // closed when the session's work is done: what the client still sends is dropped
	told      bool           // the client was told of the end, and may take some time to read it

	typed     chan struct{} // closed when nothing that the client has sent is waited for: see typing
	delivered func()        // closes typed
}

// transport is the protocol that a session has taken over its connection for.
type transport interface {
	// farewell is what the client is sent before the connection is closed.
	farewell() []byte
	// release lets go of what the protocol holds, once it is closed.
	release()
}

// connection is what a request's context holds under connKey.
type connection struct {
	conn *net.TCPConn
	ctx  context.Context // ends when the server stops; a request's own ends earlier
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, connection{c.(*net.TCPConn), ctx})
}

// newSession watches over the request's connection. The caller calls end.
func newSession(w http.ResponseWriter, r *http.Request, kind string, of *Streaming) (*session, error) {
	c := &session{
		w: w, r: r, kind: kind, of: of, began: time.Now(),
		gone: make(chan struct{}), over: make(chan struct{}), typed: make(chan struct{}),
	}
	c.delivered = sync.OnceFunc(func() { close(c.typed) })
	if kind != "attach" {
		c.delivered()
	}
	below := r.Context().Value(connKey{}).(connection)
	c.conn = below.conn
	of.door.leave(c.conn)
	var err error
	if c.probe, err = c.conn.File(); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancelCause(below.ctx)
	stop := context.AfterFunc(below.ctx, func() { _ = c.conn.SetDeadline(time.Now().Add(stopTime)) })
	c.watcher.Go(func() {
		defer stop()
		if awaitHangUp(c.probe) == nil {
			c.awaitTyped()
			close(c.gone)
			c.cancel(errHungUp)
			c.conn.Close() // reads and writes under way end
		}
	})
	return c, nil
}

// end ends the session: the client gets all that was written to it.
func (c *session) end() {
	close(c.over)
	if c.told {
		c.linger()
	}
	if c.transport != nil {
		c.conn.Close()
		c.transport.release()
	}
	c.cancel(nil)
	c.probe.Close()
	c.watcher.Wait()
	c.work.Wait()
	klog.V(callLevel).InfoS("Streaming session ended", "kind", c.kind, "took", time.Since(c.began), "upgraded", c.transport != nil)
}

// linger waits until the client has read what was written to it and hangs up.
func (c *session) linger() {
	_, _ = c.conn.Write(c.transport.farewell())
	_ = c.conn.CloseWrite()
	most := time.NewTimer(lingerTime)
	defer most.Stop()
	select {
	case <-c.gone:
	case <-most.C:
	}
}

// typing is the input of an Attach. What its client has sent before it hung up, as
// one does whose user types and leaves, is to reach the container: only then does
// the session end.
type typing struct {
	io.ReadCloser
	delivered func()
}

// Close is called when the container has what was read, or takes no more.
func (t typing) Close() error {
	t.delivered()
	return t.ReadCloser.Close()
}

func (c *session) awaitTyped() {
	most := time.NewTimer(typedTime)
	defer most.Stop()
	select {
	case <-c.typed:
	case <-c.over:
	case <-c.ctx.Done():
	case <-most.C:
	}
}

// heartbeat is the time between two signs of life that a client is sent. The
// kernel of one that has hung up answers with a reset. Without them, its hanging
// up would not be known as long as it waits behind input that nobody takes: for
// minutes. Keepalive probes carry no data, so that kernel acknowledges them; and
// TCP_USER_TIMEOUT would also end a client that merely does not read for a while.
// Clients are on loopback: none is behind a link that can fail.
const heartbeat = 15 * time.Second

// beat writes nothing to the client now and then, until stop is called.
func (c *session) beat(to io.Writer) (stop func()) {
	var beating sync.WaitGroup
	stopped := make(chan struct{})
	beating.Go(func() {
		ticks := time.NewTicker(c.of.heartbeat)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				_, _ = to.Write(nil)
			case <-stopped:
				return
			}
		}
	})
	return func() {
		close(stopped)
		beating.Wait()
	}
}

// hungUp tells whether the client has hung up, also when the watcher is yet to
// see it.
func (c *session) hungUp() bool {
	raw, err := c.probe.SyscallConn()
	if err != nil {
		return true
	}
	hungUp := true
	_ = raw.Control(func(fd uintptr) { hungUp = isHungUp(int(fd)) })
	return hungUp
}

// awaitHangUp waits in the poller until the other end of a TCP connection has
// closed it, whatever it has sent before that is not read; an error if f is
// closed before.
func awaitHangUp(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return isHungUp(int(fd)) })
}

// States of a TCP connection (TCP_INFO) whose other end has not closed it: open,
// and closed by us alone.
const (
	tcpEstablished = 1
	tcpFinWait1    = 4
	tcpFinWait2    = 5
)

func isHungUp(fd int) bool {
	// The first byte of struct tcp_info is the state; the kernel fills in as
	// much as there is room for.
	info, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_INFO)
	if err != nil {
		return true
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(info))
	switch b[0] {
	case tcpEstablished, tcpFinWait1, tcpFinWait2:
		return false
	}
	return true
}
