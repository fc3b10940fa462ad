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
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

// pullData pulls an image of two layers that has data for other images'
// programs, and one without any layer. It returns their ids, which is what the
// kubelet then mounts.
func (n *node) pullData(t *testing.T) (data, empty string) {
	t.Helper()
	owned := func(name string, mode int64, uid int) registry.Entry {
		e := registry.File(name, mode, name)
		e.Uid, e.Gid = uid, uid
		return e
	}
	n.registry.PushLayers(t, "data", [][]byte{
		registry.Layer(t, registry.Dir("tmp", 0o1777), registry.File("old", 0o644, ""), registry.Dir("opaque", 0o755), registry.File("opaque/hidden", 0o644, ""),
			owned("models/v1/weights", 0o644, 0), owned("models/v1/key", 0o600, 1000)),
		registry.Layer(t, registry.File(".wh.old", 0, ""), registry.Dir("opaque", 0o755), registry.File("opaque/.wh..wh..opq", 0, ""), registry.File("opaque/shown", 0o644, ""),
			registry.File("tmp/new", 0o644, ""), registry.Link("current", "/models/v1"), registry.Link("host", "/etc/hostname"), registry.Link("up", "../../../../../../etc"),
			registry.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "zero", Mode: 0o666, Devmajor: 1, Devminor: 5}}),
	}, ocispec.ImageConfig{}, "1")
	n.registry.PushLayers(t, "empty", nil, ocispec.ImageConfig{}, "1")
	return n.pull(t, n.registry.Host()+"/data:1"), n.pull(t, n.registry.Host()+"/empty:1")
}

// ofImage is a mount of an image as the kubelet asks for it.
func ofImage(image, subPath, at string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: at, Readonly: true, ImageSubPath: subPath,
		Image: &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: "as/written:1", Annotations: map[string]string{"of": "the pod"}}}
}

