package conformance

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

// volumeImage names volumes: with content, in a directory that no layer has, and
// through a symlink.
func (n *node) volumeImage(t *testing.T) string {
	t.Helper()
	owned := func(e registry.Entry, id int) registry.Entry {
		e.Uid, e.Gid = id, id+1
		return e
	}
	return n.pullWith(t, "volumes", ocispec.ImageConfig{Volumes: map[string]struct{}{"/data/": {}, "/made/here": {}, "link": {}, "/data/sub": {}}},
		registry.Dir("proc", 0o755), owned(registry.Dir("data", 0o2770), 1000), owned(registry.File("data/f", 0o640, "of the image"), 7),
		registry.Link("data/out", "/etc/passwd"), registry.Dir("data/sub", 0o700), registry.File("data/sub/g", 0o600, "below"),
		registry.Dir("real", 0o750), registry.File("real/h", 0o644, "linked"), registry.Link("link", "/real"))
}

const lookAtVolumes = `stat -c '%n %u:%g %a' /data /data/f /data/sub/g /made/here /real /real/h; readlink /data/out; cat /data/f; echo
	for d in /data /data/sub /made/here /real; do touch $d/new && echo wrote $d; done; touch /new 2>/dev/null && echo wrote /`

const volumesAsTheyAre = `/data 1000:1001 2770
/data/f 7:8 640
/data/sub/g 0:0 600
/made/here 0:0 755
/real 0:0 750
/real/h 0:0 644
/etc/passwd
of the image
wrote /data
wrote /data/sub
wrote /made/here
wrote /real`

// The volumes of an image are there, with the owners and modes that the image has,
// also where no layer has the directory, and can be written to under a read-only
// root; each container has its own.
func TestImageVolumes(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.volumeImage(t)
		pod := n.runPod(t, podConfig(t, "web"))
		for i, readonly := range []bool{true, false, true} {
			got := n.says(t, pod, fmt.Sprint("c", i), lookAtVolumes, func(c *runtimeapi.ContainerConfig) {
				c.Image.Image = image
				c.Linux.SecurityContext.ReadonlyRootfs = readonly
			})
			want := volumesAsTheyAre
			if !readonly {
				want += "\nwrote /"
			}
			if got != want {
				t.Errorf("with a read-only root %v:\n%s\nwant\n%s", readonly, got, want)
			}
		}
	})
}

func TestImageVolumesInAUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.volumeImage(t)
		config := usersOf(podConfig(t, "web"))
		pod := n.runPod(t, config)
		got := n.says(t, pod, "main", lookAtVolumes, func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = image
			c.Linux.SecurityContext.ReadonlyRootfs = true
			member(c, config)
		})
		if got != volumesAsTheyAre {
			t.Errorf("the container says\n%s\nwant\n%s", got, volumesAsTheyAre)
		}
		written, err := filepath.Glob(filepath.Join(n.data, "containers", "*", "volumes", "*", "new"))
		if err != nil || len(written) == 0 {
			t.Fatalf("on the host: %v, %v", written, err)
		}
		for _, path := range written {
			if strings.Contains(path, "/volumes/0/") { // setgid
				wantHostOwner(t, path, hostUIDs, hostGIDs+1001)
			}
		}
	})
}

// A volume is on no overlay: overlayfs takes directories of it, as Docker in a
// container wants.
func TestImageVolumeTakesAnOverlay(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.volumeImage(t)
		pod := n.privilegedPod(t, "dind")
		got := n.says(t, pod, "main", `cd /made/here && mkdir lower upper work merged && touch lower/f &&
			mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && touch merged/g && rm merged/f && ls upper`, func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = image
			c.Linux.SecurityContext.Privileged = true
		})
		if got != "f\ng" {
			t.Errorf("an overlay in a volume: %s", got)
		}
	})
}

