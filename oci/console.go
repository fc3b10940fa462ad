package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// console is the socket to which an OCI runtime sends the pty master of an exec
// (--console-socket). A container's master is the keeper's, which outlives us;
// that of an exec is ours alone: when we end, the terminal hangs up.
type console struct {
	path     string
	listener *net.UnixListener
}

// consolePath is short: a socket's address has 107 bytes.
func (r *Runtime) consolePath(id string) string {
	name := sha256.Sum256([]byte(id))
	return filepath.Join(keeper.ConsoleDir(r.Run), keeper.ExecConsole+hex.EncodeToString(name[:8]))
}

func (r *Runtime) openConsole(id string) (*console, error) {
	path := r.consolePath(id)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	return &console{path: path, listener: l}, nil
}

// removeConsole removes the socket of an exec whose berthd was killed.
func (r *Runtime) removeConsole(id string) { os.Remove(r.consolePath(id)) }

// close removes the socket's file too.
func (c *console) close() { c.listener.Close() }

// receive is called when the runtime has ended.
func (c *console) receive() (*terminal, error) {
	fd, err := keeper.ReceiveTerminal(c.listener)
	if err != nil {
		return nil, err
	}
	return newTerminal(fd)
}

// terminal is the pty of an exec.
type terminal struct {
	master *os.File
	peer   *os.File // held so that the master has no end while no process has the terminal open
}

// newTerminal takes over the descriptor of a master.
func newTerminal(fd int) (*terminal, error) {
	master, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, fmt.Errorf("open the terminal's peer: %w", errno)
	}
	return &terminal{master, os.NewFile(peer, "peer")}, nil
}

// Close hangs up.
func (t *terminal) Close() {
	t.peer.Close()
	t.master.Close()
}

// resize gives the terminal each size that comes, until sizes or ended is
// closed.
func resize(master *os.File, sizes <-chan TerminalSize, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			control(master, func(fd int) {
				_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			})
		case <-ended:
			return
		}
	}
}

// typeEOF types the end-of-file character, where the terminal's user reads line
// by line: once for what may stand in an unfinished line, once for the end. A
// program that reads each key would take it for a key.
func typeEOF(master *os.File) {
	var keys []byte
	control(master, func(fd int) {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 {
			keys = []byte{t.Cc[unix.VEOF], t.Cc[unix.VEOF]}
		}
	})
	_, _ = master.Write(keys)
}

// control calls do with f's descriptor, which it leaves in its mode.
func control(f *os.File, do func(fd int)) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// pollable takes over a descriptor for an os.File that waits in the poller, so
// that its reads and writes can be ended.
func pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pollable"), nil
}
