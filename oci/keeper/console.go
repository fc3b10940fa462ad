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
	master, err := c.receive()
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	p.hold(FileTTY, master)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(number(master)), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open the terminal's peer: %w", errno)
	}
	p.hold(FilePeer, os.NewFile(peer, "peer"))
	return nil
}

// receive takes one connection and one file from it, which are there or never
// will be.
func (c *console) receive() (*os.File, error) {
	raw, err := c.listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	conn := -1
	var acceptErr error
	if err := raw.Control(func(fd uintptr) { conn, _, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC) }); err != nil {
		return nil, err
	}
	if acceptErr != nil {
		return nil, acceptErr
	}
	defer unix.Close(conn)
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	for i := range cmsgs {
		if fds, err := unix.ParseUnixRights(&cmsgs[i]); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "tty"), nil
		}
	}
	return nil, errors.New("the runtime sent no file")
}
