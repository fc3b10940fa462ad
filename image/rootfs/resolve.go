package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of the work that names may cause: in one path the kernel's own number
// of symlinks; in all paths together as many components as their bytes can spell,
// and some for symlinks, which honest layers follow rarely.
const (
	maxSymlinks   = 40
	freeSteps     = 1 << 20
	stepsPerEntry = 64
)

// Bounds of a layer's directories. The paths of those that are only implied are
// kept, in memory while the layer is extracted.
const (
	maxDepth        = 1024
	maxDirPath      = maxPath - 512 // with the path of the tree before it, it can be opened
	maxImplied      = 1 << 17
	maxImpliedBytes = 8 << 20
)

// beneath is how directories of the tree are opened: the kernel follows no symlink,
// and stays in the tree even if a resolution was wrong.
var beneath = unix.OpenHow{
	Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
	Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
}

// enter makes dir, a clean path relative to the tree, the parent of the next
// entry. Directories that are missing are made: the tar implies them.
func (x *extractor) enter(dir string) error {
	dir = path.Join(".", dir)
	x.mostSteps += int64(len(dir))
	if x.parent != nil && x.parentPath == dir {
		return nil
	}
	err := x.goTo(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return x.resolve(dir)
	}
	return err
}

// goTo makes the directory at name, a path without symlinks, the parent.
func (x *extractor) goTo(name string) error {
	fd, err := unix.Openat2(int(x.root.Fd()), name, &beneath)
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	return x.stand(os.NewFile(uintptr(fd), name), name)
}

// stand makes an open directory the parent. Its times are those that it shall have:
// what is made in it does not count.
func (x *extractor) stand(dir *os.File, name string) error {
	if err := x.leave(); err != nil {
		dir.Close()
		return err
	}
	x.parent, x.parentPath = dir, name
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	x.parentTimes, x.parentChanged = times{st.Atim, st.Mtim}, false
	return nil
}

// up goes to the directory above: nothing moves here, so it is where it was.
func (x *extractor) up() error {
	if x.parentPath == "." {
		return nil
	}
	dir, err := openAt(x.parent, "..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return x.stand(dir, path.Dir(x.parentPath))
}

// leave gives the open parent its times and forgets it.
func (x *extractor) leave() error {
	if x.parent == nil {
		return nil
	}
	var err error
	if x.parentChanged {
		err = setTimes(x.parent, "", x.parentTimes)
	}
	x.parent.Close() // a directory: nothing is lost
	x.parent = nil
	return err
}

// resolve is enter, component by component: some are symlinks or missing. Symlinks of
// this layer are followed as a container would follow them: an absolute one starts
// at the tree's root, and ".." stays in it.
func (x *extractor) resolve(dir string) error {
	links := 0
	todo := strings.Split(dir, "/")
	if err := x.goTo("."); err != nil {
		return err
	}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if x.steps++; x.steps > x.mostSteps {
			return fmt.Errorf("%w: its symlinks lead through too many directories", ErrInvalidTar)
		}
		switch name {
		case "", ".":
			continue
		case "..": // stays at the root, as a container's kernel does
			if err := x.up(); err != nil {
				return err
			}
			continue
		}
		target, err := x.pass(name)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if links++; links > maxSymlinks {
			return fmt.Errorf("%w: too many symlinks", ErrInvalidTar)
		}
		if strings.HasPrefix(target, "/") {
			if err := x.goTo("."); err != nil {
				return err
			}
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// pass goes on to name in the open parent, or returns the target of the symlink that
// it is.
func (x *extractor) pass(name string) (target string, _ error) {
	next := path.Join(x.parentPath, name)
	dir, err := openAt(x.parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case err == nil:
		return "", x.stand(dir, next)
	case errors.Is(err, unix.ENOENT):
		return "", x.imply(name, false)
	case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
		return "", err
	}
	st, err := lookAt(x.parent, name)
	switch {
	case err != nil:
		return "", err
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return readlinkAt(x.parent, name)
	case isWhiteout(st):
		return "", x.imply(name, true)
	}
	return "", fmt.Errorf("%w: %q is not a directory", ErrInvalidTar, shorten(next))
}

// imply makes a directory in the open parent that the tar names only as a parent,
// and goes there. Where the layer hides what lies beneath, the directory replaces
// the whiteout and is opaque.
func (x *extractor) imply(name string, hidden bool) error {
	next := path.Join(x.parentPath, name)
	x.impliedMade++
	x.impliedBytes += len(next)
	if x.impliedMade > maxImplied || x.impliedBytes > maxImpliedBytes {
		return fmt.Errorf("%w: more than %d directories without an entry, or %d bytes of their paths", ErrInvalidTar, maxImplied, maxImpliedBytes)
	}
	if err := x.memory(len(next) + impliedCost); err != nil {
		return err
	}
	if hidden {
		if err := unix.Unlinkat(int(x.parent.Fd()), name, 0); err != nil {
			return os.NewSyscallError("unlinkat", err)
		}
	}
	if err := x.another(); err != nil {
		return err
	}
	x.parentChanged = true
	dir, err := x.makeDir(name, next)
	if err != nil {
		return err
	}
	if err := x.stand(dir, next); err != nil {
		return err
	}
	x.parentTimes, x.parentChanged = times{}, true
	x.implied[next] = struct{}{}
	delete(x.acls, next)
	if err := unix.Fchmod(int(dir.Fd()), 0o755); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if hidden {
		return x.setOpaque(dir)
	}
	return nil
}

// makeDir makes base in the open parent, whose path will be name, and opens it.
func (x *extractor) makeDir(base, name string) (*os.File, error) {
	if len(name) > maxDirPath || strings.Count(name, "/") >= maxDepth {
		return nil, fmt.Errorf("%w: directories are nested deeper than %d, or their path has more than %d bytes", ErrInvalidTar, maxDepth, maxDirPath)
	}
	if err := unix.Mkdirat(int(x.parent.Fd()), base, 0o700); err != nil {
		return nil, os.NewSyscallError("mkdirat", err)
	}
	return openAt(x.parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// lookAt is lstat of base in dir; nil if there is nothing.
func lookAt(dir *os.File, base string) (*unix.Stat_t, error) {
	st := &unix.Stat_t{}
	err := unix.Fstatat(int(dir.Fd()), base, st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("fstatat", err)
	}
	return st, nil
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
