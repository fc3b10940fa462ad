package runner

import (
	"errors"
	"fmt"
	"slices"

	"berth/oci/keeper"
	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// waitingMax bounds what waits for one attached client, in bytes, beside what
// its socket holds.
const waitingMax = 4 << 20

// client is one that is attached to a process's output. It never holds up the
// process: what its socket does not take waits here, and when that is too much,
// the client is told and left.
type client struct {
	fd             int
	sink           *sink // nil: it only gets what waits
	stdout, stderr bool
	waiting        [][]byte // packets
	size           int      // of waiting, in bytes
}

// attach makes whoever holds the other end of the request's socket a client.
func (r *runner) attach(c Attach, q *wire.Request) error {
	if len(q.Files) != 1 {
		return fmt.Errorf("attach to %s: %d files instead of a socket", c.ID, len(q.Files))
	}
	if _, err := r.takeUp(c.ID); err != nil { // it may have run under another keeper
		return err
	}
	fd, err := unix.FcntlInt(q.Files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := r.out.attach(c, fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("attach to %s: %w", c.ID, err)
	}
	keeper.At("attach done")
	return nil
}

// attach adds a client at a boundary of chunks. The descriptor becomes out's.
func (o *output) attach(a Attach, fd int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sinks[a.ID]
	if s == nil || s.ended {
		return errors.New("the process has ended")
	}
	c := &client{fd: fd, sink: s, stdout: a.Stdout, stderr: a.Stderr}
	// Nothing is asked for but the other end's hanging up, which always comes.
	event := unix.EpollEvent{Fd: int32(fd)}
	if err := unix.EpollCtl(o.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return err
	}
	o.clients[int32(fd)] = c
	s.clients = append(s.clients, c)
	return nil
}

// hand gives a chunk that is in the log to the attached clients.
func (o *output) hand(s *sink, stream string, chunk []byte) {
	letter := byte(PacketStdout)
	if stream == stderrName {
		letter = PacketStderr
	}
	for _, c := range slices.Clone(s.clients) {
		switch {
		case !c.wants(letter):
		case c.size+len(chunk) > waitingMax:
			c.waiting, c.size = c.waiting[:1], len(c.waiting[0])-1
			o.detach(c, PacketSlow)
		default:
			o.send(c, letter, chunk)
		}
	}
}

func (c *client) wants(letter byte) bool {
	if letter == PacketStderr {
		return c.stderr
	}
	return c.stdout
}

// send sends a packet, now or after those that wait.
func (o *output) send(c *client, letter byte, chunk []byte) {
	if len(c.waiting) == 0 {
		_, err := unix.SendmsgBuffers(c.fd, [][]byte{{letter}, chunk}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil {
			return
		}
		if !isFull(err) {
			o.hangUp(c)
			return
		}
		o.await(c, unix.EPOLLOUT)
	}
	c.waiting = append(c.waiting, append([]byte{letter}, chunk...))
	c.size += len(chunk)
}

// isFull tells a socket that takes more later.
func isFull(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR)
}

// serve is called when epoll tells something of a client: perhaps of one that
// had the same descriptor before.
func (o *output) serve(c *client) {
	now := []unix.PollFd{{Fd: int32(c.fd)}}
	if _, err := unix.Poll(now, 0); err == nil && now[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		o.hangUp(c)
		return
	}
	for len(c.waiting) > 0 {
		packet := c.waiting[0]
		err := unix.Sendto(c.fd, packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		if isFull(err) {
			return
		}
		if err != nil {
			o.hangUp(c)
			return
		}
		c.waiting = c.waiting[1:]
		c.size -= len(packet) - 1
	}
	c.waiting = nil
	o.await(c, 0)
	if c.sink == nil {
		o.hangUp(c)
	}
}

// await asks epoll for events of a client, beside its hanging up.
func (o *output) await(c *client, events uint32) {
	event := unix.EpollEvent{Fd: int32(c.fd), Events: events}
	if err := unix.EpollCtl(o.epoll, unix.EPOLL_CTL_MOD, c.fd, &event); err != nil {
		o.logger.Printf("watch an attached client: %v", err)
	}
}

// detachAll ends all attachments to a process.
func (o *output) detachAll(s *sink, letter byte) {
	for _, c := range slices.Clone(s.clients) {
		o.detach(c, letter)
	}
}

// detach gives a client its last packet and hangs up when it has that.
func (o *output) detach(c *client, letter byte) {
	o.send(c, letter, nil)
	o.leave(c)
	if len(c.waiting) == 0 && o.clients[int32(c.fd)] == c {
		o.hangUp(c)
	}
}

// leave takes a client from its process.
func (o *output) leave(c *client) {
	if c.sink != nil {
		c.sink.clients = slices.DeleteFunc(c.sink.clients, func(other *client) bool { return other == c })
		c.sink = nil
	}
}

// hangUp lets go of a client.
func (o *output) hangUp(c *client) {
	o.leave(c)
	delete(o.clients, int32(c.fd))
	_ = unix.EpollCtl(o.epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
	unix.Close(c.fd)
}
