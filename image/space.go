package image

import (
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// SpaceError: the filesystem of the store is full, or would have been. It is
// syscall.ENOSPC to errors.Is.
type SpaceError struct {
	Dir   string // the store
	Need  int64  // bytes that are missing at least, 0 if unknown
	Free  int64  // bytes that were free
	Files int64  // files that could still be made
	Err   error  // what failed; nil if it was not tried
}

func (e *SpaceError) Error() string {
	text := fmt.Sprintf("no space left for images in %s: %d bytes and %d inodes are free", e.Dir, e.Free, e.Files)
	if e.Need > 0 {
		text += fmt.Sprintf(", at least %d more are needed", e.Need)
	}
	text += "; remove unused images or enlarge its filesystem"
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *SpaceError) Unwrap() []error {
	if e.Err == nil {
		return []error{syscall.ENOSPC}
	}
	return []error{syscall.ENOSPC, e.Err}
}

// maxReserve is what pulls leave free for the containers that run: a twentieth
// of the filesystem's bytes and inodes, and at most this many bytes.
const maxReserve = 512 << 20

// free is how many bytes and files pulls may still make. Filesystems without a
// limit report none in all.
func (s *Store) free() (bytes, files int64, _ error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: s.Dir, Err: err}
	}
	bytes, files = math.MaxInt64, math.MaxInt64
	if st.Blocks > 0 {
		bytes = max(0, int64(st.Bavail)*st.Bsize-min(maxReserve, int64(st.Blocks)*st.Bsize/20))
	}
	if st.Files > 0 {
		files = max(0, int64(st.Ffree)-int64(st.Files)/20)
	}
	return bytes, files, nil
}

// room tells whether n more bytes, and any more files, fit. What failed pulls
// have left gives way first.
func (s *Store) room(n int64) error {
	err := s.fits(n)
	if err == nil || !s.forgetAll() {
		return err
	}
	s.work.Wait()
	return s.fits(n)
}

func (s *Store) fits(n int64) error {
	bytes, files, err := s.free()
	if err != nil {
		return err
	}
	if bytes < n || files == 0 {
		return &SpaceError{Dir: s.Dir, Need: n, Free: bytes, Files: files}
	}
	return nil
}

// guardStep is how many bytes are written between two looks at the free space.
const guardStep = 16 << 20

// guarded writes to a file of the store as long as there is room: a layer that
// inflates without end must not take the disk from the containers.
type guarded struct {
	store *Store
	file  *os.File
	left  int64 // bytes until the next look
}

func (g *guarded) Write(p []byte) (int, error) {
	if g.left -= int64(len(p)); g.left < 0 {
		if err := g.store.room(int64(len(p))); err != nil {
			return 0, err
		}
		g.left = guardStep
	}
	return g.file.Write(p)
}
