package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Layer is one layer's tree as part of a root.
type Layer struct {
	Root    string   // its directory
	Implied []string // Tree.Implied
}

// AdoptImplied gives each directory that a layer only implies the owner, mode
// and times that the layers beneath say: overlayfs would show those that
// Extract had to invent (a layer with tmp/x alone would close /tmp). It works
// on the mounted root, where the change goes to the writable layer upper;
// what upper has already is left alone, so it may be repeated. layers are the
// uppermost first; users are the mount's.
func AdoptImplied(mount *os.File, upper string, layers []Layer, users *Users) error {
	done := map[string]bool{}
	for _, layer := range layers {
		for _, name := range layer.Implied {
			if done[name] {
				continue
			}
			done[name] = true
			if _, err := os.Lstat(filepath.Join(upper, name)); err == nil {
				continue
			}
			st, err := meant(name, layers)
			if err == nil && st != nil {
				err = adopt(mount, name, st, users)
			}
			if err != nil {
				return fmt.Errorf("adopt directory %q: %w", shorten(name), err)
			}
		}
	}
	return nil
}

// meant finds the entry that says what an implied directory is like; nil if
// none does, or if the topmost layer that has the directory says so itself.
func meant(name string, layers []Layer) (*unix.Stat_t, error) {
	implied := false
	for _, layer := range layers {
		found, err := look(name, layer)
		switch {
		case err != nil:
			return nil, err
		case found.implied:
			implied = true
		case found.dir != nil && implied:
			return found.dir, nil
		case found.dir != nil:
			return nil, nil
		}
		if found.last {
			return nil, nil
		}
	}
	return nil, nil
}

// sight is what one layer says of a directory.
type sight struct {
	dir     *unix.Stat_t // it has the directory
	implied bool         // it has it only by implication
	last    bool         // it hides all that lies beneath
}

func look(name string, layer Layer) (sight, error) {
	s := sight{}
	path := layer.Root
	for _, part := range strings.Split(name, "/") {
		path = filepath.Join(path, part)
		st := &unix.Stat_t{}
		err := unix.Lstat(path, st)
		if errors.Is(err, unix.ENOENT) {
			return sight{last: s.last}, nil
		}
		if err != nil {
			return sight{}, &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return sight{last: true}, nil
		}
		if n, err := unix.Lgetxattr(path, xattrOpaque, nil); err == nil && n > 0 {
			s.last = true
		}
		s.dir = st
	}
	for _, implied := range layer.Implied {
		if implied == name {
			s.implied = true
		}
	}
	return s, nil
}

func adopt(mount *os.File, name string, st *unix.Stat_t, users *Users) error {
	fd, err := unix.Openat2(int(mount.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // adopted by an earlier mount, and moved or removed by the container since
	}
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	defer unix.Close(fd)
	uid, gid := users.owner(st)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH))
}
