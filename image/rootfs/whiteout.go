package rootfs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Names that a layer uses to hide what lies beneath (OCI image-spec 1.1,
// "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // the rest of AUFS's own bookkeeping
)

// Overlayfs's attributes. An empty origin means "copied up from somewhere".
const (
	xattrOpaque = "trusted.overlay.opaque"
	xattrOrigin = "trusted.overlay.origin"
)

// reserved tells names with a whiteout's prefix that are no whiteout: AUFS's
// bookkeeping is skipped, anything else is refused.
func reserved(name string) (skip bool, _ error) {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		last := i == len(parts)-1
		switch {
		case last && part == opaqueMarker:
		case strings.HasPrefix(part, aufsPrefix) && part != opaqueMarker:
			return true, nil
		case !last && strings.HasPrefix(part, whiteoutPrefix):
			return false, fmt.Errorf("%w: %q is reserved for whiteouts", ErrInvalidTar, shorten(part))
		}
	}
	return false, nil
}

// whiteout hides base of the lower layers. It says nothing about this layer's
// own entry of that name, before or after it: a file stands, a directory
// becomes opaque.
func (x *extractor) whiteout(base string) error {
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("%w: whiteout of %q", ErrInvalidTar, base)
	}
	st, err := lookAt(x.parent, base)
	switch {
	case err != nil:
		return err
	case st != nil && !isDir(st):
		return nil
	case st != nil:
		dir, err := openAt(x.parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		return x.setOpaque(dir)
	}
	if err := unix.Mknodat(int(x.parent.Fd()), base, unix.S_IFCHR, 0); err != nil {
		return os.NewSyscallError("mknodat", err)
	}
	return markWhiteouts(x.parent)
}

// setOpaque hides all that lies beneath a directory.
func (x *extractor) setOpaque(dir *os.File) error {
	return os.NewSyscallError("fsetxattr", unix.Fsetxattr(int(dir.Fd()), xattrOpaque, []byte("y"), 0))
}

// markWhiteouts makes overlayfs look for whiteouts in a directory even where it
// merges it with no other.
func markWhiteouts(dir *os.File) error {
	return os.NewSyscallError("fsetxattr", unix.Fsetxattr(int(dir.Fd()), xattrOrigin, nil, 0))
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
