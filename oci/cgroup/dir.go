package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Dir is a cgroup whose directories are held open, so that its numbers are read
// without a walk along its path in each hierarchy. Close must not meet another
// call.
type Dir struct {
	cpuacct, memory, pids int // in v1's hierarchies; none where v1 does not have the controller
	unified               int // in v2's; none where there is no v2
}

// none is the file descriptor of a directory that there is not.
const none = -1

// Open opens the cgroup at p. ErrGone if it is in no hierarchy that has numbers.
// The caller closes it.
func Open(p string) (*Dir, error) {
	if !Valid(p) {
		return nil, fmt.Errorf("cgroup path %q: %w", p, errors.ErrUnsupported)
	}
	d := &Dir{cpuacct: none, memory: none, pids: none, unified: none}
	for _, h := range hierarchies() {
		for _, part := range []struct {
			in bool
			fd *int
		}{
			{h.v2, &d.unified},
			{slices.Contains(h.controllers, "cpuacct"), &d.cpuacct},
			{slices.Contains(h.controllers, "memory"), &d.memory},
			{slices.Contains(h.controllers, "pids"), &d.pids},
		} {
			if !part.in || *part.fd != none { // not its own, or mounted at a second place too
				continue
			}
			fd, err := unix.Open(filepath.Join(h.mount, p), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				d.Close()
				return nil, fmt.Errorf("open cgroup: %w", &os.PathError{Op: "open", Path: filepath.Join(h.mount, p), Err: err})
			}
			if err == nil {
				*part.fd = fd
			}
		}
	}
	if d.cpuacct == none && d.memory == none && d.unified == none {
		d.Close()
		return nil, ErrGone
	}
	return d, nil
}

// Close ends the reading: every file of the cgroup is let go.
func (d *Dir) Close() {
	for _, fd := range []*int{&d.cpuacct, &d.memory, &d.pids, &d.unified} {
		if *fd != none {
			unix.Close(*fd)
			*fd = none
		}
	}
}

// Stats reads the cgroup's numbers. ErrGone if it was removed.
func (d *Dir) Stats() (Stats, error) {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	return sources{cpuV1: r.in(d.cpuacct), memoryV1: r.in(d.memory), v2: r.in(d.unified)}.stats()
}

// maxWalked is how many cgroups below one Processes looks into.
const maxWalked = 16

// Processes counts the processes of the cgroup and of those directly below it, as
// execs have. Where there are more, or some with others below them, they are not
// walked: the number is then the kernel's own of the whole, which counts threads.
// ErrGone if the cgroup was removed.
func (d *Dir) Processes() (uint64, error) {
	dir := d.forProcesses()
	below, few, err := children(dir)
	if err != nil {
		return 0, err
	}
	if !few {
		r := readers.Get().(*reader)
		defer readers.Put(r)
		if n, there, err := number(r.in(dir), "pids.current"); err != nil || there {
			return n, err
		}
	}
	n, err := d.Own()
	for _, name := range below {
		if err != nil {
			break
		}
		var more uint64
		more, err = processes(dir, name+"/cgroup.procs")
		if errors.Is(err, ErrGone) { // an exec has ended
			err = nil
		}
		n += more
	}
	return n, err
}

// children lists the directories in dir. few says that they are all that is below.
func children(dir int) (names []string, few bool, err error) {
	links, err := linksOf(dir, "")
	if err != nil || links == 2 { // its name and its ".", and a ".." for each directory in it
		return nil, true, err
	}
	if links > 2+maxWalked {
		return nil, false, nil
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, ErrGone
	}
	f := os.NewFile(uintptr(fd), "cgroup")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, false, os.NewSyscallError("getdents", err)
	}
	few = true
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		names = append(names, e.Name())
		links, err := linksOf(dir, e.Name())
		few = few && (err != nil || links == 2)
	}
	return names, few, nil
}

func linksOf(dir int, name string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	return uint64(st.Nlink), os.NewSyscallError("fstatat", err)
}

// Own counts the processes of the cgroup itself, without those below it. ErrGone
// if it was removed.
func (d *Dir) Own() (uint64, error) {
	return processes(d.forProcesses(), "cgroup.procs")
}

// processes counts the lines of a file.
func processes(dir int, name string) (uint64, error) {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	var n uint64
	err := r.each(dir, name, func(b []byte) bool {
		n += uint64(bytes.Count(b, []byte("\n")))
		return true
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return 0, ErrGone
	case errors.Is(err, unix.EOPNOTSUPP): // threaded: its processes are listed above it
		return 0, nil
	}
	return n, err
}

// forProcesses is a directory where processes are counted, best by pids.
func (d *Dir) forProcesses() int {
	for _, dir := range []int{d.pids, d.unified, d.memory} {
		if dir != none {
			return dir
		}
	}
	return d.cpuacct
}

// A reader reads files, one after the other.
type reader struct {
	part  [4 << 10]byte // of a file; those of numbers are no longer than a page
	whole []byte        // what a source returned last
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// in is the source of a directory, nil for none. A file of numbers is written by
// the kernel in one go: it has ended where a read finds room left.
func (r *reader) in(dir int) source {
	if dir == none {
		return nil
	}
	return func(name string) ([]byte, error) {
		r.whole = r.whole[:0]
		err := r.each(dir, name, func(part []byte) bool {
			r.whole = append(r.whole, part...)
			return len(part) == len(r.part)
		})
		return r.whole, err
	}
}

// each hands do a file's content, in parts, until it returns false.
func (r *reader) each(dir int, name string, do func([]byte) (more bool)) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, r.part[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return &os.PathError{Op: "read", Path: name, Err: err}
		case n == 0, !do(r.part[:n]):
			return nil
		}
	}
}
