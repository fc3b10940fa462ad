package runner

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

const (
	chunkSize   = 64 << 10 // as much as a FIFO holds by default
	chunkOffset = 8192     // in the file; the header is before it
	// The canary lies over the whole chunk, again and again. A shorter chunk has a
	// shorter canary: of n bytes, one in 256^n equals it, and is lost if its reader dies
	// before it could say that it has read.
	canarySize = 16
	// A read is short only if the process took back what it had written. Its end shows
	// in at least so many bytes of the canary: fewer may be the output's own.
	shortest = 4
)

// Phases of a chunk.
const (
	phaseIdle    = iota // no chunk
	phaseReading        // the canary lies in the chunk; how much was read shows there
	phaseRead           // the chunk is in the journal, and perhaps, in part, in the log
)

// journalHeader lies in shared memory: it survives the death of the process
// between any two instructions. Everything but phase is written while phase says
// that it does not count yet.
type journalHeader struct {
	phase   uint32 // atomic
	want    uint32 // length of the chunk in bytes
	logSize int64  // of the log before the chunk
	logDev  uint64 // 0: the chunk is for no log
	logIno  uint64
	canary  [canarySize]byte
	stderr  uint32 // 1: the chunk is of stderr
	dirLen  uint32
	dir     [4096]byte // of the log
}

// journal is the shared-memory file that holds the one chunk of output under
// way. It alone says where the chunk belongs: a runner whose keeper has died with
// its predecessor is told of no process until berthd comes. The file must be on
// tmpfs: on a disk each chunk would be written out.
type journal struct {
	file  *os.File // locked: whoever has the lock may read output and start runtimes
	head  *journalHeader
	chunk []byte // chunkSize
}

// leftChunk is what a predecessor has read and perhaps not written.
type leftChunk struct {
	stream   string
	dir      string // of the log
	dev, ino uint64 // of the log; 0: none
	size     int64  // of the log before the chunk
	bytes    []byte
}

// openJournal maps the file at path; a new one is idle. It waits until every
// predecessor has ended, with all that it was about to execute: a keeper's death
// leaves a runner that goes on until it notices.
func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	mem, err := mapJournal(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &journal{file: f, head: (*journalHeader)(unsafe.Pointer(&mem[0])), chunk: mem[chunkOffset:]}, nil
}

func mapJournal(f *os.File) ([]byte, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	if err := f.Truncate(chunkOffset + chunkSize); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, chunkOffset+chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// expect is called before want bytes are read from st into the returned buffer.
func (j *journal) expect(st *stream, want int) []byte {
	h, s := j.head, st.sink
	h.want = uint32(want)
	h.logSize, h.logDev, h.logIno = s.size, s.stat.Dev, s.stat.Ino
	h.dirLen = uint32(copy(h.dir[:], s.dir))
	h.stderr = 0
	if st.name == stderrName {
		h.stderr = 1
	}
	_, _ = rand.Read(h.canary[:])
	for laid := copy(j.chunk[:want], h.canary[:]); laid < want; laid *= 2 {
		copy(j.chunk[laid:want], j.chunk[:laid])
	}
	atomic.StoreUint32(&h.phase, phaseReading)
	keeper.At("chunk expected")
	return j.chunk[:want]
}

// have is called after the read, with its length; 0 ends the chunk.
func (j *journal) have(n int) {
	keeper.At("chunk read")
	j.head.want = uint32(max(n, 0))
	if n <= 0 {
		j.done()
		return
	}
	atomic.StoreUint32(&j.head.phase, phaseRead)
	keeper.At("chunk had")
}

// done is called when the chunk is in the log.
func (j *journal) done() { atomic.StoreUint32(&j.head.phase, phaseIdle) }

// left returns the chunk that a predecessor has left; false if there is none.
func (j *journal) left() (leftChunk, bool) {
	h := j.head
	if h.want == 0 || h.want > chunkSize || h.dirLen > uint32(len(h.dir)) {
		return leftChunk{}, false
	}
	n := int(h.want)
	switch atomic.LoadUint32(&h.phase) {
	case phaseReading:
		n = j.read()
	case phaseRead:
	default:
		return leftChunk{}, false
	}
	if n == 0 {
		return leftChunk{}, false // it is still in the FIFO
	}
	c := leftChunk{
		stream: stdoutName, dir: string(h.dir[:h.dirLen]), dev: h.logDev, ino: h.logIno,
		size: h.logSize, bytes: j.chunk[:n],
	}
	if h.stderr == 1 {
		c.stream = stderrName
	}
	return c, true
}

// read is how many bytes of the chunk were read by somebody who could not say so: those
// before the canary, which is left where nothing was read.
func (j *journal) read() int {
	want := int(j.head.want)
	n := want
	for n > 0 && j.chunk[n-1] == j.head.canary[(n-1)%canarySize] {
		n--
	}
	if n > 0 && want-n < shortest {
		return want
	}
	return n
}
