package keeper

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// console is the socket to which an OCI runtime sends the pty master of one
// process (--console-socket). Nobody waits for that: a runtime has sent it
// before it ends, and until then it is well kept in the socket.
type console struct {
	path     string
	listener *net.UnixListener
}

func (k *keeper) openConsole(id string) (*console, error) {
	// The next keeper listens at the same path: the runtime may be on its way.
	name := sha256.Sum256([]byte(id))
	path := filepath.Join(ConsoleDir(k.run), hex.EncodeToString(name[:8]))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	return &console{path: path, listener: l}, nil
}

// close removes the socket's file too.
func (c *console) close() { c.listener.Close() }

// takeTerminal is called when p's runtime has ended: p holds the master that it
// has sent, and the master's peer: with that open the master never hangs up,
// also while no process has the terminal open.
func (k *keeper) takeTerminal(p *process) error {
	c := p.console
	p.console = nil
	defer c.close()
	fd, err := ReceiveTerminal(c.listener)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	p.hold(FileTTY, os.NewFile(uintptr(fd), "tty"))
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open the terminal's peer: %w", errno)
	}
	p.hold(FilePeer, os.NewFile(peer, "peer"))
	return nil
}

// ReceiveTerminal is called when the runtime has ended to which l's path was
// given: it takes one connection and, from it, the descriptor of a pty master,
// which are there or never will be.
func ReceiveTerminal(l *net.UnixListener) (master int, err error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	conn := -1
	var acceptErr error
	err = raw.Control(func(fd uintptr) { conn, _, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC) })
	if err := errors.Join(err, acceptErr); err != nil {
		return -1, err
	}
	defer unix.Close(conn)
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for i := range cmsgs {
		if fds, err := unix.ParseUnixRights(&cmsgs[i]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("the runtime sent no file")
}
