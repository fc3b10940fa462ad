package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
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
	name := path.Join(x.parentPath, base)
	old, err := x.root.Lstat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		old = nil
	case err != nil:
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return x.placeDir(h, name, base, old)
	}
	if h.Typeflag == tar.TypeLink {
		return x.placeLink(h, name, base, old)
	}
	if err := x.clear(name, old); err != nil {
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
func (x *extractor) clear(name string, old os.FileInfo) error {
	if old == nil {
		return nil
	}
	if !old.IsDir() {
		return x.root.Remove(name)
	}
	delete(x.parentNode.children, path.Base(name))
	return x.root.RemoveAll(name)
}

func (x *extractor) placeDir(h *tar.Header, name, base string, old os.FileInfo) error {
	hidden := old != nil && isWhiteout(old)
	if old != nil && !old.IsDir() {
		if err := x.clear(name, old); err != nil {
			return err
		}
		old = nil
	}
	fd := int(x.parent.Fd())
	if old == nil {
		if err := unix.Mkdirat(fd, base, 0o700); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	}
	dir, err := openAt(x.parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	if hidden {
		if err := x.setOpaque(dir); err != nil {
			return err
		}
	}
	if known := x.parentNode.children[base]; known != nil {
		known.header = h
	} else {
		x.parentNode.add(base, h)
	}
	return setAttrs(dir, h)
}

// placeLink makes a hard link. Its target is a name of the same layer, and may
// be a symlink itself.
func (x *extractor) placeLink(h *tar.Header, name, base string, old os.FileInfo) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	parent := x.parentPath
	targetDir, targetBase := path.Split(target)
	if err := x.enter(targetDir); err != nil {
		return err
	}
	from := path.Join(x.parentPath, targetBase)
	if err := x.enter(parent); err != nil {
		return err
	}
	if from == name {
		return nil
	}
	info, err := x.root.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: hard link to %q, which the layer does not have", ErrInvalidTar, shorten(target))
	}
	if err != nil {
		return err
	}
	if info.IsDir() || isWhiteout(info) {
		return fmt.Errorf("%w: hard link to %q, which is no file", ErrInvalidTar, shorten(target))
	}
	if strings.HasPrefix(from, name+"/") {
		return fmt.Errorf("%w: hard link to %q in its own place", ErrInvalidTar, shorten(target))
	}
	if err := x.clear(name, old); err != nil {
		return err
	}
	return x.root.Link(from, name)
}

func (x *extractor) placeSymlink(h *tar.Header, base string) error {
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
	return setTime(f, "", h)
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
