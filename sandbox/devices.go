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

// Every container has null, zero, full, random, urandom, tty, a /dev/pts of its
// own with ptmx and, with a terminal, console: the OCI runtime specification
// has the runtime make them and allow them. These are the others.

// maxDevices bounds what a directory of devices may hold.
const maxDevices = 4096

func checkDevices(devices []*runtimeapi.Device) error {
	for i, d := range devices {
		field := fmt.Sprintf("devices[%d].", i)
		if err := checkPath(field+"host_path", d.GetHostPath()); err != nil {
			return err
		}
		if target := d.GetContainerPath(); target == "/" {
			return invalid(field+"container_path", "is the root")
		} else if err := checkPath(field+"container_path", target); err != nil {
			return err
		}
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" || len(p) > 3 {
			return invalid(field+"permissions", "%.20q is not made of r, w and m", p)
		}
	}
	return nil
}

// hostDevices finds what the validated devices of a config are on this host, and
// gives them their paths in the container. Of several at one path, the last one is
// there.
func hostDevices(devices []*runtimeapi.Device) ([][]specs.LinuxDevice, error) {
	var all [][]specs.LinuxDevice
	count := 0
	for i, d := range devices {
		field := fmt.Sprintf("devices[%d].", i)
		found, err := oci.Devices(d.GetHostPath())
		if err != nil {
			return nil, invalid(field+"host_path", "%v", err)
		}
		for j := range found {
			below, err := filepath.Rel(d.GetHostPath(), found[j].Path)
			if err != nil {
				return nil, err
			}
			found[j].Path = path.Join(d.GetContainerPath(), below)
		}
		if count += len(found); count > maxDevices {
			return nil, invalid(field+"host_path", "more than %d devices", maxDevices)
		}
		all = append(all, found)
	}
	keepLast(all)
	return all, nil
}

// keepLast drops the devices whose paths are those of later ones, as with mounts.
func keepLast(lists [][]specs.LinuxDevice) {
	taken := map[string]bool{}
	for i, list := range slices.Backward(lists) {
		lists[i] = slices.DeleteFunc(list, func(d specs.LinuxDevice) bool {
			later := taken[d.Path]
			taken[d.Path] = true
			return later
		})
	}
}

// allowed is what the container's cgroup allows: no device but those of the
// config and the usual ones, and the config's limits.
func allowed(config *runtimeapi.ContainerConfig, facts Facts) *specs.LinuxResources {
	l := limits(config.GetLinux().GetResources(), facts.Controls)
	l.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for i, list := range facts.Devices {
		for _, d := range list {
			l.Devices = append(l.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: accessOf(config.GetDevices()[i].GetPermissions()),
			})
		}
	}
	return l
}

// accessOf is permissions in the order in which the kernel writes them.
func accessOf(permissions string) string {
	return string(slices.DeleteFunc([]byte("rwm"), func(c byte) bool { return !strings.ContainsRune(permissions, rune(c)) }))
}
