package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/term"
)

// pty is a terminal with somebody in front of it.
type pty struct {
	master, slave *os.File
	shown         bytes.Buffer
}

func ioctl(t *testing.T, f *os.File, request uintptr, argument unsafe.Pointer) {
	t.Helper()
	raw, err := f.SyscallConn() // Fd would take the file out of the poller
	if err != nil {
		t.Fatal(err)
	}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument))
	}); err != nil || errno != 0 {
		t.Fatal(err, errno)
	}
}

// newPty opens a pair, 80 by 24.
func newPty(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var locked, number int32
	ioctl(t, master, syscall.TIOCSPTLCK, unsafe.Pointer(&locked))
	ioctl(t, master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{master: master, slave: slave}
	p.resize(t, 80, 24)
	t.Cleanup(func() {
		slave.Close()
		master.Close()
	})
	return p
}

func (p *pty) resize(t *testing.T, width, height uint16) {
	t.Helper()
	size := struct{ rows, columns, x, y uint16 }{rows: height, columns: width}
	ioctl(t, p.master, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
}

func (p *pty) typeIn(t *testing.T, text string) {
	t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// see reads what the terminal shows until it has shown text, and forgets it.
func (p *pty) see(t *testing.T, text string) {
	t.Helper()
	if err := p.master.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 4<<10)
	for {
		if _, after, found := strings.Cut(p.shown.String(), text); found {
			p.shown.Reset()
			p.shown.WriteString(after)
			return
		}
		n, err := p.master.Read(chunk)
		if err != nil {
			t.Fatalf("waiting for %q after %q: %v", text, p.shown.String(), err)
		}
		p.shown.Write(chunk[:n])
	}
}

// isRaw reports whether what is typed goes to the program unchanged.
func (p *pty) isRaw(t *testing.T) bool {
	t.Helper()
	var now syscall.Termios
	ioctl(t, p.slave, syscall.TCGETS, unsafe.Pointer(&now))
	return now.Lflag&(syscall.ECHO|syscall.ICANON|syscall.ISIG) == 0
}

func TestRawTerminalIsRestored(t *testing.T) {
	p := newPty(t)
	if p.isRaw(t) {
		t.Fatal("a new terminal is raw")
	}
	raw, err := rawTerminal(p.slave)
	if err != nil {
		t.Fatal(err)
	}
	if !p.isRaw(t) {
		t.Error("it is not raw")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		defer raw.onPanic()
		panic("of a goroutine of the session")
	}()
	if p.isRaw(t) {
		t.Error("it is raw after a panic")
	}
	raw.restore()
	if _, err := rawTerminal(strings.NewReader("")); !errors.Is(err, errNoTerminal) {
		t.Errorf("a pipe: %v", err)
	}
	if !term.IsTerminal(int(p.slave.Fd())) {
		t.Error("the slave is no terminal")
	}
}
