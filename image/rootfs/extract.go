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
	// that their owner and mode are the lower layers' to say. Parents first.
	Implied []string `json:"implied,omitempty"`
}

// roomStep is how many entries are made between two questions for room.
const roomStep = 1024

// extractor is one extraction under way.
type extractor struct {
	root  *os.Root
	tar   *tar.Reader
	room  func() error
	tree  Tree
	top   *node // the tree's root
	left  int64 // bytes of file content that may still come
	steps int   // components of all paths so far
	buf   []byte

	parent     *os.File // the directory that the last entry went to; nil: none
	parentPath string
	parentNode *node
}

// Extract makes the tree of one layer in dir, which must exist and be empty.
// size is the tar's size in bytes. room is asked now and then whether to go on;
// a layer may be nothing but a million empty files. It needs root: owners,
// devices and trusted attributes are real. On an error dir holds a part of the
// tree, and nothing outside of dir was touched. Errors: ErrInvalidTar, those of
// the filesystem (ENOSPC among them), those of r and room, ctx's.
func Extract(ctx context.Context, dir string, r io.Reader, size int64, room func() error) (Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Tree{}, err
	}
	defer root.Close()
	x := &extractor{
		root: root,
		tar:  tar.NewReader(bufio.NewReaderSize(r, 1<<20)),
		room: room,
		top:  &node{},
		left: size + maxHoles,
		buf:  make([]byte, 128<<10),
	}
	defer x.leave()
	for {
		if err := ctx.Err(); err != nil {
			return Tree{}, err
		}
		h, err := x.tar.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Tree{}, invalidTar(err)
		}
		if err := x.entry(h); err != nil {
			return Tree{}, fmt.Errorf("extract %q: %w", shorten(h.Name), err)
		}
	}
	if err := x.finish(".", x.top); err != nil {
		return Tree{}, err
	}
	slices.Sort(x.tree.Implied)
	return x.tree, nil
}

// invalidTar marks what archive/tar says of the format; a reader's own errors
// pass through unmarked.
func invalidTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrInsecurePath) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("%w: %w", ErrInvalidTar, err)
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
	if x.tree.Inodes++; x.tree.Inodes > maxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrInvalidTar, maxEntries)
	}
	if x.tree.Inodes%roomStep == 0 {
		if err := x.room(); err != nil {
			return err
		}
	}
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
		return fmt.Errorf("%w: the root is no directory", ErrInvalidTar)
	}
	if err := x.enter(""); err != nil {
		return err
	}
	x.top.header = h
	return setAttrs(x.parent, h)
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
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("%w: name has a .. in it", ErrInvalidTar)
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// finish gives a directory and all below it what must wait until nothing more
// is made in them.
func (x *extractor) finish(name string, n *node) error {
	h := n.header
	if h == nil {
		h = &tar.Header{}
		if name != "." {
			x.tree.Implied = append(x.tree.Implied, name)
		}
	}
	if err := x.finishDir(name, h); err != nil {
		return fmt.Errorf("finish directory %q: %w", shorten(name), err)
	}
	for base, child := range n.children {
		if err := x.finish(path.Join(name, base), child); err != nil {
			return err
		}
	}
	return nil
}

func (x *extractor) finishDir(name string, h *tar.Header) error {
	dir, err := x.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	if acl, ok := h.PAXRecords[paxXattr+xattrDefaultACL]; ok {
		if err := unix.Fsetxattr(int(dir.Fd()), xattrDefaultACL, []byte(acl), 0); err != nil {
			return os.NewSyscallError("fsetxattr", err)
		}
	}
	return setTime(dir, "", h)
}

// shorten keeps a hostile name from filling an error.
func shorten(name string) string {
	if len(name) > 200 {
		return name[:200] + "…"
	}
	return name
}
