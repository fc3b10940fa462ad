package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
)

// terminal is the one that a session with -t runs in, in raw mode: what is typed
// goes to the container as it is, and Ctrl-C is a byte. The methods of a nil
// terminal do nothing.
type terminal struct {
	file    *os.File
	restore func() // safe to call again, and from any goroutine
}

// errNoTerminal: -it was asked for where there is no terminal.
var errNoTerminal = usageError{errors.New("-t needs a terminal as input: leave it out when the input is a pipe or a file")}

// isTerminal reports whether stream, a command's input or output, is a terminal.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// rawTerminal puts the terminal that in is into raw mode. The caller restores
// it, whatever happens meanwhile.
func rawTerminal(in io.Reader) (*terminal, error) {
	if !isTerminal(in) {
		return nil, errNoTerminal
	}
	file := in.(*os.File)
	before, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	restore := sync.OnceFunc(func() { _ = term.Restore(int(file.Fd()), before) })
	return &terminal{file: file, restore: restore}, nil
}

// leave restores the terminal after a session that ended with err. What is said
// next, of a session that did not come to its own end, begins a line.
func (t *terminal) leave(w io.Writer, err error) {
	if t == nil {
		return
	}
	t.restore()
	if code := codeError(0); err != nil && !errors.As(err, &code) {
		fmt.Fprintln(w)
	}
}

// onPanic is deferred by each goroutine of a session: a panic there would end
// the process without the deferred calls of others, in a terminal that shows
// nothing of what is typed.
func (t *terminal) onPanic() {
	if t == nil {
		return
	}
	if p := recover(); p != nil {
		t.restore()
		panic(p)
	}
}

// sizes tells the window's size now and whenever it has changed, until stop is
// called, which waits.
func (t *terminal) sizes() (sizes <-chan windowSize, stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH
	told := make(chan windowSize)
	ended := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		defer t.onPanic()
		for {
			select {
			case <-changed:
			case <-ended:
				return
			}
			width, height, err := term.GetSize(int(t.file.Fd()))
			if err != nil {
				continue
			}
			select {
			case told <- windowSize{Width: uint16(width), Height: uint16(height)}:
			case <-ended:
				return
			}
		}
	})
	return told, func() {
		signal.Stop(changed)
		close(ended)
		telling.Wait()
	}
}

// detachKeys leave a session while its container goes on: Ctrl-P Ctrl-Q.
var detachKeys = []byte{0x10, 0x11}

// detachable is the input of a session until detachKeys are typed. The read after
// the one that has them finds the end, and calls detach: what was typed before is
// passed on by then.
type detachable struct {
	in     io.Reader
	detach func()

	held bool // the first key was typed and is not passed on yet
	left bool
}

func (d *detachable) Read(p []byte) (int, error) {
	if d.left {
		d.detach()
		return 0, io.EOF
	}
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	n, err := d.in.Read(p[1:]) // with room for the key that is held
	typed := p[1 : 1+n]
	if d.held && n > 0 {
		p[0], typed = detachKeys[0], p[:1+n]
		d.held = false
	}
	if i := bytes.Index(typed, detachKeys); i >= 0 {
		d.left = true
		return copy(p, typed[:i]), nil
	}
	if n > 0 && typed[len(typed)-1] == detachKeys[0] {
		typed, d.held = typed[:len(typed)-1], true
	}
	if err != nil && d.held {
		typed, d.held = p[:copy(p, append(typed, detachKeys[0]))], false
	}
	return copy(p, typed), err
}
