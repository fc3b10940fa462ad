package layer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// ErrMismatch: what came is not what the manifest or the config declares.
var ErrMismatch = errors.New("content differs from what was declared")

// ErrTooLarge: the layer inflates to more than any honest one does.
var ErrTooLarge = errors.New("layer inflates to too much data")

// Declared is what manifest and config say of a layer. Digests are sha256.
type Declared struct {
	Digest digest.Digest // of the compressed bytes
	Size   int64         // of the compressed bytes
	DiffID digest.Digest // of the tar
}

// Bounds of what a layer may inflate to: freeInflation bytes in any case, and
// beyond that maxRatio times its compressed size. Deflate reaches 1:1032 and
// zstd 1:30000, real layers of that size stay below 1:50.
const (
	freeInflation = 1 << 30
	maxRatio      = 200
	maxInflation  = 256 << 30
)

// Inflate reads the whole layer from src and writes its tar to dst. It returns
// the tar's size. How src is compressed (gzip, zstd, not at all) is told by its
// first bytes, since media types are often wrong there and DiffID proves the
// outcome. Errors: ErrMismatch, ErrTooLarge, ErrWindow, src's, dst's and w's own, ctx's.
func Inflate(ctx context.Context, dst io.Writer, src io.Reader, d Declared, w Windows) (int64, error) {
	in := &source{ctx: ctx, r: io.LimitReader(src, d.Size+1), hash: sha256.New()}
	out := newSink(dst)
	err := inflate(out, in, maxTar(d.Size), w)
	size, werr := out.close()
	switch {
	case werr != nil:
		return 0, werr
	case in.err != nil:
		return 0, in.err
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrWindow):
		return 0, err
	}
	if serr := in.finish(d); serr != nil {
		return 0, serr // explains an inflate error better than itself
	}
	if err != nil {
		return 0, fmt.Errorf("inflate layer %s: %w", d.Digest, err)
	}
	if got := out.digest(); got != d.DiffID {
		return 0, fmt.Errorf("%w: layer %s inflates to %s, the image config says %s", ErrMismatch, d.Digest, got, d.DiffID)
	}
	return size, nil
}

func maxTar(compressed int64) int64 {
	if compressed > (maxInflation-freeInflation)/maxRatio {
		return maxInflation
	}
	return freeInflation + maxRatio*compressed
}

// inflate moves the tar from in to out, at most limit bytes of it.
func inflate(out *sink, in *source, limit int64, w Windows) error {
	r, done, err := decompressor(in, w)
	if err != nil {
		return err
	}
	defer done()
	for written := int64(0); ; {
		buf := out.buffer()
		n, err := io.ReadFull(r, buf)
		if written += int64(n); written > limit {
			return fmt.Errorf("%w: more than %d bytes from %d", ErrTooLarge, limit, in.n)
		}
		if n > 0 && !out.put(buf[:n]) {
			return nil // close tells why
		}
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF && n > 0 && r.ended():
			return nil
		case err != nil:
			return err
		}
	}
}

// tarReader tells a short last buffer from a truncated stream, which
// io.ReadFull calls by the same name.
type tarReader struct {
	io.Reader
	last error
}

func (t *tarReader) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.last = err
	return n, err
}

func (t *tarReader) ended() bool { return errors.Is(t.last, io.EOF) }

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompressor picks the format. Several gzip members or zstd frames in a row
// are one stream; anything else after the first is an error.
func decompressor(in io.Reader, w Windows) (_ *tarReader, done func(), _ error) {
	buffered := bufio.NewReaderSize(in, 128<<10)
	magic, _ := buffered.Peek(4)
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return &tarReader{Reader: z}, func() { z.Close() }, nil
	case bytes.HasPrefix(magic, zstdMagic), isSkippable(magic):
		z, err := zstd.NewReader(&frames{in: buffered, windows: w}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(uint64(w.most())))
		if err != nil {
			return nil, nil, err
		}
		return &tarReader{Reader: z}, z.Close, nil
	}
	return &tarReader{Reader: buffered}, func() {}, nil
}

// isSkippable: a zstd stream may begin with a frame of metadata (RFC 8878,
// 3.1.2).
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// source is the compressed stream: it counts and hashes what is read of it, and
// remembers its own failure, which a decompressor might reword.
type source struct {
	ctx  context.Context
	r    io.Reader
	hash hash.Hash
	n    int64
	err  error // not io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.hash.Write(p[:n])
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// Cancelled reads r until ctx ends.
func Cancelled(ctx context.Context, r io.Reader) io.Reader { return &cancelled{ctx, r} }

type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// finish reads what the decompressor left, and compares.
func (s *source) finish(d Declared) error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return err
	}
	if s.n != d.Size {
		return fmt.Errorf("%w: layer %s has %d bytes or more, the manifest says %d", ErrMismatch, d.Digest, s.n, d.Size)
	}
	if got := digest.NewDigest(digest.SHA256, s.hash); got != d.Digest {
		return fmt.Errorf("%w: layer %s came as %s", ErrMismatch, d.Digest, got)
	}
	return nil
}
