package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
// uppermost first; users are the mount's. Errors: ErrInvalidTar, ctx's.
func AdoptImplied(ctx context.Context, mount *os.File, upper string, layers []Layer, users *Users) error {
	a := &adoption{ctx: ctx, layers: layers}
	for i, layer := range layers {
		for _, name := range layer.Implied {
			if slices.ContainsFunc(layers[:i], func(above Layer) bool { return above.implies(name) }) {
				continue // seen there
			}
			if err := a.one(mount, upper, name, users); err != nil {
				return fmt.Errorf("adopt directory %q: %w", shorten(name), err)
			}
		}
	}
	return nil
}

func (l Layer) implies(name string) bool {
	_, ok := slices.BinarySearch(l.Implied, name)
	return ok
}

// maxLooks bounds the work for one image: directories looked for in layers. With it, a
// node is busy for some seconds.
const maxLooks = 1 << 22

// adoption looks for directories in all layers at once. Names come sorted, so that
// what is known of a name's parents mostly serves the next one as well.
type adoption struct {
	ctx    context.Context
	layers []Layer
	looks  int
	way    []sight // from the root's first component down to the last name
}

// sight is what the layers have at one name.
type sight struct {
	name string // its last component
	in   []dirIn
}

// dirIn is the directory of that name in one layer, which no layer above it hides.
type dirIn struct {
	layer int
	st    unix.Stat_t
}

func (a *adoption) one(mount *os.File, upper, name string, users *Users) error {
	dirs, err := a.look(name)
	if err != nil {
		return err
	}
	st := a.meant(name, dirs)
	if st == nil {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(upper, name)); err == nil {
		return nil
	}
	return adopt(mount, name, st, users)
}

// meant finds the entry that says what an implied directory is like; nil if
// none does, or if the topmost layer that has the directory says so itself.
func (a *adoption) meant(name string, dirs []dirIn) *unix.Stat_t {
	for i := range dirs {
		if !a.layers[dirs[i].layer].implies(name) {
			if i == 0 {
				return nil
			}
			return &dirs[i].st
		}
	}
	return nil
}

// look returns the directories called name, the uppermost layer's first.
func (a *adoption) look(name string) ([]dirIn, error) {
	parts := strings.Split(name, "/")
	known := 0
	for known < len(parts) && known < len(a.way) && a.way[known].name == parts[known] {
		known++
	}
	a.way = a.way[:known]
	for i := known; i < len(parts); i++ {
		in, err := a.step(i, strings.Join(parts[:i+1], "/"))
		if err != nil {
			return nil, err
		}
		a.way = append(a.way, sight{parts[i], in})
	}
	return a.way[len(parts)-1].in, nil
}

// step looks for name, depth names below the root, in the layers that have its parent.
func (a *adoption) step(depth int, name string) (in []dirIn, _ error) {
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	for i := range a.parents(depth) {
		layer := i
		if depth > 0 {
			layer = a.way[depth-1].in[i].layer
		}
		if a.looks++; a.looks > maxLooks {
			return nil, fmt.Errorf("%w: too many layers have directories without an entry", ErrInvalidTar)
		}
		found, last, err := a.layers[layer].dir(name)
		if err != nil {
			return nil, err
		}
		if found != nil {
			in = append(in, dirIn{layer, *found})
		}
		if last {
			break
		}
	}
	return in, nil
}

// parents is how many layers have the directory that depth names lead to.
func (a *adoption) parents(depth int) int {
	if depth == 0 {
		return len(a.layers)
	}
	return len(a.way[depth-1].in)
}

// dir is the directory called name, nil if there is none. Its parents are directories.
// last: the layer hides what those beneath have.
func (l Layer) dir(name string) (st *unix.Stat_t, last bool, _ error) {
	path := filepath.Join(l.Root, name)
	st = &unix.Stat_t{}
	err := unix.Lstat(path, st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, false, nil
	case err != nil:
		return nil, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	case !isDir(st):
		return nil, true, nil
	}
	n, err := unix.Lgetxattr(path, xattrOpaque, nil)
	return st, err == nil && n > 0, nil
}

func adopt(mount *os.File, name string, st *unix.Stat_t, users *Users) error {
	fd, err := unix.Openat2(int(mount.Fd()), name, &beneath)
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
	t := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", t, unix.AT_EMPTY_PATH))
}
