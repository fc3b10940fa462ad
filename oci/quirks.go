package oci

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// quirks is what an OCI runtime is known to do otherwise than the others; the zero
// value is one that does nothing of the kind. Probe finds it out, once.
//
// To add a runtime with a quirk: add a field that says what is different, so that
// whoever asks it needs no runtime's name; set it in quirksOf, by version or
// features; ask it where it matters; add it to TestQuirks. versionKeys of probe.go
// has the annotation by which a runtime tells its version, if there is one. What can be done for
// all runtimes alike because one of them needs it is no quirk: it is done without
// asking, and the comment there names the one.
type quirks struct {
	// noIDMaps is why it is not trusted with id mappings of mounts: one that does
	// not know them would mount without a word. Empty: it is.
	noIDMaps string
	// skipsBelowMapped: where it maps the ids of a mount, it leaves out the mounts
	// below that.
	skipsBelowMapped bool
	// dropsMappedOptions: nosuid, nodev and noexec of a mount whose ids it maps have
	// no effect.
	dropsMappedOptions bool
	// noExecCgroup: its exec does not take the name of a cgroup below the
	// container's.
	noExecCgroup bool
}

// quirksOf knows a runtime by what it says of itself, "crun 1.8.1", and by the
// features that it tells (runtime-spec, features.md); nil: it tells none.
func quirksOf(version string, told *features.Features) (q quirks) {
	number, crun := strings.CutPrefix(version, "crun ")
	n := versionNumbers(number)
	if crun && n[0] == 1 && n[1] < 9 {
		q.skipsBelowMapped, q.dropsMappedOptions = true, true
	}
	q.noExecCgroup = !knowsExecCgroup(version)
	switch {
	case told == nil && (!crun || n[0] == 0 || n[0] == 1 && n[1] < 5):
		q.noIDMaps = "it does not tell its features, and only crun since 1.5 is known to map the ids of mounts"
	case told != nil && !tellsIDMaps(told) && !q.skipsBelowMapped: // that one maps them and has not told it yet
		q.noIDMaps = "its features do not name idmap among the mount extensions"
	}
	return q
}

// knowsExecCgroup: no runtime tells it among its features.
func knowsExecCgroup(version string) bool {
	name, number, _ := strings.Cut(version, " ")
	since := map[string]string{"runc": "1.1.0", "crun": "1.3.0"}[name]
	return since != "" && older(since, number) == since
}

func tellsIDMaps(f *features.Features) bool {
	if f.Linux == nil || f.Linux.MountExtensions == nil || f.Linux.MountExtensions.IDMap == nil {
		return false
	}
	enabled := f.Linux.MountExtensions.IDMap.Enabled
	return enabled != nil && *enabled
}
