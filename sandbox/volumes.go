package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/oci"
)

// maxVolumes bounds how many volumes an image may name: each is a mount.
const maxVolumes = 128

// volumesView is what oci calls the directory that holds a container's volumes; the
// names of images are longer.
const volumesView = "volumes"

// volumesOf are the paths of the image's volumes that a container of it gets,
// parents before children; root is the container's. A mount of the config replaces
// the volumes at and below its path: nothing is made in a mounted directory because
// an image says so. Where every container has the kernel's filesystems or the pod's
// files there is no volume either, whatever symlinks an image has.
func volumesOf(img *image.Image, mounts []*runtimeapi.Mount, root *os.File) ([]string, error) {
	named := img.Config.Config.Volumes
	if len(named) > maxVolumes {
		return nil, fmt.Errorf("%w: it names %d volumes, at most %d are supported", image.ErrInvalidImage, len(named), maxVolumes)
	}
	var volumes []string
	for name := range maps.Keys(named) {
		volume := path.Join("/", name)
		place, err := image.SubPath(root, volume)
		switch {
		case err == nil:
			place = path.Join("/", place)
		case errors.Is(err, fs.ErrNotExist):
			place = volume
		default:
			return nil, fmt.Errorf("%w: volume %.200q: %w", image.ErrInvalidImage, name, err)
		}
		if !covered(volume, mounts) && !usualPlace(volume) && !usualPlace(place) {
			volumes = append(volumes, volume)
		}
	}
	slices.SortFunc(volumes, func(a, b string) int { return cmp.Or(compareDepth(a, b), strings.Compare(a, b)) })
	return slices.Compact(volumes), nil
}

func covered(volume string, mounts []*runtimeapi.Mount) bool {
	return slices.ContainsFunc(mounts, func(m *runtimeapi.Mount) bool { return beneath(volume, path.Clean(m.GetContainerPath())) })
}

// usualPlace says that every container has something else than a volume at place,
// which is clean.
func usualPlace(place string) bool {
	usual := []string{"/proc", "/sys", "/dev"}
	for _, name := range podFileNames {
		usual = append(usual, "/etc/"+name)
	}
	return place == "/" || slices.ContainsFunc(usual, func(dir string) bool { return beneath(place, dir) })
}

// mountVolumes adds the container's volumes to its filesystems; it makes them, or
// makes their mount anew.
func (c *Container) mountVolumes(ctx context.Context, w *stopwatch, f filesystems, volumes []string) error {
	if len(volumes) == 0 {
		return nil
	}
	return w.effect(ctx, "images.Volumes", func() (err error) {
		f.views[volumesView], err = c.pod.pods.Images.Volumes(ctx, c.id, f.root, volumes, c.pod.rootUsers())
		return err
	})
}

// volumeMounts: they have the ids of the pod's user namespace already.
func volumeMounts(c oci.Container, volumes []string) []specs.Mount {
	var list []specs.Mount
	for i, volume := range volumes {
		list = append(list, specs.Mount{
			Destination: volume, Type: "bind", Source: filepath.Join(c.View(volumesView), strconv.Itoa(i)),
			Options: []string{"rbind", "rprivate", "rw"},
		})
	}
	return list
}
