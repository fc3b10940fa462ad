package cri

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/registry"
)

// A number that is no uid must never become one by being cut to 32 bits: the
// kubelet decides by it whether a pod may run.
func TestImageUser(t *testing.T) {
	const noUID = -1
	for _, test := range []struct {
		user string
		uid  int64
		name string
	}{
		{"", 0, ""},
		{"0", 0, ""},
		{"1000", 1000, ""},
		{"1000:2000", 1000, ""},
		{"1:0", 1, ""},
		{"nobody", noUID, "nobody"},
		{"www-data:www-data", noUID, "www-data"},
		{"4294967295", 4294967295, ""},
		{"4294967296", noUID, "4294967296"},
		{"18446744073709551616", noUID, "18446744073709551616"},
		{"-1", noUID, "-1"},
		{"+5", noUID, "+5"},
		{"0x10", noUID, "0x10"},
		{"1_000", noUID, "1_000"},
		{":5", 0, ""},
	} {
		uid, name := imageUser(test.user)
		got := int64(noUID)
		if uid != nil {
			got = uid.GetValue()
		}
		if got != test.uid || name != test.name {
			t.Errorf("user %q: uid %d, name %q; want %d, %q", test.user, got, name, test.uid, test.name)
		}
		if (uid == nil) == (name == "") {
			t.Errorf("user %q: not exactly one of uid and name is set", test.user)
		}
	}
}

func TestImageIsTheSameByEveryName(t *testing.T) {
	n := newNode(t)
	byDigest := n.registry.Push(t, "web", registry.Layer(t, registry.File("name", 0o644, "web")), ocispec.ImageConfig{User: "1000:1000"}, "a", "b")
	tag := n.registry.Host() + "/web:"
	if img := n.imageStatus(t, tag+"a"); img != nil {
		t.Errorf("the image is there before it was pulled: %v", img)
	}
	var ids []string
	for _, ref := range []string{tag + "a", tag + "b", byDigest} {
		resp := must[*runtimeapi.PullImageResponse](t)(n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}))
		ids = append(ids, resp.GetImageRef())
	}
	first := n.imageStatus(t, ids[0])
	if first.GetId() != ids[0] || first.GetSize() == 0 || first.GetUid().GetValue() != 1000 || first.GetUsername() != "" {
		t.Errorf("image: %v", first)
	}
	if want := []string{tag + "a", tag + "b"}; !slices.Equal(first.GetRepoTags(), want) {
		t.Errorf("tags %q, want %q", first.GetRepoTags(), want)
	}
	if want := []string{byDigest}; !slices.Equal(first.GetRepoDigests(), want) {
		t.Errorf("digests %q, want %q", first.GetRepoDigests(), want)
	}
	for _, ref := range append(ids, tag+"a", tag+"b", byDigest, strings.TrimPrefix(ids[0], "sha256:")) {
		if img := n.imageStatus(t, ref); !proto.Equal(img, first) {
			t.Errorf("by %s: %v, want %v", ref, img, first)
		}
	}

	list := func(ref string) []*runtimeapi.Image {
		req := &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}}
		return must[*runtimeapi.ListImagesResponse](t)(n.images.ListImages(t.Context(), req)).GetImages()
	}
	for _, ref := range []string{"", tag + "b", byDigest, ids[0]} {
		if images := list(ref); len(images) != 1 || !proto.Equal(images[0], first) {
			t.Errorf("listed by %q: %v", ref, images)
		}
	}
	if images := list(tag + "c"); len(images) != 0 {
		t.Errorf("listed by a name that is not there: %v", images)
	}

	for range 2 {
		must[*runtimeapi.RemoveImageResponse](t)(n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: tag + "b"}}))
	}
	if images := list(""); len(images) != 0 {
		t.Errorf("removal by one tag left %v", images)
	}
}

func TestPullFailures(t *testing.T) {
	n := newNode(t)
	pull := func(ctx context.Context, ref string) error {
		_, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	}
	expect.Code(t, "an image that is not there", pull(t.Context(), n.registry.Host()+"/none:1"), codes.NotFound, "none:1")

	down := httptest.NewServer(nil)
	host := strings.TrimPrefix(down.URL, "http://")
	down.Close()
	err := pull(t.Context(), host+"/a:1")
	expect.Code(t, "a registry that is down", err, codes.Unknown)
	if msg := status.Convert(err).Message(); !strings.HasPrefix(msg, "RegistryUnavailable") {
		t.Errorf("the kubelet would not know %q", msg)
	}

	n.registry.Push(t, "torn", []byte("no tar"), ocispec.ImageConfig{}, "1")
	expect.Code(t, "an image that cannot be run", pull(t.Context(), n.registry.Host()+"/torn:1"), codes.FailedPrecondition, "torn:1", "invalid image")

	n.registry.Push(t, "busybox", registry.Layer(t, registry.File("name", 0o644, "busybox")), ocispec.ImageConfig{}, "1")
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	expect.Code(t, "a pull of a millisecond", pull(short, n.registry.Host()+"/busybox:1"), codes.DeadlineExceeded)
}

func TestImageFsInfo(t *testing.T) {
	n := newNode(t)
	n.pullBusybox(t)
	resp := must[*runtimeapi.ImageFsInfoResponse](t)(n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{}))
	for _, list := range [][]*runtimeapi.FilesystemUsage{resp.GetImageFilesystems(), resp.GetContainerFilesystems()} {
		if len(list) != 1 || list[0].GetUsedBytes() == nil || list[0].GetInodesUsed() == nil || list[0].GetTimestamp() == 0 {
			t.Fatalf("usage: %v", list)
		}
		if _, err := os.Stat(filepath.Join(list[0].GetFsId().GetMountpoint(), "images")); err != nil {
			t.Errorf("the mountpoint is not the store: %v", err)
		}
	}
	if resp.GetImageFilesystems()[0].GetUsedBytes().GetValue() == 0 {
		t.Errorf("an image takes nothing: %v", resp)
	}
}
