package oci

import (
	"encoding/json"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Features are what pods may ask for that depends on the OCI runtime and the
// kernel.
type Features struct {
	RecursiveReadOnly bool // a mount and all below it read-only: option "rro"
}

// Features were found by Probe.
func (r *Runtime) Features() Features { return r.features }

// readFeatures reads what `features` says (runtime-spec, features.md).
func readFeatures(said string) (f Features, newest string) {
	var s struct {
		OCIVersionMax string   `json:"ociVersionMax"`
		MountOptions  []string `json:"mountOptions"`
	}
	if json.Unmarshal([]byte(said), &s) != nil {
		return Features{}, ""
	}
	// Without an attribute to change, the call says only whether there is one.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	f.RecursiveReadOnly = slices.Contains(s.MountOptions, "rro") && !errors.Is(err, unix.ENOSYS)
	return f, s.OCIVersionMax
}
