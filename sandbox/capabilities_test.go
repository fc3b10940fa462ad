package sandbox

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilities(t *testing.T) {
	available := testFacts().Capabilities
	for _, tt := range []struct {
		name                string
		add, drop, ambient  []string
		privileged          bool
		want                []string // that are there
		not                 []string // that are not
		n, inheritedAndKept int
	}{
		{name: "default", want: []string{"CAP_CHOWN", "CAP_AUDIT_WRITE"}, not: []string{"CAP_SYS_ADMIN"}, n: 14},
		{name: "add", add: []string{"net_admin", "CAP_SYS_TIME"}, want: []string{"CAP_NET_ADMIN", "CAP_SYS_TIME"}, n: 16},
		{name: "drop", drop: []string{"CHOWN", "cap_kill"}, not: []string{"CAP_CHOWN", "CAP_KILL"}, n: 12},
		{name: "drop all", drop: []string{"ALL"}, n: 0},
		{name: "drop all, add one", add: []string{"CHOWN"}, drop: []string{"all"}, want: []string{"CAP_CHOWN"}, n: 1},
		{name: "add all", add: []string{"ALL"}, want: []string{"CAP_SYS_ADMIN"}, not: []string{"CAP_SYS_RESOURCE"}, n: len(available)},
		{name: "add all, drop one", add: []string{"ALL"}, drop: []string{"SYS_ADMIN"}, not: []string{"CAP_SYS_ADMIN"}, n: len(available) - 1},
		{name: "ambient", ambient: []string{"KILL", "NET_ADMIN"}, want: []string{"CAP_KILL", "CAP_NET_ADMIN"}, n: 15, inheritedAndKept: 2},
		{name: "ambient, drop all", ambient: []string{"KILL"}, drop: []string{"ALL"}, want: []string{"CAP_KILL"}, n: 1, inheritedAndKept: 1},
		{name: "ambient all", ambient: []string{"ALL"}, drop: []string{"KILL"}, not: []string{"CAP_SYS_ADMIN"}, n: 13, inheritedAndKept: 13},
		{name: "privileged", privileged: true, drop: []string{"ALL"}, want: []string{"CAP_SYS_ADMIN"}, n: len(available)},
		{name: "privileged, ambient", privileged: true, ambient: []string{"KILL"}, n: len(available), inheritedAndKept: 1},
	} {
		got, err := capabilities(&ctrSC{
			Privileged:   tt.privileged,
			Capabilities: &runtimeapi.Capability{AddCapabilities: tt.add, DropCapabilities: tt.drop, AddAmbientCapabilities: tt.ambient},
		}, available)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if len(got.Bounding) != tt.n || !slices.Equal(got.Permitted, got.Bounding) || !slices.Equal(got.Effective, got.Bounding) {
			t.Errorf("%s: bounding %v, permitted %v, effective %v, want %d", tt.name, got.Bounding, got.Permitted, got.Effective, tt.n)
		}
		if len(got.Ambient) != tt.inheritedAndKept || !slices.Equal(got.Inheritable, got.Ambient) {
			t.Errorf("%s: ambient %v, inheritable %v, want %d", tt.name, got.Ambient, got.Inheritable, tt.inheritedAndKept)
		}
		for _, c := range tt.want {
			if !slices.Contains(got.Bounding, c) {
				t.Errorf("%s: no %s", tt.name, c)
			}
		}
		for _, c := range tt.not {
			if slices.Contains(got.Bounding, c) {
				t.Errorf("%s: %s", tt.name, c)
			}
		}
	}
	_, err := capabilities(&ctrSC{Capabilities: &runtimeapi.Capability{AddAmbientCapabilities: []string{"SYS_RESOURCE"}}}, available)
	refused(t, err, "linux.security_context.capabilities.add_ambient_capabilities")
}