// An image is seen as its containers see it, read-only and executable, whole or
// in part, several times and by several containers; ContainerStatus tells which
// image it is.
func TestImageMounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		busybox := n.pull(t, n.busybox)
		data, empty := n.pullData(t)
		pod := n.runPod(t, podConfig(t, "web"))
		noexec := ofImage(busybox, "bin", "/noexec")
		noexec.MountOptions = []string{"noexec", "nosuid"}
		mounts := []*runtimeapi.Mount{
			ofImage(data, "current/weights", "/data/tmp/new"), ofImage(data, "", "/data"), ofImage(data, "current", "/models"),
			ofImage(n.busybox, "./bin//", "/programs"), noexec, ofImage(empty, "", "/empty"),
		}
		config := n.shell("main", `cd /data; stat -c '%n %a %F' * opaque/* tmp/*
			cat /models/weights /data/tmp/new; echo; ls /empty
			/programs/busybox echo executed; /noexec/busybox echo executed 2>/dev/null || echo noexec
			for f in /data/x /models/weights /programs/x /empty/x /data/tmp/new; do (: >>$f) 2>/dev/null && echo wrote $f; done
			mount -o remount,rw /data 2>/dev/null; mount -o remount,bind,rw /data 2>/dev/null; (: >/data/x) 2>/dev/null && echo wrote
			chmod 777 /data 2>/dev/null && echo changed
			for m in /data /models /programs /noexec /empty; do grep " $m " /proc/mounts | cut -d' ' -f4 | tr , '\n' | grep -E '^(no(suid|exec|dev)|ro|rw)$' | sort | tr '\n' ' '; done; echo`)
		config.Mounts = mounts
		id := n.startContainer(t, pod, config)
		c := n.exited(t, id)
		want := `current 777 symbolic link
host 777 symbolic link
models 755 directory
opaque 755 directory
tmp 1777 directory
up 777 symbolic link
zero 666 character special file
opaque/shown 644 regular empty file
tmp/new 644 regular file
models/v1/weightsmodels/v1/weights
executed
noexec
ro ro ro noexec nosuid ro ro 
`
		if got := n.output(t, id, "stdout"); got != want {
			t.Errorf("saw\n%s(%s), want\n%s", got, n.output(t, id, "stderr"), want)
		}
		ids := []string{data, data, data, busybox, busybox, empty}
		if len(c.GetMounts()) != len(mounts) {
			t.Fatalf("shows %v", c.GetMounts())
		}
		for i, m := range mounts {
			shown := proto.Clone(m).(*runtimeapi.Mount)
			shown.Image.ImageRef = ids[i]
			if !proto.Equal(c.GetMounts()[i], shown) {
				t.Errorf("shows %v, want %v", c.GetMounts()[i], shown)
			}
		}

		// Privileged, it can no more write than others.
		privileged := n.privilegedPod(t, "privileged")
		config = n.shell("all", `mount -o remount,rw /data 2>/dev/null; mount -o remount,bind,rw /data 2>/dev/null; (: >/data/x) 2>/dev/null && echo wrote; ls /data/opaque; ls /sub`)
		config.Linux.SecurityContext.Privileged = true
		config.Mounts = []*runtimeapi.Mount{ofImage(data, "", "/data"), ofImage(data, "opaque", "/sub")}
		id = n.startContainer(t, privileged, config)
		n.exited(t, id)
		if got := n.output(t, id, "stdout"); got != "shown\nshown\n" {
			t.Errorf("privileged, it said %q (%s)", got, n.output(t, id, "stderr"))
		}
		n.removePod(t, pod)
		n.removePod(t, privileged)
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// The image may go and all of Berth may die: what was mounted, or will be by a
// start, is there until the container is removed. Then nothing is left of it.
func TestMountedImageStays(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		data, empty := n.pullData(t)
		pod := n.runPod(t, podConfig(t, "web"))
		mounts := []*runtimeapi.Mount{ofImage(data, "models", "/models"), ofImage(empty, "", "/empty")}
		running, created := n.shell("running", forever), n.shell("created", "cat /models/v1/weights")
		running.Mounts, created.Mounts = mounts, mounts
		first := n.startContainer(t, pod, running)
		second := n.create(t, pod, created)
		n.removeImage(t, data)
		n.removeImage(t, empty)
		n.killDaemon(t)
		n.killRunner(t)
		n.startDaemon(t)
		if got := n.exec(t, first, "cat", "/models/v1/weights"); got != "models/v1/weights" {
			t.Errorf("exec: %q", got)
		}
		if got := n.container(t, second).GetMounts()[0].GetImage().GetImageRef(); got != data {
			t.Errorf("it shows %q, want %q", got, data)
		}
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: second}); err != nil {
			t.Fatal(err)
		}
		n.exited(t, second)
		if got := n.output(t, second, "stdout"); got != "models/v1/weights" {
			t.Errorf("started later, it said %q", got)
		}
		third := n.shell("third", "true")
		third.Mounts = mounts
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: third})
		expect.Code(t, "a removed image", err, codes.Unknown, "mounts[0].image", data)

		layers := func() int {
			found, err := filepath.Glob(filepath.Join(n.data, "layers/sha256/*"))
			if err != nil {
				t.Fatal(err)
			}
			return len(found)
		}
		if got := layers(); got != 3 {
			t.Errorf("%d layers, want busybox's and the data's two", got)
		}
		n.removePod(t, pod)
		if got := layers(); got != 1 {
			t.Errorf("%d layers are left, want busybox's", got)
		}
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// In a user namespace, an image has the owners that it names, whether the
// mount brings mappings, as the kubelet's do, or not.
func TestImageMountsInAUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		data, empty := n.pullData(t)
		config := usersOf(podConfig(t, "web"))
		pod := n.runPod(t, config)
		c := n.shell("main", `stat -c '%n %u:%g %a' /data /data/tmp /models/weights /models/key /file /empty; cat /models/key /file; (: >/data/x) 2>/dev/null && echo wrote; echo`)
		c.Mounts = []*runtimeapi.Mount{ofImage(data, "", "/data"), ofImage(data, "current", "/models"), ofImage(empty, "", "/empty")}
		c.Mounts[1].MountOptions = []string{"nosuid"}
		member(c, config)
		c.Mounts = append(c.Mounts, ofImage(data, "current/key", "/file"))
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		id := n.startContainer(t, pod, c)
		n.exited(t, id)
		want := "/data 0:0 755\n/data/tmp 0:0 1777\n/models/weights 0:0 644\n/models/key 1000:1000 600\n/file 1000:1000 600\n/empty 0:0 755\nmodels/v1/keymodels/v1/key\n"
		if got := n.output(t, id, "stdout"); got != want {
			t.Errorf("saw\n%s(%s), want\n%s", got, n.output(t, id, "stderr"), want)
		}
		n.removePod(t, pod)
		if left := mountsBelow(t, n.run); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
}

