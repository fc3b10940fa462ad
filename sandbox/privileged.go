package sandbox

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/oci"
)

// privilege gives a container what CRI's privileged mode implies beyond all
// capabilities and no profile: nothing of /proc and /sys is hidden or read-only,
// and every device of the node is there and may be used.
func privilege(spec *specs.Spec, devices []specs.LinuxDevice) {
	for i, m := range spec.Mounts {
		if m.Type == "sysfs" || m.Type == "cgroup" {
			options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
			spec.Mounts[i].Options = append(options, "rw")
		}
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" && m.Type == "tmpfs" }) {
		return // its /dev is a directory of the config's: nothing is made there
	}
	for _, d := range devices {
		if !slices.ContainsFunc(spec.Linux.Devices, func(own specs.LinuxDevice) bool { return own.Path == d.Path }) {
			spec.Linux.Devices = append(spec.Linux.Devices, d)
		}
	}
}

// nodeDevices are all devices of the node but those that a container has of its
// own: terminals.
func nodeDevices() ([]specs.LinuxDevice, error) {
	devices, err := oci.Devices("/dev")
	return slices.DeleteFunc(devices, func(d specs.LinuxDevice) bool {
		return d.Path == "/dev/ptmx" || d.Path == "/dev/console"
	}), err
}
