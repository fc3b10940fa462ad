package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInvalidTar: the layer's tar is damaged, or asks for what no layer may.
var ErrInvalidTar = errors.New("invalid layer")

// Bounds of one layer. Everything above is an attack on disk or time.
const (
	maxEntries = 8 << 20
	maxPath    = unix.PathMax // longer ones cannot be opened by anybody
	maxHoles   = 16 << 30     // bytes that sparse files may have beyond the tar's own
)

// Tree is what Extract made, besides the files.
type Tree struct {
	Bytes  int64 `json:"bytes"`  // of file contents
	Inodes int64 `json:"inodes"` // entries made
	// Implied are directories that the tar has only as part of other names, so
	// that their owner and mode are the lower layers' to say. Sorted.
	Implied []string `json:"implied,omitempty"`
}

// Memory is asked before n more bytes are kept in memory of what an image says.
type Memory func(n int) error

// impliedCost is what an implied directory costs besides its path.
const impliedCost = 64

// roomStep is how many entries are made between two questions for room.
const roomStep = 1024

// extractor is one extraction under way. What it has made is looked up in the tree
// itself: in memory is only what no file tells.
type extractor struct {
	ctx    context.Context
	root   *os.File // the tree's root
	tar    *tar.Reader
	room   func() error
	memory Memory
	tree   Tree
	left   int64 // bytes of file content that may still come
	buf    []byte

	steps, mostSteps int64 // components looked at one by one

	implied      map[string]struct{} // by path
	impliedMade  int
	impliedBytes int
	acls         map[string]string // default ACLs by path of the directory: they come last

	parent      *os.File // the directory that the last entry went to; nil: none
	parentPath  string
	parentTimes times // that it shall have
	// parentChanged: something may have been made in it, which changes its times.
	parentChanged bool
}

// Extract makes the tree of one layer in dir, which must exist and be empty.
// size is the tar's size in bytes. room is asked now and then whether to go on;
// a layer may be nothing but a million empty files. It needs root: owners,
// devices and trusted attributes are real. On an error dir holds a part of the
// tree, and nothing outside of dir was touched. Its time is linear in what the tar
// spells out. Errors: ErrInvalidTar, *AttrError, those of the filesystem (ENOSPC among
// them), those of r, room and memory, ctx's; r should end with ctx as well.
func Extract(ctx context.Context, dir string, r io.Reader, size int64, room func() error, memory Memory) (Tree, error) {
	root, err := os.Open(dir)
	if err != nil {
		return Tree{}, err
	}
	defer root.Close()
	x := &extractor{
		ctx:       ctx,
		root:      root,
		tar:       tar.NewReader(bufio.NewReaderSize(r, 256<<10)),
		room:      room,
		memory:    memory,
		left:      size + maxHoles,
		mostSteps: freeSteps,
		implied:   map[string]struct{}{},
		acls:      map[string]string{},
		buf:       make([]byte, 128<<10),
	}
	if err := setTimes(root, "", times{}); err != nil {
		return Tree{}, err
	}
	err = x.entries()
	if err = errors.Join(err, x.leave()); err != nil {
		return Tree{}, err
	}
	return x.tree, x.finish()
}

func (x *extractor) entries() error {
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		h, err := x.tar.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalidTar(err)
		}
		if err := x.entry(h); err != nil {
			return fmt.Errorf("extract %q: %w", shorten(h.Name), blame(err))
		}
	}
}

// invalidTar marks what archive/tar says of the format; a reader's own errors
// pass through unmarked.
func invalidTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrInsecurePath) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("%w: %w", ErrInvalidTar, err)
	}
	return err
}

// blame marks what a filesystem says of an image that asks for more than it can do.
func blame(err error) error {
	switch {
	case errors.Is(err, ErrInvalidTar):
		return err
	case errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: a name or a link's target is too long: %w", ErrInvalidTar, err)
	case errors.Is(err, unix.EMLINK):
		return fmt.Errorf("%w: more hard links than the store's filesystem has: %w", ErrInvalidTar, err)
	}
	return err
}

// entry puts one member of the tar into the tree.
func (x *extractor) entry(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
	default:
		return fmt.Errorf("%w: unknown type %q", ErrInvalidTar, h.Typeflag)
	}
	if err := x.another(); err != nil {
		return err
	}
	x.mostSteps += stepsPerEntry
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return x.rootEntry(h)
	}
	dir, base := path.Split(name)
	if skip, err := reserved(name); skip || err != nil {
		return err
	}
	if err := x.enter(dir); err != nil {
		return err
	}
	x.parentChanged = true
	if base == opaqueMarker {
		return x.setOpaque(x.parent)
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return x.whiteout(hidden)
	}
	return x.place(h, base)
}

// rootEntry is the layer's own root directory.
func (x *extractor) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root is not a directory", ErrInvalidTar)
	}
	if err := x.enter(""); err != nil {
		return err
	}
	x.parentTimes, x.parentChanged = timesOf(h), true
	if err := x.keepACL(".", h); err != nil {
		return err
	}
	return setAttrs(x.parent, h)
}

// another counts one more file or directory.
func (x *extractor) another() error {
	if x.tree.Inodes++; x.tree.Inodes > maxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrInvalidTar, maxEntries)
	}
	if x.tree.Inodes%roomStep == 0 {
		return x.room()
	}
	return nil
}

// cleanName makes a member's name relative to the tree, "." for its root. A
// name that climbs is refused, even where it would come back.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("%w: name of %d bytes", ErrInvalidTar, len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: name with a NUL byte", ErrInvalidTar)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: name has a .. in it", ErrInvalidTar)
		}
		// What a whiteout hides may be as long as any name.
		if n := len(strings.TrimPrefix(part, whiteoutPrefix)); n > unix.NAME_MAX {
			return "", fmt.Errorf("%w: name of %d bytes, at most %d are possible", ErrInvalidTar, n, unix.NAME_MAX)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// keepACL remembers the default ACL of a directory, which what is made in it would
// inherit, until all is made.
func (x *extractor) keepACL(name string, h *tar.Header) error {
	acl, ok := h.PAXRecords[paxXattr+xattrDefaultACL]
	if !ok {
		delete(x.acls, name)
		return nil
	}
	x.acls[name] = strings.Clone(acl) // as a part of the header it would keep all of it
	return x.memory(len(name) + len(acl) + impliedCost)
}

// finish does what must wait until all is made. A directory that was noted may have
// been replaced since.
func (x *extractor) finish() error {
	for name, acl := range x.acls {
		fd, err := unix.Openat2(int(x.root.Fd()), name, &beneath)
		if err != nil {
			continue
		}
		err = setAttr(fd, xattrDefaultACL, acl)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("directory %q: %w", shorten(name), err)
		}
	}
	x.acls = nil
	for name := range x.implied {
		fd, err := unix.Openat2(int(x.root.Fd()), name, &beneath)
		if err != nil {
			continue
		}
		unix.Close(fd)
		x.tree.Implied = append(x.tree.Implied, name)
	}
	x.implied = nil
	slices.Sort(x.tree.Implied)
	return x.ctx.Err()
}

// shorten keeps a hostile name from filling an error.
func shorten(name string) string {
	if len(name) > 200 {
		return name[:200] + "…"
	}
	return name
}