// What cannot be mounted is refused at create time by the name of its field, and
// leaves nothing. The kubelet knows by a word when it was the image's.
func TestInvalidImageMounts(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		data, _ := n.pullData(t)
		pod := n.runPod(t, podConfig(t, "web"))
		type mount = runtimeapi.Mount
		with := func(change func(*mount)) *mount {
			m := ofImage(data, "", "/data")
			change(m)
			return m
		}
		sub := func(path string) *mount { return ofImage(data, path, "/data") }
		for _, test := range []struct {
			mount *mount
			code  codes.Code
			parts []string
		}{
			{with(func(m *mount) { m.HostPath = "/tmp" }), codes.InvalidArgument, []string{"mounts[0].image", "host_path"}},
			{with(func(m *mount) { m.Readonly = false }), codes.InvalidArgument, []string{"mounts[0].readonly"}},
			{with(func(m *mount) { m.Propagation = hostToContainer }), codes.InvalidArgument, []string{"mounts[0].propagation"}},
			{with(func(m *mount) { m.Propagation = bidirectional }), codes.InvalidArgument, []string{"mounts[0].propagation"}},
			{with(func(m *mount) { m.Image.Image = "" }), codes.InvalidArgument, []string{"mounts[0].image"}},
			{with(func(m *mount) { m.MountOptions = []string{"rw"} }), codes.InvalidArgument, []string{"mounts[0].mount_options"}},
			{with(func(m *mount) {
				m.UidMappings = usersOf(podConfig(t, "u")).Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids
			}), codes.InvalidArgument, []string{"mounts[0].uidMappings"}},
			{with(func(m *mount) { m.ContainerPath = "/" }), codes.InvalidArgument, []string{"mounts[0].container_path"}},
			{&mount{ContainerPath: "/x", HostPath: "/tmp", ImageSubPath: "x"}, codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{sub("/models"), codes.InvalidArgument, []string{"mounts[0].image_sub_path", "/models"}},
			{sub("models/../models"), codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{sub(".."), codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{sub("a\x00b"), codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{sub("never/was"), codes.Unknown, []string{"mounts[0].image_sub_path", "never/was"}},
			{sub("models/v1/weights/x"), codes.Unknown, []string{"mounts[0].image_sub_path", "models/v1/weights/x"}},
			{sub("host"), codes.Unknown, []string{"mounts[0].image_sub_path", "host"}}, // on this machine it is there
			{sub("up/hostname"), codes.Unknown, []string{"mounts[0].image_sub_path", "up/hostname"}},
			{sub("zero"), codes.Unknown, []string{"mounts[0].image_sub_path", "zero"}},
			{sub(strings.Repeat("x", 300)), codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{sub(strings.Repeat("x/", 3000)), codes.InvalidArgument, []string{"mounts[0].image_sub_path"}},
			{ofImage("nobody/has:it", "", "/data"), codes.Unknown, []string{"mounts[0].image", "nobody/has:it"}},
			{ofImage("NOT A REF", "", "/data"), codes.Unknown, []string{"mounts[0].image", "NOT A REF"}},
			{ofImage("../../etc", "", "/data"), codes.Unknown, []string{"mounts[0].image"}},
		} {
			config := n.shell("bad", "true")
			config.Mounts = []*mount{test.mount}
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, test.mount.String(), err, test.code, test.parts...)
			if text := status.Convert(err).Message(); strings.HasPrefix(text, "ImageVolumeMountFailed: ") != (test.code == codes.Unknown) {
				t.Errorf("%v: %q", test.mount, text)
			}
		}
		config := n.shell("bad", "true")
		for i := range 33 {
			config.Mounts = append(config.Mounts, ofImage(fmt.Sprint("image-", i), "", fmt.Sprint("/", i)))
		}
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		expect.Code(t, "too many images", err, codes.InvalidArgument, "mounts", "33", "32")

		for _, dir := range []string{filepath.Join(n.run, "pods", pod, "c"), filepath.Join(n.data, "containers"), filepath.Join(n.data, "ingest")} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in %s: %v, %v", dir, left, err)
			}
		}
		// As many as there can be.
		config = n.shell("many", "cat /31/many")
		config.Mounts = nil
		for i := range 32 {
			name := fmt.Sprint("many", i)
			ref := n.registry.Push(t, name, registry.Layer(t, registry.File("many", 0o644, name)), ocispec.ImageConfig{})
			config.Mounts = append(config.Mounts, ofImage(n.pull(t, ref), "", fmt.Sprint("/", i)))
		}
		id := n.startContainer(t, pod, config)
		n.exited(t, id)
		if got := n.output(t, id, "stdout"); got != "many31" {
			t.Errorf("of 32 images it said %q (%s)", got, n.output(t, id, "stderr"))
		}
	})
}