// What a container has written is there as long as the container, whatever dies,
// counts as written by it, and goes with it.
func TestImageVolumesLiveWithTheirContainer(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.volumeImage(t)
		pod := n.runPod(t, podConfig(t, "web"))
		config := n.shell("main", forever)
		config.Image.Image = image
		created := n.create(t, pod, config)
		n.killDaemon(t)
		n.killRunner(t)
		n.startDaemon(t)
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
			t.Fatal(err)
		}
		n.exec(t, created, "sh", "-c", "dd if=/dev/zero of=/made/here/big bs=1M count=5 2>/dev/null; rm /data/f")
		n.killDaemon(t)
		n.startDaemon(t)
		if got := n.exec(t, created, "sh", "-c", "stat -c %s /made/here/big; ls -A /data"); got != "5242880\nout\nsub" {
			t.Errorf("after a restart of Berth: %s", got)
		}
		eventually(t, "the volumes are counted", func() bool {
			resp, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: created})
			return err == nil && resp.GetStats().GetWritableLayer().GetUsedBytes().GetValue() >= 5<<20
		})
		// The kubelet's restart is another container.
		config = n.shell("main", "ls /made/here; cat /data/f")
		config.Image.Image, config.Metadata.Attempt, config.LogPath = image, 1, "main-1.log"
		again := n.startContainer(t, pod, config)
		n.exited(t, again)
		if got := n.output(t, again, "stdout"); got != "of the image" {
			t.Errorf("the next attempt says %q", got)
		}
		n.removePod(t, pod)
		left, err := filepath.Glob(filepath.Join(n.data, "containers", "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left on the host: %v, %v", left, err)
		}
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// A mount of the request stands in for the volumes at and below its path, however
// either is spelt, and nothing is made in it.
func TestMountReplacesImageVolume(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		image := n.volumeImage(t)
		pod := n.runPod(t, podConfig(t, "web"))
		host, linked := t.TempDir(), t.TempDir()
		writeHost(t, filepath.Join(host, "own"), "")
		writeHost(t, filepath.Join(linked, "own"), "")
		got := n.says(t, pod, "main", "ls -A /data /real", func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = image
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/data"}, {HostPath: linked, ContainerPath: "//real/", Readonly: true}}
		})
		if want := "/data:\nown\n\n/real:\nown"; got != want {
			t.Errorf("it sees %q, want %q", got, want)
		}
		if left, err := os.ReadDir(host); err != nil || len(left) != 1 {
			t.Errorf("on the host: %v, %v", left, err)
		}
	})
}

// Volumes of a hostile image are in its root or refused (CVE-2022-23648,
// CVE-2021-30465): nothing of the host is copied, mounted, made or opened.
func TestHostileImageVolumes(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		host := newCanary(t)
		up := "/../../../../../.." + string(host)
		many := map[string]struct{}{}
		for i := range 129 {
			many[fmt.Sprint("/v", i)] = struct{}{}
		}
		of := func(names ...string) map[string]struct{} {
			set := map[string]struct{}{}
			for _, name := range names {
				set[name] = struct{}{}
			}
			return set
		}
		zero := registry.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "data/zero", Mode: 0o666, Devmajor: 1, Devminor: 5}}
		pipe := registry.Entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "data/pipe", Mode: 0o666}}
		for name, test := range map[string]struct {
			volumes map[string]struct{}
			files   []registry.Entry
			refused bool
		}{
			"climbs":    {of(up, up+"/made", "../"+string(host)), nil, false},
			"linked":    {of("/c/made"), []registry.Entry{registry.Link("c", up), registry.Dir(strings.Trim(string(host), "/"), 0o755)}, false},
			"dangling":  {of("/a", "/b"), []registry.Entry{registry.Link("a", string(host)), registry.Link("b", up)}, false},
			"kernels":   {of("/", "/proc", "/proc/self/root", "/proc/1/root"+string(host), "/sys/fs/cgroup", "/dev", "/dev/shm/x", "/etc/hosts", "/.."), nil, false},
			"to proc":   {of("/a", "/b"), []registry.Entry{registry.Link("a", "/proc/self"), registry.Link("b", "/sys"), registry.Dir("proc/self", 0o755)}, false},
			"contents":  {of("/data"), []registry.Entry{registry.Dir("data", 0o755), registry.Link("data/host", string(host)), zero, pipe, registry.Dir("data/d", 0o755), registry.Link("data/d/up", up)}, false},
			"a file":    {of("/data"), []registry.Entry{registry.File("data", 0o644, "")}, true},
			"a device":  {of("/data/zero"), []registry.Entry{registry.Dir("data", 0o755), zero}, true},
			"a loop":    {of("/data"), []registry.Entry{registry.Link("data", "data")}, true},
			"too long":  {of("/" + strings.Repeat("x", 300)), nil, true},
			"too many":  {many, nil, true},
			"NUL bytes": {of("/data\x00/x"), nil, true},
		} {
			ref := n.hostileImage(t, strings.ToLower(strings.ReplaceAll(name, " ", "-")), ocispec.ImageConfig{Volumes: test.volumes}, test.files...)
			config := n.shell(strings.ReplaceAll(name, " ", "-"), fmt.Sprintf("ls -A %[1]s /a /b /c/made 2>/dev/null; cat %[1]s/file; ls -l /proc/self/ >/dev/null && echo alive", host))
			config.Image.Image = ref
			id, err := n.try(t, pod, config)
			if test.refused {
				expect.Code(t, name, err, codes.FailedPrecondition, "volume")
				continue
			}
			if err != nil && name == "dangling" && n.handler == "crun" { // which mounts on no such symlink
				host.check(t, name)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			n.exited(t, id)
			if got := n.output(t, id, "stdout"); strings.Contains(got, "untouched") || !strings.Contains(got, "alive") {
				t.Errorf("%s: it says %q (%s)", name, got, n.output(t, id, "stderr"))
			}
			host.check(t, name)
		}
	})
}
