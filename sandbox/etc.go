package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

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

// etc says what becomes of the pod's files where the config mounts something at /etc.
type etc struct {
	over    []string // names of those that are mounted on top
	noPlace []string // names that are missing in what is mounted read-only: nothing can be mounted there
}

// lookAtEtc: the pod's files are mounted on top where there is a file to mount on, or
// one can be made. Nothing is made in what is mounted read-only, and nothing is
// mounted where the host would see it. A name that is something else than a file, as
// a symlink, is for whoever made it to say.
func (c *Container) lookAtEtc(views map[string]*os.File, mounted map[int]imageRecord, hostPaths []string) etc {
	mounts := c.config.GetMounts()
	at := -1
	for i, m := range mounts { // of several, the last is seen
		if path.Clean(m.GetContainerPath()) == "/etc" {
			at = i
		}
	}
	if at < 0 {
		return etc{}
	}
	source := hostPaths[at]
	if img, ok := mounted[at]; ok { // its source is not there yet
		view := views[viewName(img)]
		place, err := image.SubPath(view, path.Clean(mounts[at].GetImageSubPath()))
		if err != nil {
			return etc{}
		}
		source = filepath.Join(fmt.Sprintf("/proc/self/fd/%d", view.Fd()), place)
	}
	dir, err := os.OpenRoot(source)
	if err != nil {
		return etc{} // what it is, the runtime will find out
	}
	defer dir.Close()
	return lookInEtc(dir, mounts[at])
}

// lookInEtc looks into dir, which m mounts at /etc.
func lookInEtc(dir *os.Root, m *runtimeapi.Mount) (e etc) {
	shared := m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, name := range podFileNames {
		info, err := dir.Lstat(name)
		missing := errors.Is(err, fs.ErrNotExist)
		switch {
		case missing && m.GetReadonly():
			e.noPlace = append(e.noPlace, name)
		case shared:
		case err == nil && info.Mode().IsRegular(), missing && makeEmpty(dir, name) == nil:
			e.over = append(e.over, name)
		}
	}
	return e
}

func makeEmpty(dir *os.Root, name string) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
