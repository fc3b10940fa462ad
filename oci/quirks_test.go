package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

func TestQuirks(t *testing.T) {
	yes, no := true, false
	with := func(enabled *bool) *features.Features {
		return &features.Features{Linux: &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: enabled}}}}
	}
	silent := &features.Features{Linux: &features.Linux{}}
	for _, test := range []struct {
		version  string
		told     *features.Features
		noIDMaps bool
		old      bool // skips mounts below a mapped one, drops options of it
		noCgroup bool // no exec in a cgroup below the container's
	}{
		{version: "runc 1.5.0", told: with(&yes)},
		{version: "runc 1.5.0", told: with(&no), noIDMaps: true},
		{version: "runc 1.5.0", told: with(nil), noIDMaps: true},
		{version: "runc 1.1.0", told: silent, noIDMaps: true},
		{version: "runc 1.1.0", told: &features.Features{}, noIDMaps: true},
		{version: "runc 1.0.0", noIDMaps: true, noCgroup: true},
		{version: "crun 1.21", told: with(&yes)},
		{version: "crun 1.8.1", old: true},
		{version: "crun 1.8.7", told: silent, old: true},
		{version: "crun 1.9", told: silent, noIDMaps: true},
		{version: "crun 1.5", old: true},
		{version: "crun 1.4.5", noIDMaps: true, old: true},
		{version: "crun 1.4", noIDMaps: true, old: true},
		{version: "crun 0.20", noIDMaps: true, noCgroup: true},
		{version: "crun UNKNOWN", told: with(&yes), noCgroup: true},
		{version: "youki 0.5", noIDMaps: true, noCgroup: true},
	} {
		q := quirksOf(test.version, test.told)
		if (q.noIDMaps != "") != test.noIDMaps || q.skipsBelowMapped != test.old || q.dropsMappedOptions != test.old || q.noExecCgroup != test.noCgroup {
			t.Errorf("%s: %+v, want %+v", test.version, q, test)
		}
		if f := featuresOf(test.told, q); f.MappedMountOptions == test.old {
			t.Errorf("%s: options of mapped mounts: %v", test.version, f.MappedMountOptions)
		}
	}
}

func TestNoUserNamespacesWithoutIDMaps(t *testing.T) {
	r := &Runtime{Version: "old 0.1", quirks: quirks{noIDMaps: "it is old"}}
	if err := r.UserNamespaces(); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "old 0.1") {
		t.Errorf("got %v, want ErrNotSupported that names the runtime", err)
	}
}
