package oci

import (
	"errors"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// Features are what pods may ask for that depends on the OCI runtime and the
// kernel.
type Features struct {
	RecursiveReadOnly  bool // a mount and all below it read-only: option "rro"
	MappedMountOptions bool // nosuid, nodev and noexec of a mount whose ids are mapped
}

// Features were found by Probe.
func (r *Runtime) Features() Features { return r.features }

// featuresOf reads what a runtime tells of itself (runtime-spec, features.md); nil:
// it does not.
func featuresOf(told *features.Features, q quirks) Features {
	return Features{
		RecursiveReadOnly:  told != nil && slices.Contains(told.MountOptions, "rro") && setsAttributes(),
		MappedMountOptions: !q.dropsMappedOptions,
	}
}

// setsAttributes asks the kernel for mount_setattr(2), without an attribute to
// change.
func setsAttributes() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}
