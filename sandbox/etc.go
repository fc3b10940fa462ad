package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
)

// oldFiles says whether the pod was made by a Berth that kept its files beside its
// record, on the filesystem of all pods.
func (p *Pod) oldFiles() (bool, error) {
	_, err := os.Lstat(filepath.Join(p.oci().Files(), hostsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// filesOverEtc are the names of the pod's files that can be mounted on top of what
// the config mounts at /etc: where there is a file to mount on, or one can be made.
// Nothing is made in what is mounted read-only, and nothing is mounted where the
// host would see it. A name that is something else than a file, as a symlink, is
// for whoever made it to say.
func (c *Container) filesOverEtc(views map[string]*os.File, mounted map[int]imageRecord, hostPaths []string) []string {
	mounts := c.config.GetMounts()
	at := -1
	for i, m := range mounts { // of several, the last is seen
		if path.Clean(m.GetContainerPath()) == "/etc" {
			at = i
		}
	}
	if at < 0 || mounts[at].GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return nil
	}
	source := hostPaths[at]
	if img, ok := mounted[at]; ok { // its source is not there yet
		view := views[viewName(img)]
		place, err := image.SubPath(view, path.Clean(mounts[at].GetImageSubPath()))
		if err != nil {
			return nil
		}
		source = filepath.Join(fmt.Sprintf("/proc/self/fd/%d", view.Fd()), place)
	}
	dir, err := os.OpenRoot(source)
	if err != nil {
		return nil // what it is, the runtime will find out
	}
	defer dir.Close()
	return slices.DeleteFunc(slices.Clone(podFileNames), func(name string) bool {
		return !hasFile(dir, name, !mounts[at].GetReadonly())
	})
}

// hasFile says whether dir has a file of this name, or has one now.
func hasFile(dir *os.Root, name string, mayMake bool) bool {
	info, err := dir.Lstat(name)
	if err == nil {
		return info.Mode().IsRegular()
	}
	if !mayMake || !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false
	}
	return f.Close() == nil
}
