package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxOpen is how many directories a removal has open at once.
const maxOpen = 32

// RemoveAll removes base in dir with all that is in it; nil if there is nothing. What
// is there may be hostile: however deep it is, a few directories are open at once and
// no path is built, since what lies deeper is first moved to the top. No symlink is
// followed. Nobody else may change it meanwhile.
func RemoveAll(ctx context.Context, dir *os.File, base string) error {
	if err := removeAll(ctx, dir, base); err != nil {
		return fmt.Errorf("remove %q: %w", shorten(base), err)
	}
	return nil
}

func removeAll(ctx context.Context, dir *os.File, base string) error {
	err := unix.Unlinkat(int(dir.Fd()), base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	top, oerr := openDir(dir, base)
	if oerr != nil {
		return os.NewSyscallError("unlinkat", err) // not a directory: the first error tells why
	}
	defer top.Close()
	r := &remover{ctx: ctx, top: top}
	if err := r.empty(top, 1); err != nil {
		return err
	}
	return r.rmdir(dir, base)
}

// remover is one removal under way.
type remover struct {
	ctx   context.Context
	top   *os.File
	moved int // makes names in top unique
}

// empty removes all that is in dir, the depth-th of the directories that are open.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		// From the beginning each time: what was read before is gone, and what was moved
		// to the top may be anywhere.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(1024)
		if err == io.EOF || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := r.remove(dir, name, depth); err != nil {
				return err
			}
		}
	}
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.EPERM) {
		release(dir, name)
		err = unix.Unlinkat(int(dir.Fd()), name, 0)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) { // POSIX's word for a directory is EPERM
		return os.NewSyscallError("unlinkat", err)
	}
	if depth == maxOpen {
		return r.lift(dir, name)
	}
	below, oerr := openDir(dir, name)
	if oerr != nil {
		return errors.Join(os.NewSyscallError("unlinkat", err), oerr)
	}
	defer below.Close()
	if err := r.empty(below, depth+1); err != nil {
		return err
	}
	return r.rmdir(dir, name)
}

// lift moves a directory to the top, where it is found again.
func (r *remover) lift(dir *os.File, name string) error {
	for {
		to := ".lifted-" + strconv.Itoa(r.moved)
		r.moved++
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if errors.Is(err, unix.EPERM) {
			release(dir, name)
			err = unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		}
		return os.NewSyscallError("renameat2", err)
	}
}

func (r *remover) rmdir(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.EPERM) {
		release(dir, name)
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
	return os.NewSyscallError("rmdir", err)
}

// release takes the flags from a file or directory, and from the directory that it is
// in, that forbid to remove it (chattr +i, +a): a container with CAP_LINUX_IMMUTABLE can
// set them. Whoever removes sees whether it helped.
func release(dir *os.File, name string) {
	allowChange(int(dir.Fd()))
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && (isDir(&st) || st.Mode&unix.S_IFMT == unix.S_IFREG) {
		allowChange(fd)
	}
}

// Flags of FS_IOC_GETFLAGS.
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
)

func allowChange(fd int) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(flagImmutable|flagAppend) != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^(flagImmutable|flagAppend)))
	}
}

func openDir(dir *os.File, name string) (*os.File, error) {
	return openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}
