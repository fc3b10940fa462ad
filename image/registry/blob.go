package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// minResume is how many bytes a connection must have brought for the next try
// to start counting anew.
const minResume = 64 << 10

// Blob is the content of a blob as a stream that survives broken connections:
// it asks again from the byte where it broke. It ends after exactly the size
// that was declared; less or more than that is an error. Not safe for use by
// several goroutines.
type Blob struct {
	ctx    context.Context
	repo   *Repository
	digest digest.Digest
	size   int64
	offset int64         // of the next byte to hand out
	start  int64         // offset since which progress counts
	body   io.ReadCloser // nil: not connected
	failed int           // tries in a row without progress
	pace   *pace
	whole  bool  // the registry refuses ranges: each try begins at the first byte
	broken error // how the connection ended, when its last bytes were handed out first
}

// Blob opens the blob for reading. Nothing is asked of the registry before the
// first Read. ctx is in force until Close.
func (r *Repository) Blob(ctx context.Context, d digest.Digest, size int64) *Blob {
	return &Blob{ctx: ctx, repo: r, digest: d, size: size, pace: newPace(r.Timeout, r.MinRate)}
}

// Read implements io.Reader. Its errors are those of the package; io.EOF only
// when the whole blob was read.
func (b *Blob) Read(p []byte) (int, error) {
	for {
		if b.offset == b.size && b.body == nil {
			return 0, io.EOF
		}
		n, err := b.readOnce(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if err := b.retry(err); err != nil {
			return 0, err
		}
	}
}

// retry waits before the blob goes on after err, or returns why it does not.
func (b *Blob) retry(err error) error {
	if b.offset-b.start >= minResume {
		b.failed = 0
	}
	b.start = b.offset // counted once: the next connection may never come about
	b.disconnect()
	err = b.pace.again(b.ctx, err, &b.failed)
	if over := ended(b.ctx); err == nil || over != nil {
		return over
	}
	return fmt.Errorf("blob %s, after %d of %d bytes: %w", b.digest, b.offset, b.size, err)
}

// readOnce reads from one connection. No bytes and no error is possible, at the
// end of the blob.
func (b *Blob) readOnce(p []byte) (int, error) {
	if err := b.broken; err != nil {
		b.broken = nil
		return 0, err
	}
	if b.body == nil {
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
	n, err := b.body.Read(p)
	if b.offset+int64(n) > b.size {
		return 0, fmt.Errorf("registry lies about its size: more than the %d bytes of the manifest", b.size)
	}
	b.offset += int64(n)
	switch {
	case err == nil:
		return n, nil
	case b.offset == b.size && errors.Is(err, io.EOF):
		b.disconnect()
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	err = transportError(b.ctx, err)
	if n > 0 {
		b.broken = err
		return n, nil
	}
	return 0, err
}

// connect asks for the blob from offset on.
func (b *Blob) connect() error {
	resp, err := b.request()
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusPartialContent {
		if want := fmt.Sprintf("bytes %d-", b.offset); !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
			resp.Body.Close()
			return fmt.Errorf("registry answered with another range than the one from byte %d: %s", b.offset, Quote(resp.Header.Get("Content-Range")))
		}
		b.body = resp.Body
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.size {
		resp.Body.Close()
		return fmt.Errorf("registry lies about its size: %d bytes instead of the %d of the manifest", resp.ContentLength, b.size)
	}
	// The registry does not know ranges: what was read before is read again.
	if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
		resp.Body.Close()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return transportError(b.ctx, err)
	}
	b.body = resp.Body
	return nil
}

// request asks for the rest of the blob or, where that is refused, for all of it.
func (b *Blob) request() (*http.Response, error) {
	path := "blobs/" + b.digest.String()
	if b.offset > 0 && !b.whole {
		header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.offset, b.size-1)}}
		resp, err := b.repo.get(b.ctx, b.pace, path, header, slices.Concat(refusals, []int{http.StatusOK, http.StatusPartialContent}))
		if err != nil || !slices.Contains(refusals, resp.StatusCode) {
			return resp, err
		}
		drain(resp)
		b.whole = true
	}
	return b.repo.get(b.ctx, b.pace, path, http.Header{}, []int{http.StatusOK})
}

// refusals are the answers of storage that takes no Range header.
var refusals = []int{http.StatusBadRequest, http.StatusForbidden, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented}

func (b *Blob) disconnect() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// Close gives up the rest of the blob.
func (b *Blob) Close() error {
	b.disconnect()
	return nil
}
