package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/oci"
)

// checkImageMount accepts the mount of an image (KEP-4639), read-only and alone.
func checkImageMount(field string, m *runtimeapi.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case m.GetImage() == nil && sub != "":
		return invalid(field+"image_sub_path", "%.100q is of no image", sub)
	case m.GetImage() == nil:
		return nil
	case m.GetImage().GetImage() == "":
		return invalid(field+"image", "names no image")
	case m.GetHostPath() != "":
		return invalid(field+"image", "contradicts host_path %.100q", m.GetHostPath())
	case !m.GetReadonly():
		return invalid(field+"readonly", "is required: images are mounted read-only")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+"propagation", "%s is not PRIVATE: nothing else is ever mounted in an image", m.GetPropagation())
	case path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), ".."):
		return invalid(field+"image_sub_path", "%.100q is not a relative path without ..", sub)
	}
	return checkNames(field+"image_sub_path", sub)
}

func checkViews(mounts []*runtimeapi.Mount) error {
	images := map[string]bool{}
	for _, m := range mounts {
		if m.GetImage() != nil {
			images[m.GetImage().GetImage()] = true
		}
	}
	if len(images) > oci.MaxViews {
		return invalid("mounts", "%d images are more than the %d that a container can have", len(images), oci.MaxViews)
	}
	return nil
}

// imagesMounted finds the images that the config mounts, by the index of their
// mount; nil without one.
func (c *Container) imagesMounted() (map[int]imageRecord, error) {
	var mounted map[int]imageRecord
	for i, m := range c.config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		img, err := c.pod.pods.Images.Image(m.GetImage().GetImage())
		if err != nil {
			return nil, fmt.Errorf("mounts[%d].image %q: %w: %w", i, m.GetImage().GetImage(), ErrImageMount, err)
		}
		if mounted == nil {
			mounted = map[int]imageRecord{}
		}
		mounted[i] = imageRecord{ID: img.ID, Layers: img.Layers}
	}
	return mounted, nil
}

// filesystems are those that a container starts with, as detached mounts.
type filesystems struct {
	root  *os.File
	views map[string]*os.File // what is mounted beside it, by the name that oci has for it: images, and the volumes
}

// viewName is what oci calls the view of an image.
func viewName(img imageRecord) string { return img.ID.Encoded() }

func (f filesystems) close() error {
	return errors.Join(closeFiles(f.root), closeFiles(slices.Collect(maps.Values(f.views))...))
}

// mount makes the filesystems of a container of img, or makes them anew. root is taken
// over; nil: that is made, too.
func (c *Container) mount(ctx context.Context, w *stopwatch, root *os.File, img imageRecord, mounted map[int]imageRecord) (f filesystems, err error) {
	images := c.pod.pods.Images
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.root = root; root == nil {
		err = w.effect(ctx, "images.Root", func() (err error) {
			f.root, err = images.Root(ctx, c.id, img.image(), c.pod.rootUsers())
			return err
		})
	}
	if err != nil {
		return f, fmt.Errorf("mount root: %w", err)
	}
	f.views = map[string]*os.File{}
	for _, i := range slices.Sorted(maps.Keys(mounted)) {
		name := viewName(mounted[i])
		if f.views[name] != nil {
			continue
		}
		err = w.effect(ctx, "images.View", func() (err error) {
			f.views[name], err = images.View(ctx, c.id, mounted[i].image(), c.pod.rootUsers())
			return err
		})
		if err != nil {
			return f, fmt.Errorf("mounts[%d].image: %w: %w", i, ErrImageMount, err)
		}
	}
	return f, nil
}

// image is what Images needs of it to mount it.
func (r imageRecord) image() *image.Image { return &image.Image{ID: r.ID, Layers: r.Layers} }

// lookInto puts into hostPaths where the mounts of images have their sources: in
// the views, where symlinks lead nowhere else and nothing changes until the
// container is gone.
func (c *Container) lookInto(views map[string]*os.File, mounted map[int]imageRecord, hostPaths []string) error {
	for i, img := range mounted {
		name, sub := viewName(img), path.Clean(c.config.GetMounts()[i].GetImageSubPath())
		place, err := image.SubPath(views[name], sub)
		if err != nil {
			return fmt.Errorf("mounts[%d].image_sub_path: %w: %w", i, ErrImageMount, err)
		}
		hostPaths[i] = filepath.Join(c.oci().View(name), place)
	}
	return nil
}

// mounts are those of the config, and which image each of them that is of an
// image shows.
func (c *Container) mounts(rec containerRecord) []*runtimeapi.Mount {
	list := c.config.GetMounts()
	if len(rec.Mounted) == 0 {
		return list
	}
	list = slices.Clone(list)
	for i, m := range list {
		if img, ok := rec.Mounted[i]; ok {
			list[i] = proto.Clone(m).(*runtimeapi.Mount)
			list[i].Image.ImageRef = img.ID.String()
		}
	}
	return list
}
