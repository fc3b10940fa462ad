package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/image"
)

// Which of an image's volumes a container gets, and in which order.
func TestVolumesOf(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"real", "proc/self", "data/sub"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "/real", "trap": "/proc/self", "up": "../../..", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	many := []string{}
	for i := range maxVolumes + 1 {
		many = append(many, fmt.Sprint("/v", i))
	}
	for _, tt := range []struct {
		named  []string
		mounts []string
		want   string // "!": refused
	}{
		{nil, nil, ""},
		{[]string{"/data", "data/", "//data//.", "/never/there"}, nil, "/data /never/there"},
		{[]string{"/data/sub", "/data", "/a", "/link"}, nil, "/a /data /link /data/sub"},
		{[]string{"/data/sub", "/data", "/database"}, []string{"/data/"}, "/database"},
		{[]string{"/data", "/data/sub"}, []string{"/data/sub", "/data/sub/deeper"}, "/data"},
		{[]string{"/", "/..", "/proc", "/proc/../sys/fs/cgroup", "/dev/x", "/etc/hosts", "/etc", "/process", "/trap", "/up"}, nil, "/etc /process"},
		{[]string{"/../../etc/../real"}, nil, "/real"},
		{many, nil, "!"},
		{[]string{"/loop"}, nil, "!"},
		{[]string{"/a\x00b"}, nil, "!"},
		{[]string{"/" + strings.Repeat("x", 5000)}, nil, "!"},
	} {
		img := &image.Image{}
		img.Config.Config.Volumes = map[string]struct{}{}
		for _, name := range tt.named {
			img.Config.Config.Volumes[name] = struct{}{}
		}
		var mounts []*mount
		for _, at := range tt.mounts {
			mounts = append(mounts, &mount{ContainerPath: at})
		}
		got, err := volumesOf(img, mounts, root)
		if refused := tt.want == "!"; refused != errors.Is(err, image.ErrInvalidImage) || !refused && (err != nil || !slices.Equal(got, strings.Fields(tt.want))) {
			t.Errorf("%.200q under %q: %q, %v, want %q", tt.named, tt.mounts, got, err, tt.want)
		}
	}
}

// A start by the next daemon finds the same volumes, also when the image is gone.
func TestVolumesStay(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		p, err := m.runPod(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		m.world.images["busybox"].Config.Config.Volumes = map[string]struct{}{"/data": {}}
		c, err := p.CreateContainer(t.Context(), containerConfig("x"))
		if err != nil {
			t.Fatal(err)
		}
		spec, err := c.readSpec()
		if err != nil {
			t.Fatal(err)
		}
		if first := spec.Mounts[0]; first.Destination != "/data" || first.Source != c.oci().View(volumesView)+"/0" {
			t.Errorf("mounted first: %+v", first)
		}
		m.world.mu.Lock()
		delete(m.world.images, "busybox")
		m.world.mu.Unlock()
		m.crash()
		m.reopen()
		if err := m.container("x").Start(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
