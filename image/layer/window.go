package layer

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// ErrWindow: a zstd frame asks for more memory than may be given to it.
var ErrWindow = errors.New("zstd window is too large")

// DefaultMaxWindow is what zstd needs up to level 19, and with --long in part.
const DefaultMaxWindow = 32 << 20

// Windows is the memory that the zstd frames of a layer may ask for.
type Windows struct {
	Most int64             // bytes of one window; 0: DefaultMaxWindow
	Use  func(n int) error // asked before n more bytes are taken; nil: never
}

func (w Windows) most() int64 { return cmp.Or(w.Most, DefaultMaxWindow) }

// frames passes a zstd stream on (RFC 8878, 3.1) and asks for the window of each frame
// before the decoder sees its header.
type frames struct {
	in       *bufio.Reader
	windows  Windows
	taken    int64 // the largest window so far
	left     int64 // bytes until the next header
	inFrame  bool  // that is a block's
	checksum bool  // the frame ends with one
}

func (f *frames) Read(p []byte) (int, error) {
	for f.left == 0 {
		var err error
		if f.inFrame {
			err = f.block()
		} else {
			err = f.frame()
		}
		if err != nil {
			return 0, err
		}
	}
	n, err := f.in.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, err
}

// frame looks at the header of a frame.
func (f *frames) frame() error {
	head, err := f.in.Peek(zstd.HeaderMaxSize)
	if len(head) == 0 {
		return err
	}
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return fmt.Errorf("zstd frame: %w", err)
	}
	if h.Skippable {
		f.left = int64(h.HeaderSize) + int64(h.SkippableSize)
		return nil
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = max(window, h.FrameContentSize)
	}
	if window > uint64(f.windows.most()) {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrWindow, window, f.windows.most())
	}
	if more := int64(window) - f.taken; more > 0 {
		f.taken += more
		if f.windows.Use != nil {
			if err := f.windows.Use(int(more)); err != nil {
				return err
			}
		}
	}
	f.left, f.inFrame, f.checksum = int64(h.HeaderSize), true, h.HasCheckSum
	return nil
}

// block looks at the header of a block.
func (f *frames) block() error {
	const (
		headSize = 3
		sumSize  = 4
		kindRLE  = 1
	)
	head, err := f.in.Peek(headSize)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	bits := int64(head[0]) | int64(head[1])<<8 | int64(head[2])<<16
	last, kind, size := bits&1 == 1, bits>>1&3, bits>>3
	if kind == kindRLE {
		size = 1
	}
	f.left = headSize + size
	if last {
		f.inFrame = false
		if f.checksum {
			f.left += sumSize
		}
	}
	return nil
}
