package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"berth/image/rootfs"
)

// viewsDir is where containers/<id> has its views, by the hex digits of the
// image's id.
const viewsDir = "views"

// View returns img as a detached read-only mount, which the caller attaches or
// closes, for the container id. That one has a writable layer, and the view
// lasts as long: it may be asked for again, and until RemoveRoot the image's
// layers are kept, also when the image is removed. users are those of Root.
// Errors: those of Root.
//
// The view is neither nosuid, nodev nor noexec: like that of a container's root,
// its content can do nothing that the container may not.
func (s *Store) View(ctx context.Context, id string, img *Image, users *Users) (*os.File, error) {
	view, err := s.view(ctx, id, img, users)
	if err != nil {
		return nil, fmt.Errorf("view of image %s: %w", img.ID, err)
	}
	return view, nil
}

func (s *Store) view(ctx context.Context, id string, img *Image, users *Users) (*os.File, error) {
	if err := sha256Digest(img.ID); err != nil {
		return nil, err
	}
	unlock, err := s.busy.lock(ctx, "root "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.holdFor(id, img); err != nil {
		return nil, err
	}
	layers, err := s.rootLayers(ctx, s.viewPath(id, img.ID), img)
	if err != nil {
		return nil, err
	}
	if err := s.makeView(ctx, id, img, layers, users); err != nil {
		return nil, s.spaceError(err, 0)
	}
	o := overlay(s.viewPath(id, img.ID), layers, users)
	o.ReadOnly = true
	return rootfs.Mount(o)
}

func (s *Store) viewPath(id string, img digest.Digest) string {
	return s.path(containersDir, id, viewsDir, img.Encoded())
}

// holdFor adds the layers of img to what a container claims, until RemoveRoot,
// whatever becomes of the view.
func (s *Store) holdFor(id string, img *Image) error {
	s.mu.Lock()
	before, there := s.roots[id]
	s.mu.Unlock()
	if !there {
		return fmt.Errorf("container %q has no writable layer", id)
	}
	more := newClaim(slices.DeleteFunc(slices.Clone(img.Layers), func(d digest.Digest) bool { return slices.Contains(before.layers, d) }))
	if err := s.holdPresent(more); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[id] = claim{layers: slices.Concat(before.layers, more.layers)}
	return nil
}

// makeView makes the directories of a view unless they are there. The uppermost
// layer of a view is one of its own, which holds what AdoptImplied says; it is
// finished before it appears, since the layers of a mount must not change.
func (s *Store) makeView(ctx context.Context, id string, img *Image, layers []rootfs.Layer, users *Users) error {
	at := s.viewPath(id, img.ID)
	if _, err := os.Lstat(at); err == nil {
		return nil
	}
	temp, err := s.prepareRoot(img, users)
	if err != nil {
		return err
	}
	err = s.adoptInto(ctx, temp, layers, users)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(at), 0o700)
	}
	if err != nil {
		return errors.Join(err, s.discard(temp))
	}
	return s.place(temp, at)
}

// adoptInto fills the upper directory in dir.
func (s *Store) adoptInto(ctx context.Context, dir string, layers []rootfs.Layer, users *Users) error {
	if !slices.ContainsFunc(layers, func(l rootfs.Layer) bool { return len(l.Implied) > 0 }) {
		return nil
	}
	mount, err := s.mountRoot(ctx, dir, layers, users)
	if err != nil {
		return err
	}
	return mount.Close()
}

// readViews are the layers of a container's views, some of them more than once.
func (s *Store) readViews(id string) ([]digest.Digest, error) {
	names, err := list(s.path(containersDir, id, viewsDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var layers []digest.Digest
	for _, name := range names {
		dir := s.path(containersDir, id, viewsDir, name)
		r, err := readRoot(dir)
		if err == nil {
			layers = append(layers, r.Layers...)
			continue
		}
		klog.ErrorS(err, "Damaged view of an image is removed", "container", id, "image", name)
		if err := s.discard(dir); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// SubPath finds name in a view as a process would whose root the view is, so
// that no symlink leads out of it, and returns where in the view that is,
// without symlinks; "." is the view itself. It is a directory or a regular file.
func SubPath(view *os.File, name string) (string, error) {
	fd, err := unix.Openat2(int(view.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return "", &os.PathError{Op: "find", Path: name, Err: err}
	}
	found := os.NewFile(uintptr(fd), name)
	defer found.Close()
	info, err := found.Stat()
	if err != nil {
		return "", err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is neither a directory nor a regular file", name)
	}
	root, err := placeOf(view)
	if err != nil {
		return "", err
	}
	place, err := placeOf(found)
	if err != nil {
		return "", err
	}
	return filepath.Rel(root, place)
}

// placeOf is the path of an open file below the root of its mount, where that is
// attached nowhere.
func placeOf(f *os.File) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}
