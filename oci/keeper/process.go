package keeper

import (
	"fmt"
	"os"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// process is one that the keeper waits for.
type process struct {
	State
	recorded bool   // its exit record is written
	begun    uint64 // value of keeper.begun at its OpBegin, while in flight
	foreign  bool   // its command began under a keeper that died: its pid may have been reaped and used again
	files    []held // by name, in no order
}

// held is a file that the keeper keeps open.
type held struct {
	name string
	file *os.File
}

// file is what is held under name; nil if nothing is.
func (p *process) file(name string) *os.File {
	for _, h := range p.files {
		if h.name == name {
			return h.file
		}
	}
	return nil
}

// hold keeps f under name and closes what was there; nil keeps nothing.
func (p *process) hold(name string, f *os.File) {
	for i, h := range p.files {
		if h.name == name {
			CloseApart(h.file)
			p.files = append(p.files[:i], p.files[i+1:]...)
			break
		}
	}
	if f != nil {
		p.files = append(p.files, held{name, f})
	}
}

// get returns the state, and duplicates of the held files in the order that
// State.Files names them.
func (p *process) get() (State, []*os.File, error) {
	s := p.State
	s.Files = nil
	var files []*os.File
	for _, h := range p.files {
		f, err := dup(h.file)
		if err != nil {
			wire.CloseAll(files)
			return State{}, nil, fmt.Errorf("get %s of %s: %w", h.name, p.ID, err)
		}
		s.Files = append(s.Files, h.name)
		files = append(files, f)
	}
	return s, files, nil
}

// close lets go of all files.
func (p *process) close() {
	for _, h := range p.files {
		CloseApart(h.file)
	}
	p.files = nil
}

// dup duplicates the descriptor without changing the file's blocking mode.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(number(f)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// number is f's descriptor, which is valid until f is closed; -1 if it is.
// os.File.Fd would switch the open file to blocking mode, for everybody.
func number(f *os.File) int {
	n := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}
