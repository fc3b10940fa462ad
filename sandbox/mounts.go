package sandbox

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

// mountOptions are the ones that a config may add to a bind mount: those that
// only take something away.
var mountOptions = []string{"nodev", "noexec", "nosuid"}

func (p *Pod) checkMounts(mounts []*runtimeapi.Mount) error {
	for i, m := range mounts {
		field := fmt.Sprintf("mounts[%d].", i)
		switch target := m.GetContainerPath(); {
		case !path.IsAbs(target) || path.Clean(target) == "/":
			return invalid(field+"container_path", "%.100q must be an absolute path below /", target)
		case m.GetImage() == nil && !path.IsAbs(m.GetHostPath()):
			return invalid(field+"host_path", "%.100q is not an absolute path", m.GetHostPath())
		case propagations[m.GetPropagation()] == "":
			return invalid(field+"propagation", "%d is not PRIVATE, HOST_TO_CONTAINER or BIDIRECTIONAL", m.GetPropagation())
		}
		err := firstError(
			func() error { return checkNames(field+"container_path", m.GetContainerPath()) },
			func() error { return checkNames(field+"host_path", m.GetHostPath()) },
			func() error { return checkImageMount(field, m) },
			func() error { return p.checkRecursiveReadOnly(field, m) },
		)
		if err != nil {
			return err
		}
		for _, option := range m.GetMountOptions() {
			if !slices.Contains(mountOptions, option) {
				return invalid(field+"mount_options", "%.50q is none of %s", option, strings.Join(mountOptions, ", "))
			}
		}
	}
	return checkViews(mounts)
}

func (p *Pod) checkRecursiveReadOnly(field string, m *runtimeapi.Mount) error {
	switch {
	case !m.GetRecursiveReadOnly():
		return nil
	case !m.GetReadonly():
		return invalid(field+"recursive_read_only", "needs readonly")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+"recursive_read_only", "needs PROPAGATION_PRIVATE")
	case !p.runtime().Features().RecursiveReadOnly:
		return invalid(field+"recursive_read_only", "the OCI runtime or the kernel of this node cannot do that")
	}
	return nil
}

// propagations are the names of the kernel's.
var propagations = map[runtimeapi.MountPropagation]string{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           "rprivate",
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

// hostPaths resolves the symlinks of the mounts' sources: the host's, since the
// kubelet and not the image names them. A source must be there, and a mount that
// takes part in others must be able to. Mounts of images have none yet.
func hostPaths(mounts []*runtimeapi.Mount) ([]string, error) {
	var paths []string
	for i, m := range mounts {
		if m.GetImage() != nil {
			paths = append(paths, "")
			continue
		}
		field := fmt.Sprintf("mounts[%d].", i)
		path, err := filepath.EvalSymlinks(m.GetHostPath())
		if err != nil {
			return nil, invalid(field+"host_path", "%v", err)
		}
		if err := checkPropagation(field, path, m.GetPropagation()); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func checkPropagation(field, path string, want runtimeapi.MountPropagation) error {
	if want == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	is, err := oci.PropagationOf(path)
	switch {
	case err != nil:
		return invalid(field+"host_path", "%v", err)
	case is.Shared || is.Slave && want == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return nil
	}
	return invalid(field+"propagation", "%s is on the mount %s, which is not shared; make it so with: mount --make-rshared %s", path, is.Mount, is.Mount)
}

// rootPropagation of the container's root: what is mounted in it cannot take
// part in more than the root does.
func rootPropagation(mounts []*runtimeapi.Mount) string {
	root := runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	for _, m := range mounts {
		root = max(root, m.GetPropagation())
	}
	if root == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return ""
	}
	return propagations[root]
}

// configMounts are the config's, parents before children. Of several at one path,
// however it is spelt, the last one is made: the others would be hidden beneath it.
func configMounts(config *runtimeapi.ContainerConfig, hostPaths []string) []specs.Mount {
	last := map[string]int{}
	for i, m := range config.GetMounts() {
		last[path.Clean(m.GetContainerPath())] = i
	}
	var list []specs.Mount
	for i, m := range config.GetMounts() {
		if last[path.Clean(m.GetContainerPath())] != i {
			continue
		}
		access := "rw"
		switch {
		case m.GetRecursiveReadOnly():
			access = "rro"
		case m.GetReadonly():
			access = "ro"
		}
		list = append(list, specs.Mount{
			Destination: path.Clean(m.GetContainerPath()),
			Type:        "bind",
			Source:      hostPaths[i],
			Options:     append([]string{"rbind", propagations[m.GetPropagation()], access}, m.GetMountOptions()...),
		})
		if m.GetImage() == nil { // a view has the ids of the pod's user namespace already
			last := &list[len(list)-1]
			last.UIDMappings, last.GIDMappings = mappings(m.GetUidMappings()), mappings(m.GetGidMappings())
		}
	}
	slices.SortStableFunc(list, func(a, b specs.Mount) int {
		return compareDepth(a.Destination, b.Destination)
	})
	return list
}

// compareDepth sorts clean absolute paths, parents before children.
func compareDepth(a, b string) int { return strings.Count(a, "/") - strings.Count(b, "/") }
