package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of the work that names may cause: in one path the kernel's own number
// of symlinks, and in all of a layer's paths together far more components than
// any real layer has.
const (
	maxSymlinks = 40
	maxSteps    = 1 << 28
)

// node is a directory of the tree. The tree begins empty, so that what is no
// node is no directory.
type node struct {
	header   *tar.Header // nil: the tar has it only as part of other names
	children map[string]*node
}

func (n *node) add(name string, h *tar.Header) *node {
	child := &node{header: h}
	if n.children == nil {
		n.children = map[string]*node{}
	}
	n.children[name] = child
	return child
}

// location is where an entry goes: an existing directory, by a path without
// symlinks. nodes has the directories on the way, the tree's root first.
type location struct {
	names []string
	nodes []*node
}

func (l *location) path() string { return path.Join(append([]string{"."}, l.names...)...) }
func (l *location) node() *node  { return l.nodes[len(l.nodes)-1] }

func (l *location) down(name string, n *node) {
	l.names, l.nodes = append(l.names, name), append(l.nodes, n)
}

// up stays at the root, as a container's kernel does.
func (l *location) up() {
	if len(l.names) > 0 {
		l.names, l.nodes = l.names[:len(l.names)-1], l.nodes[:len(l.nodes)-1]
	}
}

func (l *location) top() { l.names, l.nodes = l.names[:0], l.nodes[:1] }

// enter makes dir, a clean path relative to the tree, the parent of the next
// entry. Directories that are missing are made: the tar implies them.
func (x *extractor) enter(dir string) error {
	to, err := x.resolve(dir)
	if err != nil {
		return err
	}
	resolved := to.path()
	if len(resolved) > maxPath {
		return fmt.Errorf("%w: path of %d bytes", ErrInvalidTar, len(resolved))
	}
	if x.parent != nil && x.parentPath == resolved {
		return nil
	}
	x.leave()
	f, err := x.root.OpenFile(resolved, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	x.parent, x.parentPath, x.parentNode = f, resolved, to.node()
	return nil
}

// leave forgets the open parent.
func (x *extractor) leave() {
	if x.parent != nil {
		x.parent.Close()
		x.parent = nil
	}
}

// resolve returns where dir leads. Symlinks of this layer are followed as a
// container would follow them: an absolute one starts at the tree's root, and
// ".." stays in it.
func (x *extractor) resolve(dir string) (*location, error) {
	at, links := &location{nodes: []*node{x.top}}, 0
	todo := strings.Split(dir, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if x.steps++; x.steps > maxSteps {
			return nil, fmt.Errorf("%w: its paths have too many components", ErrInvalidTar)
		}
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at.up()
			continue
		}
		if child := at.node().children[name]; child != nil {
			at.down(name, child)
			continue
		}
		target, err := x.pass(at, name)
		if err != nil {
			return nil, err
		}
		if target == "" {
			continue
		}
		if links++; links > maxSymlinks {
			return nil, fmt.Errorf("%w: too many symlinks", ErrInvalidTar)
		}
		if strings.HasPrefix(target, "/") {
			at.top()
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return at, nil
}

// pass goes on to name, which is no directory yet, or returns the target of the
// symlink that it is.
func (x *extractor) pass(at *location, name string) (target string, _ error) {
	next := path.Join(at.path(), name)
	info, err := x.root.Lstat(next)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", x.imply(at, name, false)
	case err != nil:
		return "", err
	case info.Mode()&os.ModeSymlink != 0:
		return x.root.Readlink(next)
	case isWhiteout(info):
		return "", x.imply(at, name, true)
	}
	return "", fmt.Errorf("%w: %q is no directory", ErrInvalidTar, shorten(next))
}

// imply makes a directory that the tar names only as a parent, and goes there.
// Where the layer hides what lies beneath, the directory replaces the whiteout
// and is opaque.
func (x *extractor) imply(at *location, name string, hidden bool) error {
	next := path.Join(at.path(), name)
	if hidden {
		if err := x.root.Remove(next); err != nil {
			return err
		}
	}
	if err := x.root.Mkdir(next, 0o755); err != nil {
		return err
	}
	if err := x.root.Chmod(next, 0o755); err != nil { // the umask
		return err
	}
	x.tree.Inodes++
	at.down(name, at.node().add(name, nil))
	if !hidden {
		return nil
	}
	dir, err := x.root.Open(next)
	if err != nil {
		return err
	}
	defer dir.Close()
	return x.setOpaque(dir)
}
