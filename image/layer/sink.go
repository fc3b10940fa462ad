package layer

import (
	"crypto/sha256"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// chunk is how much tar goes from one worker to the other at once.
const chunk = 256 << 10

// sink is the second worker: it hashes and writes the tar. Two buffers go round
// between it and the inflater, so that each always has one to work on.
type sink struct {
	full  chan []byte // inflated, to be written
	empty chan []byte // written, to be filled
	done  chan struct{}
	dst   io.Writer
	hash  hash.Hash
	n     int64
	err   error // of dst; read after done
}

func newSink(dst io.Writer) *sink {
	s := &sink{
		full:  make(chan []byte, 2),
		empty: make(chan []byte, 2),
		done:  make(chan struct{}),
		dst:   dst,
		hash:  sha256.New(),
	}
	s.empty <- make([]byte, chunk)
	s.empty <- make([]byte, chunk)
	go s.run()
	return s
}

// run ends when full is closed or dst fails.
func (s *sink) run() {
	defer close(s.done)
	for buf := range s.full {
		if _, s.err = s.dst.Write(buf); s.err != nil {
			return
		}
		s.hash.Write(buf)
		s.n += int64(len(buf))
		s.empty <- buf[:chunk]
	}
}

// buffer is the next one to fill, of chunk bytes.
func (s *sink) buffer() []byte {
	select {
	case buf := <-s.empty:
		return buf
	case <-s.done:
		return make([]byte, chunk)
	}
}

// put hands a buffer over; false when dst has failed.
func (s *sink) put(buf []byte) bool {
	select {
	case s.full <- buf:
		return true
	case <-s.done:
		return false
	}
}

// close waits for the last write and returns how much was written.
func (s *sink) close() (int64, error) {
	close(s.full)
	<-s.done
	return s.n, s.err
}

func (s *sink) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.hash) }
