package image

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// walk adds up what the tree at path takes on disk, itself included: its blocks
// in bytes and its inodes. What comes and goes meanwhile may be missing.
//
// The tree is a container's to make, so it may be as deep and as wide as a disk
// allows: directories are opened one at a time, by handle, which neither the
// length of a path nor the number of open files bounds.
func walk(ctx context.Context, path string) (bytes, inodes uint64, err error) {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	w := walker{pace: pace{began: time.Now()}}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstat", err)
	}
	w.count(&st)
	err = w.read(ctx, root)
	for err == nil && len(w.pending) > 0 {
		if err = w.pace.keep(ctx); err != nil {
			break
		}
		last := len(w.pending) - 1
		handle := w.pending[last]
		w.pending = w.pending[:last]
		err = w.enter(ctx, root, handle)
	}
	return uint64(math.Round(w.bytes)), uint64(math.Round(w.inodes)), err
}

// mostPending bounds the memory of a walk, to some tens of megabytes. Where more
// directories wait to be entered, the walk says less than there is.
const mostPending = 1 << 18

type walker struct {
	// An inode of several names counts at each of them for a part. All of them are
	// in the tree: a container cannot link from it to elsewhere, and overlayfs does
	// so with whiteouts alone.
	bytes, inodes float64
	pending       []unix.FileHandle
	pace          pace
}

func (w *walker) count(st *unix.Stat_t) {
	names := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		names = float64(max(st.Nlink, 1))
	}
	w.bytes += float64(st.Blocks) * 512 / names
	w.inodes += 1 / names
}

// enter reads the directory behind handle, if it is still there.
func (w *walker) enter(ctx context.Context, root *os.File, handle unix.FileHandle) error {
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) { // deleted or replaced
		return nil
	}
	if err != nil {
		return os.NewSyscallError("open_by_handle_at", err)
	}
	dir := os.NewFile(uintptr(fd), root.Name())
	defer dir.Close()
	return w.read(ctx, dir)
}

// read counts what is in dir and remembers its directories.
func (w *walker) read(ctx context.Context, dir *os.File) error {
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := w.look(int(dir.Fd()), name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // read, or deleted
			return nil
		}
		if err == nil {
			err = w.pace.keep(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (w *walker) look(dir int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	w.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || len(w.pending) == mostPending {
		return nil
	}
	handle, _, err := unix.NameToHandleAt(dir, name, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("name_to_handle_at", err)
	}
	w.pending = append(w.pending, handle)
	return nil
}

// A pace lets a walk have a fifth of a processor, and a disk's time, at most.
type pace struct{ began time.Time }

const (
	paceWalk = 5 * time.Millisecond
	paceRest = 20 * time.Millisecond
)

// keep waits if it is time to. It returns ctx's error.
func (p *pace) keep(ctx context.Context) error {
	if time.Since(p.began) < paceWalk {
		return ctx.Err()
	}
	rest := time.NewTimer(paceRest)
	defer rest.Stop()
	select {
	case <-rest.C:
		p.began = time.Now()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
