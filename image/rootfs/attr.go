package rootfs

import (
	"archive/tar"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	paxXattr = "SCHILY.xattr."
	// xattrDefaultACL is inherited by what is made in a directory: it comes last.
	xattrDefaultACL = "system.posix_acl_default"
)

// setAttrs gives an open file or directory its owner, mode and extended
// attributes, in the order in which none undoes another: chown clears setuid
// bits and capabilities. Times come later.
func setAttrs(f *os.File, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !allowed(name) || name == xattrDefaultACL {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", shorten(name), err)
		}
	}
	return nil
}

// allowed tells which extended attributes an image may bring. trusted.* would
// let it speak to overlayfs (redirects into other layers), security.selinux and
// the integrity labels belong to the node.
func allowed(xattr string) bool {
	return strings.HasPrefix(xattr, "user.") || xattr == "security.capability" ||
		xattr == "system.posix_acl_access" || xattr == xattrDefaultACL
}

// setNodeAttrs is setAttrs and setTime for what cannot be opened: symlinks,
// devices and FIFOs. None of them can have user attributes.
func setNodeAttrs(dir *os.File, base string, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	return setTime(dir, base, h)
}

// owner refuses ids that are none: -1 would mean "leave as it is" to chown.
func owner(h *tar.Header) (uid, gid int, _ error) {
	const maxID = 1<<32 - 2
	if h.Uid < 0 || int64(h.Uid) > maxID || h.Gid < 0 || int64(h.Gid) > maxID {
		return 0, 0, fmt.Errorf("%w: owner %d:%d", ErrInvalidTar, h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

// setTime sets the modification time of base in dir, or of dir itself if base
// is empty. Without an access time of its own an entry gets the same.
func setTime(dir *os.File, base string, h *tar.Header) error {
	mtime := timespec(h.ModTime)
	atime := mtime
	if !h.AccessTime.IsZero() {
		atime = timespec(h.AccessTime)
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.UtimesNanoAt(int(dir.Fd()), base, []unix.Timespec{atime, mtime}, flags)
	return os.NewSyscallError("utimensat", err)
}

// timespec rounds down, also before 1970; a missing time is the epoch, so that
// a tree is the same whenever it is made.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
