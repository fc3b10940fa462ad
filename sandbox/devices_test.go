package sandbox

import (
	"fmt"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type dev = runtimeapi.Device

func TestCheckDevices(t *testing.T) {
	for _, tt := range []struct {
		field string
		d     *dev
	}{
		{"", &dev{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rwm"}},
		{"", &dev{HostPath: "/dev/fuse", ContainerPath: "/x", Permissions: "m"}},
		{"host_path", &dev{ContainerPath: "/x", Permissions: "r"}},
		{"host_path", &dev{HostPath: "/dev/../etc", ContainerPath: "/x", Permissions: "r"}},
		{"container_path", &dev{HostPath: "/dev/fuse", Permissions: "r"}},
		{"container_path", &dev{HostPath: "/dev/fuse", ContainerPath: "/", Permissions: "r"}},
		{"container_path", &dev{HostPath: "/dev/fuse", ContainerPath: "/dev/../../x", Permissions: "r"}},
		{"permissions", &dev{HostPath: "/dev/fuse", ContainerPath: "/x"}},
		{"permissions", &dev{HostPath: "/dev/fuse", ContainerPath: "/x", Permissions: "rwx"}},
		{"permissions", &dev{HostPath: "/dev/fuse", ContainerPath: "/x", Permissions: "rwmr"}},
	} {
		field := tt.field
		if field != "" {
			field = "devices[0]." + field
		}
		refused(t, checkDevices([]*dev{tt.d}), field)
	}
}

func TestHostDevices(t *testing.T) {
	got, err := hostDevices([]*dev{{HostPath: "/dev/null", ContainerPath: "/dev/zero2", Permissions: "r"}})
	if err != nil || len(got) != 1 || len(got[0]) != 1 || got[0][0].Path != "/dev/zero2" || got[0][0].Minor != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = hostDevices([]*dev{{HostPath: "/dev/null", ContainerPath: "/x"}, {HostPath: "/dev/full", ContainerPath: "/y"}, {HostPath: "/dev/zero", ContainerPath: "/x"}})
	if err != nil || len(got) != 3 || len(got[0]) != 0 || len(got[1]) != 1 || len(got[2]) != 1 || got[2][0].Minor != 5 {
		t.Errorf("one path twice: %+v, %v", got, err)
	}
	for field, list := range map[string][]*dev{
		"devices[0].host_path": {{HostPath: "/etc/passwd", ContainerPath: "/x"}},
		"devices[1].host_path": {{HostPath: "/dev/null", ContainerPath: "/x"}, {HostPath: filepath.Join(t.TempDir(), "never"), ContainerPath: "/y"}},
	} {
		_, err := hostDevices(list)
		refused(t, err, field)
	}
}

// Nothing is allowed but what the config names, with the access that it names.
func TestAllowedDevices(t *testing.T) {
	config := &ctrC{Devices: []*dev{{Permissions: "mr"}, {Permissions: "w"}}}
	facts := Facts{Devices: [][]specs.LinuxDevice{{{Type: "c", Major: 1, Minor: 2}, {Type: "b", Major: 3, Minor: 4}}, {{Type: "c", Major: 5, Minor: 6}}}}
	var got string
	for _, rule := range allowed(config, facts).Devices {
		got += fmt.Sprint(rule.Allow, " ", rule.Type, " ", deviceNumber(rule.Major), ":", deviceNumber(rule.Minor), " ", rule.Access, "\n")
	}
	if want := "false  any:any rwm\ntrue c 1:2 rm\ntrue b 3:4 rm\ntrue c 5:6 w\n"; got != want {
		t.Errorf("rules:\n%swant:\n%s", got, want)
	}
}

func deviceNumber(n *int64) string {
	if n == nil {
		return "any"
	}
	return fmt.Sprint(*n)
}
