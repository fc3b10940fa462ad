package runner

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// output reads the standard output and error of all processes and writes their
// logs: one goroutine, one epoll, one chunk at a time. A process is never held
// up by who reads its log, only by the log's own disk, and never by another: see
// read.go for a container that holds up who reads its FIFO.
type output struct {
	logger  *log.Logger
	journal *journal
	epoll   int

	mu      sync.Mutex        // held while one chunk is written, never while one is read
	changed sync.Cond         // with mu: a stream is not busy any more, a slot is free
	free    []*slot           // of the journal
	lines   []byte            // the chunk as log lines
	sinks   map[string]*sink  // by process ID
	streams map[int32]*stream // by descriptor, those in epoll
	clients map[int32]*client // by descriptor, attached ones and those that still get their last packets
}

// sink is where the output of one process goes.
type sink struct {
	id      string
	log     *os.File // nil: dropped
	dir     string   // of log
	stat    unix.Stat_t
	size    int64 // of log; only we write it
	failing bool  // the last write failed: said once
	streams []*stream
	clients []*client // attached
	ended   bool      // the process has ended and its streams are not read any more
}

func newOutput(j *journal, logger *log.Logger) (*output, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	o := &output{
		logger: logger, journal: j, epoll: epoll, free: slices.Clone(j.slots[:]),
		sinks: make(map[string]*sink), streams: make(map[int32]*stream), clients: make(map[int32]*client),
	}
	o.changed.L = &o.mu
	return o, nil
}

// add takes over the named files of a process: its output and its log. Reading
// begins with resume: what a runtime that fails writes to the FIFOs is not the
// container's.
func (o *output) add(id string, names []string, files []*os.File) {
	s := &sink{id: id}
	for i, name := range names {
		f := files[i]
		switch name {
		case keeper.FileStdout, keeper.FileTTY:
			s.streams = append(s.streams, newStream(s, stdoutName, f, name == keeper.FileTTY))
		case keeper.FileStderr:
			s.streams = append(s.streams, newStream(s, stderrName, f, false))
		case keeper.FileLog:
			s.setLog(f)
		default:
			f.Close()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.sinks[id]; old != nil {
		o.forget(old)
	}
	o.sinks[id] = s
}

func (s *sink) setLog(f *os.File) {
	if s.log != nil {
		s.log.Close()
	}
	s.log, s.failing = f, false
	if err := unix.Fstat(int(f.Fd()), &s.stat); err == nil {
		s.size = s.stat.Size
	}
	if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil {
		s.dir = filepath.Dir(name)
	}
}

// has reports that a process's output is known here.
func (o *output) has(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sinks[id] != nil
}

// resume starts reading a process's output.
func (o *output) resume(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sinks[id]
	if s == nil {
		return
	}
	for _, st := range s.streams {
		if st.tty {
			o.watch(st, false)
		} else if !st.busy {
			st.busy = true
			go o.begin(st)
		}
	}
}

// drainTimeout bounds the wait for a FIFO that somebody outside the container has
// locked: the container's own processes are dead by then.
const drainTimeout = 2 * time.Second

// drain writes to the log what the process's FIFOs hold now, and reads no more
// of them. A process elsewhere may hold them open for ever, and may go on
// writing: what comes later is not waited for. The process stays known.
func (o *output) drain(id string) *sink {
	o.mu.Lock()
	s := o.sinks[id]
	o.mu.Unlock()
	if s == nil {
		return nil
	}
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	emptied := make(chan struct{}, len(s.streams))
	for _, st := range s.streams {
		go func() {
			o.empty(st)
			emptied <- struct{}{}
		}()
	}
	for range s.streams {
		select {
		case <-emptied:
		case <-timeout.C:
			o.logger.Printf("process %s has ended: a FIFO of its output cannot be read: what it holds is lost", s.id)
			timeout.Reset(0)
		}
		keeper.At("exit draining")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s.ended = true
	o.detachAll(s, PacketEnd)
	return s
}

// close lets go of a drained process, unless it is another's by now.
func (o *output) close(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s != nil && o.sinks[s.id] == s {
		o.forget(s)
	}
}

// drop lets go of a process's files without reading them.
func (o *output) drop(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.sinks[id]; s != nil {
		o.forget(s)
	}
}

// forget closes s's files. Whoever reads from one closes it afterwards.
func (o *output) forget(s *sink) {
	s.ended = true
	for _, st := range s.streams {
		o.pause(st)
		st.closing = true
		st.closeIdle()
	}
	o.detachAll(s, PacketEnd)
	if s.log != nil {
		s.log.Close()
	}
	if o.sinks[s.id] == s {
		delete(o.sinks, s.id)
	}
}

// pause stops reading st. Closing it would not: that takes a descriptor out of
// epoll only when no duplicate of it is left anywhere, and the keeper has one of a
// terminal's.
func (o *output) pause(st *stream) {
	if o.streams[int32(st.fd)] == st {
		delete(o.streams, int32(st.fd))
		_ = unix.EpollCtl(o.epoll, unix.EPOLL_CTL_DEL, st.fd, nil)
	}
}

// reopen makes f the process's log, with no chunk under way. A process whose
// output is not read has no use for it.
func (o *output) reopen(id string, f *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.sinks[id]; s != nil {
		s.setLog(f)
		return
	}
	f.Close()
}

// finish writes the chunks that a predecessor left in the journal.
func (o *output) finish() {
	for _, c := range o.journal.left() {
		if c.ino == 0 {
			continue
		}
		if err := o.finishChunk(c); err != nil {
			o.logger.Printf("finish a chunk of %d bytes: %v", len(c.bytes), err)
		}
	}
	o.journal.done()
}

func (o *output) finishChunk(c leftChunk) error {
	f, err := openInode(c.dir, c.dev, c.ino)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if c.size < 0 {
		c.size = st.Size()
	}
	if st.Size() > c.size {
		// Part of the chunk is there, in lines with another time.
		if err := f.Truncate(c.size); err != nil {
			return err
		}
	}
	s := &sink{id: c.dir, log: f, size: c.size}
	o.write(s, c.stream, c.bytes)
	return nil
}

// openInode opens a log by what cannot be replaced: its name may be another's
// since it was rotated. dir is as the kernel named it: what is a symbolic link
// there by now was made so by somebody who is not to say where logs go.
func openInode(dir string, dev, ino uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	at, err := unix.Openat2(unix.AT_FDCWD, dir, &how)
	if err != nil {
		return nil, fmt.Errorf("open log directory %s: %w", dir, err)
	}
	d := os.NewFile(uintptr(at), dir)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != dev || st.Ino != ino {
			continue
		}
		fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), filepath.Join(dir, name))
		if unix.Fstat(fd, &st) == nil && st.Dev == dev && st.Ino == ino {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("log with inode %d in %s: %w", ino, dir, os.ErrNotExist)
}

// linesKept bounds the memory that lines keeps between chunks: a chunk of
// newlines grows fortyfold.
const linesKept = 256 << 10

// write appends a chunk to the log, whole or, when the disk is full, not at all.
func (o *output) write(s *sink, name string, chunk []byte) {
	if s.log == nil {
		return
	}
	o.lines = appendLines(o.lines[:0], time.Now(), name, chunk)
	n, err := s.log.Write(o.lines)
	if err == nil {
		s.size += int64(n)
		s.failing = false
	} else {
		if n > 0 {
			_ = s.log.Truncate(s.size)
		}
		if !s.failing {
			o.logger.Printf("write log of %s: %v: output is lost until it can be written", s.id, err)
		}
		s.failing = true
	}
	if cap(o.lines) > linesKept {
		o.lines = nil
	}
}
