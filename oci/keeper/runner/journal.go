package runner

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

const (
	chunkSize = 64 << 10 // as much as a FIFO holds by default
	headSize  = 8192     // of a slot; its chunk follows
	slotSize  = headSize + chunkSize
	// journalSlots is how many chunks can be under way. One is, unless reads hang.
	journalSlots = 64
	journalSize  = chunkSize + journalSlots*slotSize // the pattern comes first
)

// Phases of a chunk.
const (
	phaseIdle    = iota // no chunk
	_                   // of an older Berth
	phaseRead           // the chunk is in the journal, and perhaps, in part, in the log
	phaseReading        // the pattern lies in the chunk: what a read has replaced shows there
)

// patternBytes stand in no text: they are not UTF-8. A read that ends in the very
// byte that was there before it looks one byte shorter if its reader dies before
// it could say how much it has read.
const patternBytes = "\xc0\xc1\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xff"

// slotHeader lies in shared memory: it survives the death of the process
// between any two instructions. Everything but phase is written while phase says
// that it does not count yet.
type slotHeader struct {
	phase   uint32 // atomic
	want    uint32 // length of the chunk in bytes
	logSize int64  // of the log before the chunk; counts in phaseRead
	logDev  uint64 // 0: the chunk is for no log
	logIno  uint64
	stderr  uint32 // 1: the chunk is of stderr
	dirLen  uint32
	dir     [4096]byte // of the log
}

// journal is the shared-memory file that holds the chunks of output under way. It
// alone says where a chunk belongs: a runner whose keeper has died with its
// predecessor is told of no process until berthd comes. The file must be on tmpfs:
// on a disk each chunk would be written out. What was never used of it takes no
// memory.
type journal struct {
	file    *os.File // locked: whoever has the lock may read output and start runtimes
	pattern []byte   // chunkSize of patternBytes at random, which no container knows
	slots   [journalSlots]*slot
}

// slot is the place of one chunk. It belongs to who reads.
type slot struct {
	head    *slotHeader
	chunk   []byte // chunkSize
	pattern []byte // the journal's
}

// leftChunk is what a predecessor has read and perhaps not written.
type leftChunk struct {
	stream   string
	dir      string // of the log
	dev, ino uint64 // of the log; 0: none
	size     int64  // of the log before the chunk; -1: nothing of it is in the log
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
	j := &journal{file: f, pattern: mem[:chunkSize]}
	for i := range j.slots {
		m := mem[chunkSize+i*slotSize:][:slotSize]
		j.slots[i] = &slot{(*slotHeader)(unsafe.Pointer(&m[0])), m[headSize:], j.pattern}
	}
	if len(j.left()) == 0 { // else the old pattern is still needed
		j.done()
		_, _ = rand.Read(j.pattern)
		for i, b := range j.pattern {
			j.pattern[i] = patternBytes[int(b)%len(patternBytes)]
		}
	}
	return j, nil
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
	if err := f.Truncate(journalSize); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// expect is called before want bytes are read from st into the returned buffer.
func (j *slot) expect(st *stream, want int) []byte {
	h := j.head
	h.want = uint32(want)
	h.stderr = 0
	if st.name == stderrName {
		h.stderr = 1
	}
	j.isFor(st.sink)
	copy(j.chunk[:want], j.pattern)
	atomic.StoreUint32(&h.phase, phaseReading)
	keeper.At("chunk expected")
	return j.chunk[:want]
}

// isFor says whose log the chunk is for.
func (j *slot) isFor(s *sink) {
	h := j.head
	h.logSize, h.logDev, h.logIno = s.size, s.stat.Dev, s.stat.Ino
	h.dirLen = uint32(copy(h.dir[:], s.dir))
}

// have is called after the read, with its length; 0 ends the chunk. From here on
// nothing else is written to the log of s before done.
func (j *slot) have(s *sink, n int) {
	keeper.At("chunk read")
	j.head.want = uint32(max(n, 0))
	if n <= 0 {
		j.done()
		return
	}
	j.isFor(s)
	atomic.StoreUint32(&j.head.phase, phaseRead)
	keeper.At("chunk had")
}

// done is called when the chunk is in the log.
func (j *slot) done() { atomic.StoreUint32(&j.head.phase, phaseIdle) }

// left returns the chunks that a predecessor has left: first the one that may be
// in its log in part.
func (j *journal) left() []leftChunk {
	var left []leftChunk
	for _, phase := range []uint32{phaseRead, phaseReading} {
		for i, s := range j.slots {
			// Through the file: to look at an unused slot in memory makes a page of it.
			var first [4]byte
			if _, err := j.file.ReadAt(first[:], int64(chunkSize+i*slotSize)); err != nil {
				continue
			}
			if binary.NativeEndian.Uint32(first[:]) != phase {
				continue
			}
			if c, ok := s.left(); ok {
				left = append(left, c)
			}
		}
	}
	return left
}

// done is called when all that was left is in its log.
func (j *journal) done() {
	for i, s := range j.slots {
		var first [4]byte
		if _, err := j.file.ReadAt(first[:], int64(chunkSize+i*slotSize)); err == nil && first != [4]byte{} {
			s.done()
		}
	}
}

// left returns the chunk of a slot that a predecessor has used; false if it has
// left nothing there.
func (j *slot) left() (leftChunk, bool) {
	h := j.head
	if h.want == 0 || h.want > chunkSize || h.dirLen > uint32(len(h.dir)) {
		return leftChunk{}, false
	}
	c := leftChunk{
		stream: stdoutName, dir: string(h.dir[:h.dirLen]), dev: h.logDev, ino: h.logIno,
		size: h.logSize, bytes: j.chunk[:h.want],
	}
	if h.stderr == 1 {
		c.stream = stderrName
	}
	if atomic.LoadUint32(&h.phase) == phaseReading {
		// What was not read is still in the FIFO, or its container took it.
		n := len(c.bytes)
		for n > 0 && c.bytes[n-1] == j.pattern[n-1] {
			n--
		}
		c.bytes, c.size = c.bytes[:n], -1
	}
	return c, len(c.bytes) > 0
}
