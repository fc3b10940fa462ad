package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
)

func ofImage(name, subPath, at string) *mount {
	return &mount{ContainerPath: at, Readonly: true, Image: &runtimeapi.ImageSpec{Image: name}, ImageSubPath: subPath}
}

// Mounts of one image share a view, whatever is between them in the list; each
// has its place in it, and the runtime maps no ids.
func TestMountsOfImages(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		if err := os.Symlink("/etc", filepath.Join(m.world.rootFS, "link")); err != nil {
			t.Fatal(err)
		}
		pod := podConfig("a")
		podLinux(pod).SecurityContext.NamespaceOptions = &nsOpt{Pid: nsPod, UsernsOptions: usersOf(1<<20, 1<<16)}
		p, err := m.Run(t.Context(), RunRequest{Config: pod})
		if err != nil {
			t.Fatal(err)
		}
		config := containerConfig("x")
		config.Linux.SecurityContext = &ctrSC{NamespaceOptions: pod.Linux.SecurityContext.NamespaceOptions}
		config.Mounts = []*mount{ofImage("data", "", "/1"), {ContainerPath: "/2", HostPath: m.world.rootFS}, ofImage("data", "link/./passwd", "/3"), ofImage("busybox", "etc/", "/4")}
		for _, m := range config.Mounts {
			m.UidMappings, m.GidMappings = usersOf(1<<20, 1<<16).Uids, usersOf(1<<20, 1<<16).Gids
		}
		c, err := p.CreateContainer(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		data, busybox := m.world.images["data"].ID, m.world.images["busybox"].ID
		if n := len(m.world.views); n != 2 {
			t.Errorf("%d views: %v", n, keysOf(m.world.views))
		}
		spec, err := c.readSpec()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]specs.Mount{}
		for _, mount := range spec.Mounts {
			found[mount.Destination] = mount
		}
		for at, want := range map[string]string{
			"/1": c.oci().View(data.Encoded()), "/2": m.world.rootFS,
			"/3": c.oci().View(data.Encoded()) + "/etc/passwd", "/4": c.oci().View(busybox.Encoded()) + "/etc",
		} {
			if got := found[at]; got.Source != want || (len(got.UIDMappings) > 0) != (at == "/2") {
				t.Errorf("%s: source %s, want %s; mappings %v", at, got.Source, want, got.UIDMappings)
			}
		}
		for i, want := range []string{data.String(), "", data.String(), busybox.String()} {
			if got := c.Status().Mounts[i]; got.GetImage().GetImageRef() != want || got.GetContainerPath() != config.Mounts[i].ContainerPath {
				t.Errorf("mount %d: %v, want %s", i, got, want)
			}
		}
		if config.Mounts[0].Image.ImageRef != "" {
			t.Error("the config was changed")
		}

		// Without the image, and in another daemon.
		m.world.mu.Lock()
		delete(m.world.images, "data")
		m.world.mu.Unlock()
		m.crash()
		m.reopen()
		if err := m.container("x").Start(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// What is not there is an error that names it, of the image and not of a
// container that would be gone, and leaves nothing.
func TestMountsOfWhatIsNotThere(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		p, err := m.runPod(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			mount *mount
			is    error
		}{
			{ofImage("never", "", "/1"), image.ErrNotFound},
			{ofImage("data", "never", "/1"), fs.ErrNotExist},
		} {
			config := containerConfig("x")
			config.Mounts = []*mount{ofImage("data", "", "/0"), tt.mount}
			_, err := p.CreateContainer(t.Context(), config)
			if !errors.Is(err, ErrImageMount) || !errors.Is(err, tt.is) || errors.Is(err, ErrNotFound) {
				t.Errorf("%v: %v", tt.mount, err)
			}
			if held := m.held(); held != "namespaces 1, addresses 1" {
				t.Errorf("held: %s", held)
			}
		}
	})
}
