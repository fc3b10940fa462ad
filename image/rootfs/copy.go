package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// copyStep is how many bytes of a file are copied between two questions for
	// room.
	copyStep = 16 << 20
	// maxNames bounds the memory for names, in bytes: those of directories to be
	// copied, and those of hard links, beyond which each name becomes a file.
	maxNames = 16 << 20
	// nameCost is what a name takes beside its bytes.
	nameCost = 64
)

// Copy makes the empty directory to what the directory from is: its content,
// owners, modes, times and the attributes that an image may have. Holes stay holes,
// and hard links within it links, as far as their names fit into memory. room is
// asked before bytes are written, and now and then before files are made. The
// content may be hostile: no symlink is followed, no device is opened, and the depth
// costs no open files. Nobody else may change from or to meanwhile. Errors:
// ErrInvalidTar (one directory has more directories than any real layer), those of
// the filesystem and of room, ctx's.
func Copy(ctx context.Context, to, from *os.File, room func(bytes int64) error) error {
	c := &copier{ctx: ctx, room: room, base: to, links: map[fileID]string{}}
	if err := c.tree(to, from); err != nil {
		return fmt.Errorf("copy %q: %w", shorten(c.path()), err)
	}
	return nil
}

type fileID struct{ dev, ino uint64 }

// copier is one copy under way. to and from are the directory that it is in, on
// both sides; the directories above are closed.
type copier struct {
	ctx  context.Context
	room func(bytes int64) error
	made int // entries

	base     *os.File // where the copy begins
	to, from *os.File
	above    []pendingDir // the directories above and this one

	links map[fileID]string // where files of several names were copied to, below base

	pending, linked int // bytes of names in above and in links
}

// pendingDir is a directory whose content is copied but for these directories.
type pendingDir struct {
	name string
	dirs []string
}

func (c *copier) path() string {
	var names []string
	for _, d := range c.above {
		names = append(names, d.name)
	}
	return path.Join(names...)
}

func (c *copier) tree(to, from *os.File) error {
	defer func() { c.moveTo(nil, nil) }()
	if err := c.enter(".", to, from); err != nil {
		return err
	}
	for {
		here := &c.above[len(c.above)-1]
		if last := len(here.dirs) - 1; last >= 0 {
			name := here.dirs[last]
			here.dirs = here.dirs[:last]
			c.pending -= nameCost + len(name)
			if err := unix.Mkdirat(int(c.to.Fd()), name, 0o700); err != nil {
				return &os.PathError{Op: "mkdir", Path: shorten(name), Err: err}
			}
			if err := c.enter(name, c.to, c.from); err != nil {
				return err
			}
			continue
		}
		if err := c.finish(); err != nil {
			return err
		}
		c.above = c.above[:len(c.above)-1]
		if len(c.above) == 0 {
			return nil
		}
		// Nothing moves here, so the parent is where it was.
		if err := c.open("..", c.to, c.from); err != nil {
			return err
		}
	}
}

// enter goes into a directory and copies all of it but its directories.
func (c *copier) enter(name string, to, from *os.File) error {
	if err := c.open(name, to, from); err != nil {
		return err
	}
	c.above = append(c.above, pendingDir{name: name})
	here := &c.above[len(c.above)-1]
	for {
		names, err := c.from.Readdirnames(256)
		for _, name := range names {
			if err := c.entry(here, name); err != nil {
				return fmt.Errorf("%q: %w", shorten(name), err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry copies what is no directory, and remembers what is one.
func (c *copier) entry(here *pendingDir, name string) error {
	if err := c.count(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(c.from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		here.dirs = append(here.dirs, name)
		if c.pending += nameCost + len(name); c.pending > maxNames {
			return fmt.Errorf("%w: too many directories in one", ErrInvalidTar)
		}
		return nil
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if first, ok := c.links[id]; ok {
		return os.NewSyscallError("linkat", unix.Linkat(int(c.base.Fd()), first, int(c.to.Fd()), name, 0))
	}
	if err := c.make(name, &st); err != nil {
		return err
	}
	if st.Nlink > 1 && c.linked < maxNames {
		c.links[id] = path.Join(c.path(), name)
		c.linked += nameCost + len(c.links[id])
	}
	return nil
}

func (c *copier) count() error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.made++; c.made%roomStep == 0 {
		return c.room(0)
	}
	return nil
}

// open makes name, in to and from, the directory that the copy is in.
func (c *copier) open(name string, to, from *os.File) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	newTo, err := openAt(to, name, flags, 0)
	if err != nil {
		return err
	}
	newFrom, err := openAt(from, name, flags, 0)
	if err != nil {
		return errors.Join(err, newTo.Close())
	}
	c.moveTo(newTo, newFrom)
	return nil
}

func (c *copier) moveTo(to, from *os.File) {
	for _, f := range []*os.File{c.to, c.from} {
		if f != nil {
			f.Close() // a directory: nothing is lost
		}
	}
	c.to, c.from = to, from
}

// finish gives the directory what must wait until nothing more is made in it.
func (c *copier) finish() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.from.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	return copyAttrs(c.to, c.from, &st)
}

func (c *copier) make(name string, st *unix.Stat_t) error {
	to := int(c.to.Fd())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(name, st)
	case unix.S_IFLNK:
		target, err := readlinkAt(c.from, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return os.NewSyscallError("symlinkat", err)
		}
	default: // a layer has no sockets
		if err := unix.Mknodat(to, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(to, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

func readlinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

func (c *copier) file(name string, st *unix.Stat_t) error {
	from, err := openAt(c.from, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openAt(c.to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := c.data(to, from, st.Size); err != nil {
		return err
	}
	return copyAttrs(to, from, st)
}

// data copies what is between the holes.
func (c *copier) data(to, from *os.File, size int64) error {
	for at := int64(0); at < size; {
		begin, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			break
		}
		if err != nil {
			return err
		}
		end, err := from.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if at, err = c.part(to, from, begin, min(end, begin+copyStep)); err != nil {
			return err
		}
	}
	return to.Truncate(size)
}

// part copies the bytes from begin to end, and returns end.
func (c *copier) part(to, from *os.File, begin, end int64) (int64, error) {
	if err := errors.Join(c.ctx.Err(), c.room(end-begin)); err != nil {
		return 0, err
	}
	if _, err := from.Seek(begin, io.SeekStart); err != nil {
		return 0, err
	}
	if _, err := to.Seek(begin, io.SeekStart); err != nil {
		return 0, err
	}
	_, err := io.CopyN(to, from, end-begin)
	return end, err
}

// copyAttrs gives an open file or directory what from has, in the order of
// setAttrs.
func copyAttrs(to, from *os.File, st *unix.Stat_t) error {
	fd := int(to.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := copyXattrs(fd, int(from.Fd())); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH))
}

func copyXattrs(to, from int) error {
	list, err := readXattr(func(buf []byte) (int, error) { return unix.Flistxattr(from, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if !allowed(name) {
			continue
		}
		value, err := readXattr(func(buf []byte) (int, error) { return unix.Fgetxattr(from, name, buf) })
		if err == nil {
			err = unix.Fsetxattr(to, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s: %w", shorten(name), err)
		}
	}
	return nil
}

// readXattr reads a list or a value, whose size is asked for first.
func readXattr(read func([]byte) (int, error)) ([]byte, error) {
	n, err := read(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = read(buf)
	return buf[:max(n, 0)], err
}
