package rootfs

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	paxXattr       = "SCHILY.xattr."
	xattrAccessACL = "system.posix_acl_access"
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
		if err := setAttr(fd, name, value); err != nil {
			return err
		}
	}
	return nil
}

// AttrError: an extended attribute of an entry that cannot be set. It is ErrInvalidTar
// where no waiting and no room would help.
type AttrError struct {
	Name  string
	Bytes int // of its value
	Err   error
}

func (e *AttrError) Error() string {
	return fmt.Sprintf("set extended attribute %q of %d bytes: %v", shorten(e.Name), e.Bytes, e.Err)
}

func (e *AttrError) Unwrap() []error {
	switch {
	case errors.Is(e.Err, errTooBig), errors.Is(e.Err, unix.EINVAL), errors.Is(e.Err, unix.ENOTSUP):
		return []error{ErrInvalidTar, e.Err}
	}
	return []error{e.Err}
}

// errTooBig is what a filesystem means that has room, and still says ENOSPC or E2BIG
// of an attribute.
var errTooBig = errors.New("it is larger than the store's filesystem takes")

// setAttr sets an extended attribute of an open file or directory. ext4 gives all
// attributes of a file one block, and says ENOSPC for more, however much is free.
func setAttr(fd int, name, value string) error {
	if (name == xattrAccessACL || name == xattrDefaultACL) && !isACL(value) {
		return &AttrError{Name: name, Bytes: len(value), Err: unix.EINVAL}
	}
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
		err = errTooBig
	case errors.Is(err, unix.ENOSPC) && hasSpace(fd):
		err = errTooBig
	}
	return &AttrError{Name: name, Bytes: len(value), Err: err}
}

// isACL tells whether value has the form of an ACL (posix_acl_xattr.h). The kernel says
// of another version what it says on a filesystem without ACLs.
func isACL(value string) bool {
	return len(value)%8 == 4 && binary.LittleEndian.Uint32([]byte(value)) == 2
}

// hasSpace tells whether the filesystem of fd has blocks left for root.
func hasSpace(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Bfree > fewBlocks
}

// fewBlocks are less than an attribute may need.
const fewBlocks = 64

// allowed tells which extended attributes an image may bring. trusted.* would
// let it speak to overlayfs (redirects into other layers), security.selinux and
// the integrity labels belong to the node.
func allowed(xattr string) bool {
	return strings.HasPrefix(xattr, "user.") || xattr == "security.capability" ||
		xattr == xattrAccessACL || xattr == xattrDefaultACL
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
	return setTimes(dir, base, timesOf(h))
}

// owner refuses ids that are none: -1 would mean "leave as it is" to chown.
func owner(h *tar.Header) (uid, gid int, _ error) {
	const maxID = 1<<32 - 2
	if h.Uid < 0 || int64(h.Uid) > maxID || h.Gid < 0 || int64(h.Gid) > maxID {
		return 0, 0, fmt.Errorf("%w: owner %d:%d", ErrInvalidTar, h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

// times are those of access and modification.
type times [2]unix.Timespec

// timesOf are the times of an entry: without an access time of its own it gets that of
// its modification.
func timesOf(h *tar.Header) times {
	mtime := timespec(h.ModTime)
	if h.AccessTime.IsZero() {
		return times{mtime, mtime}
	}
	return times{timespec(h.AccessTime), mtime}
}

// setTimes sets the times of base in dir, or of dir itself if base is empty.
func setTimes(dir *os.File, base string, t times) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(int(dir.Fd()), base, t[:], flags))
}

// timespec rounds down, also before 1970; a missing time is the epoch, so that
// a tree is the same whenever it is made.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
