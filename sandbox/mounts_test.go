package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

const (
	private         = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	hostToContainer = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional   = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

func TestCheckMounts(t *testing.T) {
	able := &world{features: oci.Features{RecursiveReadOnly: true}}
	data := &runtimeapi.ImageSpec{Image: "data"}
	for i, tt := range []struct {
		field   string
		runtime *world
		m       *mount
	}{
		{"", able, &mount{}},
		{"", able, &mount{Propagation: hostToContainer, Readonly: true}},
		{"", able, &mount{Propagation: bidirectional}},
		{"propagation", able, &mount{Propagation: 3}},
		{"propagation", able, &mount{Propagation: -1}},
		{"host_path", able, &mount{HostPath: "relative"}},
		{"host_path", able, &mount{HostPath: "/a\x00b"}},
		{"container_path", able, &mount{ContainerPath: "/a\x00b"}},
		{"", able, &mount{RecursiveReadOnly: true, Readonly: true}},
		{"recursive_read_only", able, &mount{RecursiveReadOnly: true}},
		{"recursive_read_only", able, &mount{RecursiveReadOnly: true, Readonly: true, Propagation: hostToContainer}},
		{"recursive_read_only", &world{}, &mount{RecursiveReadOnly: true, Readonly: true}},
		{"", able, &mount{MountOptions: []string{"nosuid", "nodev", "noexec", "noexec"}}},
		{"mount_options", able, &mount{MountOptions: []string{"noexec", "suid"}}},
		{"mount_options", able, &mount{MountOptions: []string{"ro"}}},
		{"mount_options", able, &mount{MountOptions: []string{""}}},
		{"mount_options", able, &mount{MountOptions: []string{"noexec,suid"}}},
		{"mount_options", able, &mount{MountOptions: []string{"upperdir=/etc"}}},
		{"", able, &mount{Image: data, Readonly: true}},
		{"", able, &mount{Image: data, Readonly: true, ImageSubPath: "./a//b/..c/", MountOptions: []string{"noexec"}}},
		{"", able, &mount{Image: data, Readonly: true, RecursiveReadOnly: true}},
		{"recursive_read_only", &world{}, &mount{Image: data, Readonly: true, RecursiveReadOnly: true}},
		{"readonly", able, &mount{Image: data}},
		{"image", able, &mount{Image: data, Readonly: true, HostPath: "/y"}},
		{"propagation", able, &mount{Image: data, Readonly: true, Propagation: hostToContainer}},
		{"propagation", able, &mount{Image: data, Readonly: true, Propagation: 3}},
		{"image", able, &mount{Image: &runtimeapi.ImageSpec{UserSpecifiedImage: "data"}, Readonly: true}},
		{"image_sub_path", able, &mount{Image: data, Readonly: true, ImageSubPath: "/a"}},
		{"image_sub_path", able, &mount{Image: data, Readonly: true, ImageSubPath: "a/.."}},
		{"image_sub_path", able, &mount{Image: data, Readonly: true, ImageSubPath: "a\x00"}},
		{"image_sub_path", able, &mount{ImageSubPath: "a"}},
		{"mount_options", able, &mount{Image: data, Readonly: true, MountOptions: []string{"exec"}}},
	} {
		ps := testPods()
		ps.Runtimes["runc"] = tt.runtime
		if tt.m.HostPath == "" && tt.m.Image == nil {
			tt.m.HostPath = "/y"
		}
		if tt.m.ContainerPath == "" {
			tt.m.ContainerPath = "/x"
		}
		field := tt.field
		if field != "" {
			field = "mounts[1]." + field
		}
		c := containerConfig("x")
		c.Mounts = []*mount{{HostPath: "/y", ContainerPath: "/z"}, tt.m}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			refused(t, ps.newPod(newID(), RunRequest{Config: podConfig("a")}).validateContainer(c), field)
		})
	}
}

// The root of the container takes part in as much as the mount that takes part
// in most.
func TestMountsPropagate(t *testing.T) {
	for _, tt := range []struct {
		want   string
		mounts []*mount
	}{
		{"", nil},
		{"", []*mount{{Propagation: private}}},
		{"rslave", []*mount{{Propagation: private}, {Propagation: hostToContainer}}},
		{"rshared", []*mount{{Propagation: bidirectional}, {Propagation: hostToContainer}}},
	} {
		if got := rootPropagation(tt.mounts); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.mounts, got, tt.want)
		}
	}
	config := &ctrC{Mounts: []*mount{
		{ContainerPath: "/a/b", Propagation: bidirectional, MountOptions: []string{"noexec"}},
		{ContainerPath: "/a", Readonly: true, Propagation: hostToContainer},
		{ContainerPath: "/c", Readonly: true},
		{ContainerPath: "//c/./", Readonly: true, RecursiveReadOnly: true},
	}}
	var got []string
	for _, m := range configMounts(config, []string{"/1", "/2", "/hidden", "/3"}) {
		got = append(got, m.Source+" "+m.Destination+" "+strings.Join(m.Options, ","))
	}
	if want := []string{"/2 /a rbind,rslave,ro", "/3 /c rbind,rprivate,rro", "/1 /a/b rbind,rshared,rw,noexec"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A host path has to exist, and its symlinks are the host's to resolve.
func TestHostPaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "real", "file"), "")
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := hostPaths([]*mount{{Image: &runtimeapi.ImageSpec{}}, {HostPath: filepath.Join(dir, "link", "file")}})
	if err != nil || !slices.Equal(got, []string{"", filepath.Join(dir, "real", "file")}) {
		t.Errorf("%v, %v", got, err)
	}
	_, err = hostPaths([]*mount{{HostPath: dir}, {HostPath: filepath.Join(dir, "missing")}})
	refused(t, err, "mounts[1].host_path")
}
