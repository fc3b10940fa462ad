package oci

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Features are what pods may ask for that depends on the OCI runtime.
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
		RecursiveReadOnly:  told != nil && slices.Contains(told.MountOptions, "rro"),
		MappedMountOptions: !q.dropsMappedOptions,
	}
}
