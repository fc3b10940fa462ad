package sandbox

import (
	"context"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/oci"
)

// Facts are what a spec needs to know of the host and of the image.
type Facts struct {
	Image        ocispec.ImageConfig // of it, labels and annotations are never instructions
	User         specs.User
	HostPaths    []string // of the config's mounts, in their order, symlinks resolved; those of images are in their views
	OldFiles     bool     // the pod is of a Berth that kept its files beside the records: containers only read them
	Etc          etc      // where the config mounts something at /etc
	Volumes      []string // paths of the image's volumes that the container has
	Hostname     string
	Capabilities []string // that the node can give
	Rlimits      []specs.POSIXRlimit
	OOMScoreAdj  int
	Controls     oci.Controls
	Devices      [][]specs.LinuxDevice // of the config's devices, in their order, with their paths in the container

	SeccompProfile []byte              // JSON of the profile on the node that the config names
	AppArmor       string              // loaded profile; "": none
	ProcessLabel   string              // SELinux context of the process; "": none
	MountLabel     string              // SELinux context of files made for it; "": none
	NodeDevices    []specs.LinuxDevice // all of the node's, for a privileged container
}

// gather collects the facts for a container of pod whose root is root, a
// detached mount.
func gather(ctx context.Context, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig, hostname string, img *image.Image, root *os.File, n node) (Facts, error) {
	facts := Facts{
		Image:        img.Config.Config,
		Hostname:     hostname,
		Capabilities: n.capabilities,
		Rlimits:      n.rlimits,
		OOMScoreAdj:  int(n.effective(config.GetLinux().GetResources()).GetOomScoreAdj()),
		Controls:     n.controls,
	}
	var err error
	if facts.HostPaths, err = hostPaths(config.GetMounts()); err != nil {
		return Facts{}, err
	}
	if facts.Devices, err = hostDevices(config.GetDevices()); err != nil {
		return Facts{}, err
	}
	sc := config.GetLinux().GetSecurityContext()
	if facts.User, err = findUser(withPodGroups(sc, pod.GetLinux().GetSecurityContext()), img.Config.Config.User, root); err != nil {
		return Facts{}, err
	}
	if err := facts.confine(ctx, sc, n); err != nil {
		return Facts{}, err
	}
	if err := relabel(config.GetMounts(), facts.HostPaths, facts.MountLabel); err != nil {
		return Facts{}, err
	}
	return facts, nil
}

// confine adds what the host knows of the profiles and labels that sc asks for,
// and of the devices that a privileged container gets instead.
func (f *Facts) confine(ctx context.Context, sc *runtimeapi.LinuxContainerSecurityContext, n node) (err error) {
	if f.SeccompProfile, err = readSeccomp(sc); err != nil {
		return err
	}
	if f.AppArmor, err = n.appArmorProfile(ctx, sc); err != nil {
		return err
	}
	if f.ProcessLabel, f.MountLabel, err = n.selinuxLabels(sc); err != nil {
		return err
	}
	if sc.GetPrivileged() {
		f.NodeDevices, err = nodeDevices()
	}
	return err
}
