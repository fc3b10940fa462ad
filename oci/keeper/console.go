package keeper

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// consolePath is where the OCI runtime of a process sends the pty master
// (--console-socket). A next keeper finds the same path: the runtime may be on
// its way.
func consolePath(run, id string) string {
	name := sha256.Sum256([]byte(id))
	return filepath.Join(ConsoleDir(run), hex.EncodeToString(name[:8]))
}

// RemoveConsole removes the socket of a process whose start has ended.
func RemoveConsole(run, id string) error {
	err := os.Remove(consolePath(run, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// openConsole listens for the terminal of a process. Nobody waits for it: a
// runtime has sent it before it ends, and until then it is well kept in the
// socket, of which the keeper, the runner and berthd have copies.
func (k *keeper) openConsole(id string) (*os.File, error) {
	if err := RemoveConsole(k.run, id); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: consolePath(k.run, id), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// takeTerminal is called when p's runtime has ended: p holds the master that it
// has sent, and the master's peer: with that open the master never hangs up,
// also while no process has the terminal open.
func (k *keeper) takeTerminal(p *process) error {
	fd, err := ReceiveTerminal(p.file(FileConsole))
	p.hold(FileConsole, nil)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	if err := RemoveConsole(k.run, p.ID); err != nil {
		k.logger.Printf("process %s: %v", p.ID, err)
	}
	p.hold(FileTTY, os.NewFile(uintptr(fd), "tty"))
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open the terminal's peer: %w", errno)
	}
	p.hold(FilePeer, os.NewFile(peer, "peer"))
	return nil
}

// ReceiveTerminal is called when the runtime has ended to which the listening
// socket's path was given: it takes one connection and, from it, the descriptor
// of a pty master, which are there or never will be.
func ReceiveTerminal(l syscall.Conn) (master int, err error) {
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
