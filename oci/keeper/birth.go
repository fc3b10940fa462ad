package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"berth/oci/cgroup"

	"golang.org/x/sys/unix"
)

// newborn begins the names of held pidfds of which it is not known yet whether
// they are the process's own; its pid follows. The pid file tells, which runc
// writes when the program runs already, and has ended perhaps.
const newborn = "newborn "

// ofBirth reports a held file that says of a start who its process is.
func ofBirth(name string) bool { return name == FilePidfd || strings.HasPrefix(name, newborn) }

// mostNewborn bounds how many are held for a process: the first that are in its
// cgroup are its runtime's.
const mostNewborn = 8

// watchBirth calls found with pidfds of what a runtime that is under way puts into
// the cgroup of a container, and with the name under which to hold each. Who holds
// them learns how the process ends, although everybody dies who could be its
// parent (Linux 6.15). A runtime writes its files before the program begins:
// that is when the cgroup is looked at. found may be called until stop has returned.
func watchBirth(s Spec, found func(name string, pidfd *os.File)) (stop func(), err error) {
	if s.State == "" {
		return func() {}, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return func() {}, fmt.Errorf("watch the start of %s: %w", s.ID, err)
	}
	w := &birthWatch{spec: s, found: found, seen: make(map[int]bool), inotify: os.NewFile(uintptr(fd), "inotify")}
	for _, dir := range []string{s.Dir, filepath.Dir(s.State)} {
		if err := w.watch(dir); err != nil {
			w.inotify.Close()
			return func() {}, fmt.Errorf("watch the start of %s: %s: %w", s.ID, dir, err)
		}
	}
	var watching sync.WaitGroup
	watching.Go(w.run)
	return func() { w.inotify.Close(); watching.Wait() }, nil
}

type birthWatch struct {
	spec    Spec
	found   func(name string, pidfd *os.File)
	inotify *os.File
	seen    map[int]bool // pids
	begun   bool         // the runtime has made spec.State, which is watched
}

func (w *birthWatch) watch(dir string) error {
	_, err := unix.InotifyAddWatch(number(w.inotify), dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR)
	return err
}

// run returns when inotify is closed.
func (w *birthWatch) run() {
	events := make([]byte, 4096)
	for {
		if !w.begun {
			w.begun = w.watch(w.spec.State) == nil
		}
		if w.begun {
			w.look()
		}
		for {
			n, err := w.inotify.Read(events)
			if err != nil {
				return
			}
			if w.concerned(events[:n]) {
				break
			}
		}
	}
}

// concerned tells files of the runtime's from those of other containers, which
// appear beside State.
func (w *birthWatch) concerned(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&events[0]))
		name, _, _ := strings.Cut(string(events[unix.SizeofInotifyEvent:][:e.Len]), "\x00")
		if e.Mask&unix.IN_ISDIR == 0 || name == filepath.Base(w.spec.State) {
			return true
		}
		events = events[unix.SizeofInotifyEvent+int(e.Len):]
	}
	return false
}

func (w *birthWatch) look() {
	if pid := ReadPid(w.spec.Dir); pid != 0 && !w.seen[pid] { // it may have ended already: then it is in no cgroup
		if pidfd := openOwn(w.spec); pidfd != nil {
			w.seen[pid] = true
			w.found(fmt.Sprint(newborn, pid), pidfd)
		}
	}
	if len(w.seen) >= mostNewborn {
		return
	}
	pids, err := cgroup.Procs(w.spec.Cgroup)
	if err != nil {
		return // not there yet
	}
	for _, pid := range pids {
		if w.seen[pid] || len(w.seen) >= mostNewborn {
			continue
		}
		fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			continue
		}
		pidfd := os.NewFile(uintptr(fd), "pidfd")
		if in, err := cgroup.Holds(w.spec.Cgroup, pid); err != nil || !in && !readable(fd) { // asked after the pidfd is open
			pidfd.Close()
			continue
		}
		w.seen[pid] = true
		w.found(fmt.Sprint(newborn, pid), pidfd)
	}
}

// own makes the newborn whose pid the runtime has told the process's own, if it is
// held, and lets go of the others.
func (p *process) own(pid int) {
	for _, h := range append([]held(nil), p.files...) {
		if !strings.HasPrefix(h.name, newborn) {
			continue
		}
		if h.name == fmt.Sprint(newborn, pid) && p.file(FilePidfd) == nil {
			if own, err := dup(h.file); err == nil {
				p.hold(FilePidfd, own)
			}
		}
		p.hold(h.name, nil)
	}
}
