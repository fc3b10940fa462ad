package runner

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// output reads the standard output and error of all processes and writes their
// logs: one goroutine, one epoll, one chunk at a time. A process is never held
// up by who reads its log, only by the log's own disk.
type output struct {
	logger  *log.Logger
	journal *journal
	epoll   int

	mu      sync.Mutex        // held for one chunk at a time
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
	return &output{
		logger: logger, journal: j, epoll: epoll,
		sinks: make(map[string]*sink), streams: make(map[int32]*stream), clients: make(map[int32]*client),
	}, nil
}

// add takes over the named files of a process: its output and its log. Reading
// begins with resume: what a runtime that fails writes to the FIFOs is not the
// container's.
func (o *output) add(id string, names []string, files []*os.File) error {
	s := &sink{id: id}
	var errs []error
	for i, name := range names {
		f := files[i]
		switch name {
		case keeper.FileStdout, keeper.FileStderr, keeper.FileTTY:
			st, err := openStream(name, f)
			if err != nil {
				errs = append(errs, err)
				f.Close()
				continue
			}
			st.sink = s
			s.streams = append(s.streams, st)
		case keeper.FileLog:
			s.setLog(f)
		default:
			f.Close()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(errs) > 0 {
		o.forget(s)
		return fmt.Errorf("take up the output of %s: %w", id, errors.Join(errs...))
	}
	if old := o.sinks[id]; old != nil {
		o.forget(old)
	}
	o.sinks[id] = s
	return nil
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
func (o *output) resume(id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sinks[id]
	if s == nil {
		return nil
	}
	for _, st := range s.streams {
		o.streams[int32(st.fd)] = st
		if err := o.watch(unix.EPOLL_CTL_ADD, st, false); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("watch %s of %s: %w", st.name, id, err)
		}
	}
	return nil
}

// watch makes epoll tell when st can be read, or, with edge, when that changes.
func (o *output) watch(op int, st *stream, edge bool) error {
	st.edge = edge
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(st.fd)}
	if edge {
		event.Events |= unix.EPOLLET
	}
	return unix.EpollCtl(o.epoll, op, st.fd, &event)
}

// drain writes to the log what the process's streams hold now, and reads no more
// of them. A process elsewhere may hold them open for ever, and may go on
// writing: what comes later is not waited for. The process stays known.
//
// A FIFO may hold gigabytes, if a privileged process has made it so large: others
// have their turn after each chunk.
func (o *output) drain(id string) *sink {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sinks[id]
	if s == nil {
		return nil
	}
	for _, st := range s.streams {
		o.pause(st)
		for left := st.holds(); left > 0; {
			n := o.move(st, left)
			if n == 0 {
				break
			}
			left -= n
			o.mu.Unlock()
			o.mu.Lock()
			if o.sinks[id] != s { // dropped meanwhile
				return nil
			}
		}
		keeper.At("exit draining")
	}
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

// forget closes s's files.
func (o *output) forget(s *sink) {
	for _, st := range s.streams {
		o.pause(st)
		st.close()
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
// epoll only when no duplicate of it is left anywhere, and the keeper has one.
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

// finish writes the chunk that a predecessor left in the journal.
func (o *output) finish() {
	if c, ok := o.journal.left(); ok && c.ino != 0 {
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
// since it was rotated.
func openInode(dir string, dev, ino uint64) (*os.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Dev != dev || st.Ino != ino {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Dev == dev && st.Ino == ino {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("log with inode %d in %s: %w", ino, dir, os.ErrNotExist)
}

// loop reads for the runner's life.
func (o *output) loop() {
	events := make([]unix.EpollEvent, 64)
	for {
		if _, err := o.turn(events, -1); err != nil {
			o.logger.Fatalf("wait for output: %v", err) // the next runner starts anew
		}
	}
}

// turn waits until something can be done, at most timeout milliseconds unless that is
// negative, and does a bounded part of each. It returns how much there was to do.
func (o *output) turn(events []unix.EpollEvent, timeout int) (int, error) {
	n, err := unix.EpollWait(o.epoll, events, timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, err
	}
	for _, e := range events[:max(n, 0)] {
		o.mu.Lock()
		if st := o.streams[e.Fd]; st != nil {
			o.serveStream(st, e.Events)
		} else if c := o.clients[e.Fd]; c != nil {
			o.serve(c)
		}
		o.mu.Unlock()
	}
	return max(n, 0), nil
}

// serveStream takes one chunk from a stream. A terminal that was hung up (vhangup(2))
// is ready for ever, without a byte, until a process opens it again: epoll is asked for
// changes alone then.
func (o *output) serveStream(st *stream, events uint32) {
	moved := o.move(st, chunkSize)
	edge := moved == 0 && events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
	if edge == st.edge {
		return
	}
	if err := o.watch(unix.EPOLL_CTL_MOD, st, edge); err != nil {
		o.logger.Printf("watch %s of %s: %v", st.name, st.sink.id, err)
	}
}

// move takes at most limit bytes from a stream to its log and returns how many.
func (o *output) move(st *stream, limit int) int {
	want := min(st.available(), limit, chunkSize)
	if want == 0 {
		return 0
	}
	s := st.sink
	keeper.At("chunk seen")
	buf := o.journal.expect(st, want)
	n, err := st.read(buf)
	if err != nil {
		o.logger.Printf("read %s of %s: %v", st.name, s.id, err)
	}
	o.journal.have(n)
	if n > 0 {
		o.write(s, st.name, buf[:n])
		keeper.At("chunk written")
		o.journal.done()
		o.hand(s, st.name, buf[:n])
	}
	return n
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
