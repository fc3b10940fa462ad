package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// place makes base in the open parent. The last entry of a name wins, as it
// does for tar; only a directory over a directory keeps its content.
func (x *extractor) place(h *tar.Header, base string) error {
	old, err := lookAt(x.parent, base)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return x.placeDir(h, base, old)
	}
	if h.Typeflag == tar.TypeLink {
		return x.placeLink(h, base)
	}
	if err := x.clear(base, old); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return x.placeSymlink(h, base)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.placeNode(h, base)
	}
	return x.placeFile(h, base)
}

// clear removes what an entry replaces, a whole directory if need be.
func (x *extractor) clear(base string, old *unix.Stat_t) error {
	if old == nil {
		return nil
	}
	return RemoveAll(x.ctx, x.parent, base)
}

func (x *extractor) placeDir(h *tar.Header, base string, old *unix.Stat_t) error {
	hidden := old != nil && isWhiteout(old)
	if old != nil && !isDir(old) {
		if err := x.clear(base, old); err != nil {
			return err
		}
		old = nil
	}
	name := path.Join(x.parentPath, base)
	var dir *os.File
	var err error
	if old == nil {
		dir, err = x.makeDir(base, name)
	} else {
		dir, err = openAt(x.parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if hidden {
		if err := x.setOpaque(dir); err != nil {
			return err
		}
	}
	delete(x.implied, name)
	if err := x.keepACL(name, h); err != nil {
		return err
	}
	if err := setAttrs(dir, h); err != nil {
		return err
	}
	return setTimes(dir, "", timesOf(h))
}

// placeLink makes a hard link. Its target is a name of the same layer, and may
// be a symlink itself.
func (x *extractor) placeLink(h *tar.Header, base string) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	parent, name := x.parentPath, path.Join(x.parentPath, base)
	targetDir, targetBase := path.Split(target)
	if err := x.enter(targetDir); err != nil {
		return err
	}
	from := path.Join(x.parentPath, targetBase)
	source, err := unix.Dup(int(x.parent.Fd()))
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	sourceDir := os.NewFile(uintptr(source), x.parentPath)
	defer sourceDir.Close()
	if err := x.goTo(parent); err != nil {
		return err
	}
	x.parentChanged = true
	if from == name {
		return nil
	}
	st, err := lookAt(sourceDir, targetBase)
	switch {
	case err != nil:
		return err
	case st == nil:
		return fmt.Errorf("%w: hard link to %q, which the layer does not have", ErrInvalidTar, shorten(target))
	case isDir(st) || isWhiteout(st):
		return fmt.Errorf("%w: hard link to %q, which is not a file", ErrInvalidTar, shorten(target))
	case strings.HasPrefix(from, name+"/"):
		return fmt.Errorf("%w: hard link to %q in its own place", ErrInvalidTar, shorten(target))
	}
	old, err := lookAt(x.parent, base)
	if err != nil {
		return err
	}
	if err := x.clear(base, old); err != nil {
		return err
	}
	return os.NewSyscallError("linkat", unix.Linkat(source, targetBase, int(x.parent.Fd()), base, 0))
}

func (x *extractor) placeSymlink(h *tar.Header, base string) error {
	if h.Linkname == "" {
		return fmt.Errorf("%w: symlink without a target", ErrInvalidTar)
	}
	if len(h.Linkname) >= maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
		return fmt.Errorf("%w: symlink target of %d bytes", ErrInvalidTar, len(h.Linkname))
	}
	if err := unix.Symlinkat(h.Linkname, int(x.parent.Fd()), base); err != nil {
		return os.NewSyscallError("symlinkat", err)
	}
	return setNodeAttrs(x.parent, base, h)
}

// placeNode makes a device or FIFO. Opening an image's device node is up to the
// container's device rules; the store's own directories are closed to others.
func (x *extractor) placeNode(h *tar.Header, base string) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		mode = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return fmt.Errorf("%w: device %d:%d", ErrInvalidTar, h.Devmajor, h.Devminor)
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	if err := unix.Mknodat(int(x.parent.Fd()), base, mode|0o600, dev); err != nil {
		return os.NewSyscallError("mknodat", err)
	}
	if mode == unix.S_IFCHR && dev == 0 {
		// To overlayfs this is a whiteout, whoever made it.
		if err := markWhiteouts(x.parent); err != nil {
			return err
		}
	}
	return setNodeAttrs(x.parent, base, h)
}

func (x *extractor) placeFile(h *tar.Header, base string) error {
	if h.Size > x.left {
		return fmt.Errorf("%w: files of more bytes than the tar can hold", ErrInvalidTar)
	}
	x.left -= h.Size
	f, err := openAt(x.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if isSparse(h) {
		err = x.copySparse(f, h.Size)
	} else {
		_, err = io.CopyBuffer(onlyWriter{f}, x.tar, x.buf)
	}
	if err != nil {
		return invalidTar(err)
	}
	x.tree.Bytes += h.Size
	if err := setAttrs(f, h); err != nil {
		return err
	}
	return setTimes(f, "", timesOf(h))
}

// onlyWriter hides ReadFrom, which would not use the buffer.
type onlyWriter struct{ io.Writer }

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copySparse leaves holes where the reader gives blocks of zeros.
func (x *extractor) copySparse(f *os.File, size int64) error {
	block := x.buf[:4096]
	zeros := make([]byte, len(block))
	for at := int64(0); at < size; {
		n, err := io.ReadFull(x.tar, block[:min(int64(len(block)), size-at)])
		if err != nil {
			return err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := f.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return f.Truncate(size)
}

// openAt opens base in dir, never through a symlink.
func openAt(dir *os.File, base string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), base), nil
}
