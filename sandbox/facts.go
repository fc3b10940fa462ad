package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
)

// Facts are what a spec needs to know of the host and of the image.
type Facts struct {
	Image        ocispec.ImageConfig // of it, labels and annotations are never instructions
	User         specs.User
	HostPaths    []string // of the config's mounts, in their order, symlinks resolved
	Hostname     string
	Capabilities []string // that the node can give
	NoFile       uint64
	OOMScoreAdj  int
}

// gather collects the facts for a container whose root is root, a detached
// mount.
func gather(config *runtimeapi.ContainerConfig, hostname string, img *image.Image, root *os.File, n node) (Facts, error) {
	facts := Facts{
		Image:        img.Config.Config,
		Hostname:     hostname,
		Capabilities: n.capabilities,
		NoFile:       n.noFile,
		OOMScoreAdj:  max(int(config.GetLinux().GetResources().GetOomScoreAdj()), n.leastOOM),
	}
	var err error
	if facts.HostPaths, err = hostPaths(config.GetMounts()); err != nil {
		return Facts{}, err
	}
	if facts.User, err = findUser(config.GetLinux().GetSecurityContext(), img.Config.Config.User, root); err != nil {
		return Facts{}, err
	}
	return facts, nil
}

func hostPaths(mounts []*runtimeapi.Mount) ([]string, error) {
	var paths []string
	for i, m := range mounts {
		path, err := filepath.EvalSymlinks(m.GetHostPath())
		if err != nil {
			return nil, invalid(fmt.Sprintf("mounts[%d].host_path", i), "%v", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
